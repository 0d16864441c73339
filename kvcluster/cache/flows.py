"""Reading through the cache, as generators without I/O.

A flow yields what it needs done (exchange a `Plan`, run a `Load`, `Sleep`, `Join` another caller's flight, `Detach` a flow) and is
sent the result. A short driver carries it out, one for sync and one for async, so the rules below exist once:

- A miss takes a *lease*: the node creates a placeholder and tells exactly one caller (W) to load the value. That caller stores it
  by compare-and-swap against the placeholder, so a delete that came in between wins, and an old value never lands.
- Callers that lose poll at short intervals. One that sees the same placeholder for longer than ``takeover`` marks it stale by its
  CAS number, which exactly one caller can do, and the next meta get makes it the new winner; the old winner's fill is refused
  then.
- A value that is stale, or by chance soon will be, makes one reader the winner too. It is served meanwhile where the policy says
  so, and the winner refreshes it in the background. Where a winner of that kind is silent for too long, a reader takes over.
- CAS numbers repeat after a node restarts, so a fill travels only over a connection that was open when its lease was won.
- Callers in one process share one flight per key. A follower takes the leader's result only if that result is not older than the
  follower's own question; else it asks again. One that has followed for longer than ``takeover`` asks again too, and the first who
  does leads the others, so that a leader that hangs holds nobody up.
- Where there are timeouts, a load runs beside its caller, who gives up waiting when the time is over: after the soft one for a
  stale value, and the load goes on; after the hard one for good, and the lease is given back, so that what comes late is dropped.
- A value that was stored under other stamps is deleted by its CAS number and asked for again, which takes the lease. A stamp that
  is absent is created before the load begins, at every node, so that a key that moves finds it there.
- Who waits for many keys is patient while any of them arrives: whoever loads them one after another is alive.
- A node that cannot be asked is a miss that is loaded and not stored.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any, TypeAlias, TypeVar

from kvcluster.cache.flights import FIRST_POLL, LAST_POLL, Flight, Loading, Outcome
from kvcluster.cache.leases import (
    NO_STAMPS,
    UNASKED,
    Answer,
    Fills,
    LeaseGets,
    Refreshes,
    Source,
    Stamps,
    TakeOvers,
    creations,
)
from kvcluster.errors import CallerError, IllegalValue, LoaderTimeout
from kvcluster.plan import Plan
from kvcluster.planner import STAMP_SIZE
from kvcluster.protocol import requests
from kvcluster.protocol.requests import Commands, Request

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Load:
    """Call the loader; the flow is sent its result, or its exception is thrown in. ``keys`` are in `LOADING` meanwhile."""

    call: Callable[[], Any]
    keys: Loading


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait this many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Join:
    """Wait for a flight; the flow is sent what it ended with, or None where it has not after these seconds (None: for ever)."""

    flight: Flight[Any]
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Detach:
    """Carry out another flow beside this one; the flow is sent whether that has begun.

    ``awaited`` says whether somebody waits for it. If not, it is a refresh: it may be refused where there are too many, and none of
    the keys that the caller is loading wait for it. After ``seconds`` it is given up, where that can be done.
    """

    flow: Flow[None]
    awaited: bool
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Each:
    """Carry out some flows, at the same time where that can be done; the first exception ends them all and is thrown in."""

    flows: Sequence[Flow[None]]


@dataclass(frozen=True, slots=True)
class Count:
    """Count what happened to a key without asking its node; ``name`` is the counter's."""

    wire: bytes
    name: str
    source: Source


#: A multi-step command: yields what it needs, is sent the result, returns the command's result.
Flow: TypeAlias = Generator[Plan[Any] | Load | Sleep | Join | Detach | Each | Count, Any, T]


