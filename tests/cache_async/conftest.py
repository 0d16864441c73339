"""Caches whose calls are awaited, in asyncio's loop and in uvloop's; and a SQLite database behind them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from kvcluster import AsyncClient, Cache
from kvcluster.testing.nodes import RunningNode
from kvcluster.testing.plugin import NodeFactory
from tests.aio.doubles import patient
from tests.aio.loops import LOOPS, Loops
from tests.cache.shop import Base

T = TypeVar("T")


class Run:
    """Runs coroutine functions, each in a new loop; closes what was used there, and fails where one leaves anything behind."""

    def __init__(self, kind: str) -> None:
        self._loops = Loops(kind)
        self.closing: list[Callable[[], Awaitable[Any]]] = []

    def __call__(self, main: Callable[[], Awaitable[T]]) -> T:
        async def closed() -> T:
            try:
                return await main()
            finally:
                for close in self.closing:
                    await close()

        return self._loops(closed)


@pytest.fixture(params=list(LOOPS))
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a coroutine function in a loop of its own, of each kind."""
    return Run(request.param)


@pytest.fixture
def nodes(kv_nodes: NodeFactory) -> list[RunningNode]:
    """Four nodes."""
    return kv_nodes(4)


@pytest.fixture
def node(kv_nodes: NodeFactory) -> RunningNode:
    """One node."""
    (node,) = kv_nodes(1)
    return node


@pytest.fixture
def client(nodes: list[RunningNode], run: Run) -> AsyncClient:
    """A client of the four nodes."""
    client = patient([node.address for node in nodes])
    run.closing.append(client.close)
    return client


@pytest.fixture
def cache(client: AsyncClient) -> Cache:
    """A cache on the four nodes."""
    return Cache("shop", ttl="10m", client=client)


@pytest.fixture
def engine(tmp_path: Path, run: Run) -> AsyncEngine:
    """A SQLite database in WAL mode, with the tables of `tests.cache.shop`."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}", connect_args={"timeout": 30})

    @event.listens_for(engine.sync_engine, "connect")
    def _(connection: Any, record: object) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=OFF")

    async def create() -> None:
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)

    run.closing.append(engine.dispose)
    run(create)
    return engine


@pytest.fixture
def sessions(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    """The factory of the program's sessions."""
    return async_sessionmaker(engine)
