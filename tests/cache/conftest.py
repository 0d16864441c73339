"""Four real nodes and a cache on them; and, for repositories, a SQLite database with events to look at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from kvcluster import Cache, Client
from kvcluster.testing.nodes import RunningNode
from kvcluster.testing.plugin import NodeFactory
from tests.cache.shop import Base, engine_of

PATIENT = 5.0  # seconds: only tests about timeouts have short ones, because the machine may be busy


@pytest.fixture
def nodes(kv_nodes: NodeFactory) -> list[RunningNode]:
    """Four nodes."""
    return kv_nodes(4)


@pytest.fixture
def client(nodes: list[RunningNode]) -> Iterator[Client]:
    """A client of the four nodes."""
    with Client([node.address for node in nodes], timeout=PATIENT, connect_timeout=PATIENT, pool_size=8) as client:
        yield client


@pytest.fixture
def cache(client: Client) -> Cache:
    """A cache on the four nodes."""
    return Cache("shop", ttl="10m", client=client)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """A SQLite database in WAL mode, with the tables of `tests.cache.shop`."""
    engine = engine_of(tmp_path / "shop.db")
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def sessions(engine: Engine) -> sessionmaker[Session]:
    """The factory of the program's sessions."""
    return sessionmaker(engine)
