"""Running a coroutine in a loop of its own, of either kind, and looking at what it left behind."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


class Loops:
    """Runs coroutines, each in a new loop, and fails where one leaves a task or an exception that nobody saw."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, main: Callable[[], Awaitable[T]]) -> T:
        complaints: list[dict[str, Any]] = []

        async def checked() -> T:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
            result = await main()
            await turns(4)  # closed transports have callbacks left
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, f"left behind: {left}"
            gc.collect()
            return result

        with asyncio.Runner(loop_factory=LOOPS[self.kind]) as runner:
            result = runner.run(checked())
        gc.collect()
        assert not complaints
        return result


async def turns(count: int) -> None:
    """Let the loop turn so often."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition that other threads or processes bring about."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)