class Patience:
    """How long one caller waits.

    :param asked: when it began, by the source's clock
    """

    def __init__(self, source: Source, asked: float) -> None:
        policy = source.policy
        self._clock = source.clock
        self._soft = None if policy.soft_timeout is None else asked + policy.soft_timeout
        self._hard = None if policy.hard_timeout is None else asked + policy.hard_timeout

    def until(self, spare: bool) -> float | None:
        """When it is over; None where it never is.

        :param spare: whether there is a stale value to serve instead
        """
        return self._soft if spare and self._soft is not None else self._hard

    def left(self, spare: bool, most: float | None = None) -> float | None:
        """How many seconds are left of it.

        :param most: a limit of another kind, in seconds
        """
        until = self.until(spare)
        left = None if until is None else max(0.0, until - self._clock())
        return most if left is None else left if most is None else min(left, most)

    def over(self, spare: bool) -> bool:
        """Whether it is over."""
        until = self.until(spare)
        return until is not None and self._clock() >= until

    @property
    def over_for_good(self) -> bool:
        """Whether the hard timeout is over."""
        return self._hard is not None and self._clock() >= self._hard


# -- one key


def read_one(source: Source, wire: bytes, load: Callable[[], Any], stamps: Stamps = ()) -> Flow[Any]:
    """Read one key through: from its node, or from the loader with at most one load at a time over all processes.

    :param stamps: the wire keys of the stamps that its value depends on
    """
    asked = source.clock()
    answer = yield from _ask_once(source, wire, stamps, first=True)
    return (yield from read_on(source, wire, load, answer, asked, stamps))


def read_on(source: Source, wire: bytes, load: Callable[[], Any], answer: Answer, asked: float, stamps: Stamps = ()) -> Flow[Any]:
    """As `read_one`, after the first answer came. A shell that saw a plain hit need not begin this at all.

    :param asked: when that was asked, by the source's clock
    """
    patience = Patience(source, asked)
    answer = yield from _mended(source, wire, stamps, answer)
    flight: Flight[Outcome] | None = None
    spare: Answer | None = None
    while not answer.found:
        spare = answer if answer.spare else spare
        flight, leads = (source.flights.lead(wire), True) if answer.won else source.flights.join(wire, hung=flight)
        outcome: Outcome | None
        if leads:
            outcome = yield from _lead(source, wire, load, flight, answer, patience, stamps, spare is not None)
        else:
            source.refuse_own((wire,))
            outcome = yield Join(flight, patience.left(spare is not None, source.times.takeover(source.policy)))
        if outcome is not None and outcome.valid_from >= asked:
            if outcome.error is None:
                return source.codec.decode(outcome.data, outcome.flags)
            if spare is None:
                raise outcome.error
            return (yield from _spared(source, wire, spare, outcome.error))
        if outcome is None and (leads or patience.over(spare is not None)):
            yield Count(wire, "timeouts", source)
            if spare is None:
                raise _timeout(source)
            return (yield from _spared(source, wire, spare))
        answer = yield from _ask(source, wire, stamps)
    if answer.won:
        yield Detach(_refresh(source, wire, load, answer, stamps), awaited=False, seconds=source.policy.hard_timeout)
    return answer.value


def refresh_one(source: Source, wire: bytes, load: Callable[[], Any], stamps: Stamps = ()) -> Flow[Any]:
    """Load a value now, whatever is cached, and store it unless the key is invalidated meanwhile."""
    patience = Patience(source, source.clock())
    answer = yield from _ask(source, wire, stamps)
    outcome = yield from _lead(
        source, wire, load, source.flights.lead(wire), answer._replace(lost=False), patience, stamps, spare=False
    )
    if source.near is not None:
        source.near.forget((wire,))
    if outcome is None:
        yield Count(wire, "timeouts", source)
        raise _timeout(source)
    if outcome.error is not None:
        raise outcome.error
    return source.codec.decode(outcome.data, outcome.flags)


def _spared(source: Source, wire: bytes, spare: Answer, error: BaseException | None = None) -> Flow[Any]:
    """The stale value, because loading a new one failed, or is slow."""
    if error is not None:
        source.times.complain(f"the loader of {source.label} failed, and a stale value is served", error)
    yield Count(wire, "stale", source)
    return spare.value


