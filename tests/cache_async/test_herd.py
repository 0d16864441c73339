"""One load per key, however many tasks, threads and processes ask for it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from kvcluster import AsyncClient, Cache, Client
from kvcluster.errors import ConfigurationError
from kvcluster.testing.nodes import RunningNode
from tests.aio.doubles import PATIENT
from tests.aio.loops import until
from tests.cache.test_processes import SPAWN, addresses, end, running
from tests.cache_async import workers
from tests.cache_async.conftest import Run


def test_a_cold_key_is_loaded_once_for_128_tasks(cache: Cache, client: AsyncClient, run: Run) -> None:
    loads: list[int] = []
    go = asyncio.Event()

    @cache.loader("hot")
    async def load() -> str:
        loads.append(1)
        await go.wait()
        return "value"

    async def main() -> None:
        tasks = [asyncio.create_task(load()) for _ in range(128)]
        await until(lambda: loads)
        go.set()
        assert await asyncio.gather(*tasks) == ["value"] * 128

    run(main)
    assert loads == [1]
    counts = client.statistics().namespaces["shop"]
    assert (counts.hits, counts.misses, counts.sets, counts.errors) == (0, 128, 1, 0)


def test_followers_get_objects_of_their_own(cache: Cache, run: Run) -> None:
    @cache.loader("list")
    async def load() -> list[int]:
        await asyncio.sleep(0)
        return [1]

    async def main() -> None:
        results = await asyncio.gather(*[load() for _ in range(4)])
        assert results == [[1]] * 4
        assert len({id(result) for result in results}) == 4

    run(main)


def test_one_error_for_all_who_waited(cache: Cache, run: Run) -> None:
    loads: list[int] = []

    @cache.loader("hot")
    async def load() -> str:
        loads.append(1)
        await asyncio.sleep(0.01)
        raise LookupError("gone")

    async def main() -> None:
        results = await asyncio.gather(*[load() for _ in range(32)], return_exceptions=True)
        assert all(isinstance(result, LookupError) for result in results)

    run(main)
    assert loads == [1]


def test_threads_and_tasks_share_the_loads(nodes: list[RunningNode], run: Run) -> None:
    """Each face has its own function of the same key and a cache for it, so that only the nodes know of both."""
    url = f"memcached://{','.join(addresses(nodes))}?timeout={PATIENT}&connect_timeout={PATIENT}"
    ours = Cache("shop", ttl="10m")
    theirs = Cache("shop", ttl="10m")
    for cache in (ours, theirs):
        cache.connect(url)
    keys, loads = range(8), []
    gate = threading.Barrier(8 + 1)

    @theirs.loader("row:{id}")
    def load(id: int) -> str:
        loads.append(id)
        time.sleep(0.02)
        return f"row {id}"

    @ours.loader("row:{id}")
    async def load_async(id: int) -> str:
        loads.append(id)
        await asyncio.sleep(0.02)
        return f"row {id}"

    def read() -> list[str]:
        gate.wait(30)
        return [load(id) for id in keys]

    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        threads = [loop.run_in_executor(pool, read) for _ in range(8)]
        await asyncio.to_thread(gate.wait, 30)
        tasks = [asyncio.gather(*[load_async(id) for id in keys]) for _ in range(8)]
        many = load_async.list(keys)
        return await asyncio.gather(*threads, *tasks, many)

    run.closing.append(lambda: ours.async_client.close())
    with ThreadPoolExecutor(8) as pool:
        assert run(main) == [[f"row {id}" for id in keys]] * 17
    theirs.client.close()
    assert sorted(loads) == list(keys)


def test_a_blocking_call_in_the_loop_does_not_wait_for_a_task_of_that_loop(
    cache: Cache, nodes: list[RunningNode], run: Run
) -> None:
    """It cannot: the task goes on only when it has returned."""
    url = f"memcached://{','.join(addresses(nodes))}?timeout={PATIENT}&connect_timeout={PATIENT}"
    cache.connect(url)
    same = Cache(cache.namespace, ttl="10m")
    same.connect(url)
    go = asyncio.Event()
    started: list[int] = []
    blocking = same.loader("row:{n}")(lambda n: "blocking")

    @cache.loader("row:{id}")
    async def load(id: int) -> str:
        started.append(id)
        if id == 1:
            await go.wait()
        return "awaited"

    async def main() -> tuple[str, str]:
        await load(0)  # from now on it is known how short loads are
        blocking(2)
        task = asyncio.create_task(load(1))
        await until(lambda: 1 in started)
        result = blocking(1)
        go.set()
        return result, await task

    run.closing.append(lambda: cache.async_client.close())
    try:
        assert run(main) == ("blocking", "awaited")
    finally:
        same.client.close()


# -- processes


def test_a_cold_key_is_loaded_once_over_all_processes(nodes: list[RunningNode]) -> None:
    gate, loads, answers = SPAWN.Barrier(4), SPAWN.Value("i", 0), SPAWN.Value("i", 0)
    kinds = ["asyncio", "uvloop", "asyncio", "uvloop"]
    with running(*[(workers.herd, (kind, addresses(nodes), 32, gate, loads, answers, 0.2)) for kind in kinds]) as processes:
        end(processes)
    assert (loads.value, answers.value) == (1, 4 * 32)


def test_a_winner_that_is_killed_costs_one_more_load(nodes: list[RunningNode]) -> None:
    loading, go, ready = SPAWN.Event(), SPAWN.Event(), SPAWN.Semaphore(0)
    loads, answers = SPAWN.Value("i", 0), SPAWN.Value("i", 0)
    heirs = [(workers.heir, (kind, addresses(nodes), 8, go, ready, loads, answers, 0.3)) for kind in ("asyncio", "uvloop")]
    with running((workers.doomed, ("asyncio", addresses(nodes), loading, loads)), *heirs) as (winner, *others):
        assert loading.wait(30)
        for _ in others:
            assert ready.acquire(timeout=30)
        go.set()
        time.sleep(0.1)  # let some of them find the lease taken before its owner dies; either order must do
        winner.kill()
        end(others)
    assert (loads.value, answers.value) == (2, 2 * 8)


def test_a_winner_that_is_killed_in_an_early_refresh_costs_one_more_load(nodes: list[RunningNode]) -> None:
    loading, go, ready = SPAWN.Event(), SPAWN.Event(), SPAWN.Semaphore(0)
    loads, answers = SPAWN.Value("i", 0), SPAWN.Value("i", 0)
    with Client(addresses(nodes), timeout=PATIENT, connect_timeout=PATIENT) as client:
        assert client.set("herd:row:hot", "old", expire=60)
    readers = [(workers.reader, (kind, addresses(nodes), 8, go, ready, loads, answers, 0.3)) for kind in ("asyncio", "uvloop")]
    with running((workers.refresher, ("asyncio", addresses(nodes), loading, loads)), *readers) as (winner, *others):
        assert loading.wait(30)
        for _ in others:
            assert ready.acquire(timeout=30)
        winner.kill()
        go.set()
        end(others)
    assert (loads.value, answers.value) == (2, 2 * 8)


def test_a_live_winner_is_left_to_finish(nodes: list[RunningNode]) -> None:
    """With the default lease, and before anybody knows how long loads take."""
    gate, loads, answers = SPAWN.Barrier(2), SPAWN.Value("i", 0), SPAWN.Value("i", 0)
    kinds = ["asyncio", "uvloop"]
    with running(*[(workers.herd, (kind, addresses(nodes), 8, gate, loads, answers, 0.6)) for kind in kinds]) as processes:
        end(processes)
    assert (loads.value, answers.value) == (1, 2 * 8)


# -- loops


@pytest.mark.parametrize("memory", [False, True])
def test_one_cache_in_one_loop_after_another(nodes: list[RunningNode], run: Run, memory: bool) -> None:
    cache = Cache("shop", ttl="10m")
    cache.connect(f"memory://loops-{id(run)}" if memory else f"memcached://{','.join(addresses(nodes))}?timeout={PATIENT}")
    loads: list[int] = []

    @cache.loader("row:{id}")
    async def load(id: int) -> str:
        loads.append(id)
        await asyncio.sleep(0)
        return f"row {id}"

    async def main(number: int) -> None:
        async with cache.async_client:
            assert await asyncio.gather(load(number), load(number)) == [f"row {number}"] * 2
            assert await load.list(range(6)) == [f"row {id}" for id in range(6)]
            await load.invalidate(5)

    for number in range(3):
        run(lambda number=number: main(number))  # type: ignore[misc]
    assert sorted(loads) == [*range(6), 5, 5]


def test_a_loop_that_was_torn_down_leaves_no_key_behind(cache: Cache, run: Run) -> None:
    """The main task ends while another one loads; the runner cancels that."""
    loads: list[int] = []

    @cache.loader("row:{id}")
    async def load(id: int) -> str:
        loads.append(id)
        if len(loads) == 1:
            await asyncio.Event().wait()
        return "value"

    async def torn() -> None:
        task = asyncio.create_task(load(1))
        await until(lambda: loads)
        assert not task.done()

    asyncio.run(closing(torn, cache))
    assert run(lambda: load(1)) == "value"
    assert loads == [1, 1]


async def closing(main: Callable[[], Awaitable[None]], cache: Cache) -> None:
    """Close the client after the tasks that are left were cancelled, as an application's last step does."""

    async def last() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            while len(asyncio.all_tasks()) > 1:
                await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()})
            await cache.async_client.close()

    task = asyncio.create_task(last())
    await main()
    assert not task.done()


