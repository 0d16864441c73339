"""One connection to one node: send a request, read its replies, count both.

On a plain socket the kernel keeps the time (SO_RCVTIMEO and SO_SNDTIMEO, set once): a socket with ``settimeout()`` would cost a
poll before every receive. A node that sends one byte now and then would stay below the kernel's limit for ever, so the deadline
is checked after each receive that did not bring the end.

A connection has one user at a time. Whatever interrupts an exchange leaves replies behind that would answer the next question, so a
connection is used again only if its exchange completed.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
import time
from typing import Final, Protocol

from pymemcache.client.base import KeepaliveOpts

from kvcluster.errors import BadReply, CommandRefused, KvclusterError, NodeTimeout, NodeUnreachable
from kvcluster.protocol.hot import Malformed, Reader, send_all
from kvcluster.protocol.requests import Commands, Deletes, Request
from kvcluster.stats.counters import Counters
from kvcluster.topology import Node
from kvcluster.transport.hot import ConnectionFields
from kvcluster.transport.state import warn_undecodable

SLOWEST: Final = 10 << 20  # bytes per second; a node that moves so many is not late, however large the values

_TIMEVAL: Final = struct.Struct("@ll")


class Stream(Protocol):
    """What a connection needs of a socket. Embedded nodes offer it without one."""

    def sendall(self, data: bytes, /) -> None:
        """Send all of it, or raise OSError."""

    def recv_into(self, buffer: memoryview, /) -> int:
        """Receive at least one byte into the buffer and say how many; 0 at the end."""

    def close(self) -> None:
        """Close it."""


class Connection(ConnectionFields):
    """A stream to a node, with its reader and its counters.

    :param address: the node's, for errors
    :param timeout: seconds for one exchange
    :param opened: when the stream was opened, by ``time.monotonic()``
    """

    __slots__ = ("address", "opened", "stream")

    def __init__(self, stream: Stream, address: str, timeout: float, opened: float) -> None:
        self.stream = stream
        self.fd = stream.fileno() if isinstance(stream, socket.socket) and blocking_timeout(stream, timeout) is None else -1
        self.address = address
        self.timeout = timeout
        self.opened = opened
        self.reader = Reader()
        self.counters = {}  # by namespace
        self.owed = 0  # no-op replies still to come, from requests that nobody waited for
        self.used = False  # whether an exchange completed on it
        self.expired = False  # whether to close it when it is given back
        self.idle_since = opened

    def exchange(self, request: Request, namespace: str) -> None:
        """Send a request and read all its replies.

        :raises NetworkError: where the node does not answer in time, or closes the connection
        :raises BadReply: where what it sends is no reply
        :raises CommandRefused: where it refuses a delete
        """
        self.send(request)
        self.conclude(request, namespace, None)

    def conclude(self, request: Request, namespace: str, outcome: int | Exception | None, deadline: float | None = None) -> int:
        """The rest of an exchange whose request was sent; the number of bytes that its replies took.

        :param outcome: how it went so far: the number of bytes first received, or an error; None where nothing was received
        :param deadline: by ``time.monotonic()``; without one the connection's own timeout counts from here. `SLOWEST` extends it
        """
        if isinstance(outcome, Exception):
            raise self._failure(outcome) from None
        if outcome is None or not self.reader.complete:
            outcome = self._read(deadline, outcome) if request.count else 0
        self.complete(request, namespace, outcome)
        return outcome

    def send(self, request: Request) -> None:
        """The first half of `exchange`; `conclude` is the second."""
        try:
            if self.owed:
                self.settle()
            if self.fd >= 0:
                send_all(self.fd, request.payload)
            else:
                self.stream.sendall(request.payload)
        except OSError as error:
            raise self._failure(error) from None
        self.owed += request.owed
        if request.count:
            self.reader.begin(request)

    def complete(self, request: Request, namespace: str, received: int) -> None:
        """Count a request whose replies were read."""
        if self.reader.excess:
            raise BadReply(self.address, "sent more than was asked for")
        if request.misplaced:
            raise BadReply(self.address, "answered another request than the one that waits")
        counters = self.counters.get(namespace)
        if counters is None:
            self.counters[namespace] = counters = Counters()
        counters.bytes_written += len(request.payload)
        counters.bytes_read += received
        if isinstance(request, Deletes) and (refusal := request.refusal):
            raise CommandRefused(self.address, refusal)  # a failed exchange, whose deletes are kept to be sent again
        request.settle(counters)
        if request.failure is not None:
            warn_undecodable(self.address, namespace, request.failure)

    def _read(self, deadline: float | None, before: int | None = None) -> int:
        """Receive until the request that the reader has begun has its replies.

        :param before: the bytes of it that were received already; None where nothing was
        :returns: the number of bytes it took
        """
        reader, fd, total = self.reader, self.fd, 0
        try:
            if before is None and reader.excess and reader.received(0):  # it came together with the reply before
                return total
            count = before
            while True:
                if count is not None:
                    if not count:
                        raise NodeUnreachable(self.address, "closed the connection before its reply was whole")
                    total += count
                    deadline = (deadline or time.monotonic() + self.timeout) + count / SLOWEST
                if deadline is not None:
                    self._wait(deadline)
                if fd < 0:
                    count = self.stream.recv_into(reader.buffer())
                    complete = count > 0 and reader.received(count)
                else:
                    count = reader.receive(fd)
                    complete = reader.complete
                if complete:
                    return total + count
        except (OSError, Malformed) as error:
            raise self._failure(error) from None

    def _failure(self, error: Exception) -> KvclusterError:
        """What an error of the stream or of the reader means."""
        if isinstance(error, KvclusterError):
            return error
        if isinstance(error, Malformed):
            return BadReply(self.address, f"sent what is no reply: {error}")
        if isinstance(error, TimeoutError | BlockingIOError):
            return self._late()
        return NodeUnreachable(self.address, f"connection lost ({error})")

    def _wait(self, deadline: float) -> None:
        """Wait for bytes where the deadline comes before the kernel's timeout would."""
        remaining = deadline - time.monotonic()
        if remaining < self.timeout and not readable(self.stream, max(0.0, remaining)):
            raise self._late()

    def settle(self) -> None:
        """Read the replies up to the no-ops that ended requests nobody waited for."""
        while self.owed:
            line = Commands(b"", 1)
            self.reader.begin(line)
            self._read(None)
            self.owed -= line.replies[0].status == "MN"

    def _late(self) -> NodeTimeout:
        return NodeTimeout(self.address, f"no answer within {self.timeout:g} s")

    def close(self) -> None:
        """Close the stream."""
        self.fd = -1
        self.stream.close()


