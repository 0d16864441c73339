"""Callers of one process that want the same key share one way to its value: a flight. One leads, the others follow.

Beside it, what a process remembers of its loads: how long they take, and whom it saw refreshing what.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Set
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final, Generic, TypeAlias, TypeVar

from kvcluster.cache import fork
from kvcluster.cache.policy import Policy

log = logging.getLogger("kvcluster")

T = TypeVar("T")

LEAST_TAKEOVER: Final = 0.05
UNMEASURED_TAKEOVER: Final = 2.0
FIRST_POLL: Final = 0.002
LAST_POLL: Final = 0.005
LEAST_POLL: Final = 0.001
MOST_SIGHTINGS: Final = 1024
_QUIET: Final = 60.0  # seconds between two complaints about one loader


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a flight ended with: encoded, so that every caller decodes an object of its own.

    No invalidation that completed before ``valid_from`` (seconds, monotonic) is missing from it.
    """

    data: bytes
    flags: int
    error: BaseException | None
    valid_from: float


class Flight(Generic[T]):
    """One caller's way to a result, which others in the process may wait for."""

    def __init__(self) -> None:
        self.outcome: T | None = None
        self.landed = threading.Event()
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], object]] = []

    def land(self, outcome: T | None) -> None:
        """End the flight, and tell those who wait. What ends it first counts."""
        with self._lock:
            if self.landed.is_set():
                return
            self.outcome = outcome
            self.landed.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def when_landed(self, callback: Callable[[], object]) -> None:
        """Call back once when the flight has ended, perhaps at once, in the thread that ends it."""
        with self._lock:
            if not self.landed.is_set():
                self._callbacks.append(callback)
                return
        callback()


class Flights:
    """The flights under way in this process, by wire key."""

    def __init__(self) -> None:
        fork.renewed(self)

    def renew(self) -> None:
        """Begin without flights; in a forked child too, where the threads that would land them are not."""
        self._flights: dict[bytes, Flight[Outcome]] = {}
        self._lock = threading.Lock()

    def join(self, wire: bytes, hung: Flight[Outcome] | None = None) -> tuple[Flight[Outcome], bool]:
        """The flight for a key, and whether this caller leads it.

        :param hung: a flight that this caller has waited for long enough
        """
        with self._lock:
            flight = self._flights.get(wire)
            if flight is not None and flight is not hung:
                return flight, False
            flight = self._flights[wire] = Flight()
            return flight, True

    def lead(self, wire: bytes) -> Flight[Outcome]:
        """A flight of this caller's own, which later callers follow."""
        with self._lock:
            flight = self._flights[wire] = Flight[Outcome]()
            return flight

    def forget(self, wires: Iterable[bytes]) -> None:
        """Let later callers start anew, because the keys were invalidated."""
        with self._lock:
            for wire in wires:
                self._flights.pop(wire, None)

    def land(self, wire: bytes, flight: Flight[Outcome], outcome: Outcome | None) -> None:
        """End a flight."""
        with self._lock:
            if self._flights.get(wire) is flight:
                del self._flights[wire]
        flight.land(outcome)


#: Wire keys, and the flights of the cache that they belong to; for each loader that is running.
Loading: TypeAlias = "tuple[tuple[Flights, Set[bytes]], ...]"

#: The keys whose loaders are running around this call: waiting for one of them would wait for ever.
LOADING: ContextVar[Loading] = ContextVar("kvcluster_loading", default=())


class LoadTimes:
    """How long loads of one loader take: a moving average in seconds, None before the first. ``count`` says how many there were.

    ``usual`` is the same of those loads alone that came to an end here.
    """

    def __init__(self) -> None:
        self.average: float | None = None
        self.usual: float | None = None
        self.count = 0
        self._complained = -_QUIET
        fork.renewed(self)

    def renew(self) -> None:
        """Begin with a free lock; what was measured stays true in a forked child."""
        self._lock = threading.Lock()

    def note(self, seconds: float) -> None:
        """Take one load into account."""
        with self._lock:
            self.count += 1
            self.average = seconds if self.average is None else self.average * 0.8 + seconds * 0.2
            self.usual = seconds if self.usual is None else self.usual * 0.8 + seconds * 0.2

    def at_least(self, seconds: float) -> None:
        """Take a load into account that was given up after so long: a load takes at least that long, or its process has died.

        So a source that has become slow is not overtaken again and again, which would make it slower: each wait is twice the one
        before, until loads that end say how long they take.
        """
        with self._lock:
            self.average = max(self.average or 0.0, seconds)

    def complain(self, message: str, error: BaseException) -> None:
        """Log that loads fail while nobody is told, at most once a minute."""
        now = time.monotonic()
        with self._lock:
            if now - self._complained < _QUIET:
                return
            self._complained = now
        log.warning("%s: %r", message, error)

    def pause(self, waited: float, delay: float) -> float:
        """How long somebody who has waited so long for another's load pauses before asking again, in seconds: ``delay``, but less
        about the moment at which loads usually end.
        """
        return delay if self.usual is None else min(delay, max(LEAST_POLL, abs(self.usual - waited) / 8))

    def takeover(self, policy: Policy) -> float:
        """How long a waiter trusts the same winner, in seconds."""
        if policy.takeover is not None:
            return policy.takeover
        return UNMEASURED_TAKEOVER if self.average is None else max(LEAST_TAKEOVER, 2 * self.average)


class Sightings:
    """Whom this process saw refreshing the values that it was served: for how long a value has had the same CAS number meanwhile.

    A winner that died in an early refresh keeps others from refreshing, and no lease ends that. So who saw it for too long takes
    over. What is remembered is bounded, and the oldest is forgotten first.
    """

    def __init__(self) -> None:
        fork.renewed(self)

    def renew(self) -> None:
        """Begin without memories and with a free lock; in a forked child too."""
        self._seen: dict[bytes, tuple[int, float]] = {}
        self._lock = threading.Lock()

    def overdue(self, wire: bytes, cas: int, now: float, takeover: float) -> bool:
        """Whether a refresh takes too long. Of the callers in this process one is told so.

        :param cas: the CAS number of the value that is being refreshed
        :param now: seconds, monotonic
        :param takeover: how long a winner is trusted, in seconds
        """
        with self._lock:
            seen = self._seen.pop(wire, None)
            overdue = seen is not None and seen[0] == cas and now - seen[1] > takeover
            self._seen[wire] = (cas, now) if seen is None or seen[0] != cas or overdue else seen
            if len(self._seen) > MOST_SIGHTINGS:
                del self._seen[next(iter(self._seen))]
            return overdue
