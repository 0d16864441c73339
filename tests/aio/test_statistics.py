"""Counts are exact, whatever travels together."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

from kvcluster.errors import CommandRefused
from kvcluster.testing.plugin import NodeFactory
from kvcluster.testing.proxy import FaultProxy
from tests.aio.doubles import patient
from tests.aio.loops import Loops


def test_counts_are_exact(run: Loops, kv_nodes: NodeFactory) -> None:
    nodes = kv_nodes(2)

    async def main() -> None:
        proxies = [FaultProxy(node.address) for node in nodes]
        async with patient([proxy.address for proxy in proxies], prefix="p:") as client:
            expected: Counter[str] = Counter()
            keys = [f"{number}" for number in range(100)]
            stored = {key: int(key) for key in keys[:60]}
            assert await client.set_many(stored) == []
            expected["sets"] += 60

            async def call(number: int) -> None:
                key = keys[number % 100]
                hit = key in stored
                match number % 5:
                    case 0:
                        await client.get(key)
                    case 1:
                        await client.get_many([key, key])
                        expected["hits" if hit else "misses"] += 1
                    case 2:
                        await client.gets(key)
                    case 3:
                        await client.gat(key)
                    case 4:
                        await client.delete(f"absent {key}")
                        expected["deletes"] += 1
                        return
                expected["hits" if hit else "misses"] += 1

            await asyncio.gather(*map(call, random.sample(range(1000), 1000)))
            await client.set("word", "x")
            expected["sets"] += 1
            try:
                await client.incr("word", 1)
            except CommandRefused:
                expected["errors"] += 1
            statistics = client.statistics()
            total = statistics.total
            assert (
                Counter(hits=total.hits, misses=total.misses, sets=total.sets, deletes=total.deletes, errors=total.errors)
                == expected
            )
            assert statistics.namespaces == {"p:": total}
            for proxy in proxies:
                counts = statistics.nodes[proxy.address]
                assert (counts.bytes_written, counts.bytes_read) == (proxy.requests.passed, proxy.replies.passed)
        assert client.statistics() == statistics  # also of connections that were closed
        for proxy in proxies:
            proxy.close()

    run(main)
