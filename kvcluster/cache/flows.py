"""Reading through the cache, as generators without I/O.

A flow yields what it needs done (exchange a `Plan`, run a `Load`, `Sleep`, `Join` another caller's flight) and is sent the
result. A short driver carries it out, one for sync and one for async, so the rules below exist once:

- A miss takes a *lease*: the node creates a placeholder and tells exactly one caller (W) to load the value. That caller stores it
  by compare-and-swap against the placeholder, so a delete that came in between wins, and an old value never lands.
- Callers that lose poll at short intervals. One that sees the same placeholder for longer than ``takeover`` marks it stale by its
  CAS number, which exactly one caller can do, and the next meta get makes it the new winner; the old winner's fill is refused
  then.
- CAS numbers repeat after a node restarts, so a fill travels only over a connection that was open when its lease was won.
- Callers in one process share one flight per key. A follower takes the leader's result only if that result is not older than the
  follower's own question; else it asks again. One that has followed for longer than ``takeover`` asks again too, and the first who
  does leads the others, so that a leader that hangs holds nobody up.
- Who waits for many keys is patient while any of them arrives: whoever loads them one after another is alive.
- A node that cannot be asked is a miss that is loaded and not stored.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from kvcluster.cache import fork
from kvcluster.cache.policy import Policy
from kvcluster.codec import Codec
from kvcluster.errors import CallerError, IllegalValue
from kvcluster.plan import Failures, Plan, Planner
from kvcluster.protocol import requests
from kvcluster.protocol.hot import Reply
from kvcluster.protocol.requests import Commands, Request, Stores, is_placeholder
from kvcluster.stats.counters import Counters

T = TypeVar("T")

FIRST_POLL: Final = 0.002
LAST_POLL: Final = 0.010
LEAST_TAKEOVER: Final = 0.05
UNMEASURED_TAKEOVER: Final = 2.0


@dataclass(frozen=True, slots=True)
class Load:
    """Call the loader; the flow is sent its result, or its exception is thrown in. ``keys`` are in `LOADING` meanwhile."""

    call: Callable[[], Any]
    keys: frozenset[LoadedKey]


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait this many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Join:
    """Wait for another caller's flight; the flow is sent its `Outcome`, or None where there is none after these seconds."""

    flight: Flight
    seconds: float


#: A multi-step command: yields what it needs, is sent the result, returns the command's result.
Flow: TypeAlias = Generator[Plan[Any] | Load | Sleep | Join, Any, T]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a flight ended with: encoded, so that every caller decodes an object of its own.

    No invalidation that completed before ``valid_from`` (seconds, monotonic) is missing from it.
    """

    data: bytes
    flags: int
    error: BaseException | None
    valid_from: float


class Flight:
    """One caller's way to a value, which others in the process may wait for."""

    def __init__(self) -> None:
        self.outcome: Outcome | None = None
        self.landed = threading.Event()
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], object]] = []

    def land(self, outcome: Outcome | None) -> None:
        """End the flight, and tell those who wait."""
        with self._lock:
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
        self._flights: dict[bytes, Flight] = {}
        self._lock = threading.Lock()

    def join(self, wire: bytes, hung: Flight | None = None) -> tuple[Flight, bool]:
        """The flight for a key, and whether this caller leads it.

        :param hung: a flight that this caller has waited for long enough
        """
        with self._lock:
            flight = self._flights.get(wire)
            if flight is not None and flight is not hung:
                return flight, False
            self._flights[wire] = flight = Flight()
            return flight, True

    def lead(self, wire: bytes) -> Flight:
        """A flight of this caller's own, which later callers follow."""
        with self._lock:
            self._flights[wire] = flight = Flight()
            return flight

    def forget(self, wires: Iterable[bytes]) -> None:
        """Let later callers start anew, because the keys were invalidated."""
        with self._lock:
            for wire in wires:
                self._flights.pop(wire, None)

    def land(self, wire: bytes, flight: Flight, outcome: Outcome | None) -> None:
        """End a flight."""
        with self._lock:
            if self._flights.get(wire) is flight:
                del self._flights[wire]
        flight.land(outcome)


#: A wire key, and the flights of the cache that it belongs to.
LoadedKey: TypeAlias = tuple[Flights, bytes]

#: The keys whose loaders are running around this call: waiting for one of them would wait for ever.
LOADING: ContextVar[frozenset[LoadedKey]] = ContextVar("kvcluster_loading", default=frozenset())


class LoadTimes:
    """How long loads of one loader take: a moving average in seconds, None before the first. ``count`` says how many there were."""

    def __init__(self) -> None:
        self.average: float | None = None
        self.count = 0
        fork.renewed(self)

    def renew(self) -> None:
        """Begin with a free lock; what was measured stays true in a forked child."""
        self._lock = threading.Lock()

    def note(self, seconds: float) -> None:
        """Take one load into account."""
        with self._lock:
            self.count += 1
            self.average = seconds if self.average is None else self.average * 0.8 + seconds * 0.2

    def takeover(self, policy: Policy) -> float:
        """How long a waiter trusts the same winner, in seconds."""
        if policy.takeover is not None:
            return policy.takeover
        return UNMEASURED_TAKEOVER if self.average is None else max(LEAST_TAKEOVER, 2 * self.average)


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