# -- what it was connected with


def test_each_kind_of_call_names_what_it_needs(nodes: list[RunningNode], run: Run) -> None:
    def load(id: int) -> int:
        return id

    async def load_async(id: int) -> int:
        return id

    cache = Cache("shop", ttl="10m")
    blocking, awaited = cache.loader("row:{id}")(load), cache.loader("line:{id}")(load_async)

    async def calls() -> list[str]:
        found = []
        for call in (lambda: awaited(1), lambda: awaited.list([1]), lambda: awaited.invalidate(1), lambda: awaited.refresh(1)):
            try:
                await call()
            except Exception as error:
                found.append(f"{type(error).__name__}: {error}")
        for sync in (lambda: blocking(1), lambda: blocking.list([1]), lambda: blocking.invalidate(1), lambda: blocking.refresh(1)):
            try:
                sync()
            except Exception as error:
                found.append(f"{type(error).__name__}: {error}")
        return found

    before = run(calls)
    assert len(before) == 8
    assert all("is not connected: call cache.connect('memcached://host:port" in message for message in before)
    with Client(addresses(nodes)) as client:
        cache.connect(client)
        wrong = run(calls)
    assert (
        wrong
        == ["ConfigurationError: cache 'shop' was not connected with an AsyncClient: cache.connect(url) serves both kinds"] * 4
    )
    cache.connect(AsyncClient(addresses(nodes)))
    run.closing.append(lambda: cache.async_client.close())
    wrong = run(calls)
    assert wrong == ["ConfigurationError: cache 'shop' was not connected with a Client: cache.connect(url) serves both kinds"] * 4


