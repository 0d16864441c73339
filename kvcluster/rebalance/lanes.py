"""Connections of the coordinator: requests go out without waiting for the replies to those before, which are read in the same
order.

A lane has one user. Whatever goes wrong on it, it is closed and another one opened; reservations that are left behind end by their
own ttl.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pymemcache.client.base import Client as AdminClient
from pymemcache.exceptions import MemcacheError

from kvcluster.errors import BadReply, NodeUnreachable
from kvcluster.plan import Plan
from kvcluster.protocol.hot import Reply, send_all
from kvcluster.protocol.requests import Commands, Request
from kvcluster.topology import Node
from kvcluster.transport.connection import Connection, Stream, dial

T = TypeVar("T")
CONNECT_TIMEOUT: Final = 2.0  # seconds


def connect(node: Node, timeout: float) -> Stream:
    """A stream to a node.

    :param timeout: seconds for each receive
    :raises NodeUnreachable: where there is none
    """
    if node.memory_name is not None:
        from kvcluster import embedded  # here, because few programs need it

        return embedded.MemorySocket(embedded.node(node.memory_name))
    try:
        return dial(node, CONNECT_TIMEOUT, timeout)
    except OSError as error:
        raise NodeUnreachable(node.address, f"cannot be reached ({error})") from None


class Lane(Connection):
    """A connection on which several requests may be under way: each is sent by `send`, and its replies are read by `receive`, in
    the same order.

    :param timeout: seconds that the node may take for its replies
    :raises NodeUnreachable: where it cannot be reached
    """

    __slots__ = ()

    def __init__(self, node: Node, timeout: float) -> None:
        super().__init__(connect(node, timeout), node.address, timeout, time.monotonic())

    def run(self, plan: Plan[T]) -> T:
        """Carry out a plan that concerns this node alone.

        :raises NetworkError: where the node does not answer, or the connection is lost
        """
        while True:
            for request in plan.requests.values():
                self.send(request)
                self.receive(request)
            outcome = plan.finish({})
            if not isinstance(outcome, Plan):
                return outcome
            plan = outcome

    def ask(self, command: bytes) -> Reply:
        """Send one meta command, and return its reply.

        :raises NetworkError: where the node does not answer, or the connection is lost
        """
        request = Commands(command, 1)
        self.send(request)
        self.receive(request)
        return request.replies[0]

    def send(self, request: Request) -> None:
        """Send a request; what earlier ones are owed is read later.

        :raises NetworkError: where the connection is lost
        """
        try:
            if self.fd >= 0:
                send_all(self.fd, request.payload)
            else:
                self.stream.sendall(request.payload)
        except OSError as error:
            raise self._failure(error) from None

    def receive(self, request: Request) -> None:
        """Read the replies to the earliest request whose replies were not read yet.

        :raises NetworkError: where the node does not answer in time, or the connection is lost
        :raises BadReply: for replies to something else
        """
        self.reader.begin(request)
        self._read(None)
        if request.misplaced:
            raise BadReply(self.address, "answered another request than the one that waits")


@dataclass(frozen=True, slots=True)
class Figures:
    """What a node says of itself that matters to a resize.

    ``now`` is its clock, and ``started`` the time its process started, both in seconds since 1970. Another start means
    that it is empty.
    """

    started: int
    now: int
    version: str
    items: int
    bytes: int
    limit: int
    hits: int
    misses: int


def figures(node: Node, timeout: float) -> Figures:
    """Ask a node for its figures.

    :raises NodeUnreachable: where it does not answer
    """
    client = _administrator(node, timeout)
    try:
        raw = client.stats()
    except (OSError, MemcacheError, ValueError, IndexError) as error:
        raise NodeUnreachable(node.address, f"does not tell its statistics ({error})") from None
    finally:
        client.close()

    def number(name: bytes) -> int:
        value = raw.get(name, 0)
        return int(value) if isinstance(value, int | float | str | bytes) else 0

    version = raw.get(b"version", b"")
    return Figures(
        started=number(b"time") - number(b"uptime"),
        now=number(b"time"),
        version=version.decode("ascii", "replace") if isinstance(version, bytes) else str(version),
        items=number(b"curr_items"),
        bytes=number(b"bytes"),
        limit=number(b"limit_maxbytes"),
        hits=number(b"get_hits"),
        misses=number(b"get_misses"),
    )


def flush(node: Node, timeout: float) -> None:
    """Empty a node.

    :raises NodeUnreachable: where it does not confirm that
    """
    client = _administrator(node, timeout)
    try:
        client.flush_all(noreply=False)
    except (OSError, MemcacheError) as error:
        raise NodeUnreachable(node.address, f"does not confirm that it was flushed ({error})") from None
    finally:
        client.close()


def _administrator(node: Node, timeout: float) -> AdminClient:
    server: Any = node.socket_path or (node.host, node.port)
    options: dict[str, Any] = {"connect_timeout": CONNECT_TIMEOUT, "timeout": timeout}
    if node.memory_name is not None:
        from kvcluster import embedded

        server, options["socket_module"] = f"/{node.memory_name}", embedded.SocketModule(embedded.node(node.memory_name))
    return AdminClient(server, **options)


class Lanes:
    """The connections of one coordinator, one to each node that it asks.

    :param timeout: seconds that a node may take for its replies
    """

    def __init__(self, nodes: Iterable[Node], timeout: float) -> None:
        self._nodes = {node.address: node for node in nodes}
        self._open: dict[str, Lane] = {}
        self._timeout = timeout

    def __call__(self, address: str) -> Lane:
        """The connection to a node, opened where there is none.

        :raises NodeUnreachable: where it cannot be reached
        """
        lane = self._open.get(address)
        if lane is None:
            self._open[address] = lane = Lane(self._nodes[address], self._timeout)
        return lane

    def close(self) -> None:
        """Close all of them; the next use opens new ones."""
        for lane in self._open.values():
            lane.close()
        self._open.clear()
