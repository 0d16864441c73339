"""The hot half of the protocol in pure Python; `_native.pyx` is its compiled twin.

A `Reader` is told what it is to read (`begin`), lends a buffer to receive into (`buffer`), and is told how much arrived
(`received`). It understands as much as is there, keeps an unfinished rest, and says True once the request has all its replies. It
knows no socket, so whole input, single bytes and anything between give the same result.

Replies describe themselves by their first word. A classic read is one block of VALUE items closed by END; a meta command is one
line, with data after it where the line starts with VA. Whatever else arrives is `Malformed`, and the connection it came by is of
no more use.

The functions beside it do for many keys what `requests` does for one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from kvcluster.placement.base import Placement
    from kvcluster.protocol.requests import Commands
    from kvcluster.stats.counters import Counters

BUFFER_SIZE: Final = 65536
MAX_LINE: Final = 2048  # the longest line a node sends: a key in base64, and flags
MAX_DATA: Final = 1 << 30  # memcached's own limit of -I

_LEGAL = re.compile(rb"[\x21-\x7e\x80-\xff]{1,250}").fullmatch
_VALUE = re.compile(rb"VALUE ([\x21-\x7e\x80-\xff]{1,250}) (\d{1,10}) (\d{1,10})(?: (\d{1,20}))?").fullmatch
_META = re.compile(rb"(HD|EN|NF|NS|EX|MN)((?: [\x21-\x7e\x80-\xff]+)*) ?").fullmatch
_META_VALUE = re.compile(rb"VA (\d{1,10})((?: [\x21-\x7e\x80-\xff]+)*) ?").fullmatch
_NUMBER: Final = re.compile(rb"-?\d{1,20}").fullmatch
_ERRORS: Final = (b"SERVER_ERROR", b"CLIENT_ERROR")


class Malformed(ValueError):
    """What arrived is not a reply to what was asked."""


class Reply:
    """The reply to one meta command.

    ``status`` is its first word (``VA HD EN NF NS EX MN``), or the whole line of a ``SERVER_ERROR`` or ``CLIENT_ERROR``.
    ``value`` is the data of a VA. The rest are the flags it came with, where it did: ``flags`` (client flags), ``cas``, ``ttl``
    in seconds (-1: no expiry), ``size`` in bytes; ``won`` (W: this caller is to refill the item), ``taken`` (Z: somebody else
    is), ``stale`` (X); ``opaque`` (O: what the command bore).
    """

    __slots__ = ("cas", "flags", "opaque", "size", "stale", "status", "taken", "ttl", "value", "won")

    def __init__(self, status: str) -> None:
        self.status = status
        self.value: bytes | None = None
        self.flags = 0
        self.cas = 0
        self.ttl = -1
        self.size = 0
        self.won = False
        self.taken = False
        self.stale = False
        self.opaque = b""

    def __repr__(self) -> str:
        fields = ((name, getattr(self, name)) for name in ("value", "flags", "cas", "ttl", "size", "won", "taken", "stale"))
        return f"Reply({self.status}{''.join(f' {name}={value!r}' for name, value in fields if value not in (None, 0, False))})"


class Fetch:
    """A classic read of plain keys at one node, and what it brought.

    A node answers in the order asked and leaves out what it has not, so a value's key must be the next one asked for, or one
    further on; any other key means that the connection is out of step, and it is closed.

    - ``wires``: its keys, none of which needs base64
    - ``names``: the caller's name of each key, which the values are filed under in ``values``
    - ``tokens``: whether the line is ``gets`` and a value is a pair of value and CAS number
    - ``decode``: called as ``decode(data, flags)`` for values whose flags are not 0 (bytes), 2 (int) or 16 (text)
    - ``found``: how many values were filed
    - ``doubtful``: positions of values with flags 0 and length 0, which may be a lease's placeholder; they are not in ``values``
    - ``undecodable``: how many values raised in ``decode``, and ``failure`` the wire key and the error of the last of them
    - ``refusal``: the node's error line, where it sent one instead of the values
    """

    __slots__ = (
        "decode",
        "doubtful",
        "failure",
        "found",
        "names",
        "payload",
        "refusal",
        "tokens",
        "undecodable",
        "values",
        "wires",
    )

    count = 1  # one reply, of many values
    owed = 0
    deletes: Sequence[bytes] = ()
    opened_before: float | None = None
    repeatable = True
    misplaced = False  # values tell their keys, and the reader compares them

    def __init__(
        self,
        wires: Sequence[bytes],
        names: Sequence[Any],
        decode: Callable[[bytes, int], object],
        values: dict[Any, Any],
        tokens: bool = False,
    ) -> None:
        if len(wires) != len(names):
            raise ValueError("wires and names must be equally many")
        self.payload = (b"gets " if tokens else b"get ") + b" ".join(wires) + b"\r\n"
        self.wires = wires
        self.names = names
        self.decode = decode
        self.values = values
        self.tokens = tokens
        self._clear()

    def reset(self) -> None:
        """Forget what came, to be sent again."""
        for name in self.names:
            self.values.pop(name, None)
        self._clear()

    def _clear(self) -> None:
        self.found = 0
        self.doubtful: list[int] | None = None
        self.undecodable = 0
        self.refusal: bytes | None = None
        self.failure: tuple[bytes, Exception] | None = None

    def settle(self, counters: Counters) -> None:
        """Count what came; doubtful keys are counted when they are asked again."""
        counters.hits += self.found
        counters.misses += len(self.wires) - self.found - (len(self.doubtful) if self.doubtful else 0)
        if self.undecodable:
            counters.undecodable += self.undecodable
        if self.refusal:
            counters.errors += 1

    def fail(self, counters: Counters) -> None:
        """Count what did not come, because the exchange failed. What came before it did is not trusted either."""
        self.reset()
        counters.misses += len(self.wires)


def plain_key(key: object, prefix: bytes) -> bytes | None:
    """The prefixed key as bytes, or None where it is not one that can travel as it is (see `requests`)."""
    if type(key) is str:
        try:
            wire = prefix + key.encode()
        except UnicodeEncodeError:
            return None
    elif type(key) is bytes:
        wire = prefix + key
    else:
        return None
    if not key or not _LEGAL(wire) or (len(wire) == 250 and wire[217] == 0x7E):
        return None
    return wire


def plain_keys(keys: list[str | bytes], prefix: bytes, unusual: Callable[[str | bytes], bytes]) -> list[bytes]:
    """`plain_key` of each key, or what ``unusual`` makes of one that cannot travel as it is."""
    return [plain_key(key, prefix) or unusual(key) for key in keys]


def group(wires: list[bytes], names: list[Any], owners: list[int]) -> dict[int, tuple[list[bytes], list[Any]]]:
    """Wire keys and the caller's names for them, by owner, in the order given."""
    groups: dict[int, tuple[list[bytes], list[Any]]] = {}
    for wire, name, owner in zip(wires, names, owners, strict=True):
        pair = groups.get(owner)
        if pair is None:
            groups[owner] = pair = ([], [])
        pair[0].append(wire)
        pair[1].append(name)
    return groups


