"""Copying keys from their old owner O to their new owner N, decided without I/O: destination first, then the source.

    N: mg k c N10            reserve the key: who finds it there, or being filled, lets it be
    N: mg __kvc:epoch v      and make sure that the phase had not ended by then
    O: mg k v t f c u        only now read the value
    N: ms k … C<cas>         and store it against the reservation

Whoever changes the key meanwhile deletes it at O and then at N. A delete at N after the reservation removes it, and the store is
refused; a delete at N before it was preceded by the one at O, so that the read finds nothing. Reading first, or storing by ``add``,
has no such order and brings old values back.

The functions decide for one key, and a `Batch` does so for many whose commands travel together. A batch is four steps, none of
which waits for anything but the replies to the one before, so that several batches can be under way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product
from typing import Final, Literal, TypeAlias

from kvcluster import phases
from kvcluster.following.epochs import EPOCH_KEY
from kvcluster.phases import Seen
from kvcluster.planner import expiry
from kvcluster.protocol import requests
from kvcluster.protocol.hot import Reply
from kvcluster.protocol.requests import BinaryKey, Commands

RESERVED: Final = 10  # seconds that a reservation lasts where nobody fills or removes it
BATCH: Final = 100  # keys whose commands travel together

Outcome: TypeAlias = Literal["stored", "newer", "gone", "stale", "filling", "expired", "refused"]
"""What became of a key: ``stored`` at its new owner; skipped because the new owner has something ``newer``, because it is ``gone``
from the old one, marked ``stale`` there, or somebody is ``filling`` it; ``expired`` in this very second; ``refused`` by the new
owner, for want of memory or for its size."""

# The rules are `phases`', which know of no replies; here they are asked once for every reply there can be.
_BOTH: Final = (False, True)
_OURS: Final = {
    (won, stale) for won, stale in product(_BOTH, _BOTH) if phases.reserved(Seen(value=stale, won=won, stale=stale)) == "read"
}
_COPIED: Final = {marks for marks in product(_BOTH, _BOTH, _BOTH) if phases.copied(Seen(True, *marks)) == "store"}


def reserve(wire: bytes, options: bytes = b"") -> bytes:
    """The command to N that reserves a key.

    >>> reserve(b"a")
    b'mg a c N10\\r\\n'
    """
    return requests.meta_get(wire, b"c N%d%b" % (RESERVED, options))


def reserved(reply: Reply) -> bool:
    """Whether the key is ours to fill at N, by ``reply.cas``."""
    return (reply.won, reply.stale) in _OURS


def read(wire: bytes, options: bytes = b"") -> bytes:
    """The command to O that reads a key, without making it look recently used.

    >>> read(b"a")
    b'mg a v t f c u\\r\\n'
    """
    return requests.meta_get(wire, b"v t f c u" + options)


def verdict(reply: Reply) -> Outcome:
    """What O's reply means for the key; ``stored`` where its value is to be stored."""
    if reply.value is None:
        return "gone"
    if (reply.won, reply.taken, reply.stale) in _COPIED:
        return "expired" if reply.ttl == 0 else "stored"
    return "stale" if reply.stale else "filling"


def fill(wire: bytes, cas: int, reply: Reply, now: float, options: bytes = b"") -> bytes:
    """The command to N that stores what O replied, with its flags and what is left of its ttl.

    :param cas: the reservation's
    :param now: seconds since 1970

    >>> reply = Reply("VA")
    >>> reply.value, reply.ttl, reply.flags = b"xyz", 60, 16
    >>> fill(b"a", 5, reply, 0.0)
    b'ms a 3 C5 T60 F16\\r\\nxyz\\r\\n'
    """
    data = reply.value
    assert data is not None
    if type(wire) is not bytes:
        return requests.meta_set(wire, data, b"C%d T%d F%d%b" % (cas, expiry(reply.ttl, now), reply.flags, options))
    return b"ms %b %d C%d T%d F%d%b\r\n%b\r\n" % (wire, len(data), cas, expiry(reply.ttl, now), reply.flags, options, data)


def give_up(wire: bytes, cas: int, options: bytes = b"") -> bytes:
    """The command to N that removes a reservation, unless something newer took its place."""
    return requests.meta_delete(wire, b"C%d%b" % (cas, options))


