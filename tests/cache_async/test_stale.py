"""Stale values, timeouts and faults of loaders, by tasks on real nodes; as `tests.cache.test_stale`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from kvcluster import AsyncClient, Cache
from kvcluster.cache import aio
from kvcluster.cache.flights import LOADING
from kvcluster.errors import IllegalValue, LoaderTimeout
from tests.aio.loops import until as until_now
from tests.cache.shop import User
from tests.cache_async.conftest import Run
from tests.client.cluster import ask

SPAN: ContextVar[str] = ContextVar("span", default="none")


class Gated:
    """A loader that waits until it is let go, except for the loads that are let through at once."""

    def __init__(self, free: int = 0) -> None:
        self.go = asyncio.Event()
        self.free = free
        self.loads: list[Any] = []
        self.cancelled = 0
        self.value = "new"

    async def load(self, id: int) -> str:
        self.loads.append(id)
        try:
            if len(self.loads) > self.free:
                async with asyncio.timeout(30):
                    await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self.value


async def until(condition: Callable[[], Any]) -> bool:
    """Wait until a condition, which may be awaited, comes true."""
    async with asyncio.timeout(15):
        while True:
            result = condition()
            if await result if asyncio.iscoroutine(result) else result:
                return True
            await asyncio.sleep(0.01)


async def reads(load: Any, value: object) -> bool:
    return bool(await load(1) == value)


async def settled() -> None:
    """Wait until nothing is carried out beside the callers any more."""
    await until(lambda: not aio.beside())


async def aged(client: AsyncClient, key: str, left: int, value: str = "old") -> None:
    """Let there be a value that its node keeps for so many seconds more."""
    assert await client.set(f"shop:{key}", value, expire=left)


async def all_of(count: int, call: Callable[[], Any]) -> list[Any]:
    """The results, or errors, of as many calls at the same time."""
    return await asyncio.gather(*[call() for _ in range(count)], return_exceptions=True)


def counts(cache: Cache) -> Any:
    return cache.async_client.statistics().namespaces["shop"]


# -- stale while revalidate


def test_all_are_served_the_stale_value_while_one_refreshes_it(cache: Cache, client: AsyncClient, run: Run) -> None:
    gated = Gated()
    load = cache.loader("row:{id}", ttl=60, stale_while_revalidate=60, takeover=60)(gated.load)

    async def main() -> None:
        await aged(client, "row:1", 50)
        assert await all_of(16, lambda: load(1)) == ["old"] * 16
        await until_now(lambda: gated.loads)
        gated.go.set()
        assert await until(lambda: reads(load, "new"))
        await settled()

    run(main)
    assert gated.loads == [1]
    seen = counts(cache)
    assert (seen.sets, seen.refreshes, seen.misses, seen.takeovers) == (1, 1, 0, 0)
    assert seen.stale >= 16


def test_a_refresh_has_the_context_of_the_reader_and_none_of_its_loads(cache: Cache, client: AsyncClient, run: Run) -> None:
    seen: list[tuple[str, int]] = []

    @cache.loader("inner", ttl=60, stale_while_revalidate=60)
    async def inner() -> None:
        seen.append((SPAN.get(), len(LOADING.get())))

    @cache.loader("outer")
    async def outer() -> object:
        return [await inner(), len(LOADING.get())]

    async def main() -> None:
        await client.set("shop:inner", None, expire=50)
        SPAN.set("of the request")
        assert await outer() == [None, 1]
        await settled()

    run(main)
    assert seen == [("of the request", 1)], "its own key is all that it must not wait for"


def test_a_value_softly_invalidated_is_stale_and_a_hard_one_gone(cache: Cache, run: Run) -> None:
    gated = Gated(free=1)
    gated.value = "old"
    load = cache.loader("row:{id}", stale_while_revalidate=60, takeover=60)(gated.load)

    async def main() -> None:
        assert await load(1) == "old"
        gated.value = "new"
        await load.invalidate(1, soft=True)
        assert await load(1) == "old"
        gated.go.set()
        assert await until(lambda: reads(load, "new"))
        await settled()
        assert gated.loads == [1, 1]
        gated.value = "newer"
        await load.invalidate(1)
        assert await load(1) == "newer"

    run(main)


def test_an_early_refresh_by_a_winner_that_died_is_taken_over(cache: Cache, client: AsyncClient, run: Run) -> None:
    gated = Gated(free=9)
    load = cache.loader("row:{id}", ttl=60, stale_while_revalidate=60, takeover=0.2)(gated.load)

    async def main() -> None:
        await aged(client, "row:1", 50)
        address = client.planner.address(b"shop:row:1")
        assert b" W" in ask(address, b"mg shop:row:1 v c t R61\r\n"), "somebody wins, and never comes back"
        assert await load(1) == "old"
        assert await until(lambda: reads(load, "new"))
        await settled()

    run(main)
    assert gated.loads == [1]
    assert counts(cache).takeovers == 1


def test_a_refresh_under_way_when_the_loop_ends_is_cancelled(cache: Cache, client: AsyncClient, run: Run) -> None:
    gated = Gated()
    load = cache.loader("row:{id}", ttl=60, stale_while_revalidate=60, takeover=0.1)(gated.load)

    async def torn() -> None:
        await aged(client, "row:1", 50)
        assert await load(1) == "old"
        await until_now(lambda: gated.loads)
        for task in aio.beside():
            task.cancel()  # as asyncio.run does
        await settled()

    async def after() -> None:
        gated.go = asyncio.Event()
        gated.go.set()
        assert await until(lambda: reads(load, "new"))
        await settled()

    run(torn)
    assert gated.cancelled == 1
    run(after)
    assert gated.loads == [1, 1]


def test_more_refreshes_than_are_allowed_at_a_time_are_left_to_later_readers(
    cache: Cache, client: AsyncClient, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aio, "MOST_REFRESHES", 2)
    gated = Gated()
    load = cache.loader("row:{id}", ttl=60, stale_while_revalidate=60, takeover=60)(gated.load)

    async def main() -> None:
        for id in range(4):
            await aged(client, f"row:{id}", 50)
            assert await load(id) == "old"
        await until_now(lambda: len(gated.loads) == 2)
        gated.go.set()
        await settled()

    run(main)
    assert len(gated.loads) == 2


# -- faults


def test_a_loader_that_fails_serves_the_stale_value_and_else_its_own_error(cache: Cache, client: AsyncClient, run: Run) -> None:
    failing = [True]

    @cache.loader("row:{id}", ttl=60, stale_if_error=60)
    async def load(id: int) -> str:
        await asyncio.sleep(0)
        if failing[0]:
            raise LookupError("no database")
        return "new"

    async def main() -> None:
        await aged(client, "row:1", 50)
        assert await all_of(8, lambda: load(1)) == ["old"] * 8
        assert all(isinstance(result, LookupError) for result in await all_of(8, lambda: load(2)))
        assert await load.get_many([1]) == {1: "old"}
        with pytest.raises(LookupError):
            await load.get_many([1, 2])
        failing[0] = False
        assert await load.get_many([1, 2]) == {1: "new", 2: "new"}

    run(main)


def test_a_result_of_the_wrong_type_is_an_error_of_the_loader(cache: Cache, run: Run) -> None:
    results: list[Any] = [7, "right"]

    @cache.loader("row:{id}")
    async def load(id: int) -> str:
        return results.pop(0)  # type: ignore[no-any-return]

    async def main() -> None:
        with pytest.raises(IllegalValue, match=r"a int cannot be stored as the result of"):
            await load(1)
        assert await load(1) == "right", "nobody waited for a lease"

    run(main)


def test_while_the_database_is_down_rows_are_served_stale(
    cache: Cache, run: Run, sessions: async_sessionmaker[AsyncSession]
) -> None:
    down = [False]

    @event.listens_for(sessions.kw["bind"].sync_engine, "before_cursor_execute")
    def _(*rest: object) -> None:
        if down[0]:
            raise OperationalError("SELECT", {}, ConnectionError("the database is down"))

    users = cache.repository(User, sessions, ttl=60, stale_if_error=60)

    async def main() -> None:
        async with sessions.begin() as session:
            session.add_all(User(id=id, name=f"user {id}") for id in (1, 2))
        assert (await users.get(1)).name == "user 1"  # type: ignore[union-attr]
        await users.invalidate(1, soft=True)
        down[0] = True
        assert (await users.get(1)).name == "user 1"  # type: ignore[union-attr]
        assert [user.name for user in await users.list([1])] == ["user 1"]
        with pytest.raises(OperationalError, match="the database is down"):
            await users.get(2)
        down[0] = False
        assert [user.name for user in await users.list([1, 2])] == ["user 1", "user 2"]

    run(main)
    assert counts(cache).stale == 2


def test_a_loader_that_hangs_strands_nobody_and_is_cancelled(cache: Cache, run: Run) -> None:
    gated = Gated()
    load = cache.loader("row:{id}", hard_timeout=0.3)(gated.load)

    async def main() -> None:
        results = await all_of(32, lambda: load(1))
        assert all(isinstance(result, LoaderTimeout) for result in results)
        await settled()
        with pytest.raises(LoaderTimeout):
            await load.get_many([1, 2, 3])
        await settled()
        gated.go.set()
        assert await load(1) == "new"
        assert await load.get_many([1, 2, 3]) == dict.fromkeys([1, 2, 3], "new")
        await settled()

    run(main)
    assert gated.cancelled == 4
    assert len(gated.loads) == 7
    assert counts(cache).timeouts >= 2


def test_after_the_soft_timeout_the_stale_value_is_served_and_the_load_fills(cache: Cache, client: AsyncClient, run: Run) -> None:
    gated = Gated()
    load = cache.loader("row:{id}", ttl=60, stale_if_error=60, soft_timeout=0.1, takeover=60)(gated.load)

    async def main() -> None:
        await aged(client, "row:1", 50)
        await aged(client, "row:2", 50)
        assert await all_of(8, lambda: load(1)) == ["old"] * 8
        assert await load.get_many([1, 2]) == {1: "old", 2: "old"}
        gated.go.set()
        await settled()
        assert await load.get_many([1, 2]) == {1: "new", 2: "new"}

    run(main)
    assert sorted(gated.loads) == [1, 2]


def test_a_caller_cancelled_while_its_load_runs_beside_it_does_not_end_it(cache: Cache, run: Run) -> None:
    gated = Gated()
    load = cache.loader("row:{id}", hard_timeout=20)(gated.load)

    async def main() -> None:
        caller = asyncio.create_task(load(1))
        await until_now(lambda: gated.loads)
        follower = asyncio.create_task(load(1))
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.wait([caller])
        gated.go.set()
        assert await follower == "new"
        assert await load(1) == "new"

    run(main)
    assert gated.loads == [1]
    assert gated.cancelled == 0


def test_many_without_a_bulk_loader_are_each_stored_when_they_are_loaded(cache: Cache, client: AsyncClient, run: Run) -> None:
    go = asyncio.Event()

    @cache.loader("row:{id}")
    async def load(id: int) -> str:
        if id == 9:
            await go.wait()
        return f"row {id}"

    async def main() -> None:
        many = asyncio.create_task(load.get_many([1, 9]))
        assert await until(lambda: stored(client, "shop:row:1")), "it does not wait for the slow one"
        go.set()
        assert await many == {1: "row 1", 9: "row 9"}

    run(main)


async def stored(client: AsyncClient, key: str) -> bool:
    return await client.get(key) is not None


def test_a_failure_among_many_ends_the_others_and_gives_all_leases_back(cache: Cache, client: AsyncClient, run: Run) -> None:
    failing = [True]

    @cache.loader("row:{id}")
    async def load(id: int) -> str:
        if failing[0]:
            await asyncio.sleep(0 if id == 1 else 30)
            raise LookupError("no database")
        return f"row {id}"

    async def main() -> None:
        with pytest.raises(LookupError):
            await load.get_many([1, 2, 3])
        failing[0] = False
        async with asyncio.timeout(1.5):  # a lease left behind would take 2 seconds, as no load was measured yet
            assert await load.list([1, 2, 3]) == ["row 1", "row 2", "row 3"]

    run(main)


# -- stamps and explanations


def test_a_tag_outdates_what_depends_on_it_and_nothing_else(cache: Cache, run: Run) -> None:
    loads: list[int] = []

    @cache.loader("row:{id}")
    async def load(id: int) -> int:
        loads.append(id)
        return len(loads)

    load.stamps_of = lambda arguments: (f"tag:{arguments['id'] % 2}", "tag:all")

    async def main() -> None:
        assert await load.list(range(8)) == [await load(id) for id in range(8)]
        await cache.invalidate_tag_async("1")
        values = await load.get_many(range(8))
        assert sorted(loads[8:]) == [1, 3, 5, 7]
        assert [await load(id) for id in range(8)] == [*values.values()]

    run(main)


def test_an_explanation_changes_nothing(cache: Cache, client: AsyncClient, run: Run) -> None:
    gated = Gated(free=9)
    load = cache.loader("row:{id}", ttl=60, stale_while_revalidate=60, l1=0.2)(gated.load)

    async def main() -> None:
        assert [(await load.explain(1)).origin for _ in range(2)] == ["absent"] * 2
        await aged(client, "row:1", 50)
        await load.invalidate(1, soft=True)
        assert [(await load.explain(1)).origin for _ in range(2)] == ["stale"] * 2
        assert gated.loads == []
        assert await load(1) == "old"
        assert await until(lambda: reads(load, "new"))
        await settled()
        assert (await load.explain(1)).origin == "l1"
        await asyncio.sleep(0.2)
        assert (await load.explain(1)).origin == "fresh"

    run(main)
