"""Nodes, a database of each kind with an outbox in it, and a worker that does not wait for rows to grow old."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Engine, text

from kvcluster import Client
from kvcluster.cache.outbox import Message, Outbox
from kvcluster.cache.worker import Worker
from kvcluster.testing.nodes import RunningNode
from kvcluster.testing.plugin import NodeFactory
from tests.databases import Database


@pytest.fixture
def nodes(kv_nodes: NodeFactory) -> list[RunningNode]:
    """Three nodes."""
    return kv_nodes(3)


@pytest.fixture
def client(nodes: list[RunningNode]) -> Iterator[Client]:
    """A client of the three nodes."""
    with Client([node.address for node in nodes], timeout=5.0, connect_timeout=5.0) as client:
        yield client


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    """The database."""
    engine = database.engine()
    yield engine
    engine.dispose()


@pytest.fixture
def outbox(engine: Engine) -> Iterator[Outbox]:
    """An outbox in it."""
    outbox = Outbox(delay=0.01)
    with engine.begin() as connection:
        outbox.create(connection)
    yield outbox
    assert outbox.flush()


@pytest.fixture
def worker(client: Client, engine: Engine, outbox: Outbox) -> Worker:
    """A worker to which no row is too young."""
    return Worker(client, engine, outbox, age=0)


def write(engine: Engine, outbox: Outbox, *wires: bytes, stamps: tuple[bytes, ...] = ()) -> tuple[int, ...]:
    """A committed transaction that invalidates this."""
    with engine.begin() as connection:
        return outbox.write(connection, Message(wires, stamps))


def count(engine: Engine, outbox: Outbox) -> int:
    """How many rows there are."""
    with engine.connect() as connection:
        rows: int = connection.execute(text(f"SELECT count(*) FROM {outbox.table.name}")).scalar_one()
        return rows


def keys_of(client: Client, address: str, number: int) -> list[str]:
    """So many keys that a node owns."""
    keys = (f"key {n}" for n in range(10_000))
    owned = (key for key in keys if client.planner.address(client.planner.wire(key)) == address)
    return [key for key, _ in zip(owned, range(number), strict=False)]


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until something is so; 20 seconds at most."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