def rearm(wire: bytes, reply: Reply, options: bytes = b"") -> bytes | None:
    """The command that gives the refill token of a stale item back, where a meta get took it, so that the next reader may win
    it."""
    return requests.meta_delete(wire, b"I C%d%b" % (reply.cas, options)) if reply.won and reply.stale else None


def confirmed(reply: Reply) -> Outcome:
    """What N's reply to `fill` says. ``NF`` and ``EX``: somebody deleted or replaced the reservation."""
    if reply.status == "HD":
        return "stored"
    return "newer" if reply.status in ("NF", "EX", "NS") else "refused"


def joined(command: Callable[[bytes, bytes], bytes], wires: Sequence[bytes], options: bytes) -> bytes:
    """One ``mg`` after the other: as ``command`` makes them, at a tenth of the time where no key needs base64."""
    if not wires or BinaryKey in map(type, wires):
        return b"".join([command(wire, options) for wire in wires])
    before, after = command(b"\n", options).split(b"\n", 1)
    return before + (after + before).join(wires) + after


class Batch:
    """Up to `BATCH` keys on their way from one node to another: `reserve`, `read`, `fill`, `finish`, each asked for once the
    requests of the one before have their replies. A request without commands need not be sent.

    :param wires: the keys as the wire carries them
    :param epoch: of the phase in which they are copied
    :ivar current: whether N still had that epoch once the keys were reserved, known after `read`; where not, nothing is to be read,
        for in a later phase a writer deletes at N alone
    :ivar outcomes: what became of the keys, complete after `finish`
    :ivar waiting: keys that somebody else is filling at N: to be tried again, for it may have been a copy that was cut off
    :ivar bytes: of values read
    """

    __slots__ = (
        "_filled",
        "_mending",
        "_options",
        "_read",
        "_reserved",
        "_stores",
        "_token",
        "_won",
        "bytes",
        "current",
        "epoch",
        "outcomes",
        "waiting",
        "wires",
    )

    def __init__(self, wires: Sequence[bytes], epoch: int) -> None:
        self.wires = wires
        self.epoch = epoch
        self.current = True
        self.bytes = 0
        self.waiting: list[bytes] = []
        self.outcomes: Counter[Outcome] = Counter()
        self._token = requests.opaque()
        self._options = b" O" + self._token
        self._won: list[tuple[bytes, int]] = []

    def reserve(self) -> Commands:
        """To N: reserve the keys, and tell its epoch after that."""
        reservations = joined(reserve, self.wires, self._options)
        probe = requests.meta_get(EPOCH_KEY, b"v" + self._options)
        self._reserved = self._request(reservations + probe, len(self.wires) + 1) if self.wires else self._request(b"", 0)
        return self._reserved

    def read(self) -> Commands:
        """To O: read those that are ours."""
        self._won, self._mending = [], []
        replies = self._reserved.replies
        self.current = not replies or replies[-1].value == b"%d" % self.epoch
        for wire, reply in zip(self.wires, replies[:-1], strict=True):
            if reserved(reply):
                self._won.append((wire, reply.cas))
                continue
            if reply.taken:
                self.waiting.append(wire)
            else:
                self.outcomes["refused" if " " in reply.status else "newer"] += 1
            if (mending := rearm(wire, reply, self._options)) is not None:
                self._mending.append(mending)
        self._read = self._request(joined(read, [wire for wire, _ in self._won], self._options), len(self._won))
        return self._read

    def fill(self, now: float) -> tuple[Commands, Commands]:
        """To N: store what was read, and remove the other reservations. To O: give refill tokens back.

        :param now: seconds since 1970
        """
        options = self._options
        fills, removals, rearms = [], self._mending, []
        for (wire, cas), reply in zip(self._won, self._read.replies, strict=True):
            outcome = verdict(reply)
            if outcome == "stored":
                fills.append(fill(wire, cas, reply, now, options))
                self.bytes += len(reply.value or b"")
                continue
            self.outcomes[outcome] += 1
            removals.append(give_up(wire, cas, options))
            if (mending := rearm(wire, reply, options)) is not None:
                rearms.append(mending)
        self._filled = len(fills)
        self._stores = self._request(b"".join(fills + removals), len(fills) + len(removals))
        return self._stores, self._request(b"".join(rearms), len(rearms))

    def finish(self) -> None:
        """Count what N said to the stores."""
        self.outcomes.update(map(confirmed, self._stores.replies[: self._filled]))

    def _request(self, payload: bytes, count: int) -> Commands:
        return Commands(payload, count, opaque=self._token)
