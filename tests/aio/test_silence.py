"""A node that does not answer: who fails, how often the node is judged by it, and how it comes back."""

from __future__ import annotations

import asyncio
import time

import pytest

from kvcluster import AsyncClient
from kvcluster.errors import DeleteFailed, NodeDown, NodeTimeout
from kvcluster.testing.clock import Clock
from kvcluster.testing.plugin import NodeFactory
from kvcluster.testing.proxy import FaultProxy
from tests.aio.doubles import Clocked, Peer, ScriptedNode, answers, patient, without_opaque
from tests.aio.loops import Loops, turns, until

TIMEOUT = 0.1
PROBE = 1.5  # seconds after which a node that went down is probed, whatever chance adds


def test_a_node_hangs_goes_down_and_comes_back(run: Loops, kv_nodes: NodeFactory) -> None:
    node, well = kv_nodes(2)
    clock = Clock()

    async def main() -> None:
        async with Clocked([node.address, well.address], clock, timeout=TIMEOUT) as client:
            keys = [f"key:{number}" for number in range(1000)]
            assert await client.set_many({key: key for key in keys}) == []
            owned = [key for key in keys if client.planner.address(key.encode()) == node.address]
            others = [key for key in keys if key not in owned]
            node.pause()

            calls = await asyncio.gather(
                *map(client.get, owned[:500]),
                client.set(owned[0], "new"),
                client.delete(owned[1]),
                client.get_many(keys),
                return_exceptions=True,
            )
            *values, was_set, deleted, many = calls
            assert values == [None] * len(owned[:500])
            assert was_set is False
            assert isinstance(deleted, DeleteFailed)
            assert deleted.keys == (owned[1],)
            assert isinstance(deleted.causes[node.address], NodeTimeout)
            assert many == {key: key for key in others}
            assert f"{node.address} up, 1 missed deletes" in repr(client)
            assert client.statistics().nodes[node.address].errors == len(values) + 3

            with pytest.raises(DeleteFailed) as caught:
                await client.delete(owned[2])
            assert isinstance(caught.value.causes[node.address], NodeTimeout)
            assert f"{node.address} down, 2 missed deletes" in repr(client)
            with pytest.raises(DeleteFailed) as caught:
                await client.delete(owned[3])
            assert isinstance(caught.value.causes[node.address], NodeDown)

            clock.advance(PROBE)
            assert await client.get(owned[4]) is None  # the probe
            assert f"{node.address} down, 3 missed deletes" in repr(client)

            node.resume()
            assert await client.get(owned[4]) is None
            clock.advance(2 * PROBE)
            assert await client.get(owned[4]) == owned[4]
            assert f"{node.address} up, 0 missed deletes" in repr(client)
            assert await client.get_many(owned[1:4]) == {}

    run(main)


def test_one_silent_connection_is_one_timeout(run: Loops) -> None:
    async def main() -> None:
        async with ScriptedNode(lambda peer, data: None) as node, AsyncClient([node.address], timeout=0.03) as client:
            results = await asyncio.gather(*(client.get(f"{number}") for number in range(500)))
            assert results == [None] * 500
            assert len(node.peers) == 1
            assert f"{node.address} up" in repr(client)
            assert client.statistics().total.errors == client.statistics().total.misses == 500
            await client.get("k")
            assert f"{node.address} down" in repr(client)
            assert len(node.peers) == 2

    run(main)


def test_missed_deletes_are_sent_once_and_before_all_else(run: Loops) -> None:
    clock = Clock()

    async def main() -> None:
        well = False

        def answer(peer: Peer, data: bytes) -> None:
            if well:
                peer.transport.write(answers(data))

        async with ScriptedNode(answer) as node, Clocked([node.address], clock, timeout=0.03) as client:
            keys = [f"key:{number}" for number in range(250)]
            for _ in range(2):
                with pytest.raises(DeleteFailed):
                    await client.delete_many(keys)
            well = True
            clock.advance(PROBE)
            assert await client.get("k") is None  # the probe
            node.received = b""
            await asyncio.gather(*map(client.get, "abc"))
            assert b"md" not in node.received
            assert without_opaque(node.peers[-1].received).startswith(
                b"".join(b"md key:%d\r\n" % number for number in range(250)) + b"get k\r\n"
            )

    run(main)


def test_many_callers_wait_for_one_replay(run: Loops) -> None:
    async def main() -> None:
        well = False

        def answer(peer: Peer, data: bytes) -> None:
            if well:
                peer.transport.write(answers(data))

        async with ScriptedNode(answer) as node, AsyncClient([node.address], timeout=0.03) as client:
            with pytest.raises(DeleteFailed):
                await client.delete_many([f"key:{number}" for number in range(250)])
            well = True
            assert await asyncio.gather(*(client.get(f"{number}") for number in range(200))) == [None] * 200
            assert node.peers[-1].received.count(b"md ") == 250
            assert node.peers[-1].received.rindex(b"md ") < node.peers[-1].received.index(b"get ")

    run(main)


def test_a_replay_that_gets_no_reply_fails_the_reads_as_misses(run: Loops) -> None:
    async def main() -> None:
        def answer(peer: Peer, data: bytes) -> None:
            if peer.number:
                peer.transport.write(b"what?\r\n")

        async with ScriptedNode(answer) as node, AsyncClient([node.address], timeout=0.03) as client:
            with pytest.raises(DeleteFailed):
                await client.delete("k")
            assert await client.get("k") is None
            assert await client.get_many(["k"]) == {}
            assert f"{node.address} down, 1 missed deletes" in repr(client)

    run(main)


def test_a_slow_node_that_moves_is_not_late(run: Loops) -> None:
    async def main() -> None:
        reply = b"VALUE k 0 20\r\n01234567890123456789\r\nEND\r\n"

        def answer(peer: Peer, data: bytes) -> None:
            loop = asyncio.get_running_loop()
            for at in range(len(reply)):
                loop.call_later(at * TIMEOUT / 10, peer.transport.write, reply[at : at + 1])

        async with ScriptedNode(answer) as node, AsyncClient([node.address], timeout=TIMEOUT) as client:
            assert await client.get("k") == b"01234567890123456789"

    run(main)


def test_a_busy_loop_is_not_taken_for_a_silent_node(run: Loops, kv_nodes: NodeFactory) -> None:
    node = kv_nodes(1)[0]

    async def main() -> None:
        async with AsyncClient([node.address], timeout=0.05) as client:
            await client.set("k", 1)
            for _ in range(5):
                call = asyncio.create_task(client.get("k"))
                await turns(2)
                time.sleep(0.15)  # the application computes, while the reply waits in the kernel
                assert await call == 1
            assert client.statistics().total.errors == 0

    run(main)


def test_one_node_that_hangs_does_not_keep_the_others_waiting(run: Loops, kv_nodes: NodeFactory) -> None:
    first, second = kv_nodes(2)

    async def main() -> None:
        with FaultProxy(first.address) as held, FaultProxy(second.address) as other:
            async with patient([held.address, other.address]) as client:
                keys = [f"key:{number}" for number in range(20)]
                await client.get(next(key for key in keys if client.planner.address(key.encode()) == held.address))
                held.requests.stall()
                keys.sort(key=lambda key: client.planner.address(key.encode()) != held.address)  # the one that hangs is first
                call = asyncio.create_task(client.get_many(keys))
                await until(lambda: other.replies.passed)  # it was asked although the first has not answered
                held.requests.resume()
                assert await call == {}

    run(main)
