"""Callers that are cancelled, at each point of their way: nobody else waits for them, and nothing is left behind."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kvcluster import AsyncClient, Cache
from kvcluster.errors import DeleteFailed
from kvcluster.testing.nodes import RunningNode
from kvcluster.testing.proxy import FaultProxy
from tests.aio.doubles import patient
from tests.aio.loops import turns, until
from tests.cache_async.conftest import Run
from tests.client.cluster import ask


class Stuck:
    """A loader whose first calls never come back."""

    def __init__(self, cache: Cache, stuck: int = 1) -> None:
        self.loads: list[int] = []
        self.cancelled = 0

        async def function(id: int) -> str:
            self.loads.append(id)
            if len(self.loads) <= stuck:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    self.cancelled += 1
                    raise
            return f"row {id}"

        self.load = cache.loader("row:{id}")(function)


@pytest.fixture
def alone(node: RunningNode, run: Run) -> Cache:
    """A cache on one node."""
    client = patient([node.address])
    run.closing.append(client.close)
    return Cache("shop", ttl="10m", client=client)


def raw(node: RunningNode, id: int) -> bytes:
    return ask(node.address, b"mg shop:row:%d v\r\n" % id)


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


def test_a_cancelled_leader_gives_its_lease_back(alone: Cache, node: RunningNode, run: Run) -> None:
    stuck = Stuck(alone)

    async def main() -> None:
        leader = asyncio.create_task(stuck.load(1))
        await until(lambda: stuck.loads)
        assert raw(node, 1).startswith(b"VA 0"), "the placeholder"
        await cancelled(leader)
        assert raw(node, 1) == b"EN\r\n"
        assert await stuck.load(1) == "row 1"

    run(main)
    assert stuck.loads == [1, 1]


def test_followers_of_a_cancelled_leader_elect_another(alone: Cache, run: Run) -> None:
    stuck = Stuck(alone)

    async def main() -> None:
        leader = asyncio.create_task(stuck.load(1))
        await until(lambda: stuck.loads)
        followers = [asyncio.create_task(stuck.load(1)) for _ in range(20)]
        await turns(3)
        async with asyncio.timeout(1):  # waiting for a take-over would take 2 seconds, as no load was measured yet
            await cancelled(leader)
            assert await asyncio.gather(*followers) == ["row 1"] * 20

    run(main)
    assert stuck.loads == [1, 1]


def test_leaders_that_are_cancelled_one_after_another(alone: Cache, run: Run) -> None:
    stuck = Stuck(alone, stuck=5)

    async def main() -> None:
        callers = [asyncio.create_task(stuck.load(1)) for _ in range(8)]
        for number in range(5):
            await until(lambda number=number: len(stuck.loads) > number)
            (leader,) = [task for task in callers if leads(task)]
            callers.remove(leader)
            await cancelled(leader)
        assert await asyncio.gather(*callers) == ["row 1"] * 3

    def leads(task: asyncio.Task[Any]) -> bool:
        coroutine: Any = task.get_coro()
        names = []
        while coroutine is not None and hasattr(coroutine, "cr_await"):
            names.append(coroutine.__name__)
            coroutine = coroutine.cr_await
        return "function" in names

    run(main)
    assert stuck.loads == [1] * 6
    assert stuck.cancelled == 5


def test_a_cancelled_follower_bothers_nobody(alone: Cache, run: Run) -> None:
    loads: list[int] = []
    go = asyncio.Event()

    @alone.loader("row:{id}")
    async def load(id: int) -> str:
        loads.append(id)
        await go.wait()
        return "value"

    async def main() -> None:
        callers = [asyncio.create_task(load(1)) for _ in range(9)]
        await until(lambda: loads)
        await turns(3)
        for follower in callers[1::2]:
            await cancelled(follower)
        go.set()
        assert await asyncio.gather(*callers[::2]) == ["value"] * 5

    run(main)
    assert loads == [1]


def test_a_leader_that_is_cancelled_twice_strands_nobody(alone: Cache, run: Run) -> None:
    stuck = Stuck(alone)

    async def main() -> None:
        leader = asyncio.create_task(stuck.load(1))
        await until(lambda: stuck.loads)
        follower = asyncio.create_task(stuck.load(1))
        await turns(3)
        leader.cancel()
        await turns(1)
        await cancelled(leader)
        assert await follower == "row 1"

    run(main)


def test_a_task_group_that_fails(alone: Cache, run: Run) -> None:
    stuck = Stuck(alone)

    async def fail() -> None:
        await until(lambda: stuck.loads)
        await turns(2)
        raise LookupError("of another task")

    async def main() -> None:
        async def group_of_callers() -> None:
            async with asyncio.TaskGroup() as group:
                for _ in range(10):
                    group.create_task(stuck.load(1))
                group.create_task(fail())

        with pytest.raises(ExceptionGroup) as raised:
            await group_of_callers()
        assert [str(error) for error in raised.value.exceptions] == ["of another task"]
        async with asyncio.timeout(1):
            assert await stuck.load(1) == "row 1"

    run(main)
    assert len(stuck.loads) <= 12


def test_a_deadline_of_the_caller(alone: Cache, node: RunningNode, run: Run) -> None:
    stuck = Stuck(alone)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await stuck.load(1)
        assert raw(node, 1) == b"EN\r\n"

    run(main)


def test_get_many_gives_all_its_leases_back(cache: Cache, nodes: list[RunningNode], run: Run) -> None:
    started: list[int] = []

    @cache.loader("row:{id}")
    async def load(id: int) -> str:
        started.append(id)
        if len(started) <= 20:
            await asyncio.Event().wait()
        return f"row {id}"

    async def main() -> None:
        task = asyncio.create_task(load.get_many(range(20)))
        await until(lambda: len(started) == 20)
        await cancelled(task)
        assert all(raw(node, id) == b"EN\r\n" for node in nodes for id in range(20))
        assert await load.list(range(20)) == [f"row {id}" for id in range(20)]

    run(main)
    assert len(started) == 40


def test_one_of_many_that_fails_stops_the_others(cache: Cache, run: Run) -> None:
    stopped: list[int] = []

    @cache.loader("row:{id}")
    async def load(id: int) -> str:
        if id == 3:
            await asyncio.sleep(0)
            raise LookupError("three")
        try:
            await asyncio.sleep(30)
        finally:
            stopped.append(id)
        return "value"

    async def main() -> None:
        with pytest.raises(LookupError, match="three"):
            await load.get_many(range(8))
        assert sorted(stopped) == [0, 1, 2, 4, 5, 6, 7], "before the error is seen"

    run(main)


def test_a_loader_that_raises_a_group_raises_that(cache: Cache, run: Run) -> None:
    @cache.loader("row:{id}")
    async def load(id: int) -> str:
        raise ExceptionGroup("of the loader", [LookupError()])

    async def main() -> None:
        for call in (lambda: load(1), lambda: load.get_many([1])):
            with pytest.raises(ExceptionGroup, match="of the loader"):
                await call()

    run(main)


@pytest.mark.parametrize("when", range(6))
def test_cancelled_at_any_turn(alone: Cache, run: Run, when: int) -> None:
    """Also before the node's answer came, when nobody knows who won: the next caller takes over."""
    loads: list[int] = []

    @alone.loader("row:{id}")
    async def load(id: int) -> str:
        loads.append(id)
        await asyncio.sleep(0)
        return f"row {id}"

    async def main() -> None:
        await load(99)  # from now on it is known how short loads are
        for call in (lambda: load(1), lambda: load.get_many([2, 3])):
            task = asyncio.create_task(call())
            await turns(when)
            task.cancel()
            await asyncio.wait([task])
        async with asyncio.timeout(5):
            assert await load.list([1, 2, 3]) == ["row 1", "row 2", "row 3"]

    run(main)