def read_one(source: Source, wire: bytes, load: Callable[[], Any]) -> Flow[Any]:
    """Read one key through: from its node, or from the loader with at most one load at a time over all processes."""
    asked = source.clock()
    answer = yield from _ask(source, wire)
    return (yield from read_missed(source, wire, load, answer, asked))


def read_missed(source: Source, wire: bytes, load: Callable[[], Any], answer: Answer, asked: float) -> Flow[Any]:
    """As `read_one`, after the first answer came. A shell that saw a hit need not begin this at all.

    :param asked: when that was asked, by the source's clock
    """
    flight: Flight | None = None
    while not answer.found:
        flight, leads = (source.flights.lead(wire), True) if answer.won else source.flights.join(wire, hung=flight)
        if leads:
            return (yield from _lead(source, wire, load, flight, answer))
        source.keys((wire,))
        outcome = yield Join(flight, source.times.takeover(source.policy))
        if outcome is not None and outcome.valid_from >= asked:
            if outcome.error is not None:
                raise outcome.error
            return source.codec.decode(outcome.data, outcome.flags)
        answer = yield from _ask(source, wire, first=False)
    return answer.value


def refresh_one(source: Source, wire: bytes, load: Callable[[], Any]) -> Flow[Any]:
    """Load a value now, whatever is cached, and store it unless the key is invalidated meanwhile."""
    answer = yield from _ask(source, wire, first=False)
    return (yield from _lead(source, wire, load, source.flights.lead(wire), answer._replace(lost=False)))


def _ask(source: Source, wire: bytes, first: bool = True) -> Flow[Answer]:
    """Read a key or take its lease."""
    address = source.planner.address(wire)
    asking = LeaseGets(source, (wire,), first)
    _, failures = yield Exchange(source.planner.namespace, {address: asking})
    return UNASKED if failures else asking.answers[0]


def _lead(source: Source, wire: bytes, load: Callable[[], Any], flight: Flight, answer: Answer) -> Flow[Any]:
    """Get the value for this caller and for those that follow."""
    outcome: Outcome | None = None
    try:
        if answer.lost:
            asked, answer = yield from _wait(source, wire, answer.cas)
            if answer.found:
                outcome = Outcome(answer.data, answer.flags, None, asked)
                return answer.value
        began = source.clock()
        try:
            value, outcome = yield from _load(source, wire, load, answer)
        except Exception as error:
            outcome = Outcome(b"", 0, error, began)
            raise
        return value
    finally:
        source.flights.land(wire, flight, outcome)


def _wait(source: Source, wire: bytes, winner: int) -> Flow[tuple[float, Answer]]:
    """Poll until the value is there, or the lease is ours, or the node cannot be asked; when that was asked, and the answer.

    :param winner: the CAS number of the placeholder of whoever is loading
    """
    since, delay = source.clock(), FIRST_POLL
    while True:
        yield Sleep(delay)
        delay = min(delay * 1.5, LAST_POLL)
        asked = source.clock()
        answer = yield from _ask(source, wire, first=False)
        if not answer.lost:
            return asked, answer
        if answer.cas != winner:
            winner, since, delay = answer.cas, asked, FIRST_POLL
        elif asked - since > source.times.takeover(source.policy):
            yield from _send(source, {wire: source.take_over(wire, winner)}, Commands)
            delay = FIRST_POLL


def _load(source: Source, wire: bytes, load: Callable[[], Any], answer: Answer) -> Flow[tuple[Any, Outcome]]:
    """Load a value and store it against the lease, if there is one."""
    began = source.clock()
    try:
        value = yield Load(load, frozenset({(source.flights, wire)}))
        source.times.note(source.clock() - began)
        data, flags = source.encode(value)
    except GeneratorExit:
        raise
    except BaseException:
        yield from _give_back(source, {wire: answer})
        raise
    stored, filling = False, source.clock()
    if answer.cas:
        fill = source.fill(wire, data, flags, answer.cas, value is None)
        replies = yield from _send(source, {wire: fill}, Fills, opened_before=began)
        stored = (reply := replies[wire]) is not None and reply.status == "HD"
    return value, Outcome(data, flags, None, filling if stored else began)


