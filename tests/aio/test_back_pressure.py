"""A node that does not read slows its callers; it does not fill the client's memory."""

from __future__ import annotations

import asyncio

from kvcluster import AsyncClient
from kvcluster.testing.plugin import NodeFactory
from kvcluster.transport.aio import WRITE_HIGH_WATER, AsyncConnection
from tests.aio.doubles import patient
from tests.aio.loops import Loops, turns

VALUE = b"v" * 100_000


def connection_of(client: AsyncClient) -> AsyncConnection:
    (endpoint,) = client._endpoints.values()
    assert endpoint._connection is not None
    return endpoint._connection


def buffered(client: AsyncClient) -> int:
    transport = connection_of(client)._transport
    assert transport is not None
    return transport.get_write_buffer_size()


def test_callers_wait_while_a_node_does_not_read(run: Loops, kv_nodes: NodeFactory) -> None:
    node = kv_nodes(1, memory=128)[0]

    async def main() -> None:
        async with patient([node.address]) as client:
            await client.get("k")
            node.pause()
            keys = [f"key:{number}" for number in range(400)]  # 40 MB, which no kernel's buffers take
            calls = [asyncio.create_task(client.set(key, VALUE)) for key in keys]
            gets = [asyncio.create_task(client.get(key)) for key in keys]
            late = asyncio.create_task(client.get_many(keys[:5]))
            await turns(5)
            given_up = [calls.pop(200), gets.pop(200)]
            for call in given_up:
                call.cancel()
            for _ in range(20):
                await asyncio.sleep(0.002)
                assert 0 < buffered(client) < 2 * WRITE_HIGH_WATER + len(VALUE)
            assert not any(call.done() for call in calls)
            node.resume()
            assert all(await asyncio.gather(*calls))
            assert await asyncio.gather(*gets) == [VALUE] * 399
            assert await late == dict.fromkeys(keys[:5], VALUE)
            assert all(call.cancelled() for call in given_up)

    run(main)


def test_a_node_that_never_reads_again_is_late(run: Loops, kv_nodes: NodeFactory) -> None:
    node = kv_nodes(1)[0]

    async def main() -> None:
        async with AsyncClient([node.address], timeout=0.1) as client:
            await client.get("k")
            node.pause()
            calls = [client.set(f"key:{number}", VALUE) for number in range(100)]
            assert await asyncio.gather(*calls) == [False] * 100
            assert f"{node.address} up" in repr(client)
            assert client.statistics().total.errors == 100

    run(main)


def test_replies_larger_than_all_buffers(run: Loops, kv_nodes: NodeFactory) -> None:
    addresses = [node.address for node in kv_nodes(2, memory=256)]

    async def main() -> None:
        async with patient(addresses) as client:
            values = {f"key:{number}": b"%d" % number * 3000 for number in range(3000)}
            assert await client.set_many(values) == []
            both = await asyncio.gather(client.get_many(values), client.get_many(values), client.set_many(values))
            assert both == [values, values, []]

    run(main)
