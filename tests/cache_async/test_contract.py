"""What a cache does whether its calls are awaited or not: the same tests over both faces, on real nodes and in memory."""

from __future__ import annotations

import asyncio
import functools
import inspect
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker

from kvcluster import Cache
from kvcluster.errors import CallerError, ConfigurationError, IllegalKey, IllegalValue
from kvcluster.testing.plugin import NodeFactory
from tests.aio.loops import LOOPS
from tests.cache.shop import Base, User, engine_of

_fresh = itertools.count()


class Face:
    """A cache connected by URL, and how its calls are made: at once, or in a loop of this face's own."""

    def __init__(self, loop: str | None, url: str, path: Path) -> None:
        self.cache = Cache("shop", ttl="10m")
        self.cache.connect(url)
        self._runner = asyncio.Runner(loop_factory=LOOPS[loop]) if loop else None
        engine = engine_of(path)
        Base.metadata.create_all(engine)
        engine.dispose()
        self._engine: Any = create_async_engine(f"sqlite+aiosqlite:///{path}") if self._runner else engine_of(path)
        self.sessions: Any = async_sessionmaker(self._engine) if self._runner else sessionmaker(self._engine)

    @property
    def client(self) -> Any:
        return self.cache.async_client if self._runner else self.cache.client

    def function(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function as this face's loaders are."""
        if self._runner is None:
            return function

        @functools.wraps(function)
        async def coroutine(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            return await result if inspect.isawaitable(result) else result

        return coroutine

    def loader(self, key: str, function: Callable[..., Any], **options: Any) -> Any:
        return self.cache.loader(key, **options)(self.function(function))

    def __call__(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._runner is None:
            return call(*args, **kwargs)

        async def awaited() -> Any:
            return await call(*args, **kwargs)

        return self._runner.run(awaited())

    def at_once(self, *calls: Callable[[], Any]) -> list[Any]:
        """Make calls at the same time."""
        if self._runner is None:
            with ThreadPoolExecutor(len(calls)) as pool:
                return [future.result() for future in [pool.submit(call) for call in calls]]

        async def gathered() -> list[Any]:
            return await asyncio.gather(*[call() for call in calls])

        return self._runner.run(gathered())

    def write(self, change: Callable[[Any], Any]) -> None:
        """Change rows and commit."""
        if self._runner is None:
            with self.sessions.begin() as session:
                change(session)
            return

        async def written() -> None:
            async with self.sessions.begin() as session:
                await session.run_sync(change)

        self._runner.run(written())

    def close(self) -> None:
        if self._runner is None:
            self.client.close()
            self._engine.dispose()
            return

        async def closed() -> None:
            await self.client.close()
            await self._engine.dispose()
            await asyncio.sleep(0)

        with self._runner:
            self._runner.run(closed())


@pytest.fixture(params=["real-sync", "memory-sync", "real-asyncio", "memory-asyncio", "real-uvloop"])
def face(request: pytest.FixtureRequest, kv_nodes: NodeFactory, tmp_path: Path) -> Iterator[Face]:
    kind, loop = request.param.split("-")
    if kind == "real":
        url = f"memcached://{','.join(node.address for node in kv_nodes(3))}?timeout=5&connect_timeout=5"
    else:
        url = f"memory://contract-{next(_fresh)}"
    face = Face(None if loop == "sync" else loop, url, tmp_path / "shop.db")
    yield face
    face.close()


class Rows:
    """Rows, and how often each was loaded."""

    def __init__(self) -> None:
        self.rows: dict[int, Any] = {n: f"row {n}" for n in range(100)}
        self.loads: list[int] = []

    def load(self, id: int) -> Any:
        self.loads.append(id)
        return self.rows.get(id)


@pytest.fixture
def rows() -> Rows:
    return Rows()


def test_a_loader_runs_once_per_key_and_all_is_counted(face: Face, rows: Rows) -> None:
    load = face.loader("row:{id}", rows.load)
    assert [face(load, n % 5) for n in range(15)] == [f"row {n % 5}" for n in range(15)]
    assert [face(load, 500), face(load, id=500)] == [None, None]
    assert rows.loads == [0, 1, 2, 3, 4, 500]
    assert load.loads == 6
    counts = face.client.statistics().namespaces["shop"]
    assert (counts.hits, counts.misses, counts.sets, counts.deletes, counts.errors, counts.unstored) == (11, 6, 6, 0, 0, 0)


def test_invalidate_refresh_uncached_key(face: Face, rows: Rows) -> None:
    load = face.loader("row:{id}", rows.load)
    assert face(load, 1) == "row 1"
    rows.rows[1] = "new"
    assert (face(load, 1), face(load.uncached, 1), face(load, 1)) == ("row 1", "new", "row 1")
    face(load.invalidate, 1)
    assert face(load, 1) == "new"
    rows.rows[1] = "newer"
    assert face(load.refresh, 1) == "newer"
    assert face(load, 1) == "newer"
    assert load.key(1) == load.key(id=1) == "row:1"
    assert face.client.statistics().namespaces["shop"].deletes == 1


def test_a_load_that_an_invalidation_overtakes_is_not_stored(face: Face, rows: Rows) -> None:
    def overtaken(id: int) -> Any:
        before = rows.load(id)
        if len(rows.loads) > 1:
            return before
        rows.rows[id] = "new"
        forgetting = load.invalidate(id)

        async def later() -> Any:
            await forgetting
            return before

        return later() if inspect.isawaitable(forgetting) else before

    load = face.loader("row:{id}", overtaken)
    assert [face(load, 1), face(load, 1), face(load, 1)] == ["row 1", "new", "new"]
    assert rows.loads == [1, 1]
    assert face.client.statistics().namespaces["shop"].unstored == 1


def test_get_many_list_and_bulk(face: Face, rows: Rows) -> None:
    calls: list[tuple[list[int], str]] = []

    def bulk(ids: Any, lang: str = "ko") -> dict[int, str]:
        calls.append((sorted(ids), lang))
        return {id: f"{id} {lang}" for id in ids if id != 13}

    one_by_one = face.loader("row:{id}", rows.load)
    assert face(one_by_one.get_many, [3, 2, -1, 3]) == {3: "row 3", 2: "row 2", -1: None}
    assert face(one_by_one.list, [3, -1, 2, 3]) == ["row 3", "row 2", "row 3"]
    assert sorted(rows.loads) == [-1, 2, 3]
    load = face.loader("bulk:{row}:{lang}", lambda row, lang="ko": f"{row} {lang}")
    load.bulk(face.function(bulk))
    assert face(load, 1) == "1 ko"
    assert face(load.get_many, [1, 2, 13]) == {1: "1 ko", 2: "2 ko", 13: None}
    assert face(load.get_many, iter([1, 2]), lang="en") == face(load.get_many, [2, 1], "en") == {1: "1 en", 2: "2 en"}
    assert face(load, 13) is None
    assert (face(load.get_many, []), face(load.list, [])) == ({}, [])
    assert calls == [([2, 13], "ko"), ([1, 2], "en")]
    counts = face.client.statistics().namespaces["shop"]
    assert (counts.hits, counts.misses, counts.sets) == (3 + 1 + 2 + 1, 3 + 1 + 2 + 2, 3 + 1 + 2 + 2)


def test_callers_at_once_share_the_load(face: Face, rows: Rows) -> None:
    load = face.loader("row:{id}", rows.load)
    assert face.at_once(*[lambda: load(1)] * 16) == ["row 1"] * 16
    assert face.at_once(*[lambda first=first: load.get_many(range(first, first + 20)) for first in (10, 20, 10)])
    assert rows.loads[0] == 1
    assert sorted(rows.loads[1:]) == list(range(10, 40))


def test_a_loader_that_raises_is_asked_again(face: Face, rows: Rows) -> None:
    failures = [LookupError("one"), IllegalValue("two")]

    def failing(id: int) -> Any:
        if failures:
            raise failures.pop(0)
        return rows.load(id)

    load = face.loader("row:{id}", failing)
    load.bulk(face.function(lambda ids: {id: failing(id) for id in ids}))
    with pytest.raises(LookupError, match="one"):
        face(load, 1)
    with pytest.raises(IllegalValue, match="two"):
        face(load.get_many, [1, 2])
    assert face(load.get_many, [1, 2]) == {1: "row 1", 2: "row 2"}


def test_what_cannot_be_done_raises_before_anything_is_sent(face: Face, rows: Rows) -> None:
    load = face.loader("row:{id}", rows.load)
    own: Any = face.loader("loop:{n}", lambda n: own(n))
    none = face.loader("front", lambda: 1)
    with pytest.raises(IllegalKey):
        face(load, 1.5)
    with pytest.raises(IllegalKey):
        face(load.invalidate, [])
    with pytest.raises(CallerError, match="very key"):
        face(own, 1)
    for call in (lambda: face(none.get_many, [1]), lambda: none.bulk(face.function(lambda ids: {}))):
        with pytest.raises(ConfigurationError, match="no arguments"):
            call()
    assert rows.loads == []


def test_values_that_do_not_come_back_leave_no_placeholder(face: Face) -> None:
    values: list[Any] = [(1, 2), [1, 2]]
    load = face.loader("value", lambda: values.pop(0))
    with pytest.raises(IllegalValue, match="tuple"):
        face(load)
    assert face(load) == [1, 2]


def test_a_repository_and_commits(face: Face) -> None:
    face.cache.bind(face.sessions)
    users = face.cache.repository(User, face.sessions)
    assert face(users.get, 1) is None
    face.write(lambda session: session.add_all(User(id=n, name=f"user {n}") for n in range(1, 6)))
    found = face(users.get_many, [3, 1, 3, 9])
    assert {id: user and user.name for id, user in found.items()} == {3: "user 3", 1: "user 1", 9: None}
    assert [*found] == [3, 1, 9]
    assert [user.id for user in face(users.list, iter([9, 3, 1, 3]))] == [3, 1, 3]
    assert (face(users.get_many, []), face(users.list, [])) == ({}, [])

    def change(session: Any) -> None:
        session.get_one(User, 1).name = "changed"
        session.delete(session.get_one(User, 3))

    face.write(change)
    assert [user.name for user in face(users.list, [1, 3])] == ["changed"]
    face(users.invalidate, 1)
    assert face(users.refresh, 1).name == "changed"
    counts = face.client.statistics().namespaces["shop"]
    assert (counts.deletes, counts.errors, counts.unstored) == (5 + 2 + 1, 0, 0)
    assert users.loads == 1 + 1 + 1 + 1
