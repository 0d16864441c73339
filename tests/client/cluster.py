"""What the client's tests run on: some nodes, clients of them, and a way to ask a node without a client."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable, Sequence
from typing import Any

from kvcluster import Client, embedded
from kvcluster.topology import Node

PATIENT = 10.0  # seconds: these tests are not about timeouts, and the machine may be busy


class Cluster:
    """Nodes, and the clients that a test opened to them.

    :param addresses: the nodes'
    :param connect: makes a client of addresses and settings
    """

    def __init__(self, addresses: Sequence[str], connect: Callable[..., Any] = Client) -> None:
        self.addresses = list(addresses)
        self._connect = connect
        self._clients: list[Any] = []

    def client(self, addresses: Sequence[str] | None = None, **settings: Any) -> Any:
        """A client of all the nodes, or of these."""
        client = self._connect(addresses or self.addresses, **{"timeout": PATIENT, "connect_timeout": PATIENT} | settings)
        self._clients.append(client)
        return client

    def ask(self, request: bytes, address: str | None = None) -> bytes:
        """Send commands to a node, by default the first, and return all its replies."""
        return ask(address or self.addresses[0], request)

    def close(self) -> None:
        for client in self._clients:
            client.close()


def embedded_addresses(count: int) -> list[str]:
    """Addresses of embedded nodes that no other test uses."""
    return [f"memory:{next(_fresh)}" for _ in range(count)]


_fresh = itertools.count()


def stat(address: str, name: str) -> int:
    """One of a node's own statistics."""
    return int(ask(address, b"stats\r\n").partition(b"STAT %b " % name.encode())[2].split()[0])


def ask(address: str, request: bytes) -> bytes:
    """Send commands to a node over a connection of its own and return all its replies."""
    node, end = Node(address), b"MN\r\n"
    buffer, replies = bytearray(1 << 16), b""
    stream: Any
    if node.memory_name is not None:
        stream = embedded.MemorySocket(embedded.node(node.memory_name))
    else:
        stream = socket.create_connection((node.host, node.port), timeout=PATIENT)
    try:
        stream.sendall(request + b"mn\r\n")
        while not replies.endswith(end):
            count = stream.recv_into(buffer)
            assert count, f"{address} closed the connection after {replies!r}"
            replies += buffer[:count]
    finally:
        stream.close()
    return replies.removesuffix(end)