def read_many(
    source: Source,
    arguments: Mapping[bytes, Any],
    load_many: Callable[[Sequence[Any]], Any] | None,
    load_one: Callable[[Any], Any] | None = None,
) -> Flow[dict[Any, Any]]:
    """Read many keys through: one exchange, one load for all that were won, one exchange to store them, and polls for the rest.

    :param arguments: the argument that each wire key stands for
    :param load_many: called with the arguments of what is missing; one that its result lacks has no value (None)
    :param load_one: called with one argument after another instead, where there is no ``load_many``; each result is stored at once
    :returns: the values by argument
    """
    values: dict[Any, Any] = {}
    pending = dict(arguments)
    winners: dict[bytes, tuple[int, float]] = {}  # for each key that somebody else loads: the placeholder seen, and since when
    first, delay, progress = True, FIRST_POLL, source.clock()
    while True:
        now = source.clock()
        answers = yield from _ask_many(source, list(pending), first)
        won = {wire: answer for wire, answer in answers.items() if not answer.found and not answer.lost}
        lost = {wire: answer for wire, answer in answers.items() if answer.lost}
        try:
            source.keys((*won, *lost))
        except CallerError:
            yield from _give_back(source, won)
            raise
        for wire, answer in answers.items():
            if answer.found:
                values[pending.pop(wire)] = answer.value
                progress = now
        if won:
            winning = {wire: pending.pop(wire) for wire in won}
            values.update((yield from _load_won(source, winning, won, load_many, load_one)))
        if not pending:
            return values
        overdue: dict[bytes, bytes] = {}
        for wire, answer in lost.items():
            seen = winners.get(wire)
            if seen is None or seen[0] != answer.cas:
                winners[wire] = (answer.cas, now)
            elif now - max(seen[1], progress) > source.times.takeover(source.policy):
                overdue[wire] = source.take_over(wire, answer.cas)
        yield from _send(source, overdue, Commands)
        yield Sleep(delay)
        first, delay = False, min(delay * 1.5, LAST_POLL)


def _ask_many(source: Source, wires: Sequence[bytes], first: bool) -> Flow[dict[bytes, Answer]]:
    """Read keys or take their leases."""
    groups = source.planner.group_wires(wires)
    asking = {address: LeaseGets(source, group, first) for address, group in groups.items()}
    _, failures = yield Exchange(source.planner.namespace, asking)
    answers: dict[bytes, Answer] = {}
    for address, group in groups.items():
        answers.update(zip(group, repeat(UNASKED) if address in failures else asking[address].answers, strict=False))
    return answers


def _load_won(
    source: Source,
    arguments: Mapping[bytes, Any],
    won: Mapping[bytes, Answer],
    load_many: Callable[[Sequence[Any]], Any] | None,
    load_one: Callable[[Any], Any] | None,
) -> Flow[dict[Any, Any]]:
    """Load what is missing, by one call or one by one, and store what there is a lease for."""
    if load_many is not None:
        return (yield from _load_many(source, arguments, won, load_many))
    assert load_one is not None
    values: dict[Any, Any] = {}
    left = dict(won)
    try:
        for wire, argument in arguments.items():
            values[argument], _ = yield from _load(source, wire, partial(load_one, argument), left.pop(wire))
    except GeneratorExit:
        raise
    except BaseException:
        yield from _give_back(source, left)
        raise
    return values


def _load_many(
    source: Source,
    arguments: Mapping[bytes, Any],
    won: Mapping[bytes, Answer],
    load_many: Callable[[Sequence[Any]], Any],
) -> Flow[dict[Any, Any]]:
    """Load what is missing by one call, and store what there is a lease for; one value that cannot be stored raises after that."""
    began = source.clock()
    try:
        loaded = yield Load(lambda: load_many(list(arguments.values())), source.keys(won))
        source.times.note(source.clock() - began)
        values = {argument: loaded.get(argument) for argument in arguments.values()}
    except GeneratorExit:
        raise
    except BaseException:
        yield from _give_back(source, won)
        raise
    fills: dict[bytes, bytes] = {}
    refused: dict[bytes, Exception] = {}
    for wire, answer in won.items():
        value = values[arguments[wire]]
        try:
            data, flags = source.encode(value)
        except Exception as error:  # a codec of the program's may raise anything
            refused[wire] = error
            continue
        if answer.cas:
            fills[wire] = source.fill(wire, data, flags, answer.cas, value is None)
    yield from _send(source, fills, Fills, opened_before=began)
    if refused:
        yield from _give_back(source, {wire: won[wire] for wire in refused})
        wire, cause = next(iter(refused.items()))
        raise IllegalValue(f"the value for {arguments[wire]!r}: {cause}") from cause
    return values


def _give_back(source: Source, answers: Mapping[bytes, Answer]) -> Flow[None]:
    """End the leases that were won, so that nobody waits for them to expire."""
    leases = {wire: requests.meta_delete(wire, b"C%d" % answer.cas) for wire, answer in answers.items() if answer.won}
    yield from _send(source, leases, Commands)


def _send(source: Source, commands: Mapping[bytes, bytes], kind: type[Commands], **options: Any) -> Flow[dict[bytes, Reply | None]]:
    """Send one command for each key, to all nodes at once; the replies, None from nodes that cannot be asked."""
    if not commands:
        return {}
    groups = source.planner.group_wires(list(commands))
    sent = {address: kind(b"".join([commands[wire] for wire in group]), len(group), **options) for address, group in groups.items()}
    _, failures = yield Exchange(source.planner.namespace, sent)
    replies: dict[bytes, Reply | None] = {}
    for address, group in groups.items():
        replies.update(zip(group, repeat(None) if address in failures else sent[address].replies, strict=False))
    return replies