def test_what_is_no_client_at_all() -> None:
    for target in (42, object(), ["127.0.0.1:11211"]):
        with pytest.raises(ConfigurationError, match="a URL, a Client or an AsyncClient"):
            Cache("shop", ttl="10m").connect(target)  # type: ignore[arg-type]


def test_one_cache_in_two_loops_at_once(nodes: list[RunningNode]) -> None:
    cache = Cache("shop", ttl="10m")
    cache.connect(f"memcached://{','.join(addresses(nodes))}?timeout={PATIENT}&connect_timeout={PATIENT}")
    loads: list[int] = []
    gate = threading.Barrier(2)

    @cache.loader("row:{id}")
    async def load(id: int) -> int:
        loads.append(id)
        return id

    async def main() -> None:
        gate.wait(30)
        async with cache.async_client as client:
            for number in range(200):
                assert await load(number % 20) == number % 20
                await asyncio.sleep(0)
            gate.wait(30)
            assert client.statistics().total.errors == 0
            assert cache.async_client is client

    with ThreadPoolExecutor(2) as pool:
        for ended in [pool.submit(asyncio.run, main()) for _ in range(2)]:
            ended.result(60)
    assert set(loads) == set(range(20))
    assert len(loads) <= 40


async def name_in(session: object) -> str:
    return "of a session" if session is not None else "committed"


def test_what_an_open_session_sees_is_not_stored(cache: Cache, client: AsyncClient, run: Run) -> None:
    @cache.loader("name:{id}")
    async def name(id: int, *, session: object = None) -> str:
        return await name_in(session)

    async def main() -> None:
        assert await name(1, session="any") == await name.refresh(1, session="any") == "of a session"
        assert await name.get_many([1, 2], session="any") == {1: "of a session", 2: "of a session"}
        assert client.statistics().namespaces["shop"].unstored == 4
        assert await name(1) == "committed"

    run(main)