def _timeout(source: Source) -> LoaderTimeout:
    return LoaderTimeout(
        f"the loader of {source.label} did not come back within {source.policy.hard_timeout} seconds (hard_timeout)"
    )


def _ask_once(source: Source, wire: bytes, stamps: Stamps, first: bool) -> Flow[Answer]:
    asking = LeaseGets(source, (wire,), {wire: stamps} if stamps else NO_STAMPS, first)
    _, failures = yield source.exchange({source.planner.address(wire): asking})
    return UNASKED if failures else asking.answers[0]


def _ask(source: Source, wire: bytes, stamps: Stamps) -> Flow[Answer]:
    """Read a key again, or take its lease."""
    answer = yield from _ask_once(source, wire, stamps, first=False)
    return (yield from _mended(source, wire, stamps, answer))


def _mended(source: Source, wire: bytes, stamps: Stamps, answer: Answer) -> Flow[Answer]:
    if answer.won:
        answer = (yield from _taken_along(source, {wire: answer}, {wire: stamps} if stamps else NO_STAMPS))[wire]
    if not answer.outdated and not answer.lost and b"" not in answer.stamps:
        return answer
    answers = yield from _mend(source, {wire: answer}, {wire: stamps} if stamps else NO_STAMPS)
    return answers[wire]


def _taken_along(source: Source, answers: Mapping[bytes, Answer], depends: Mapping[bytes, Stamps]) -> Flow[Mapping[bytes, Answer]]:
    """In the middle of a resize: what old owners have of what was won is copied to the new ones, and asked for again."""
    leases = ((wire, answer.cas) for wire, answer in answers.items() if answer.won and not (answer.found or answer.spare))
    copying = source.planner.take_along(leases)
    if copying is None or not (copied := (yield copying)):
        return answers
    again, _ = yield from _ask_all(source, sorted(copied), depends, first=False)
    return {**answers, **again}


def _mend(source: Source, answers: Mapping[bytes, Answer], depends: Mapping[bytes, Stamps]) -> Flow[Mapping[bytes, Answer]]:
    """Put right what keeps answers from being used, and ask again: all in one exchange, and in none where nothing does.

    Outdated values are deleted, stamps that are absent created, and refreshes that take too long taken over.
    """
    now, takeover = source.clock(), source.times.takeover(source.policy)
    outdated: dict[bytes, bytes] = {}
    overdue: dict[bytes, bytes] = {}
    lacking: dict[bytes, None] = {}  # keys to be loaded under stamps that are not all there
    created: dict[bytes, bytes] = {}
    for wire, answer in answers.items():
        if answer.outdated:
            outdated[wire] = requests.meta_delete(wire, b"C%d" % answer.cas)
        elif answer.lost:
            if answer.found and source.policy.stale_while_revalidate and source.sightings.overdue(wire, answer.cas, now, takeover):
                overdue[wire] = source.take_over(wire, answer)
            continue
        if b"" in answer.stamps:
            lacking[wire] = None
            for stamp, value in zip(depends[wire], answer.stamps, strict=True):
                if not value and stamp not in created:
                    created[stamp] = os.urandom(STAMP_SIZE)
    groups = source.planner.group_wires([*dict.fromkeys((*outdated, *overdue, *lacking))])
    if not groups:
        return answers
    asking: dict[str, LeaseGets] = {}
    for address, group in groups.items():
        deletes = [outdated[wire] for wire in group if wire in outdated]
        takeovers = [overdue[wire] for wire in group if wire in overdue]
        again = [wire for wire in group if wire in outdated or wire in overdue]
        also = [stamp for wire in group if wire in lacking for stamp in depends[wire]]
        asking[address] = LeaseGets(
            source, again, depends, False, also=also, create=created, before=[*deletes, *takeovers], takeovers=len(takeovers)
        )
    sent: dict[str, Request] = dict(asking)
    if created:
        for node in source.planner.placement.nodes:
            token = requests.opaque()
            sent.setdefault(node.address, Commands(creations(created, token), len(created), opaque=token))
    _, failures = yield source.exchange(sent)
    mended = dict(answers)
    for address, group in groups.items():
        its = asking[address]
        if address in failures:
            mended.update((wire, UNASKED) for wire in its.wires)
            continue
        mended.update(zip(its.wires, its.answers, strict=True))
        for wire in group:
            if wire in lacking and wire not in outdated:
                mended[wire] = mended[wire]._replace(stamps=tuple([its.stamps.get(stamp, b"") for stamp in depends[wire]]))
    return mended


