"""Many tasks, all commands, and values that tell whose they are. ``KVCLUSTER_SOAK=1`` for 100,000 calls of each task."""

from __future__ import annotations

import asyncio
import os
import random

import pytest

from kvcluster import AsyncClient
from kvcluster.testing.plugin import NodeFactory
from tests.aio.doubles import patient
from tests.aio.loops import Loops
from tests.aio.test_cancellation import any_call

CALLS = 100_000 if os.environ.get("KVCLUSTER_SOAK") == "1" else 300
TASKS = 16


@pytest.mark.timeout(60 + CALLS // 20)
def test_not_one_wrong_value(run: Loops, kv_nodes: NodeFactory) -> None:
    addresses = [node.address for node in kv_nodes(4)]

    async def work(client: AsyncClient, seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(CALLS):
            await any_call(client, chance)

    async def main() -> None:
        async with patient(addresses) as client:
            await asyncio.gather(*(work(client, seed) for seed in range(TASKS)))
            total = client.statistics().total
            assert total.errors == total.undecodable == 0
            assert total.hits > 0

    run(main)
