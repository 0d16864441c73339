"""Nodes that go away, come back, or answer nonsense: reads miss or never notice, deletes raise, and no value gets a wrong key."""

from __future__ import annotations

import asyncio
import gc
import os
import socket

import pytest
from pymemcache.client.base import KeepaliveOpts

from kvcluster.errors import BadReply, DeleteFailed, NodeDown
from kvcluster.testing.plugin import NodeFactory
from kvcluster.testing.proxy import FaultProxy
from tests.addresses import refusing_address
from tests.aio.doubles import PATIENT, Peer, ScriptedNode, answers, memory_addresses, patient, without_opaque
from tests.aio.loops import Loops, turns, until


def test_the_restart_of_a_node_is_invisible_to_reads(run: Loops, kv_nodes: NodeFactory) -> None:
    node, other = kv_nodes(2)

    async def main() -> None:
        async with patient([node.address, other.address]) as client:
            keys = [f"key:{number}" for number in range(100)]
            await client.set_many({key: key for key in keys})
            await asyncio.to_thread(node.restart)
            values, found = await asyncio.gather(asyncio.gather(*map(client.get, keys)), client.get_many(keys))
            kept = {key: key for key in keys if client.planner.address(key.encode()) == other.address}
            assert values == [kept.get(key) for key in keys]
            assert found == kept
            assert client.statistics().total.errors == 0
            assert " down" not in repr(client)
            await asyncio.to_thread(node.restart)
            assert await client.delete_many(keys) is True  # a delete may be repeated too
            assert client.statistics().total.errors == 0

    run(main)


def test_a_connection_that_worked_and_ends_with_calls_under_way_is_no_fault_of_the_nodes(run: Loops) -> None:
    async def main() -> None:
        def answer(peer: Peer, data: bytes) -> None:
            if b"gets b\r\n" in peer.received and peer.number == 0:
                peer.transport.write(b"END\r\n")  # the answer to the first of two
                peer.transport.close()
            else:
                peer.transport.write(b"END\r\n" * data.count(b"\n"))

        async with ScriptedNode(answer) as node, patient([node.address]) as client:
            assert await asyncio.gather(client.gets("a"), client.gets("b")) == [(None, None), (None, None)]
            assert client.statistics().total.errors == 0
            assert f"{node.address} up" in repr(client)
            assert len(node.peers) == 2

    run(main)


def test_a_repeated_read_is_repeated_once(run: Loops) -> None:
    async def main() -> None:
        def answer(peer: Peer, data: bytes) -> None:
            if b"bad" in data:
                peer.transport.write(b"END\r\n" * data.startswith(b"get good"))
                peer.transport.close()
            else:
                peer.transport.write(b"END\r\n")

        async with ScriptedNode(answer) as node, patient([node.address]) as client:
            await client.get("good")
            assert await asyncio.gather(client.gets("bad"), client.get("bad")) == [(None, None), None]
            assert len(node.peers) <= 3

    run(main)


def test_a_node_that_refuses_is_down_at_once(run: Loops) -> None:
    async def main() -> None:
        with refusing_address() as address:
            async with patient([address]) as client:
                assert await asyncio.gather(*map(client.get, "abc")) == [None, None, None]
                assert f"{address} down" in repr(client)
                assert await client.set("k", 1) is False
                with pytest.raises(DeleteFailed) as caught:
                    await client.delete("k")
                assert isinstance(caught.value.causes[address], NodeDown)
                assert client.statistics().total.errors == 5

    run(main)


def test_a_node_that_accepts_and_closes_is_down_at_once(run: Loops) -> None:
    async def main() -> None:
        with refusing_address() as address, FaultProxy(address) as proxy:
            for noreply in (False, True):
                async with patient([proxy.address]) as client:
                    await client.set("k", 1, noreply=noreply)
                    await until(lambda: "connected" not in repr(client) or "not connected" in repr(client))
                    await until(lambda: f"{proxy.address} down" in repr(client))

    run(main)


