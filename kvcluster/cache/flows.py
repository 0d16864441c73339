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

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any, Final, TypeAlias, TypeVar

from kvcluster.cache.flights import Flight, LoadedKey, Outcome
from kvcluster.cache.leases import UNASKED, Answer, Exchange, Fills, LeaseGets, Source
from kvcluster.errors import CallerError, IllegalValue
from kvcluster.plan import Plan
from kvcluster.protocol import requests
from kvcluster.protocol.hot import Reply
from kvcluster.protocol.requests import Commands

T = TypeVar("T")

FIRST_POLL: Final = 0.002
LAST_POLL: Final = 0.010


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
