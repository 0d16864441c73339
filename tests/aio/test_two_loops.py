"""One client and two event loops: one after the other is fine, both at once is refused and harms nobody."""

from __future__ import annotations

import asyncio

import pytest

from kvcluster.errors import ConfigurationError
from kvcluster.testing.plugin import NodeFactory
from tests.aio.doubles import patient
from tests.aio.loops import Loops


def test_a_second_loop_is_refused_while_the_first_runs(run: Loops, kv_nodes: NodeFactory) -> None:
    client = patient([kv_nodes(1)[0].address])

    async def elsewhere() -> None:
        for call in (client.get("k"), client.set("k", 2), client.delete("k")):
            with pytest.raises(ConfigurationError, match="in use by another running event loop"):
                await call

    async def main() -> None:
        assert await client.set("k", 1) is True
        await asyncio.to_thread(asyncio.run, elsewhere())
        assert await client.get("k") in (1, None)  # the delete that raised is sent by the first loop
        await client.close()

    async def after() -> None:
        assert await client.set("k", 3) is True
        assert await client.get("k") == 3
        await client.close()

    run(main)
    run(after)