def reads(
    names: list[str | bytes],
    prefix: bytes,
    unusual: Callable[[str | bytes], bytes],
    placement: Placement,
    decode: Callable[[bytes, int], object],
    tokens: bool,
) -> tuple[dict[str, Fetch], dict[str, tuple[list[bytes], list[Any]]], dict[Any, Any]]:
    """What reads many keys: a `Fetch` of each node's plain keys by its address, the other keys as `group` would have them, and what
    the values are filed in.

    ``prefix`` and ``unusual`` are `plain_keys`'s, the other arguments are those of `Fetch`.
    """
    plain: dict[str, tuple[list[bytes], list[Any]]] = {}
    others: dict[str, tuple[list[bytes], list[Any]]] = {}
    values: dict[Any, Any] = {}
    wires = plain_keys(names, prefix, unusual)
    for wire, name, owner in zip(wires, names, placement.indexes(wires), strict=True):
        groups = plain if type(wire) is bytes else others
        its_wires, its_names = groups.setdefault(placement.addresses[owner], ([], []))
        its_wires.append(wire)
        its_names.append(name)
    return {address: Fetch(*pair, decode, values, tokens) for address, pair in plain.items()}, others, values


def set_lines(
    wires: list[bytes],
    values: list[tuple[bytes, int]],
    options: bytes,
    key_on_line: Callable[[bytes], tuple[bytes, bytes]],
) -> bytes:
    """One ``ms`` for each value, in one string.

    :param values: data and client flags of each
    :param options: meta flags for all
    :param key_on_line: the text of a key that cannot travel as it is, and the meta flag that goes with it
    """
    lines = []
    for wire, (data, flags) in zip(wires, values, strict=True):
        key, b = (wire, b"") if type(wire) is bytes else key_on_line(wire)
        lines.append(b"ms %b %d %b F%d%b\r\n%b\r\n" % (key, len(data), options, flags, b, data))
    return b"".join(lines)


