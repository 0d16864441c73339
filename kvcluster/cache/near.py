"""Values kept in the process itself, for a time so short that nobody minds: the first level of the cache (L1).

No node is asked for them, so nobody else can invalidate them either: they may be as old as their ttl. What this process invalidates
is gone at once, also where it was on its way here meanwhile. Callers never share an object that one of them could change: of such
a value the encoded bytes are kept, and decoded for each.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from types import NoneType
from typing import Any, Final

from kvcluster.cache import fork

#: What there is where no value is kept.
ABSENT: Final = object()

_UNCHANGEABLE: Final = frozenset((NoneType, bool, int, float, str, bytes))


class Near:
    """A bounded number of values by wire key; the oldest make room. Safe for threads; empty in a forked child.

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
        self.hits = 0  # how many values were found; threads that count at the same time may lose one
        self._held: dict[bytes, tuple[float, Any, bytes | None, int]] = {}  # until when, the value itself or its bytes and flags
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, wire: bytes, decode: Callable[[bytes, int], Any]) -> Any:
        """A value, or `ABSENT`.

        :param decode: makes it of its bytes and client flags
        """
        held = self._held.get(wire)
        if held is None or held[0] <= self._clock():
            return ABSENT
        self.hits += 1
        return held[1] if held[2] is None else decode(held[2], held[3])

    def left(self, wire: bytes) -> float | None:
        """For how many seconds a value is kept yet; None where there is none."""
        held = self._held.get(wire)
        left = 0.0 if held is None else held[0] - self._clock()
        return left if left > 0 else None

    def put(self, wire: bytes, value: Any, data: bytes, flags: int, ttl: float, generation: int) -> None:
        """Keep a value.

        :param data: what it was decoded from, with these client flags
        :param ttl: for how many seconds
        :param generation: what `generation` was before the value was asked for: if it was invalidated since, it is not kept
        """
        shared = type(value) in _UNCHANGEABLE or (type(value) is tuple and _UNCHANGEABLE.issuperset(map(type, value)))
        with self._lock:
            if generation != self.generation:
                return
            self._held.pop(wire, None)
            until = self._clock() + ttl
            self._held[wire] = (until, value, None, 0) if shared else (until, None, data, flags)
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