# -- deletes


@pytest.mark.parametrize("reconnects", [False, True])
def test_an_invalidation_is_not_undone_by_a_cancellation(alone: Cache, node: RunningNode, run: Run, reconnects: bool) -> None:
    stuck = Stuck(alone, stuck=0)

    async def main() -> None:
        for when in range(4):
            assert await stuck.load(1) == "row 1"
            if reconnects:
                await alone.async_client.close()
            task = asyncio.create_task(stuck.load.invalidate(1))
            await turns(when)
            task.cancel()
            await asyncio.wait([task])
            if when:  # else it had not begun
                assert raw(node, 1) == b"EN\r\n", "gone before the caller goes on"

    run(main)


def test_an_invalidation_that_is_cancelled_and_fails_is_made_up_for(node: RunningNode, run: Run) -> None:
    with FaultProxy(node.address) as proxy:
        client = AsyncClient([proxy.address], timeout=0.1, connect_timeout=0.1)
        run.closing.append(client.close)
        cache = Cache("shop", ttl="10m", client=client)
        version = ["old"]

        @cache.loader("row:{id}")
        async def load(id: int) -> str:
            return version[0]

        async def main() -> None:
            assert await load(1) == "old"
            proxy.requests.drop = True
            version[0] = "new"
            task = asyncio.create_task(load.invalidate(1))
            await turns(3)
            await cancelled(task)
            with pytest.raises(DeleteFailed):
                await load.invalidate(1)
            proxy.requests.clear()
            async with asyncio.timeout(10):
                while await client.replay_deletes():  # a busy machine
                    pass
            assert await load(1) == "new"

        run(main)
