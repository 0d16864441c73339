"""Nodes that are gone or hang while tasks read through: the database answers, and no task waits longer than the node's timeout."""

from __future__ import annotations

import asyncio
import time

import pytest

from kvcluster import AsyncClient, Cache
from kvcluster.errors import DeleteFailed
from kvcluster.testing.nodes import RunningNode
from tests.aio.doubles import patient
from tests.aio.loops import until
from tests.cache_async.conftest import Run
from tests.client.cluster import ask


@pytest.fixture
def alone(node: RunningNode, run: Run) -> Cache:
    """A cache on one node that has just started, whose CAS numbers begin anew."""
    node.restart()
    client = patient([node.address])
    run.closing.append(client.close)
    return Cache("shop", ttl="10m", client=client)


@pytest.fixture
def impatient(node: RunningNode, run: Run) -> Cache:
    """A cache that gives the node a tenth of a second."""
    client = AsyncClient([node.address], timeout=0.1, connect_timeout=0.1)
    run.closing.append(client.close)
    return Cache("shop", ttl="10m", client=client)


def test_callers_of_a_node_that_is_gone_share_a_load(alone: Cache, node: RunningNode, run: Run) -> None:
    node.kill()
    loads: list[int] = []

    @alone.loader("hot")
    async def load() -> str:
        loads.append(1)
        await asyncio.sleep(0.05)
        return "value"

    async def main() -> None:
        assert await asyncio.gather(*[load() for _ in range(32)]) == ["value"] * 32

    run(main)
    assert len(loads) <= 2, "one for those who asked before it began, one for the rest"
    counts = alone.async_client.statistics().namespaces["shop"]
    assert (counts.sets, counts.hits) == (0, 0)
    assert counts.misses == 32
    assert counts.errors >= 32


def test_a_node_that_hangs(impatient: Cache, node: RunningNode, run: Run) -> None:
    @impatient.loader("row:{id}")
    async def load(id: int) -> str:
        return f"row {id}"

    async def main() -> None:
        assert await load(0) == "row 0"
        node.pause()
        began = time.monotonic()
        assert await asyncio.gather(*[load(id) for id in range(20)], load.list([1, 2])) == [
            *[f"row {id}" for id in range(20)],
            ["row 1", "row 2"],
        ]
        assert time.monotonic() - began < 5
        with pytest.raises(DeleteFailed):
            await load.invalidate(0)
        node.resume()

    run(main)


def test_a_fill_does_not_land_on_a_restarted_node_whose_cas_numbers_repeat(alone: Cache, node: RunningNode, run: Run) -> None:
    @alone.loader("row:{id}")
    async def load(id: int) -> str:
        first = ask(node.address, b"mg shop:row:1 v c N30\r\n")
        node.restart()
        assert ask(node.address, b"mg shop:row:1 v c N30\r\n")[:8] == first[:8]
        await alone.async_client.get("anything")  # opens a connection to the node as it is now
        return "old"

    assert run(lambda: load(1)) == "old"
    assert ask(node.address, b"mg shop:row:1 v\r\n").startswith(b"VA 0"), "the placeholder of somebody newer"
    assert alone.async_client.statistics().namespaces["shop"].unstored == 1


def test_a_winner_that_never_comes_back_is_taken_over(alone: Cache, node: RunningNode, run: Run) -> None:
    loads: list[int] = []

    @alone.loader("row:{id}")
    async def load(id: int) -> str:
        loads.append(id)
        return "value"

    async def main() -> None:
        await load(99)  # from now on it is known how short loads are
        for id in (1, 2):
            assert ask(node.address, b"mg shop:row:%d v N30\r\n" % id).startswith(b"VA 0 W")
        assert await asyncio.gather(*[load(1) for _ in range(8)]) == ["value"] * 8
        assert await load.list([2, 3]) == ["value"] * 2
        assert sorted(loads) == [1, 2, 3, 99]

    run(main)


def test_a_node_that_dies_while_tasks_wait_for_another_process(alone: Cache, node: RunningNode, run: Run) -> None:
    assert ask(node.address, b"mg shop:row:1 v N30\r\n").startswith(b"VA 0 W")

    @alone.loader("row:{id}")
    async def load(id: int) -> str:
        return "value"

    async def main() -> None:
        tasks = [asyncio.create_task(load(1)) for _ in range(4)]
        await until(lambda: alone.async_client.statistics().total.bytes_read > 60)
        node.kill()
        assert await asyncio.gather(*tasks) == ["value"] * 4

    run(main)
