"""Time that passes when a test says so, so that no test sleeps to see an item expire."""

from __future__ import annotations

import time


class Clock:
    """A clock to hand to whatever takes one: calling it gives seconds, `advance` lets them pass.

    :param now: seconds since the epoch at the start; the present, where none is given, because nodes and programs agree on it

    >>> clock = Clock(1000.0)
    >>> clock.advance(90)
    >>> clock()
    1090.0
    """

    def __init__(self, now: float | None = None) -> None:
        self._now = time.time() if now is None else float(now)

    def __call__(self) -> float:
        """Seconds since the epoch."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass.

        :raises ValueError: for a negative number, since no clock that programs rely on goes back
        """
        if seconds < 0:
            raise ValueError(f"seconds must not be negative, not {seconds!r}")
        self._now += seconds

    def __repr__(self) -> str:
        return f"Clock({self._now!r})"
