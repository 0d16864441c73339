"""What is sent: keys as the wire carries them, and one function per command that gives its exact bytes.

Plain reads use the classic ``get``: it answers a line of many keys faster than as many meta gets, and unlike a meta get it never
takes the recache token of a stale item by accident. Everything else is the meta protocol, whose replies are one short line each.

A key travels in one of three forms, and no two keys share one:

- as it is, where memcached allows it: 1 to 250 bytes, none of them a space or a control byte;
- in base64 with the meta flag ``b`` (a `BinaryKey` here), up to 186 bytes. The node stores the decoded bytes;
- longer: 217 bytes of the key, ``~``, and 32 hex digits of its BLAKE2b digest. A caller's own key of exactly that shape is digested
  too, so that it cannot meet the long key it imitates.

A request whose replies could be taken for another's bears an opaque token, which a node repeats in each reply that is not a plain
miss (EN) or an error line. A connection that once got a reply too many would else hand out every later one to the wrong caller.

Nothing else of a caller's reaches a protocol line: numbers are formatted from ints, values are counted.
"""

from __future__ import annotations

import itertools
import re
from base64 import b64encode
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from kvcluster.errors import IllegalKey
from kvcluster.protocol.hot import Fetch as Fetch
from kvcluster.protocol.hot import fills, plain_key, set_lines

if TYPE_CHECKING:
    from kvcluster.protocol.hot import Reply
    from kvcluster.stats.counters import Counters

MAX_KEY: Final = 250
MAX_BINARY_KEY: Final = 186
_KEPT: Final = 217
_DIGESTED = re.compile(rb"[\x21-\x7e\x80-\xff]{217}~[0-9a-f]{32}", re.DOTALL).fullmatch
_ILLEGAL = bytes(range(0x21)) + b"\x7f"
_SANITIZED = bytes.maketrans(_ILLEGAL, b"_" * len(_ILLEGAL))


class BinaryKey(bytes):
    """A key that memcached takes only in base64; equal to its raw bytes, which is also what placement hashes."""

    __slots__ = ()


def wire_key(key: str | bytes, prefix: bytes = b"", strict: bool = False) -> bytes:
    """The key as a node stores it: `BinaryKey` where it must travel in base64, else plain ``bytes``.

    :param key: ``str`` is UTF-8, so both forms of a key are one key
    :param prefix: put before the key; already legal
    :param strict: raise for a key that memcached itself forbids, instead of carrying it in base64 or by a digest
    :raises IllegalKey: for a key that is empty, of another type, or forbidden where ``strict``

    >>> wire_key("user:1", b"shop:"), wire_key("a b")
    (b'shop:user:1', b'a b')
    """
    wire = plain_key(key, prefix)
    return wire if wire is not None else unusual_key(key, prefix, strict)


def unusual_key(key: str | bytes, prefix: bytes, strict: bool) -> bytes:
    """`wire_key` for a key that `plain_key` says None of."""
    if not isinstance(key, (str, bytes)):
        raise IllegalKey(f"key must be str or bytes, not {type(key).__name__}")
    if not key:
        raise IllegalKey("key must not be empty")
    try:
        raw = prefix + (key.encode() if isinstance(key, str) else key)
    except UnicodeEncodeError as error:
        raise IllegalKey(f"key must be encodable as UTF-8: {error.reason} at position {error.start}") from None
    forbidden = raw.translate(None, _ILLEGAL) != raw
    if strict and forbidden:
        raise IllegalKey(f"key must not hold spaces or control bytes: {key!r:.100}")
    if strict and len(raw) > MAX_KEY:
        raise IllegalKey(f"key must be at most {MAX_KEY} bytes with its prefix, not {len(raw)}")
    if forbidden and len(raw) <= MAX_BINARY_KEY:
        return BinaryKey(raw)
    if not forbidden and len(raw) <= MAX_KEY and not _DIGESTED(raw):
        return raw
    return raw[:_KEPT].ljust(_KEPT, b"_").translate(_SANITIZED) + b"~" + blake2b(raw, digest_size=16).hexdigest().encode()


def _key(wire: bytes) -> tuple[bytes, bytes]:
    """A key's bytes on the line, and the flag that goes with them."""
    return (wire, b"") if type(wire) is bytes else (b64encode(wire), b" b")


def meta_get(wire: bytes, flags: bytes) -> bytes:
    """``mg``: one item's value or properties, as the flags ask.

    >>> meta_get(b"a", b"v f t c"), meta_get(BinaryKey(b"a b"), b"v")
    (b'mg a v f t c\\r\\n', b'mg YSBi v b\\r\\n')
    """
    key, b = _key(wire)
    return b"mg %b %b%b\r\n" % (key, flags, b)