def _lead(
    source: Source,
    wire: bytes,
    load: Callable[[], Any],
    flight: Flight[Outcome],
    answer: Answer,
    patience: Patience,
    stamps: Stamps,
    spare: bool,
) -> Flow[Outcome | None]:
    """Get the value for this caller and for those that follow; None where the caller's patience is over before.

    :param spare: whether the caller has a stale value to serve instead
    """
    outcome: Outcome | None = None
    underway = False
    try:
        if answer.lost:
            asked, answer = yield from _wait(source, wire, answer, patience, stamps, spare)
            if answer.found:
                if answer.won:
                    yield Detach(_refresh(source, wire, load, answer, stamps), awaited=False, seconds=source.policy.hard_timeout)
                outcome = Outcome(answer.data, answer.flags, None, asked)
                return outcome
            if answer.lost:
                return None
        if patience.until(spare) is not None:
            beside = _landing(source, wire, flight, _load(source, wire, load, answer))
            underway = yield Detach(beside, awaited=True, seconds=source.policy.hard_timeout)
            if underway:
                outcome = yield Join(flight, patience.left(spare))
                if outcome is None and patience.over_for_good:
                    late = Outcome(b"", 0, _timeout(source), source.clock())
                    source.flights.land(wire, flight, late)
                    yield from _give_back(source, {wire: answer})
                return outcome
        outcome = yield from _load(source, wire, load, answer)
        return outcome
    finally:
        if not underway:
            source.flights.land(wire, flight, outcome)


def _landing(source: Source, wire: bytes, flight: Flight[Outcome], flow: Flow[Outcome]) -> Flow[None]:
    """A load beside its caller, which lands the flight by itself. It does not begin where the caller gave it up before."""
    outcome: Outcome | None = None
    try:
        if not flight.landed.is_set():
            outcome = yield from flow
    finally:
        source.flights.land(wire, flight, outcome)


def _refresh(source: Source, wire: bytes, load: Callable[[], Any], answer: Answer, stamps: Stamps) -> Flow[None]:
    """Load a value anew that is served meanwhile.

    One that fails leaves its mark on the value: so the next one begins after ``takeover``, and not at once.
    """
    flight = source.flights.lead(wire)
    outcome: Outcome | None = None
    try:
        outcome = yield from _load(source, wire, load, answer)
    finally:
        source.flights.land(wire, flight, outcome)
    if outcome.error is not None:
        source.times.complain(f"a refresh by the loader of {source.label} failed, and the old value is served on", outcome.error)


def _wait(
    source: Source, wire: bytes, answer: Answer, patience: Patience, stamps: Stamps, spare: bool
) -> Flow[tuple[float, Answer]]:
    """Poll until the value is there, or the lease is ours, or the node cannot be asked, or the caller's patience is over.

    :param answer: what the node said of the key, which another caller is loading
    :returns: when that was asked, and the last answer
    """
    since = asked = source.clock()
    delay = FIRST_POLL
    while True:
        yield Sleep(patience.left(spare, source.times.pause(asked - since, delay)) or 0)
        delay = min(max(delay * 1.5, FIRST_POLL), LAST_POLL)
        winner, asked = answer.cas, source.clock()
        answer = yield from _ask(source, wire, stamps)
        if answer.found or not answer.lost or patience.over(spare):
            return asked, answer
        if answer.cas != winner:
            since, delay = asked, FIRST_POLL
        elif asked - since > source.times.takeover(source.policy):
            source.times.at_least(asked - since)
            yield from _send(source, {wire: source.take_over(wire, answer)}, TakeOvers)
            delay = 0.0  # the next who asks wins


