"""Clients whose wire a test can see, and nodes that do what a test says."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Callable, Iterable
from typing import Any, Self

from kvcluster import AsyncClient, embedded
from kvcluster.embedded.aio import MemoryTransport
from kvcluster.topology import Node
from kvcluster.transport.aio import AsyncConnection, AsyncEndpoint

PATIENT = 10.0  # seconds, for tests that are not about timeouts

_fresh = itertools.count()


def memory_addresses(count: int) -> list[str]:
    """Addresses of embedded nodes that no other test uses."""
    return [f"memory:aio-{next(_fresh)}" for _ in range(count)]


def patient(addresses: Iterable[str], **settings: Any) -> AsyncClient:
    """A client that waits long."""
    return AsyncClient(list(addresses), **{"timeout": PATIENT, "connect_timeout": PATIENT} | settings)


def answers(data: bytes) -> bytes:
    """The replies of an empty node to deletes, which it confirms, and to classic reads."""
    return b"".join(
        b"END\r\n" if line.startswith(b"get") else b"HD" + line[line.rindex(b" O") :] + b"\r\n" for line in data.splitlines()
    )


def without_opaque(data: bytes) -> bytes:
    """Commands without their opaque tokens, which differ from run to run."""
    return re.sub(rb" O[0-9a-f]+", b"", data)


class Recording(AsyncClient):
    """A client of embedded nodes that notes each write, by address."""

    def __init__(self, addresses: Iterable[str], **settings: Any) -> None:
        self.writes: dict[str, list[bytes]] = {}
        super().__init__(list(addresses), **{"timeout": PATIENT} | settings)

    async def _dial(self, node: Node, connection: Callable[[], AsyncConnection]) -> AsyncConnection:
        assert node.memory_name is not None
        protocol = connection()
        _RecordingTransport(
            embedded.node(node.memory_name), protocol, asyncio.get_running_loop(), self.writes.setdefault(node.address, [])
        )
        return protocol


class _RecordingTransport(MemoryTransport):
    def __init__(self, node: Any, protocol: AsyncConnection, loop: asyncio.AbstractEventLoop, writes: list[bytes]) -> None:
        self._writes = writes
        super().__init__(node, protocol, loop)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._writes.append(bytes(data))
        super().write(data)


class Clocked(AsyncClient):
    """A client that takes the time for its judgement of nodes from a clock."""

    def __init__(self, addresses: Iterable[str], clock: Callable[[], float], **settings: Any) -> None:
        self._clock = clock
        super().__init__(list(addresses), **settings)

    def _endpoint(self, node: Node) -> AsyncEndpoint:
        return AsyncEndpoint(node, self._dial, self._timeout, self._clock)


class Wire(asyncio.Transport):
    """A transport that goes nowhere: what was written is in `written`, and the test feeds the replies.

    :ivar backlog: bytes that the socket has not taken
    :ivar fed: bytes that the connection received
    :ivar full_at: bytes of one write at which the connection is told to pause
    """

    backlog = 0
    fed = 0
    full_at = 1 << 30

    def __init__(self, protocol: AsyncConnection) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.aborted = False
        self._protocol = protocol
        protocol.connection_made(self)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return self.backlog

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))
        if len(data) >= self.full_at:
            self._protocol.pause_writing()

    def abort(self) -> None:
        self.aborted = True

    def feed(self, data: bytes, size: int = 1 << 20) -> None:
        """Let the connection receive, so many bytes at a time."""
        while data and not self.aborted:
            buffer = self._protocol.get_buffer(-1)
            count = min(size, len(data), len(buffer))
            buffer[:count] = data[:count]
            data = data[count:]
            self.fed += count
            del buffer
            self._protocol.buffer_updated(count)


Answer = Callable[["Peer", bytes], None]


class ScriptedNode:
    """A server in the running loop that calls ``answer(peer, data)`` with whatever arrives.

    :ivar received: all that arrived
    :ivar peers: the connections made so far
    """

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.received = b""
        self.peers: list[Peer] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.get_running_loop().create_server(lambda: Peer(self), "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for peer in self.peers:
            peer.transport.abort()
        await self._server.wait_closed()


class Peer(asyncio.Protocol):
    """One connection to a `ScriptedNode`."""

    transport: asyncio.Transport

    def __init__(self, node: ScriptedNode) -> None:
        self._node = node
        self.received = b""
        self.lost = asyncio.Event()
        self.number = len(node.peers)
        node.peers.append(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.received += data
        self._node.received += data
        self._node.answer(self, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()
