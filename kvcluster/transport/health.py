"""When a failing node is left alone, and when it is tried again. No I/O, and the clock is passed in.

One refusal says that nobody listens; a timeout may be a hiccup, so it takes two in a row. A node that is down is probed by one
caller at a time, first after a second, then at growing intervals, spread by chance so that a fleet of clients does not come back
at once.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

TIMEOUTS_TO_DOWN: Final = 2
FIRST_PROBE: Final = 1.0
LAST_PROBE: Final = 30.0


class Health:
    """The state of one node as one client sees it. Not thread-safe: its owner holds a lock around every call.

    :param spread: gives a factor for each probe interval, by default from 0.8 to 1.2
    """

    def __init__(self, spread: Callable[[], float] = lambda: random.uniform(0.8, 1.2)) -> None:
        self._spread = spread
        self._timeouts = 0
        self._interval = FIRST_PROBE
        self._probe_at = 0.0
        self._probing = False
        self.up = True

    def timed_out(self, now: float) -> bool:
        """Note a timeout; True if the node goes down by it."""
        self._timeouts += 1
        if not self.up or self._timeouts >= TIMEOUTS_TO_DOWN:
            return self.refused(now)
        return False

    def refused(self, now: float) -> bool:
        """Note a refused or broken connection, or a failed probe; True if the node goes down by it."""
        went_down, self.up = self.up, False
        if not went_down and not self._probing:
            return False  # of the calls that were under way when the node went down: they say nothing new
        self._interval = FIRST_PROBE if went_down else min(self._interval * 2, LAST_PROBE)
        self._probe_at = now + self._interval * self._spread()
        self._probing = False
        return went_down

    def answered(self) -> bool:
        """Note a whole reply; True if the node comes back up by it."""
        came_up, self.up = not self.up, True
        self._timeouts = 0
        self._probing = False
        return came_up

    def claim_probe(self, now: float) -> bool:
        """Whether this caller is to probe the node now; others are refused while the probe can still be running."""
        if self.up or now < self._probe_at:
            return False
        self._probe_at = now + self._interval * self._spread()
        self._probing = True
        return True

    def seconds_to_probe(self, now: float) -> float:
        """How long the node is left alone from now."""
        return max(0.0, self._probe_at - now)