def send_all(fd: int, payload: bytes) -> None:
    """Send a payload whole over a blocking socket.

    :raises OSError: as the socket does; BlockingIOError where the kernel's timeout passes
    """
    sent = os.write(fd, payload)
    while sent < len(payload):
        sent += os.write(fd, memoryview(payload)[sent:])


class Reader:
    """Reads the replies that one connection receives, one request after another."""

    __slots__ = ("_cursor", "_lent", "_need", "_parse", "_pending", "_request", "complete")

    def __init__(self) -> None:
        self._pending = bytearray()  # received and not yet understood
        self._need = 0  # do not look again before this many bytes are pending
        self._lent: memoryview | None = None
        self._request: Fetch | Commands | None = None
        self._parse: Callable[[], bool] = self._fetch
        self._cursor = 0  # the position of the next key that a Fetch may be answered with
        self.complete = False  # whether the last `receive` brought the last reply

    @property
    def excess(self) -> bool:
        """Whether more arrived than the request asked for."""
        return bool(self._pending)

    def begin(self, request: Fetch | Commands) -> None:
        """Read the replies to this request from here on."""
        self._request = request
        self._parse = self._commands if hasattr(request, "replies") else self._fetch
        self._cursor = self._need = 0

    def buffer(self) -> memoryview:
        """Where to receive into."""
        if self._lent is None:
            self._lent = memoryview(bytearray(BUFFER_SIZE))
        return self._lent

    def received(self, count: int) -> bool:
        """Take in ``count`` bytes from the buffer, and say whether the request has all its replies.

        :raises Malformed: for bytes that are not a reply to the request
        """
        if count:
            assert self._lent is not None
            self._pending += self._lent[:count]
        if len(self._pending) < self._need:
            return False
        self._need = 0
        if not self._parse():
            return False
        self._request = None
        if not self._pending:
            self._lent = None
        return True

    def receive(self, fd: int) -> int:
        """Receive once from a blocking socket, and take in what came: the number of bytes, 0 at the end. `complete` says the rest.

        :raises Malformed: for bytes that are not a reply to the request
        :raises OSError: as the socket does; BlockingIOError where the kernel's timeout passes
        """
        count = os.readv(fd, [self.buffer()])
        self.complete = count > 0 and self.received(count)
        return count

    def _line(self, start: int) -> bytes | None:
        """The line from ``start`` without its end, or None while it is not whole."""
        end = self._pending.find(b"\r\n", start, start + MAX_LINE + 2)
        if end >= 0:
            return bytes(self._pending[start:end])
        if len(self._pending) - start >= MAX_LINE + 2:
            raise Malformed(f"a line of more than {MAX_LINE} bytes: {bytes(self._pending[start : start + 40])!r}…")
        return None

    def _data(self, start: int, size: int) -> bytes | None:
        """The ``size`` bytes from ``start``, or None while they and their line end are not whole."""
        end = start + size
        if size > MAX_DATA:
            raise Malformed(f"a value of {size} bytes")
        if len(self._pending) < end + 2:
            self._need = end + 2
            return None
        if self._pending[end : end + 2] != b"\r\n":
            raise Malformed(f"a value of {size} bytes does not end where it should")
        with memoryview(self._pending) as view:
            return bytes(view[start:end])

    def _fetch(self) -> bool:
        request: Fetch = self._request  # type: ignore[assignment]
        position, done = 0, False
        while not done and (line := self._line(position)) is not None:
            after = position + len(line) + 2
            if match := _VALUE(line):
                key, flags, size, cas = match.groups()
                if (cas is not None) is not request.tokens:
                    raise Malformed(f"a value {'without' if request.tokens else 'with'} a CAS number: {line!r:.100}")
                try:
                    self._cursor = request.wires.index(key, self._cursor)
                except ValueError:
                    raise Malformed(f"not a value that was asked for: {line!r:.100}") from None
                data = self._data(after, int(size))
                if data is None:
                    self._need -= position
                    break
                self._file(request, data, int(flags), cas)
                position = after + len(data) + 2
            elif line == b"END":
                position, done = after, True
            elif line.startswith(_ERRORS):
                request.refusal = line
                position, done = after, True
            else:
                raise Malformed(f"not a value: {line!r:.100}")
        del self._pending[:position]
        return done

    def _file(self, request: Fetch, data: bytes, flags: int, cas: bytes | None) -> None:
        """Put a value where the name of the key at the cursor says."""
        at = self._cursor
        self._cursor += 1
        value: object
        try:
            if flags == 0:
                if not data:
                    request.doubtful = [*(request.doubtful or ()), at]
                    return
                value = data
            elif flags == 16:
                value = data.decode()
            elif flags == 2:
                value = int(data)
            else:
                value = request.decode(data, flags)
        except Exception as error:  # whatever a codec raises, the value is of no use: a miss that is counted
            request.undecodable += 1
            request.failure = request.wires[at], error
            return
        request.values[request.names[at]] = (value, cas) if request.tokens else value
        request.found += 1

    def _commands(self) -> bool:
        request: Commands = self._request  # type: ignore[assignment]
        position = 0
        while len(request.replies) < request.count and (line := self._line(position)) is not None:
            after = position + len(line) + 2
            if match := _META(line):
                reply = Reply(match[1].decode())
                read_flags(reply, match[2])
            elif match := _META_VALUE(line):
                data = self._data(after, int(match[1]))
                if data is None:
                    self._need -= position
                    break
                reply = Reply("VA")
                reply.value = data
                read_flags(reply, match[2])
                after += len(data) + 2
            elif line.startswith(_ERRORS):
                reply = Reply(line.decode("latin-1"))
            else:
                raise Malformed(f"not a reply: {line!r:.100}")
            request.replies.append(reply)
            position = after
        del self._pending[:position]
        return len(request.replies) == request.count


