"""What reading through says to a node: meta gets that take a lease on what they miss, fills against a lease, and take-overs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from kvcluster.cache.flights import LOADING, Flights, LoadedKey, LoadTimes
from kvcluster.cache.policy import Policy
from kvcluster.codec import Codec
from kvcluster.errors import CallerError
from kvcluster.plan import Failures, Plan
from kvcluster.planner import Planner
from kvcluster.protocol import requests
from kvcluster.protocol.requests import Commands, Request, Stores, is_placeholder
from kvcluster.stats.counters import Counters


class Answer(NamedTuple):
    """What a node said of one key: its value, where ``found`` is True, else who is to load it.

    ``cas`` is what a fill is compared with; 0 where there is nothing to store against, because the node gave no lease. ``won``
    says that this caller is to load, ``lost`` that another one does.
    """

    found: bool = False
    value: Any = None
    cas: int = 0
    won: bool = False
    lost: bool = False
    data: bytes = b""
    flags: int = 0


UNASKED: Final = Answer()  # of a node that cannot be asked


class LeaseGets(Commands):
    """Meta gets that take a lease on what they miss; ``answers`` holds what they brought.

    ``first`` says whether a caller asks for the first time. Only then hits and misses are counted, however long it waits for its
    answer.
    """

    __slots__ = ("answers", "decode", "first")

    repeatable = True  # a lease that nobody heard of is taken over as a dead winner's is

    def __init__(self, source: Source, wires: Sequence[bytes], first: bool) -> None:
        token = requests.opaque()
        flags = b"v f c N%d O%b" % (round(source.policy.lease), token)
        super().__init__(b"".join([requests.meta_get(wire, flags) for wire in wires]), len(wires), opaque=token)
        self.decode = source.codec.decode
        self.first = first
        self.answers: list[Answer] = []

    def settle(self, counters: Counters) -> None:
        """Decode what was found, and count hits and misses."""
        super().settle(counters)
        for reply in self.replies:
            if reply.value is None or reply.won or reply.stale or is_placeholder(reply):
                answer = Answer(cas=reply.cas, won=reply.won, lost=reply.taken and not reply.won)
            else:
                try:
                    answer = Answer(True, self.decode(reply.value, reply.flags), reply.cas, data=reply.value, flags=reply.flags)
                except Exception:  # whatever a codec raises, the value is of no use: it is loaded again, and replaced
                    answer = Answer(cas=reply.cas)
                    counters.undecodable += 1
            if self.first:
                counters.hits += answer.found
                counters.misses += not answer.found
            self.answers.append(answer)

    def fail(self, counters: Counters) -> None:
        """Count the keys as misses."""
        if self.first:
            counters.misses += self.count


class Fills(Stores):
    """Compare-and-swap stores of loaded values."""

    __slots__ = ()

    def settle(self, counters: Counters) -> None:
        """Count what was stored, and what was not because something newer came in between."""
        super().settle(counters)
        counters.unstored += sum(reply.status != "HD" for reply in self.replies)

    def fail(self, counters: Counters) -> None:
        """Count the values as not stored."""
        counters.unstored += self.count


class Exchange(Plan[tuple[Mapping[str, Request], Failures]]):
    """A plan whose flow reads the replies itself."""

    __slots__ = ()

    def finish(self, failures: Failures) -> tuple[Mapping[str, Request], Failures]:
        """The requests, which hold their replies, and the failures."""
        return self.requests, failures


@dataclass(frozen=True, slots=True)
class Source:
    """What a flow needs to know of the loader it works for."""

    planner: Planner
    policy: Policy
    codec: Codec
    flights: Flights
    times: LoadTimes
    clock: Callable[[], float]

    def asking(self, wire: bytes) -> LeaseGets:
        """The request that asks for one key for the first time."""
        return LeaseGets(self, (wire,), True)

    def keys(self, wires: Iterable[bytes]) -> frozenset[LoadedKey]:
        """Wire keys as `LOADING` holds them.

        :raises CallerError: where the caller is a loader of one of them
        """
        keys = frozenset((self.flights, wire) for wire in wires)
        if not keys.isdisjoint(LOADING.get()):
            raise CallerError(f"the loader of {self.planner.namespace!r} asks for the very key that it is loading")
        return keys

    def take_over(self, wire: bytes, winner: int) -> bytes:
        """The command that ends a winner's lease. Of all who send it one succeeds; the next meta get makes one the winner."""
        return requests.meta_delete(wire, b"I C%d T%d" % (winner, round(self.policy.lease)))

    def fill(self, wire: bytes, data: bytes, flags: int, cas: int, absent: bool) -> bytes:
        """The command that stores a loaded value where nothing happened since its lease was won."""
        ttl = self.planner.ttl(self.policy.expiry(absent))
        return requests.meta_set(wire, data, b"C%d T%d F%d" % (cas, ttl, flags))

    def encode(self, value: Any) -> tuple[bytes, int]:
        """A value's bytes and flags; too large a value raises before it is sent."""
        data, flags = self.codec.encode(value)
        self.planner.check_size(data)
        return data, flags