REPLY = b"VALUE a 0 5\r\nvalue\r\nVALUE c 16 4\r\ntext\r\nEND\r\n"


def test_a_reply_that_is_cut_at_any_byte_is_a_miss(run: Loops) -> None:
    async def main() -> None:
        cut = 0

        def answer(peer: Peer, data: bytes) -> None:
            peer.transport.write(REPLY[:cut])
            peer.transport.close()

        async with ScriptedNode(answer) as node:
            for cut in range(len(REPLY)):  # noqa: B007
                async with patient([node.address]) as client:
                    assert await client.get_many([*"abc"]) == {}
                async with patient([node.address]) as client:
                    assert await asyncio.gather(*map(client.get, "abc")) == [None] * 3

    run(main)


GARBAGE = [b"\0\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"VALUE x 0 1\r\nx\r\nEND\r\n", b"NOT\r\n", b"x" * 5000]


@pytest.mark.parametrize("garbage", [*GARBAGE, REPLY + b"END\r\n"])
def test_garbage_is_a_miss_and_ends_the_connection(run: Loops, garbage: bytes) -> None:
    async def main() -> None:
        async with ScriptedNode(lambda peer, data: peer.transport.write(garbage)) as node, patient([node.address]) as client:
            found = await client.get_many([*"abc"])
            assert found == ({"a": b"value", "c": "text"} if garbage.startswith(REPLY) else {})
            await asyncio.wait_for(node.peers[0].lost.wait(), PATIENT)
            with pytest.raises(DeleteFailed) as caught:
                await client.delete("k")
            assert isinstance(caught.value.causes[node.address], BadReply)
            assert (f"{node.address} down" in repr(client)) is (found == {})  # one that answered before is given another try

    run(main)


def test_unsolicited_bytes_end_the_connection_and_answer_nobody(run: Loops) -> None:
    async def main() -> None:
        def answer(peer: Peer, data: bytes) -> None:
            peer.transport.write(b"VALUE a 0 1\r\n%d\r\nEND\r\n" % peer.number)

        async with ScriptedNode(answer) as node, patient([node.address]) as client:
            assert await client.get("a") == b"0"
            node.peers[0].transport.write(b"VALUE a 0 5\r\nwrong\r\nEND\r\n")
            await asyncio.wait_for(node.peers[0].lost.wait(), PATIENT)
            assert await client.get("a") == b"1"

    run(main)


def test_a_removed_node_finishes_what_is_under_way(run: Loops, kv_nodes: NodeFactory) -> None:
    first, second = kv_nodes(2)

    async def main() -> None:
        with FaultProxy(first.address) as proxy:
            async with patient([proxy.address, second.address]) as client:
                keys = [key for key in (f"key:{n}" for n in range(50)) if client.planner.address(key.encode()) == proxy.address]
                await client.set_many({key: key for key in keys})
                proxy.replies.stall()
                passed = proxy.requests.passed
                calls = [asyncio.create_task(client.get(key)) for key in keys]
                deleted = asyncio.create_task(client.delete(keys[0]))
                await until(lambda: proxy.requests.passed > passed)
                client.set_nodes([second.address])
                proxy.replies.resume()
                assert await asyncio.gather(*calls) == keys
                assert await deleted is True
                await until(lambda: proxy.open == 0)
                assert client.statistics().total.errors == 0

    run(main)


def test_closing_with_calls_under_way(run: Loops) -> None:
    async def main() -> None:
        async with ScriptedNode(lambda peer, data: None) as node:
            client = patient([node.address])
            calls = [asyncio.create_task(client.get(key)) for key in "abc"]
            deleting = asyncio.create_task(client.delete("k"))
            await until(lambda: b"md k" in node.received)
            await client.close()
            assert await asyncio.gather(*calls) == [None] * 3
            with pytest.raises(DeleteFailed, match="the client was closed"):
                await deleting
            assert f"{node.address} up" in repr(client)
            await asyncio.wait_for(node.peers[0].lost.wait(), PATIENT)

    run(main)


@pytest.mark.parametrize("after", range(6))
def test_closing_while_connecting(run: Loops, after: int) -> None:
    async def main() -> None:
        async with ScriptedNode(lambda peer, data: None) as node:
            client = patient([node.address])
            calls = [asyncio.create_task(client.get(key)) for key in "abc"]
            await turns(after)
            await client.close()
            async with asyncio.timeout(PATIENT):
                await turns(20)
                await client.close()  # calls that had not begun have opened a connection since
                assert await asyncio.gather(*calls) == [None] * 3
            assert "not connected" in repr(client)

    run(main)


def test_one_client_in_two_loops(run: Loops, kv_nodes: NodeFactory) -> None:
    addresses = [node.address for node in kv_nodes(2)]
    client = patient([*addresses, *memory_addresses(1)])
    for number in range(3):

        async def main(number: int = number) -> None:
            async with client:
                assert await client.get("n") == (number - 1 if number else None)
                await asyncio.gather(*(client.set("n", number) for _ in range(20)))

        run(main)
    assert client.statistics().total.errors == 0


def test_a_loop_that_ended_without_closing_does_not_disturb_the_next(run: Loops) -> None:
    client = patient(memory_addresses(1))
    for number in range(3):

        async def main(number: int = number) -> None:
            assert await client.get("n") == (number - 1 if number else None)
            await client.set("n", number)

        run(main)
    assert client.statistics().total.sets == 3
    assert client.statistics().total.errors == 0


def test_a_loop_that_was_interrupted_while_connecting_does_not_disturb_the_next(run: Loops, kv_nodes: NodeFactory) -> None:
    client = patient([kv_nodes(1)[0].address])

    async def interrupted() -> None:
        call = asyncio.create_task(client.get("k"))
        await turns(1)
        call.cancel()
        await client.close()

    async def after() -> None:
        async with client:
            assert await client.get("k") is None

    for _ in range(3):
        run(interrupted)
        run(after)


def test_the_kernel_keeps_connections_alive_where_asked(run: Loops, kv_nodes: NodeFactory) -> None:
    async def main() -> None:
        async with patient([kv_nodes(1)[0].address], socket_keepalive=KeepaliveOpts(idle=7, intvl=3, cnt=2)) as client:
            await client.get("k")
            (endpoint,) = client._endpoints.values()
            connection = endpoint.connection()
            assert connection is not None
            assert connection._transport is not None
            options = connection._transport.get_extra_info("socket").getsockopt
            assert options(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert options(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 7

    run(main)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="descriptors are counted in /proc")
def test_no_descriptor_is_left(run: Loops, kv_nodes: NodeFactory) -> None:
    node, other = kv_nodes(2)

    async def main() -> None:
        for _ in range(20):
            async with patient([node.address, other.address]) as client:
                calls = [asyncio.create_task(client.get(f"{number}")) for number in range(10)]
                await turns(3)
                calls[0].cancel()
                await asyncio.gather(*calls, return_exceptions=True)
                client.set_nodes([node.address])

    run(main)
    gc.collect()
    before = descriptors()
    run(main)
    gc.collect()
    assert descriptors() <= before


def test_a_refused_delete_raises_and_is_sent_again_before_the_next_read(run: Loops) -> None:
    async def main() -> None:
        refusing = True

        def answer(peer: Peer, data: bytes) -> None:
            for line in data.splitlines():
                refused = refusing and line.startswith(b"md")
                peer.transport.write(b"SERVER_ERROR busy\r\n" if refused else answers(line))

        async with ScriptedNode(answer) as node, patient([node.address]) as client:
            with pytest.raises(DeleteFailed, match="busy"):
                await client.delete("k")
            assert client.statistics().total.deletes == 0
            refusing = False
            assert await client.get("k") is None
            assert without_opaque(node.received) == b"md k\r\nmd k\r\nget k\r\n"
            assert client.statistics().total.deletes == 1

    run(main)
