"""How fast keys are copied: token buckets for keys and for bytes, and a probe that notices when the sources suffer.

A bucket lets nothing accumulate: what was not used is not made up for later, because a burst is just what a loaded node cannot
take. The rate is halved when the probe's 99th percentile exceeds twice what it was before the copy began, and grows back by a
tenth of the limit while it does not. So the copy finds the speed that the sources bear, and never exceeds the limit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

SAMPLE: Final = 200  # latencies that a percentile is taken of
TOLERATED: Final = 2.0  # times the quiet latency
GRACE: Final = 0.001  # seconds; differences below are the scheduler's
SLOWEST: Final = 0.02  # part of the limit below which the rate does not fall, so that the copy ends some day
_JUDGED_EVERY: Final = 20  # latencies between two judgements


class Pace:
    """The pace of one copy. No I/O: the caller measures, sleeps, and passes the time.

    :param keys: a second, at most
    :param bytes: a second, at most
    """

    def __init__(self, keys: float, bytes: float) -> None:
        self.keys = keys
        self.bytes = bytes
        self.factor = 1.0  # of the limits, now
        self.quiet: float | None = None  # seconds: the 99th percentile before the copy began
        self._latencies: deque[float] = deque(maxlen=SAMPLE)
        self._unjudged = 0
        self._free_at = 0.0

    def restarted(self) -> None:
        """Another node, or other work: what is observed from here on is how it is without it, and what was borne before counts no
        more."""
        self.factor = 1.0
        self.quiet = None
        self._latencies.clear()

    def started(self) -> None:
        """What was observed so far is how the sources are without the copy."""
        self.quiet = percentile(self._latencies)
        self._latencies.clear()

    def observe(self, seconds: float) -> None:
        """Note how long a source took to answer."""
        self._latencies.append(seconds)
        self._unjudged += 1
        if self.quiet is None or self._unjudged < _JUDGED_EVERY:
            return
        self._unjudged = 0
        if percentile(self._latencies) > TOLERATED * self.quiet + GRACE:
            self.factor = max(SLOWEST, self.factor / 2)
            self._latencies.clear()
        else:
            self.factor = min(1.0, self.factor + 0.1)

    def spend(self, keys: int, bytes: int, now: float) -> float:
        """Take keys and bytes out of the buckets: the seconds to wait before they may be copied.

        >>> pace = Pace(keys=1000, bytes=1e9)
        >>> pace.spend(100, 0, now=5.0), round(pace.spend(100, 0, now=5.0), 2)
        (0.0, 0.1)
        """
        begin = max(now, self._free_at)
        self._free_at = begin + max(keys / self.keys, bytes / self.bytes) / self.factor
        return begin - now


def percentile(values: Iterable[float], part: float = 0.99) -> float:
    """The value that this part of the values does not exceed; 0 for none.

    >>> percentile(range(100)), percentile([])
    (98, 0.0)
    """
    ordered = sorted(values)
    return ordered[max(0, round(part * len(ordered)) - 1)] if ordered else 0.0
