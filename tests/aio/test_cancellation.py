"""A cancelled call takes nothing from another: its reply is read in its place and reaches nobody."""

from __future__ import annotations

import asyncio
import random
import zlib
from typing import Any

import pytest

from kvcluster import AsyncClient
from kvcluster.testing.plugin import NodeFactory
from kvcluster.testing.proxy import FaultProxy
from tests.aio.doubles import Peer, ScriptedNode, answers, patient, without_opaque
from tests.aio.loops import Loops, turns, until


def value_of(key: str) -> str:
    """A value that tells whose it is: long ones, short ones, by the key alone."""
    return f"{key}={zlib.crc32(key.encode()):x}" * (1 + zlib.crc32(key.encode()) % 40)


KEYS = [f"key:{number}" for number in range(300)]


async def any_call(client: AsyncClient, chance: random.Random) -> None:
    """One of the commands, whose result must be this key's own."""
    key = chance.choice(KEYS)
    some = chance.sample(KEYS, 20)
    match chance.randrange(8):
        case 0 | 1 | 2:
            assert await client.get(key) in (None, value_of(key))
        case 3:
            assert all(value == value_of(name) for name, value in (await client.get_many(some)).items())
        case 4:
            assert await client.set(key, value_of(key), noreply=chance.random() < 0.3)
        case 5:
            assert await client.gat(key, 60) in (None, value_of(key))
        case 6:
            assert await client.delete(key) in (True, False)
        case 7:
            await client.set_many({name: value_of(name) for name in some}, noreply=chance.random() < 0.3)


def test_random_cancels_cross_nothing(run: Loops, kv_nodes: NodeFactory) -> None:
    addresses = [node.address for node in kv_nodes(2)]
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)

    async def main() -> None:
        async with patient(addresses) as client:
            calls: list[asyncio.Task[None]] = []
            for number in range(2000):
                calls.append(asyncio.create_task(any_call(client, chance)))
                if number % 7 == 0:
                    await turns(chance.randrange(3))
                if chance.random() < 0.4:
                    chance.choice(calls[-200:]).cancel()
            results = await asyncio.gather(*calls, return_exceptions=True)
            cancelled = sum(isinstance(result, asyncio.CancelledError) for result in results)
            assert [result for result in results if result is not None and not isinstance(result, asyncio.CancelledError)] == []
            assert 100 < cancelled < 1500
            assert all(value == value_of(key) for key, value in (await client.get_many(KEYS)).items())

    run(main)


@pytest.mark.parametrize("command", ["get", "get_many", "set", "incr", "gets", "delete"])
def test_the_reply_to_a_cancelled_call_reaches_nobody(run: Loops, kv_nodes: NodeFactory, command: str) -> None:
    node = kv_nodes(1)[0]

    async def main() -> None:
        with FaultProxy(node.address) as proxy:
            async with patient([proxy.address]) as client:
                await client.set_many({"n": 41, "other": "mine"})
                arguments: dict[str, tuple[Any, ...]] = {"get_many": (["n"],), "set": ("n", 1), "incr": ("n", 1)}
                proxy.replies.stall()
                passed = proxy.requests.passed
                call = asyncio.create_task(getattr(client, command)(*arguments.get(command, ("n",))))
                await until(lambda: proxy.requests.passed > passed)
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
                other = asyncio.create_task(client.get("other"))
                await turns(3)
                proxy.replies.resume()
                assert await other == "mine"
                assert proxy.accepted == 1

    run(main)


def test_a_call_that_is_cancelled_while_connecting_takes_nobody_with_it(run: Loops, kv_nodes: NodeFactory) -> None:
    node = kv_nodes(1)[0]

    async def main() -> None:
        async with patient([node.address]) as client:
            first, second, third = (asyncio.create_task(client.get(key)) for key in "abc")
            await turns(1)
            first.cancel()
            assert await asyncio.gather(second, third) == [None, None]
            assert first.cancelled()

    run(main)


def test_when_all_are_cancelled_while_connecting_the_connection_serves_the_next(run: Loops) -> None:
    async def main() -> None:
        async with (
            ScriptedNode(lambda peer, data: peer.transport.write(b"END\r\n" * data.count(b"\n"))) as node,
            patient([node.address]) as client,
        ):
            calls = [asyncio.create_task(client.get(key)) for key in "abc"]
            await turns(1)
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
            await until(lambda: node.peers)
            assert await client.get("d") is None
            assert len(node.peers) == 1
            assert node.received == b"get d\r\n"

    run(main)


def test_a_deadline_of_the_callers_own(run: Loops) -> None:
    async def main() -> None:
        def answer(peer: Peer, data: bytes) -> None:
            if b"slow" not in data:
                peer.transport.write(b"END\r\nVALUE quick 0 1\r\nq\r\nEND\r\n" if peer.received.count(b"get") == 2 else b"END\r\n")

        async with ScriptedNode(answer) as node, patient([node.address]) as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await client.get("slow")
            assert await client.get("quick") == b"q"
            assert len(node.peers) == 1

    run(main)


def test_a_task_group_that_fails(run: Loops, kv_nodes: NodeFactory) -> None:
    addresses = [node.address for node in kv_nodes(2)]

    async def main() -> None:
        async def fail() -> None:
            await asyncio.sleep(0)
            raise LookupError

        async def group_that_fails(client: AsyncClient) -> None:
            async with asyncio.TaskGroup() as group:
                for key in KEYS:
                    group.create_task(client.get(key))
                group.create_task(fail())
                group.create_task(client.get_many(KEYS))

        async with patient(addresses) as client:
            await client.set_many({key: value_of(key) for key in KEYS})
            with pytest.raises(ExceptionGroup) as caught:
                await group_that_fails(client)
            assert [type(error) for error in caught.value.exceptions] == [LookupError]
            assert await client.get_many(KEYS) == {key: value_of(key) for key in KEYS}
            assert await asyncio.gather(*map(client.get, KEYS)) == [value_of(key) for key in KEYS]

    run(main)


@pytest.mark.parametrize("moment", ["connecting", "under way"])
def test_a_cancelled_delete_is_sent_before_the_next_call(run: Loops, moment: str) -> None:
    async def main() -> None:
        def answer(peer: Peer, data: bytes) -> None:
            if b"md k" in data and peer.number == 0 and moment == "under way":
                peer.transport.abort()  # the node was not told
            else:
                peer.transport.write(answers(data))

        async with ScriptedNode(answer) as node, patient([node.address]) as client:
            if moment == "under way":
                await client.get("other")
            call = asyncio.create_task(client.delete("k"))
            await turns(1 if moment == "connecting" else 2)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert "1 missed deletes" in repr(client)
            await client.get("k")
            assert await client.get("k") is None
            assert without_opaque(node.peers[-1].received) in (b"md k\r\nget k\r\n", b"md k\r\nget k\r\nget k\r\n")
            assert "0 missed deletes" in repr(client)

    run(main)


def test_a_node_that_hangs_goes_down_though_its_callers_gave_up(run: Loops) -> None:
    async def main() -> None:
        async with ScriptedNode(lambda peer, data: None) as node, AsyncClient([node.address], timeout=0.03) as client:
            for number in range(2):
                call = asyncio.create_task(client.get("k"))
                while node.received.count(b"get") <= number:
                    await asyncio.sleep(0.001)
                call.cancel()
                await asyncio.wait([call])
                await node.peers[number].lost.wait()
            assert f"{node.address} down" in repr(client)

    run(main)
