"""Every test that takes `run` runs in asyncio's loop and in uvloop's."""

from __future__ import annotations

import pytest

from tests.aio.loops import LOOPS, Loops


@pytest.fixture(params=list(LOOPS))
def run(request: pytest.FixtureRequest) -> Loops:
    """Runs a coroutine function in a loop of its own."""
    return Loops(request.param)