def meta_gets(wires: Sequence[bytes], flags: bytes) -> bytes:
    """`meta_get` of each key.

    >>> meta_gets([b"a", b"b"], b"v"), meta_gets([b"a", BinaryKey(b"a b")], b"v")
    (b'mg a v\\r\\nmg b v\\r\\n', b'mg a v\\r\\nmg YSBi v b\\r\\n')
    """
    if not wires or BinaryKey in map(type, wires):
        return b"".join([meta_get(wire, flags) for wire in wires])
    end = b" %b\r\n" % flags
    return b"mg " + (end + b"mg ").join(wires) + end


def meta_set(wire: bytes, data: bytes, flags: bytes) -> bytes:
    """``ms``: store one value.

    >>> meta_set(b"a", b"xyz", b"T60 F16")
    b'ms a 3 T60 F16\\r\\nxyz\\r\\n'
    """
    if type(wire) is bytes:
        return b"ms %b %d %b\r\n%b\r\n" % (wire, len(data), flags, data)
    key, b = _key(wire)
    return b"ms %b %d %b%b\r\n%b\r\n" % (key, len(data), flags, b, data)


def meta_sets(wires: list[bytes], values: list[tuple[bytes, int]], options: bytes) -> bytes:
    """`meta_set` of many values, each a pair of data and client flags; ``options`` are the meta flags of all.

    >>> meta_sets([b"a", BinaryKey(b"a b")], [(b"xyz", 16), (b"7", 2)], b"T60")
    b'ms a 3 T60 F16\\r\\nxyz\\r\\nms YSBi 1 T60 F2 b\\r\\n7\\r\\n'
    """
    return set_lines(wires, values, options, _key)


def fill_lines(
    wires: Sequence[bytes], values: Sequence[tuple[bytes, int]], leases: Sequence[int], ttls: Sequence[int]
) -> list[bytes]:
    """`meta_set` of each value against its lease, a CAS number, with a ttl of its own; a value is a pair of data and client flags.

    >>> fill_lines([b"a"], [(b"xyz", 16)], [7], [60])
    [b'ms a 3 C7 T60 F16\\r\\nxyz\\r\\n']
    """
    return fills([*wires], [*values], [*leases], [*ttls], _key)


def meta_delete(wire: bytes, flags: bytes = b"") -> bytes:
    """``md``: delete one item, or with the flag ``I`` mark it stale.

    >>> meta_delete(b"a"), meta_delete(b"a", b"I C7")
    (b'md a\\r\\n', b'md a I C7\\r\\n')
    """
    key, b = _key(wire)
    return b"md %b%b%b\r\n" % (key, b" " + flags if flags else b"", b)


def meta_arithmetic(wire: bytes, delta: int, mode: bytes, flags: bytes) -> bytes:
    """``ma``: add ``delta`` to a counter (mode ``I``) or take it away (mode ``D``), and return the new number.

    >>> meta_arithmetic(b"n", 2, b"D", b"q")
    b'ma n MD D2 v q\\r\\n'
    """
    key, b = _key(wire)
    return b"ma %b M%b D%d v %b%b\r\n" % (key, mode, delta, flags, b)


_numbers = itertools.count(1)


def opaque() -> bytes:
    """A token that no other request of this process bears, for the meta flag ``O``."""
    return b"%x" % next(_numbers)


NOOP: Final = b"mn\r\n"


class Commands:
    """Meta commands pipelined to one node, and one `Reply` for each, in order.

    ``owed`` is 1 where the payload ends in a no-op whose reply nobody waits for (``noreply``): the connection reads up to it before
    it is used again. ``deletes`` are the keys that the commands delete; a node that could not be told must be told later.
    ``opened_before`` restricts the exchange to a connection opened before that moment (see `kvcluster.transport`). A ``repeatable``
    request has the same effect when it is sent twice. ``opaque`` is the token that all its commands bear; empty where they bear
    none.
    """

    __slots__ = ("count", "deletes", "opaque", "opened_before", "owed", "payload", "replies")

    repeatable = False
    failure: tuple[bytes, Exception] | None = None  # the wire key and the error of a value that could not be decoded

    def __init__(
        self,
        payload: bytes,
        count: int,
        *,
        owed: int = 0,
        deletes: Sequence[bytes] = (),
        opened_before: float | None = None,
        opaque: bytes = b"",
    ) -> None:
        self.payload = payload
        self.count = count
        self.owed = owed
        self.deletes = deletes
        self.opened_before = opened_before
        self.opaque = opaque
        self.replies: list[Reply] = []

    def reset(self) -> None:
        """Forget what came, to be sent again."""
        self.replies.clear()

    def settle(self, counters: Counters) -> None:
        """Count what the replies say. Here: only refusals."""
        if self.confirmed < len(self.replies):
            counters.errors += sum(" " in reply.status for reply in self.replies)

    @property
    def misplaced(self) -> bool:
        """Whether a reply among them answers another request."""
        opaque = self.opaque
        if not opaque or [reply.opaque for reply in self.replies].count(opaque) == len(self.replies):
            return False
        return any(reply.opaque != opaque and reply.status != "EN" and " " not in reply.status for reply in self.replies)

    @property
    def confirmed(self) -> int:
        """How many of the replies are a plain HD."""
        return [reply.status for reply in self.replies].count("HD")

    def fail(self, counters: Counters) -> None:
        """Count what did not happen, because the exchange failed."""


