"""The floor: what the same bytes cost over raw sockets.

The requests are made before the clock starts, and their replies are counted instead of parsed, which is possible because the
sizes are known. A call with several keys is written to all nodes and then read from all. Only a client that did nothing could
be faster by more than the noise; a compiled one that saves Python's own calls can come below it by that much.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.rivals import Rival, host_port
from kvcluster.placement import placement

BUFFER = 16 << 20  # bytes; more than one node's replies in any case
_VALUE = re.compile(rb"VALUE (\S+) \d+ (\d+)\r\n")


class _Requests(Rival):
    """Requests and the sizes of their replies. An argument of a call is a list of (connection, request, bytes to expect).

    A key whose value is None is expected to be missing.
    """

    distribution = ""

    def __init__(self, addresses: Sequence[str]) -> None:
        self.addresses = addresses
        self._owners = placement("slots", addresses)
        self.connections: dict[str, Any] = {}

    def argument(self, operation: str, items: Mapping[str, Any]) -> Any:
        exchanges = []
        groups: dict[str, list[str]] = {}
        for key in items:
            groups.setdefault(self._owners.owner(key).address, []).append(key)
        for address, keys in groups.items():
            if operation.startswith("get"):
                request = f"get {' '.join(keys)}\r\n".encode()
                found = [(key, value) for key in keys if (value := items[key]) is not None]
                expected = sum(len(f"VALUE {key} 0 {len(value)}\r\n\r\n") + len(value) for key, value in found) + len("END\r\n")
            elif operation.startswith("set"):
                request = b"".join(b"ms %b %d\r\n%b\r\n" % (key.encode(), len(items[key]), items[key]) for key in keys)
                expected = len("HD\r\n") * len(keys)
            else:
                request = b"".join(b"md %b\r\n" % key.encode() for key in keys)
                expected = len("HD\r\n") * len(keys)
            exchanges.append((self.connections[address], request, expected))
        return exchanges if operation.endswith("many") else exchanges[0]

    def read(self, operation: str, argument: Any, answer: Any) -> dict[str, bytes]:
        found = {}
        for connection, _, expected in argument if operation.endswith("many") else [argument]:
            received = bytes(connection.buffer[:expected])
            at = 0
            while match := _VALUE.match(received, at):
                at = match.end() + int(match[2]) + 2
                found[match[1].decode()] = received[match.end() : at - 2]
            if received[at:] != b"END\r\n":
                raise ValueError(f"the floor received {received[at : at + 40]!r} where it expected the end")
        return found


class _Socket:
    """A blocking socket and the memory it receives into."""

    def __init__(self, address: str) -> None:
        self.socket = socket.create_connection(host_port(address))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.send = self.socket.sendall
        self.recv_into = self.socket.recv_into
        self.buffer = memoryview(bytearray(BUFFER))


class Floor(_Requests):
    """Blocking sockets."""

    own_per_thread = True

    def __init__(self, addresses: Sequence[str]) -> None:
        super().__init__(addresses)
        self.connections = {address: _Socket(address) for address in addresses}

    def get(self, argument: Any) -> None:
        connection, request, expected = argument
        connection.send(request)
        received = connection.recv_into(connection.buffer)
        while received < expected:
            received += connection.recv_into(connection.buffer[received:])

    set = get

    def get_many(self, argument: Any) -> None:
        for connection, request, _ in argument:
            connection.send(request)
        for connection, _, expected in argument:
            received = connection.recv_into(connection.buffer)
            while received < expected:
                received += connection.recv_into(connection.buffer[received:])

    set_many = delete_many = get_many

    def close(self) -> None:
        for connection in self.connections.values():
            connection.socket.close()


class _Stream(asyncio.BufferedProtocol):
    """A transport's other end: counts bytes, and lands the futures of those who wait, in order.

    The first request is written at once; those that come while it is under way go together at the end of the loop's turn.
    """

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(BUFFER))
        self.received = 0
        self.waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self.unsent: list[bytes] = []
        self.transport: Any = None
        self.loop = asyncio.get_running_loop()

    def exchange(self, request: bytes, expected: int) -> asyncio.Future[None]:
        future: asyncio.Future[None] = self.loop.create_future()
        if not self.waiting:
            self.transport.write(request)
        else:
            if not self.unsent:
                self.loop.call_soon(self.flush)
            self.unsent.append(request)
        self.waiting.append((expected, future))
        return future

    def flush(self) -> None:
        self.transport.write(b"".join(self.unsent))
        self.unsent.clear()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.buffer[self.received :]

    def buffer_updated(self, nbytes: int) -> None:
        self.received += nbytes
        while self.waiting and self.received >= self.waiting[0][0]:
            expected, future = self.waiting.popleft()
            self.received -= expected
            future.set_result(None)


class AsyncFloor(_Requests):
    """A bare protocol for each node: one write and one future for each exchange, any number under way."""

    asynchronous = True

    async def open(self) -> None:
        for address in self.addresses:
            _, self.connections[address] = await asyncio.get_running_loop().create_connection(_Stream, *host_port(address))

    async def get(self, argument: Any) -> None:
        connection, request, expected = argument
        await connection.exchange(request, expected)

    set = get

    async def get_many(self, argument: Any) -> None:
        for future in [connection.exchange(request, expected) for connection, request, expected in argument]:
            await future

    set_many = delete_many = get_many

    async def close(self) -> None:
        for connection in self.connections.values():
            connection.transport.close()
