"""What a node holds, by ``lru_crawler metadump hash``: every key with its expiry, last access and size, and no values.

A node writes its dump as fast as somebody reads it, and one whose reader stalls for a few seconds may hang for good. So a thread of
its own does nothing but receive, raw bytes into memory and past a bound into a file, and lines are understood once the dump is
whole. Whatever is done with them afterwards, however slowly, does not reach the node.

``hash`` walks the hash table: ``all`` walks the LRU lists, and misses keys that move within them meanwhile. A node dumps once at a
time, and not while its hash table grows: it says so, and is asked again.
"""

from __future__ import annotations

import contextlib
import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

from kvcluster.errors import BadReply, CommandRefused, NodeTimeout, NodeUnreachable, ResizeStopped
from kvcluster.protocol.requests import BinaryKey
from kvcluster.rebalance.lanes import connect
from kvcluster.topology import Node

if TYPE_CHECKING:
    from typing import Self

MEMORY: Final = 64 << 20  # bytes of a dump that stay in memory, some 800,000 lines
PATIENCE: Final = 60.0  # seconds to wait for a node that is busy with another dump or grows its hash table
SILENCE: Final = 30.0  # seconds without a byte; a sparse hash table takes long between two lines
_AGAIN: Final = 0.2  # seconds between two attempts
_BLOCK: Final = 1 << 18
_FIRST_LINE: Final = 1024  # bytes; a line without an end is judged by as many
_END: Final = b"END\r\n"
_REFUSALS: Final = (b"BUSY", b"ERROR", b"BADCLASS", b"CLIENT_ERROR", b"SERVER_ERROR")

_LINE = re.compile(rb"^key=(\S+) (.*)$", re.MULTILINE)
_DETAILS = re.compile(rb"^exp=-?\d+ la=(\d+) .*\bsize=(\d+)", re.MULTILINE)
_FORBIDDEN = re.compile(rb"[\x00-\x20\x7f]").search


class NodeBusy(CommandRefused):
    """A node would not dump now: another dump is under way, or its hash table grows."""


class DumpUnavailable(CommandRefused):
    """A node cannot dump its keys at all: it is too old, is told not to, or is no memcached."""