class Stores(Commands):
    """Commands that store values.

    ``probe`` is the position of a meta get among them, where there is one.
    """

    __slots__ = ("probe",)

    def __init__(self, payload: bytes, count: int, *, probe: int = -1, **options: Any) -> None:
        super().__init__(payload, count, **options)
        self.probe = probe

    def settle(self, counters: Counters) -> None:
        """Count the values stored."""
        super().settle(counters)
        counters.sets += self.confirmed - (self.probe >= 0 and self.replies[self.probe].status == "HD")


class Deletes(Commands):
    """Commands that delete keys."""

    __slots__ = ()

    repeatable = True

    @staticmethod
    def of(wires: Sequence[bytes], token: bytes | None = None) -> Deletes:
        """The deletes of these keys; ``token`` is the one they bear, where that is known."""
        token = token or opaque()
        flags = b"O" + token
        return Deletes(b"".join([meta_delete(wire, flags) for wire in wires]), len(wires), deletes=wires, opaque=token)

    @property
    def refusal(self) -> str | None:
        """The first reply that does not confirm its delete, or None. A key that was not there is confirmed."""
        return next((reply.status for reply in self.replies if reply.status not in ("HD", "NF")), None)

    def settle(self, counters: Counters) -> None:
        """Count the deletes confirmed."""
        super().settle(counters)
        counters.deletes += len(self.replies)  # a refused one would have failed the exchange


class Renewals(Deletes):
    """Commands that delete keys, and give stamps (see `kvcluster.plan.Invalidation`) a new value."""

    __slots__ = ("keys",)

    def __init__(self, wires: Sequence[bytes], stamps: Sequence[bytes], value: bytes) -> None:
        token = opaque()
        renewals = [meta_set(stamp, value, b"T0 O" + token) for stamp in stamps]
        deletes = [meta_delete(wire, b"O" + token) for wire in wires]
        keys = [*wires, *stamps]
        super().__init__(b"".join(deletes + renewals), len(keys), deletes=keys, opaque=token)
        self.keys = len(wires)

    def reset(self) -> None:
        """Forget what came, to be sent again as deletes alone.

        The first sending may have arrived, and somebody else may have renewed a stamp since: the same value once more would bring
        back what that one invalidated.
        """
        super().reset()
        self.payload = Deletes.of(self.deletes, self.opaque).payload

    def settle(self, counters: Counters) -> None:
        """Count the keys that were deleted; a stamp is none of the caller's keys."""
        super().settle(counters)
        counters.deletes -= len(self.replies) - self.keys


class Lookups(Commands):
    """Meta gets whose values are filed under the caller's names, as `Fetch` does for classic ones."""

    __slots__ = ("decode", "failure", "names", "tokens", "values", "wires")

    repeatable = True

    def __init__(
        self,
        payload: bytes,
        wires: Sequence[bytes],
        names: Sequence[Any],
        decode: Callable[[bytes, int], object],
        values: dict[Any, Any],
        tokens: bool = False,
        opaque: bytes = b"",
    ) -> None:
        super().__init__(payload, len(wires), opaque=opaque)
        self.wires = wires
        self.names = names
        self.decode = decode
        self.values = values
        self.tokens = tokens
        self.failure: tuple[bytes, Exception] | None = None

    def settle(self, counters: Counters) -> None:
        """Decode, file and count the values."""
        super().settle(counters)
        for wire, name, reply in zip(self.wires, self.names, self.replies, strict=True):
            if reply.value is None or is_placeholder(reply):
                counters.misses += 1
                continue
            try:
                value = self.decode(reply.value, reply.flags)
            except Exception as error:  # whatever a codec raises, the value is of no use: a miss that is counted
                counters.misses += 1
                counters.undecodable += 1
                self.failure = wire, error
                continue
            counters.hits += 1
            self.values[name] = (value, b"%d" % reply.cas) if self.tokens else value

    def fail(self, counters: Counters) -> None:
        """Count the keys as misses."""
        counters.misses += len(self.wires)


Request: TypeAlias = Fetch | Commands


def is_placeholder(reply: Reply) -> bool:
    """Whether an item is no value but a lease's placeholder: empty, without flags, and with its refill token given out.

    The reply must be to a meta get that asked for ``f`` and for ``v`` or ``s``. Values of length 0 that kvcluster writes have a
    flag.
    """
    return reply.status in ("VA", "HD") and not reply.value and not reply.size and not reply.flags and (reply.taken or reply.won)