def read_flags(reply: Reply, text: bytes) -> None:
    """Note the return flags of a meta reply's line."""
    for token in text.split():
        letter, rest = token[:1], token[1:]
        if letter in b"fcts":
            if not _NUMBER(rest):
                raise Malformed(f"not a number: {token!r:.100}")
            number = int(rest)
            if letter == b"f":
                reply.flags = number
            elif letter == b"c":
                reply.cas = number
            elif letter == b"t":
                reply.ttl = number
            else:
                reply.size = number
        elif letter == b"O":
            reply.opaque = rest
        elif token == b"W":
            reply.won = True
        elif token == b"Z":
            reply.taken = True
        elif token == b"X":
            reply.stale = True


def fills(
    wires: list[bytes],
    values: list[tuple[bytes, int]],
    leases: list[int],
    ttls: list[int],
    key_on_line: Callable[[bytes], tuple[bytes, bytes]],
) -> list[bytes]:
    """One ``ms`` for each value, against the CAS number of its lease.

    :param values: data and client flags of each
    :param key_on_line: as for `set_lines`
    """
    lines = []
    for wire, (data, flags), cas, ttl in zip(wires, values, leases, ttls, strict=True):
        key, b = (wire, b"") if type(wire) is bytes else key_on_line(wire)
        lines.append(b"ms %b %d C%d T%d F%d%b\r\n%b\r\n" % (key, len(data), cas, ttl, flags, b, data))
    return lines


def leases(replies: list[Reply]) -> list[int] | None:
    """The CAS numbers of the leases that replies to meta gets are; None where one of them is something else."""
    if any(not reply.won or reply.value or reply.flags for reply in replies):
        return None
    return [reply.cas for reply in replies]
