"""What the processes of `test_herd` do, in a loop of their own; as `tests.cache.workers`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

from kvcluster import AsyncClient, Cache
from tests.aio.loops import LOOPS
from tests.cache.workers import PATIENT, bump


def in_loop(kind: str, addresses: list[str], main: Callable[[Cache], Awaitable[None]]) -> None:
    """Run a coroutine function with a cache."""

    async def closed() -> None:
        async with AsyncClient(addresses, timeout=PATIENT, connect_timeout=PATIENT) as client:
            await main(Cache("herd", ttl="10m", client=client))

    with asyncio.Runner(loop_factory=LOOPS[kind]) as runner:
        runner.run(closed())


def herd(kind: str, addresses: list[str], callers: int, gate: Any, loads: Any, answers: Any, seconds: float) -> None:
    """Ask for one cold key from many tasks at once."""

    async def main(cache: Cache) -> None:
        @cache.loader("hot")
        async def load() -> str:
            bump(loads)
            await asyncio.sleep(seconds)
            return "value"

        gate.wait(60)
        assert await asyncio.gather(*[load() for _ in range(callers)]) == ["value"] * callers
        bump(answers, callers)

    in_loop(kind, addresses, main)


def heir(kind: str, addresses: list[str], callers: int, go: Any, ready: Any, loads: Any, answers: Any, seconds: float) -> None:
    """Know how long loads take, then ask for the key whose winner is about to die."""

    async def main(cache: Cache) -> None:
        @cache.loader("row:{name}")
        async def load(name: str) -> str:
            if name == "hot":
                bump(loads)
            await asyncio.sleep(seconds)
            return name

        await load(f"warm {os.getpid()}")
        ready.release()
        assert go.wait(60)
        assert await asyncio.gather(*[load("hot") for _ in range(callers)]) == ["hot"] * callers
        bump(answers, callers)

    in_loop(kind, addresses, main)


def doomed(kind: str, addresses: list[str], loading: Any, loads: Any) -> None:
    """Win the lease and never come back."""

    async def main(cache: Cache) -> None:
        @cache.loader("row:{name}")
        async def load(name: str) -> str:
            bump(loads)
            loading.set()
            await asyncio.sleep(600)
            return name

        await load("hot")

    in_loop(kind, addresses, main)


def refresher(kind: str, addresses: list[str], loading: Any, loads: Any) -> None:
    """Win an early refresh and never come back."""

    async def main(cache: Cache) -> None:
        @cache.loader("row:{name}", ttl=60, stale_while_revalidate=60)
        async def load(name: str) -> str:
            bump(loads)
            loading.set()
            await asyncio.sleep(600)
            return name

        assert await load("hot") == "old"
        await asyncio.sleep(600)

    in_loop(kind, addresses, main)


def reader(kind: str, addresses: list[str], callers: int, go: Any, ready: Any, loads: Any, answers: Any, seconds: float) -> None:
    """Know how long loads take, then read the stale value whose refresher was killed until there is a new one."""

    async def main(cache: Cache) -> None:
        @cache.loader("row:{name}", ttl=60, stale_while_revalidate=60)
        async def load(name: str) -> str:
            if name == "hot":
                bump(loads)
            await asyncio.sleep(seconds)
            return name

        async def ask() -> None:
            async with asyncio.timeout(30):
                while (value := await load("hot")) != "hot":
                    assert value == "old"
                    await asyncio.sleep(0.005)
            bump(answers)

        await load(f"warm {os.getpid()}")
        ready.release()
        assert go.wait(60)
        await asyncio.gather(*[ask() for _ in range(callers)])

    in_loop(kind, addresses, main)