def _load(source: Source, wire: bytes, load: Callable[[], Any], answer: Answer) -> Flow[Outcome]:
    """Load a value and store it against the lease, if there is one."""
    began = source.clock()
    try:
        value = yield Load(load, ((source.flights, {wire}),))
        source.times.note(source.clock() - began)
        data, flags = source.codec.encode(value)
        stored = source.seal(data, flags, answer.stamps)
    except GeneratorExit:
        raise
    except BaseException as error:
        yield from _give_back(source, {wire: answer})
        if isinstance(error, Exception):
            return Outcome(b"", 0, error, began)
        raise
    valid_from, filling = began, source.clock()
    if answer.cas:
        fill = source.fill(wire, stored, answer.cas, value is None)
        kind = Refreshes if answer.found else Fills
        filled = kind(fill, 1, opened_before=began)
        _, failures = yield source.exchange({source.planner.address(wire): filled})
        # What has stamps may have been outdated while it was loaded, which its fill does not show.
        if filled.confirmed and not failures and not answer.stamps:
            valid_from = filling
    return Outcome(data, flags, None, valid_from)


# -- many keys


@dataclass(frozen=True, slots=True)
class Loaders:
    """How many are loaded: by one call for all, or where there is none for that, by one for each."""

    many: Callable[[Sequence[Any]], Any] | None
    one: Callable[[Any], Any] | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load of many ended with: values by argument, or an error."""

    values: Mapping[Any, Any]
    error: Exception | None = None


def read_many(
    source: Source, arguments: Mapping[bytes, Any], loaders: Loaders, depends: Mapping[bytes, Stamps] | None = None
) -> Flow[dict[Any, Any]]:
    """Read many keys through: one exchange, one load for all that were won, one exchange to store them, and polls for the rest.

    :param arguments: the argument that each wire key stands for
    :param loaders: called with the arguments of what is missing; one that the result lacks has no value (None)
    :param depends: for each wire key that has any, the wire keys of the stamps that its value depends on
    :returns: the values by argument
    """
    values: dict[Any, Any] = {}
    pending = dict(arguments)
    depends = depends or NO_STAMPS
    spares: dict[bytes, Answer] = {}
    winners: dict[bytes, tuple[int, float]] = {}  # for each key that somebody else loads: the placeholder seen, and since when
    first, delay, progress = True, FIRST_POLL, source.clock()
    patience = Patience(source, progress)
    while True:
        now = source.clock()
        answers, won = yield from _ask_many(source, list(pending), depends, first)
        rest = {} if len(won) == len(answers) else {wire: answer for wire, answer in answers.items() if wire not in won}
        lost = {wire: answer for wire, answer in rest.items() if not answer.found}
        try:
            source.refuse_own((*won, *lost))
        except CallerError:
            yield from _give_back(source, won)
            raise
        aging: dict[bytes, Answer] = {}
        for wire, answer in rest.items():
            if answer.found:
                values[pending.pop(wire)] = answer.value
                progress = now
                if answer.won:
                    aging[wire] = answer
            elif answer.spare:
                spares[wire] = answer
        if aging:
            refresh = _refresh_many(source, {wire: arguments[wire] for wire in aging}, aging, loaders)
            yield Detach(refresh, awaited=False, seconds=source.policy.hard_timeout)
        if won:
            winning, pending = (pending, {}) if len(won) == len(pending) else ({wire: pending.pop(wire) for wire in won}, pending)
            values.update((yield from _load_won(source, winning, won, loaders, patience)))
        if not pending:
            return values
        spare = pending.keys() <= spares.keys()
        if patience.over(spare):
            for wire in pending:
                yield Count(wire, "timeouts", source)
            if not spare:
                raise _timeout(source)
            values.update((yield from _spared_many(source, pending, spares)))
            return values
        overdue: dict[bytes, bytes] = {}
        patient = source.times.takeover(source.policy)
        for wire, answer in lost.items():
            seen = winners.get(wire)
            if seen is None or seen[0] != answer.cas:
                winners[wire] = (answer.cas, now)
            elif (waited := now - max(seen[1], progress)) > patient:
                overdue[wire] = source.take_over(wire, answer)
                source.times.at_least(waited)
        yield from _send(source, overdue, TakeOvers)
        yield Sleep(patience.left(spare, source.times.pause(now - progress, delay)) or 0)
        first, delay = False, min(delay * 1.5, LAST_POLL)


def _ask_many(
    source: Source, wires: Sequence[bytes], depends: Mapping[bytes, Stamps], first: bool
) -> Flow[tuple[Mapping[bytes, Answer], Mapping[bytes, Answer]]]:
    """Read keys or take their leases: all answers, and those of them that leave it to this caller to load the value."""
    asked, cold = yield from _ask_all(source, wires, depends, first)
    answers = yield from _taken_along(source, asked, depends)
    if cold and answers is asked:
        return answers, answers
    answers = yield from _mend(source, answers, depends)
    return answers, {wire: answer for wire, answer in answers.items() if not answer.found and not answer.lost}


def _ask_all(
    source: Source, wires: Sequence[bytes], depends: Mapping[bytes, Stamps], first: bool
) -> Flow[tuple[Mapping[bytes, Answer], bool]]:
    """The answers, and whether all of them are a lease and nothing else."""
    groups = source.planner.group_wires(wires)
    asking = {address: LeaseGets(source, group, depends, first) for address, group in groups.items()}
    _, failures = yield source.exchange(asking)
    answers: dict[bytes, Answer] = {}
    for address, group in groups.items():
        answers.update(zip(group, repeat(UNASKED) if address in failures else asking[address].answers, strict=False))
    return answers, not failures and all(request.cold for request in asking.values())


def _spared_many(source: Source, arguments: Mapping[bytes, Any], spares: Mapping[bytes, Answer]) -> Flow[dict[Any, Any]]:
    for wire in arguments:
        yield Count(wire, "stale", source)
    return {argument: spares[wire].value for wire, argument in arguments.items()}


def _load_won(
    source: Source, arguments: Mapping[bytes, Any], won: Mapping[bytes, Answer], loaders: Loaders, patience: Patience
) -> Flow[dict[Any, Any]]:
    """Load what is missing for as long as the caller has patience; stale values where that fails and all have one."""
    spare = all(answer.spare for answer in won.values())
    loaded: Loaded | None
    flight: Flight[Loaded] = Flight()
    loading = _landing_many(source, arguments, won, loaders, flight)
    if patience.until(spare) is not None and (yield Detach(loading, awaited=True, seconds=source.policy.hard_timeout)):
        loaded = yield Join(flight, patience.left(spare))
        if loaded is None:
            for wire in won:
                yield Count(wire, "timeouts", source)
            if patience.over_for_good:
                flight.land(None)
                yield from _give_back(source, won)
            loaded = Loaded({}, _timeout(source))
    else:
        loaded = yield from _load_all(source, arguments, won, loaders)
    if loaded.error is None:
        return dict(loaded.values)
    if not spare:
        raise loaded.error
    source.times.complain(f"the loader of {source.label} failed, and stale values are served", loaded.error)
    return (yield from _spared_many(source, arguments, won))


def _landing_many(
    source: Source, arguments: Mapping[bytes, Any], won: Mapping[bytes, Answer], loaders: Loaders, flight: Flight[Loaded]
) -> Flow[None]:
    """A load beside its caller. It does not begin where the caller gave it up before."""
    loaded: Loaded | None = None
    try:
        if not flight.landed.is_set():
            loaded = yield from _load_all(source, arguments, won, loaders)
    finally:
        flight.land(loaded)


def _refresh_many(source: Source, arguments: Mapping[bytes, Any], aging: Mapping[bytes, Answer], loaders: Loaders) -> Flow[None]:
    """Load values anew that are served meanwhile."""
    loaded = yield from _load_all(source, arguments, aging, loaders)
    if loaded.error is not None:
        source.times.complain(f"a refresh by the loader of {source.label} failed, and old values are served on", loaded.error)


def _load_all(source: Source, arguments: Mapping[bytes, Any], won: Mapping[bytes, Answer], loaders: Loaders) -> Flow[Loaded]:
    """Load what is missing, by one call or one by one, and store what there is a lease for."""
    try:
        if loaders.many is not None:
            return Loaded((yield from _load_many(source, arguments, won, loaders.many)))
        assert loaders.one is not None
        return Loaded((yield from _load_each(source, arguments, won, loaders.one)))
    except Exception as error:
        return Loaded({}, error)


def _load_each(
    source: Source, arguments: Mapping[bytes, Any], won: Mapping[bytes, Answer], load_one: Callable[[Any], Any]
) -> Flow[dict[Any, Any]]:
    """Load values one by one; each is stored at once."""
    values: dict[Any, Any] = {}
    left = dict(won)

    def load(wire: bytes, argument: Any) -> Flow[None]:
        outcome = yield from _load(source, wire, partial(load_one, argument), left.pop(wire))
        if outcome.error is not None:
            raise outcome.error
        values[argument] = source.codec.decode(outcome.data, outcome.flags)

    try:
        yield Each([load(wire, argument) for wire, argument in arguments.items()])
    except GeneratorExit:
        raise
    except BaseException:
        yield from _give_back(source, left)
        raise
    return values


def _load_many(
    source: Source, arguments: Mapping[bytes, Any], won: Mapping[bytes, Answer], load_many: Callable[[Sequence[Any]], Any]
) -> Flow[dict[Any, Any]]:
    """Load values by one call, and store what there is a lease for; one value that cannot be stored raises after that."""
    began = source.clock()
    try:
        loaded = yield Load(lambda: load_many(list(arguments.values())), ((source.flights, won.keys()),))
        source.times.note(source.clock() - began)
        values = dict(zip(arguments.values(), map(loaded.get, arguments.values()), strict=True))
    except GeneratorExit:
        raise
    except BaseException:
        yield from _give_back(source, won)
        raise
    fills, refused = source.fills([*arguments], [*values.values()], [won[wire] for wire in arguments])
    yield from _send(source, fills, Refreshes if all(answer.found for answer in won.values()) else Fills, opened_before=began)
    if refused:
        yield from _give_back(source, {wire: won[wire] for wire in refused})
        wire, cause = next(iter(refused.items()))
        raise IllegalValue(f"the value for {arguments[wire]!r}: {cause}") from cause
    return values


def _give_back(source: Source, answers: Mapping[bytes, Answer]) -> Flow[None]:
    """End the leases that were won, so that nobody waits for them to expire.

    A refresh keeps its: the value is served on, and who would try again at once would fail again.
    """
    leases = {wire: source.give_back(wire, answer) for wire, answer in answers.items() if answer.won and not answer.found}
    yield from _send(source, leases, Commands)


def _send(source: Source, commands: Mapping[bytes, bytes], kind: type[Commands], **options: Any) -> Flow[None]:
    """Send one command for each key, to all nodes at once."""
    if commands:
        groups = source.planner.group_wires([*commands])
        payloads = {address: b"".join([commands[wire] for wire in group]) for address, group in groups.items()}
        yield source.exchange({address: kind(payload, len(groups[address]), **options) for address, payload in payloads.items()})