def readable(stream: Stream, seconds: float) -> bool:
    """Whether the stream has bytes to read, waiting for them at most so long. An embedded node's stream always knows its answer."""
    if not isinstance(stream, socket.socket) or pending(stream):
        return True
    poll = select.poll()
    poll.register(stream, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def pending(stream: socket.socket) -> int:
    """How many bytes TLS has decrypted already, which no poll sees."""
    return stream.pending() if isinstance(stream, ssl.SSLSocket) else 0


def keep_alive(stream: socket.socket, options: KeepaliveOpts) -> None:
    """Let the kernel find out that the other end of an idle connection is gone."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, options.idle)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, options.intvl)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, options.cnt)


def dial(
    node: Node,
    connect_timeout: float,
    timeout: float,
    keepalive: KeepaliveOpts | None = None,
    tls: ssl.SSLContext | None = None,
) -> socket.socket:
    """A socket to a node, trying each of its addresses in turn.

    :param tls: what to encrypt with; None for plain text, as always over a Unix socket
    :raises OSError: the last address's failure
    """
    if node.socket_path is not None:
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        return _connected(stream, node.socket_path, connect_timeout, timeout)
    try:
        addresses = socket.getaddrinfo(node.host, node.port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(f"{node.host!r} is no host's name: {error}") from None
    last: OSError = OSError("no address")
    for family, _, _, _, address in addresses:
        try:
            return _connected(_socket(node, family, keepalive, tls), address, connect_timeout, timeout)
        except OSError as error:
            last = error
    raise last


def _socket(node: Node, family: int, keepalive: KeepaliveOpts | None, tls: ssl.SSLContext | None) -> socket.socket:
    stream = socket.socket(family, socket.SOCK_STREAM)
    try:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if keepalive is not None:
            keep_alive(stream, keepalive)
        return stream if tls is None else tls.wrap_socket(stream, server_hostname=node.host)
    except BaseException:
        stream.close()
        raise


def _connected(stream: socket.socket, address: object, connect_timeout: float, timeout: float) -> socket.socket:
    try:
        stream.settimeout(connect_timeout)
        stream.connect(address)  # type: ignore[arg-type]
        stream.settimeout(blocking_timeout(stream, timeout))
        if stream.gettimeout() is None:
            limit = _TIMEVAL.pack(*divmod(max(1, round(timeout * 1_000_000)), 1_000_000))  # 0 would mean "for ever"
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    except BaseException:
        stream.close()
        raise
    return stream


def blocking_timeout(stream: socket.socket, timeout: float) -> float | None:
    """The timeout that Python must keep: None where the kernel keeps it.

    The kernel's never fires under TLS, which reads on, nor on the sockets that gevent and eventlet put in place of Python's.
    """
    return None if type(stream) is socket.socket and socket.socket.__module__ == "socket" else timeout