class Dump:
    """A whole dump, to be read any number of times. Close it, or use it as a context manager.

    :ivar size: bytes
    """

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self.size = size

    def blocks(self) -> Iterator[list[tuple[bytes, bytes]]]:
        """The lines, some thousands at a time: of each the key as the wire carries it, and what `details` understands."""
        self._file.seek(0)
        rest = b""
        while piece := self._file.read(_BLOCK):
            whole, newline, rest = (rest + piece).rpartition(b"\n")
            if newline:
                yield parsed(whole)
            else:
                rest = whole + rest

    def close(self) -> None:
        """Free its memory, or its file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def parsed(lines: bytes) -> list[tuple[bytes, bytes]]:
    """The key and the rest of each line of a dump; lines of another kind (``OK``, ``END``) have none.

    >>> parsed(b"OK\\r\\nkey=sp%20ace exp=-1 la=7 cas=3 fetch=no cls=1 size=74 flags=7 \\nEND\\r")
    [(b'sp ace', b'exp=-1 la=7 cas=3 fetch=no cls=1 size=74 flags=7 ')]
    """
    found: list[tuple[bytes, bytes]] = _LINE.findall(lines)
    if b"%" not in lines:
        return found
    return [*zip(decoded([key for key, _ in found]), [rest for _, rest in found], strict=True)]


def decoded(keys: list[bytes]) -> list[bytes]:
    """Keys as the wire carries them, from the percent-encoding of a dump: `BinaryKey` where they must travel in base64.

    >>> decoded([b"user%3A1", b"a%0Ab"])
    [b'user:1', b'a\\nb']
    """
    # All of them at once where no key holds a line feed; and nearly every "%" is that of a colon.
    text = b"\n".join(keys).replace(b"%3A", b":")
    if b"%" not in text:
        return text.split(b"\n") if keys else []
    plain = b"%0A" not in text and b"%0a" not in text
    raw = unquote_to_bytes(text).split(b"\n") if plain else [unquote_to_bytes(key) for key in keys]
    return [*map(wired, raw)]


def wired(key: bytes) -> bytes:
    """A key as the wire carries it: `BinaryKey` where it must travel in base64."""
    return BinaryKey(key) if _FORBIDDEN(key) else key


def all_wired(keys: Sequence[bytes]) -> list[bytes]:
    """`wired` of each key; most often none of them needs it."""
    return [*map(wired, keys)] if _FORBIDDEN(b"".join(keys)) else [*keys]


def details(rests: Sequence[bytes]) -> list[tuple[int, int]]:
    """Last access (seconds since 1970) and size (bytes, header included), as the rest of each line tells them.

    >>> details([b"exp=1795332673 la=1795332623 cas=3 fetch=no cls=1 size=74", b"exp=-1 la=5 cas=4 fetch=no cls=1 size=99 "])
    [(1795332623, 74), (5, 99)]
    """
    found = _DETAILS.findall(b"\n".join(rests))
    if len(found) != len(rests):
        raise ValueError(f"not lines of a dump: {[rest for rest in rests if not _DETAILS.match(rest)]!r:.100}")
    return [(int(accessed), int(size)) for accessed, size in found]


def dump(
    node: Node,
    *,
    what: bytes = b"hash",
    memory: int = MEMORY,
    patience: float = PATIENCE,
    silence: float = SILENCE,
    waiting: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Dump:
    """Take a dump of a node.

    :param what: ``hash``, or the number of a slab class
    :param memory: bytes kept in memory; what exceeds them goes to a temporary file
    :param patience: seconds to ask again a node that is busy
    :param silence: seconds that a node may send nothing
    :param waiting: called now and then while the dump is taken
    :raises NodeBusy: where the node was busy all the time
    :raises DumpUnavailable: where it refuses for good
    :raises NetworkError: where it cannot be reached, falls silent, or closes the connection in mid-dump
    :raises BadReply: for a reply that is no dump
    :raises ResizeStopped: where it cannot be kept, for want of room
    """
    deadline = clock() + patience
    while True:
        try:
            return _Drain(node, what, memory, silence).result(waiting)
        except NodeBusy:
            if clock() >= deadline:
                raise
        waiting()
        sleep(_AGAIN)


class _Drain(threading.Thread):
    """Receives one dump, at full speed."""

    def __init__(self, node: Node, what: bytes, memory: int, silence: float) -> None:
        super().__init__(name=f"dump of {node.address}", daemon=True)
        self.node = node
        self.file: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=memory)  # noqa: SIM115
        self.size = 0
        self.failure: BaseException | None = None
        try:
            self.stream = connect(node, silence)
            self.stream.sendall(b"lru_crawler metadump %b\r\n" % what)
        except BaseException:
            self.file.close()
            raise
        self.start()

    def result(self, waiting: Callable[[], None]) -> Dump:
        """The dump, once it is whole."""
        try:
            while self.is_alive():
                self.join(0.05)
                waiting()
            if self.failure is not None:
                raise self.failure
        except BaseException:
            # The end of the connection ends the dump at the node, too; only its shutdown wakes the thread that receives.
            if isinstance(self.stream, socket.socket):
                with contextlib.suppress(OSError):
                    self.stream.shutdown(socket.SHUT_RDWR)
            self.stream.close()
            self.join()
            self.file.close()
            raise
        return Dump(self.file, self.size)

    def run(self) -> None:
        try:
            self.drain()
        except (TimeoutError, BlockingIOError):  # by Python, or by the kernel's timeout
            self.failure = NodeTimeout(self.node.address, "fell silent in the middle of its dump")
        except OSError as error:
            self.failure = NodeUnreachable(self.node.address, f"connection lost in the middle of its dump ({error})")
        except BaseException as error:  # raised in the thread that waits
            self.failure = error
        finally:
            self.stream.close()

    def drain(self) -> None:
        """Receive to the end."""
        buffer = memoryview(bytearray(_BLOCK))
        start: bytes | None = b""  # the first line, until it is known
        tail = b""
        while not tail.endswith(_END):
            count = self.stream.recv_into(buffer)
            if not count:
                raise NodeUnreachable(self.node.address, "closed the connection in the middle of its dump")
            if start is not None:
                start += bytes(buffer[: min(count, _FIRST_LINE)])
                if b"\n" in start or len(start) >= _FIRST_LINE:
                    check(self.node.address, start)
                    start = None
            self.size += count
            self._keep(buffer[:count])
            tail = (tail + bytes(buffer[max(0, count - len(_END) - 1) : count]))[-len(_END) - 1 :]

    def _keep(self, piece: memoryview) -> None:
        try:
            self.file.write(piece)
        except OSError as error:
            raise ResizeStopped(
                f"the dump of {self.node.address} cannot be kept in {tempfile.gettempdir()} ({error}); make room there, or name "
                "another directory by TMPDIR, and continue"
            ) from error


def check(address: str, start: bytes) -> None:
    """Make sure that a reply begins as a dump does.

    :raises NodeBusy: where the node says that it is busy
    :raises DumpUnavailable: where it refuses otherwise
    :raises BadReply: where this is no reply to a dump
    """
    line = start.partition(b"\r\n")[0].decode("latin-1")
    if start.startswith(b"BUSY") or "try again" in line:
        raise NodeBusy(address, line)
    if start.startswith(_REFUSALS):
        raise DumpUnavailable(address, line)
    if not b"key=OK\r\nEND\r\n".count(start[:3]):
        raise BadReply(address, f"answered a dump by {line!r:.100}")
