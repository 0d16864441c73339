"""Values kept in the process itself, for a time so short that nobody minds: the first level of the cache (L1).

No node is asked for them, so nobody else can invalidate them either: they may be as old as their ttl. What this process invalidates
is gone at once, also where it was on its way here meanwhile. Encoded bytes are kept, so that callers never share an object.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from kvcluster.cache import fork


class Near:
    """A bounded number of encoded values by wire key; the oldest make room. Safe for threads; empty in a forked child.

    :param size: the most values
    :param clock: seconds, monotonic
    """

    def __init__(self, size: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.size = size
        self.generation = 0  # how often anything was forgotten
        self._clock = clock
        fork.renewed(self)

    def renew(self) -> None:
        """Begin without values and with a free lock; in a forked child too."""
        self._held: dict[bytes, tuple[float, bytes, int]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, wire: bytes) -> tuple[bytes, int] | None:
        """A value's bytes and client flags, or None."""
        held = self._held.get(wire)
        return None if held is None or held[0] <= self._clock() else held[1:]

    def left(self, wire: bytes) -> float | None:
        """For how many seconds a value is kept yet; None where there is none."""
        held = self._held.get(wire)
        left = 0.0 if held is None else held[0] - self._clock()
        return left if left > 0 else None

    def put(self, wire: bytes, data: bytes, flags: int, ttl: float, generation: int) -> None:
        """Keep a value.

        :param ttl: for how many seconds
        :param generation: what `generation` was before the value was asked for: if it was invalidated since, it is not kept
        """
        with self._lock:
            if generation != self.generation:
                return
            self._held.pop(wire, None)
            self._held[wire] = (self._clock() + ttl, data, flags)
            if len(self._held) > self.size:
                del self._held[next(iter(self._held))]

    def forget(self, wires: Iterable[bytes]) -> None:
        """Drop values."""
        with self._lock:
            self.generation += 1
            for wire in wires:
                self._held.pop(wire, None)

    def clear(self) -> None:
        """Drop all values."""
        with self._lock:
            self.generation += 1
            self._held.clear()
