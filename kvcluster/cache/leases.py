"""What reading through says to a node: meta gets that take a lease on what they miss, fills against a lease, and take-overs.

A value may depend on *stamps*: small random entries that every node holds beside its values. They are read on the same connection
after the values, and a value that was not stored under exactly those stamps is outdated. Renewing one stamp so outdates, at once,
all values that depend on it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, Final, NamedTuple, TypeAlias

from kvcluster.cache.envelope import ENVELOPE, bare, opened, sealed
from kvcluster.cache.flights import LOADING, Flights, LoadTimes, Sightings
from kvcluster.cache.near import Near
from kvcluster.cache.policy import Policy
from kvcluster.cache.shapes import UNTYPED, Shape
from kvcluster.codec import Codec, Undecodable
from kvcluster.errors import CallerError
from kvcluster.plan import DeleteMany, Failures, Plan
from kvcluster.planner import STAMP_SIZE, Planner
from kvcluster.protocol import requests
from kvcluster.protocol.hot import Reply, leases
from kvcluster.protocol.requests import Commands, Deletes, Request, is_placeholder
from kvcluster.stats.counters import Counters

#: The wire keys of the stamps that a value depends on.
Stamps: TypeAlias = tuple[bytes, ...]

#: Of keys whose values depend on none.
NO_STAMPS: Final[Mapping[bytes, Stamps]] = {}

MOST_REMEMBERED: Final = 4096  # keys and their stamps

_ANYTHING: Final = Shape(Any)


class Answer(NamedTuple):
    """What a node said of one key: its value, where ``found`` is True, else who is to load it.

    - ``cas``: what a fill is compared with; 0 where there is nothing to store against, because the node gave no lease
    - ``won``: this caller is to load the value, or to refresh the one that was found
    - ``lost``: another caller does
    - ``spare``: ``value`` may be served where loading a new one fails or is slow
    - ``data``, ``flags``: the value as the codec wrote it
    - ``stamps``: the stamps that it depends on, as they are now; empty bytes for one that is absent
    - ``outdated``: there is a value that was stored under other stamps
    """

    found: bool = False
    value: Any = None
    cas: int = 0
    won: bool = False
    lost: bool = False
    spare: bool = False
    data: bytes = b""
    flags: int = 0
    stamps: Stamps = ()
    outdated: bool = False


_tuple: Final = tuple.__new__  # as `Answer` is made, without the call that fills in its defaults


def leases_won(numbers: Iterable[int]) -> list[Answer]:
    """``Answer(cas=number, won=True)`` of each of these CAS numbers, in half the time."""
    found, value, _, won, *others = Answer(won=True)
    columns = zip(repeat(found), repeat(value), numbers, repeat(won), *map(repeat, others))
    return [*map(_tuple, repeat(Answer), columns)]


UNASKED: Final = Answer()  # of a node that cannot be asked


class LeaseGets(Commands):
    """Meta gets that take a lease on what they miss, and gets of the stamps that the values depend on.

    ``answers`` holds what they brought, in the order of ``wires``, and ``stamps`` the stamps that there are, by their wire keys.
    ``cold`` says that each answer is a lease and nothing else.

    :param depends: for each wire key that has any, the stamps that its value depends on
    :param first: whether a caller asks for the first time. Only then hits and misses are counted, however long it waits for its
        answer
    :param also: stamps to be read besides
    :param create: stamps to be created before, if they are absent, and their values
    :param before: commands to be carried out before; the last ``takeovers`` of them take over from a winner
    """

    __slots__ = (
        "_ahead",
        "_before",
        "_create",
        "_depends",
        "_first",
        "_generation",
        "_gets",
        "_source",
        "_takeovers",
        "_wanted",
        "answers",
        "cold",
        "failure",
        "stamps",
        "wires",
    )

    repeatable = True  # a lease that nobody heard of is taken over as a dead winner's is

    def __init__(
        self,
        source: Source,
        wires: Sequence[bytes],
        depends: Mapping[bytes, Stamps],
        first: bool,
        *,
        also: Iterable[bytes] = (),
        create: Mapping[bytes, bytes] | None = None,
        before: Sequence[bytes] = (),
        takeovers: int = 0,
    ) -> None:
        token = requests.opaque()
        flags = source.flags(token)
        wanted: Sequence[bytes] = ()
        if depends or also:
            wanted = [*dict.fromkeys([*(stamp for wire in wires for stamp in depends.get(wire, ())), *also])]
        payload = requests.meta_gets(wires, flags) + requests.meta_gets(wanted, b"v O" + token)
        ahead = len(before) + len(create or ())
        super().__init__(payload, ahead + len(wires) + len(wanted), opaque=token)
        self.wires = wires
        self.answers: list[Answer] = []
        self.cold = False
        self.failure = None
        self.stamps: dict[bytes, bytes] = {}
        self._source = source
        self._depends = depends
        self._wanted = wanted
        self._first = first
        self._ahead = ahead
        self._takeovers = takeovers
        self._generation = source.near.generation if source.near is not None else 0
        if ahead:
            self._gets = payload
            self._before = b"".join([command[:-2] + b" O" + token + b"\r\n" for command in before])
            self._create = create or {}
            self.payload = creations(self._create, token) + self._before + payload

    def reset(self) -> None:
        """Forget what came, to be sent again.

        The first sending may have arrived, and a stamp been deleted since: created with the same value once more, it would bring
        back what that invalidated.
        """
        super().reset()
        if self._ahead:
            anew = {stamp: os.urandom(STAMP_SIZE) for stamp in self._create}
            self.payload = creations(anew, self.opaque) + self._before + self._gets

    def settle(self, counters: Counters) -> None:
        """Decode what was found, and count hits and misses."""
        replies = self.replies
        if not self._wanted and not self._ahead:
            won = leases(replies)
            self.cold = won is not None
            if won is not None:
                self.answers = leases_won(won)
                counters.misses += len(won) * self._first
                return
        counters.errors += len([reply for reply in replies if reply.value is None and " " in reply.status])
        if self._ahead:
            counters.takeovers += [reply.status for reply in replies[self._ahead - self._takeovers : self._ahead]].count("HD")
            replies = replies[self._ahead :]
        for stamp, reply in zip(self._wanted, replies[len(self.wires) :], strict=True):
            if reply.value is not None and len(reply.value) == STAMP_SIZE:
                self.stamps[stamp] = reply.value
        self.answers = answers = [self._answer(wire, reply, counters) for wire, reply in zip(self.wires, replies, strict=False)]
        if self._first:
            found = [answer.found for answer in answers].count(True)
            counters.hits += found
            counters.misses += len(answers) - found

    def _answer(self, wire: bytes, reply: Reply, counters: Counters) -> Answer:
        stamps: Stamps = ()
        if self._depends:
            stamps = tuple([self.stamps.get(stamp, b"") for stamp in self._depends.get(wire, ())])
        won = reply.won
        lost = reply.taken and not won
        data = reply.value
        if data is None or (not data and is_placeholder(reply)):
            return Answer(False, None, reply.cas, won, lost, stamps=stamps)
        source = self._source
        flags = reply.flags
        try:
            under, fingerprint = b"", UNTYPED
            if flags & ENVELOPE:
                under, fingerprint, data = opened(data)
                flags -= ENVELOPE
            if fingerprint != source.shape.fingerprint and not source.shape.reads(fingerprint):
                raise Undecodable("the value is of another shape")
            value = source.codec.decode(data, flags)
        except Exception as error:  # whatever a codec raises, the value is of no use: it is loaded again, and replaced
            counters.undecodable += 1
            self.failure = wire, error
            return Answer(False, None, reply.cas, won, lost, stamps=stamps)
        if under != b"".join(stamps) or b"" in stamps:
            return Answer(False, None, reply.cas, won, lost, stamps=stamps, outdated=True)
        policy = source.policy
        if reply.stale or 0 <= reply.ttl <= policy.stale:
            found = policy.stale_while_revalidate > 0 and policy.servable(reply.ttl)
            counters.stale += found and self._first
            return Answer(found, value, reply.cas, won, lost, policy.spare(reply.ttl), data, flags, stamps)
        if source.near is not None:
            left = policy.l1 if reply.ttl < 0 else min(policy.l1, reply.ttl - policy.stale)
            source.near.put(wire, value, data, flags, left, self._generation)
        return Answer(True, value, reply.cas, won, lost, False, data, flags, stamps)

    def fail(self, counters: Counters) -> None:
        """Count the keys as misses."""
        if self._first:
            counters.misses += len(self.wires)


def creations(stamps: Mapping[bytes, bytes], token: bytes) -> bytes:
    """The commands that create stamps with these values where they are absent."""
    return b"".join([requests.meta_set(stamp, value, b"ME T0 O" + token) for stamp, value in stamps.items()])


def outdating(planner: Planner, wires: Sequence[bytes], stale: int) -> DeleteMany:
    """Mark keys as stale. A node that cannot be told owes their deletion, as with deletes.

    :param stale: for how many seconds they are kept
    """
    token = requests.opaque()
    flags = b"I T%d O%b" % (planner.ttl(stale), token)
    groups = planner.group_wires(wires)
    marks: dict[str, Request] = {
        address: Deletes(b"".join([requests.meta_delete(wire, flags) for wire in group]), len(group), deletes=group, opaque=token)
        for address, group in groups.items()
    }
    return DeleteMany(planner.namespace, marks, groups)


class FirstGet(LeaseGets):
    """One key asked for the first time. A plain hit, which nearly every call is, takes the short way: ``value``, where ``hit``.

    :param stamps: the stamps that its value depends on
    """

    __slots__ = ("hit", "value")

    owed, deletes, opened_before = 0, (), None  # of its class, because there are so many of it
    _first, _ahead, _takeovers = True, 0, 0

    def __init__(self, source: Source, wire: bytes, stamps: Stamps) -> None:
        self.opaque = token = requests.opaque()
        flags = source.flags(token)
        payload = b"mg %b %b\r\n" % (wire, flags) if type(wire) is bytes else requests.meta_get(wire, flags)
        self.payload = payload + requests.meta_gets(stamps, b"v O" + token) if stamps else payload
        self.count = 1 + len(stamps)
        self.replies = []
        self.failure = None
        self.wires = (wire,)
        self.hit = False
        self._source = source
        self._wanted = stamps
        self._generation = source.near.generation if source.near is not None else 0

    def settle(self, counters: Counters) -> None:
        """Decode what was found, and count the hit or miss."""
        reply, source = self.replies[0], self._source
        data, flags, ttl = reply.value, reply.flags, reply.ttl
        if (
            data
            and not (reply.won or reply.taken or reply.stale)
            and (ttl < 0 or ttl > source.policy.stale)
            and source.near is None
        ):
            found: bytes | None = data
            if flags & ENVELOPE:
                found = bare(data, [reply.value or b"" for reply in self.replies[1:]], source.shape.fingerprint)
                flags -= ENVELOPE
            elif self.count > 1 or source.shape.fingerprint != UNTYPED:
                found = None
            if found is not None:
                try:
                    self.value = source.codec.decode(found, flags)
                except Exception:  # the long way counts it
                    pass
                else:
                    self.hit = True
                    counters.hits += 1
                    return
        self.stamps: dict[bytes, bytes] = {}
        self._depends = {self.wires[0]: tuple(self._wanted)} if self._wanted else NO_STAMPS
        super().settle(counters)

    def reset(self) -> None:
        """Forget what came, to be sent again."""
        self.replies.clear()

    @property
    def misplaced(self) -> bool:
        """Whether a reply among them answers another request."""
        for reply in self.replies:
            if reply.opaque != self.opaque:
                return super().misplaced
        return False


class Fills(Commands):
    """Compare-and-swap stores of loaded values."""

    __slots__ = ()

    def settle(self, counters: Counters) -> None:
        """Count what was stored, and what was not because something newer came in between."""
        stored = self.confirmed
        counters.sets += stored
        if stored < self.count:
            counters.unstored += self.count - stored
            counters.errors += [" " in reply.status for reply in self.replies].count(True)

    def fail(self, counters: Counters) -> None:
        """Count the values as not stored."""
        counters.unstored += self.count


class Refreshes(Fills):
    """Fills that replace a value."""

    __slots__ = ()

    def settle(self, counters: Counters) -> None:
        """Count what was stored as refreshed too."""
        super().settle(counters)
        counters.refreshes += self.confirmed


class TakeOvers(Commands):
    """Commands that take over from winners."""

    __slots__ = ()

    def settle(self, counters: Counters) -> None:
        """Count those that succeeded."""
        super().settle(counters)
        counters.takeovers += self.confirmed


class Exchange(Plan[tuple[Mapping[str, Request], Failures]]):
    """A plan whose flow reads the replies itself."""

    __slots__ = ()

    def finish(self, failures: Failures) -> tuple[Mapping[str, Request], Failures]:
        """The requests, which hold their replies, and the failures."""
        return self.requests, failures


@dataclass(frozen=True, slots=True)
class Source:
    """What a flow needs to know of the loader it works for.

    ``near`` holds the values that are kept in the process, where the policy keeps any; ``label`` is what logs and errors call the
    loader.
    """

    planner: Planner
    policy: Policy
    codec: Codec
    flights: Flights
    times: LoadTimes
    clock: Callable[[], float]
    sightings: Sightings
    near: Near | None = None
    shape: Shape = _ANYTHING
    label: str = ""
    plain_flags: bytes = field(init=False)  # of `flags`, without the token; empty where they differ from call to call
    stamps: dict[str, Stamps] = field(default_factory=dict)  # of keys that were asked for; a bounded number

    def __post_init__(self) -> None:
        policy = self.policy
        same = not (policy.stale or policy.xfetch)
        object.__setattr__(self, "plain_flags", b"v f c t N%d O" % policy.lease_time if same else b"")

    def remember(self, key: str, stamps: Stamps) -> Stamps:
        """Keep in mind what stamps the value of a key depends on. Its arguments say so, and they are in the key."""
        if len(self.stamps) >= MOST_REMEMBERED:
            self.stamps.clear()
        self.stamps[key] = stamps
        return stamps

    def exchange(self, sent: Mapping[str, Request]) -> Plan[tuple[Mapping[str, Request], Failures]]:
        """The plan that sends requests to nodes, by their addresses."""
        return self.planner.overhear(Exchange(self.planner.namespace, sent))

    def flags(self, token: bytes) -> bytes:
        """The meta flags that ask for a value or its lease.

        :param token: the request's opaque token
        """
        if self.plain_flags:
            return self.plain_flags + token
        policy = self.policy
        early = policy.early(self.times.average)
        return b"v f c t N%d %bO%b" % (policy.lease_time, b"R%d " % early if early else b"", token)

    def refuse_own(self, wires: Iterable[bytes]) -> None:
        """Refuse to wait for oneself.

        :raises CallerError: where the caller is a loader of one of these keys
        """
        if any(flights is self.flights and not loading.isdisjoint(wires) for flights, loading in LOADING.get()):
            raise CallerError(f"the loader of {self.planner.namespace!r} asks for the very key that it is loading")

    def take_over(self, wire: bytes, answer: Answer) -> bytes:
        """The command that ends a winner's turn. Of all who send it one succeeds; the next meta get makes one the winner.

        A value that may be served yet keeps its ttl; a placeholder gets a new lease.
        """
        ttl = b"" if answer.found or answer.spare else b" T%d" % self.policy.lease_time
        return requests.meta_delete(wire, b"I C%d%b" % (answer.cas, ttl))

    def give_back(self, wire: bytes, answer: Answer) -> bytes:
        """The command that ends the caller's own turn: a value that may be served yet stays, and the next reader tries again."""
        return requests.meta_delete(wire, b"%bC%d" % (b"I " if answer.spare else b"", answer.cas))

    def fill(self, wire: bytes, stored: tuple[bytes, int], cas: int, absent: bool) -> bytes:
        """The command that stores a loaded value where nothing happened since its lease was won.

        :param stored: the value's bytes and flags as `seal` gives them
        """
        return requests.fill_lines([wire], [stored], [cas], self.policy.expiries([absent], self.planner.ttl))[0]

    def fills(
        self, wires: Sequence[bytes], values: Sequence[Any], answers: Sequence[Answer]
    ) -> tuple[dict[bytes, bytes], dict[bytes, Exception]]:
        """`fill` for many values and the answers that they were loaded for, where there is something to store against; and the
        errors of those that cannot be stored.
        """
        stored, refused = self._sealed(wires, values, [answer.stamps for answer in answers])
        ttls = self.policy.expiries([value is None for value in values], self.planner.ttl)
        numbers = [answer.cas for answer in answers]
        if refused or 0 in numbers:
            keep = [at for at, wire in enumerate(wires) if numbers[at] and wire not in refused]
            wires, stored = [wires[at] for at in keep], [stored[at] for at in keep]
            numbers, ttls = [numbers[at] for at in keep], [ttls[at] for at in keep]
        return dict(zip(wires, requests.fill_lines(wires, stored, numbers, ttls), strict=True)), refused

    def _sealed(
        self, wires: Sequence[bytes], values: Sequence[Any], stamps: Sequence[Stamps]
    ) -> tuple[Sequence[tuple[bytes, int]], dict[bytes, Exception]]:
        """`seal` of what the codec makes of each value, and why some cannot be stored."""
        if self.shape.fingerprint == UNTYPED and not any(stamps):
            with suppress(Exception):  # a codec of the program's may raise anything: one by one it is known for which
                plain = [*map(self.codec.encode, values)]
                if max([len(data) for data, _ in plain]) <= self.planner.item_size_max:
                    return plain, {}
        sealed: list[tuple[bytes, int]] = []
        refused: dict[bytes, Exception] = {}
        for wire, value, under in zip(wires, values, stamps, strict=True):
            try:
                sealed.append(self.seal(*self.codec.encode(value), under))
            except Exception as error:
                refused[wire] = error
                sealed.append((b"", 0))  # in its place
        return sealed, refused

    def seal(self, data: bytes, flags: int, stamps: Stamps) -> tuple[bytes, int]:
        """A value's bytes and flags as they are stored; too large a value raises before it is sent.

        :param stamps: as they were before the value was loaded. For one that was absent a random one is put in, so that the value
            is outdated
        """
        fingerprint = self.shape.fingerprint
        if stamps or fingerprint != UNTYPED:
            data = sealed(data, [stamp or os.urandom(STAMP_SIZE) for stamp in stamps], fingerprint)
            flags |= ENVELOPE
        if len(data) > self.planner.item_size_max:
            self.planner.check_size(data)
        return data, flags
