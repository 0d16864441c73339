"""One plan, several nodes, at the same time.

Small requests are written to all nodes, then the replies are read node after node: while one is read the others' replies arrive
in the kernel's buffers, so the call takes as long as its slowest node. A request larger than a socket's buffers could not be
written so: the node stops reading once its own replies are not read. Those are pumped, writing and reading whatever each node is
ready for.

Connections are acquired in the order of the nodes' addresses. In the order of keys, threads that each hold one node's last
connection would wait for each other.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Mapping
from typing import Any, Final

from kvcluster.errors import BadReply, KvclusterError, NetworkError, NodeTimeout, NodeUnreachable
from kvcluster.plan import Plan
from kvcluster.protocol.hot import Malformed
from kvcluster.protocol.requests import Request
from kvcluster.transport.connection import SLOWEST, Connection, blocking_timeout, pending
from kvcluster.transport.hot import fast_scatter
from kvcluster.transport.pool import Endpoint

_NOT_NOW: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
SMALL: Final = 32 << 10  # bytes that a socket's buffers take whole, whatever the node does


def exchange(endpoints: Mapping[str, Endpoint], plan: Plan[Any], seconds: float) -> dict[str, KvclusterError]:
    """Exchange a plan's requests with their nodes; the failures, by address.

    :param seconds: for all of it together, where there are several nodes
    """
    requests = plan.requests
    if len(requests) == 1:
        ((address, request),) = requests.items()
        if len(request.payload) <= SMALL:
            error = endpoints[address].exchange(request, plan.namespace)
            return {address: error} if error is not None else {}
    deadline = time.monotonic() + seconds
    try:
        first = _Scatter(endpoints, requests, plan.namespace, deadline)
        first.run()
        if first.again:
            second = _Scatter(endpoints, first.again, plan.namespace, deadline, repeated=True)
            second.run()
            first.failures.update(second.failures)
    except BaseException:
        for address, request in requests.items():
            endpoints[address].interrupted(request, plan.namespace)
        raise
    return first.failures


class _Scatter:
    """The state of one exchange with several nodes.

    :param deadline: by ``time.monotonic()``; bytes that move extend it, see `SLOWEST`
    :param repeated: whether the requests were sent before, over connections that had died
    """

    def __init__(
        self,
        endpoints: Mapping[str, Endpoint],
        requests: Mapping[str, Request],
        namespace: str,
        deadline: float,
        repeated: bool = False,
    ) -> None:
        self.endpoints = endpoints
        self.requests = requests
        self.namespace = namespace
        self.deadline = deadline
        self.repeated = repeated
        self.failures: dict[str, KvclusterError] = {}
        self.again: dict[str, Request] = {}
        self.held: dict[str, Connection] = {}

    def run(self) -> None:
        """Fill the requests with their replies; leave what failed in ``failures``, and what is to be repeated in ``again``."""
        try:
            left = fast_scatter(self.endpoints, self.requests, self.namespace, self.held, self.deadline - time.monotonic(), SMALL)
            if left is not None:
                for address, outcome in left.items():
                    self.conclude(self.held[address], self.requests[address], outcome)
                return
            self.acquire()
            if all(len(self.requests[address].payload) <= SMALL for address in self.held):
                self.gather()
            else:
                self.pump()
        finally:
            for address in list(self.held):  # left over only where something interrupted the exchange
                self.endpoints[address].release(self.held.pop(address), completed=False)

    def acquire(self) -> None:
        """Take a connection to each node."""
        for address in sorted(self.requests.keys() - self.held):
            try:
                if time.monotonic() > self.deadline:
                    raise NetworkError(address, "not asked, because other nodes used up the time")
                self.held[address] = self.endpoints[address].acquire(self.requests[address].opened_before)
            except KvclusterError as error:
                self.endpoints[address].state.failed(error, self.requests[address], self.namespace)
                self.failures[address] = error

    def gather(self) -> None:
        """Write all requests, then read all replies."""
        held = [(connection, self.requests[address]) for address, connection in self.held.items()]
        outcomes = [_sent(connection, request) for connection, request in held]
        for (connection, request), outcome in zip(held, outcomes, strict=True):
            self.conclude(connection, request, outcome)

    def conclude(self, connection: Connection, request: Request, outcome: int | Exception | None) -> None:
        """Read what is left of one node's replies; see `Connection.conclude`."""
        try:
            # The others' replies waited meanwhile, so what moved here is no delay of theirs.
            self.deadline += connection.conclude(request, self.namespace, outcome, self.deadline) / SLOWEST
        except KvclusterError as error:
            self.fail(connection, error)
        else:
            self.complete(connection)

    def complete(self, connection: Connection) -> None:
        """Let go of a node that has answered."""
        endpoint = self.endpoints[connection.address]
        if not endpoint.state.ready:
            endpoint.state.answered()
        endpoint.release(self.held.pop(connection.address), completed=True)

    def fail(self, connection: Connection, error: KvclusterError) -> None:
        """Let go of a node that failed."""
        address, request = connection.address, self.requests[connection.address]
        endpoint = self.endpoints[address]
        endpoint.release(self.held.pop(address), completed=False)
        if not self.repeated and endpoint.repeats(connection, error, request):
            self.again[address] = request
        else:
            self.failures[address] = endpoint.fail(connection, error, request, self.namespace)

    def pump(self) -> None:
        """Write to and read from each node whatever it is ready for, until all have their replies or the time is up."""
        poll = select.poll()
        pumps: dict[int, _Pump] = {}
        for address, connection in list(self.held.items()):
            try:
                connection.settle()
                if isinstance(connection.stream, socket.socket):
                    pump = _Pump(connection, connection.stream, self.requests[address])
                    pump.stream.setblocking(False)
                    pumps[connection.stream.fileno()] = pump
                    poll.register(connection.stream, pump.events)
                    continue
                connection.send(self.requests[address])
            except KvclusterError as error:
                self.fail(connection, error)
            else:
                self.conclude(connection, self.requests[address], None)
        while pumps:
            ready = poll.poll(max(0.0, self.deadline - time.monotonic()) * 1000)
            if not ready:
                for pump in pumps.values():
                    self.fail(pump.connection, NodeTimeout(pump.connection.address, "did not take or send all in time"))
                return
            for descriptor, event in ready:
                pump = pumps[descriptor]
                try:
                    self.deadline += pump.advance(event) / SLOWEST
                    if not pump.events:
                        pump.stream.settimeout(blocking_timeout(pump.stream, pump.connection.timeout))
                        pump.connection.complete(pump.request, self.namespace, pump.received)
                        self.complete(pump.connection)
                except KvclusterError as error:
                    self.fail(pump.connection, error)
                if pump.connection.address in self.held:
                    poll.modify(descriptor, pump.events)
                else:
                    poll.unregister(descriptor)
                    del pumps[descriptor]


def _sent(connection: Connection, request: Request) -> KvclusterError | None:
    try:
        connection.send(request)
    except KvclusterError as error:
        return error
    return None


class _Pump:
    """How far the exchange with one node has come.

    :ivar events: what to wait for, as ``poll`` takes it; 0 once all was sent and all replies are there
    """

    def __init__(self, connection: Connection, stream: socket.socket, request: Request) -> None:
        self.connection = connection
        self.stream = stream
        self.request = request
        self.unsent = memoryview(request.payload)
        self.received = 0
        self.events = select.POLLOUT | (select.POLLIN if request.count else 0)
        connection.owed += request.owed
        if request.count:
            connection.reader.begin(request)

    def advance(self, event: int) -> int:
        """Move what can be moved without waiting; the number of bytes moved.

        :param event: what ``poll`` saw. An error or a hang-up shows in whatever is tried
        """
        address, moved = self.connection.address, 0
        try:
            if self.events & select.POLLIN and event & ~select.POLLOUT:
                moved += self.receive()
        except _NOT_NOW:
            pass
        except Malformed as error:
            raise BadReply(address, f"sent what is no reply: {error}") from None
        except NodeUnreachable:
            raise
        except OSError as error:
            raise NodeUnreachable(address, f"connection lost while receiving ({error})") from None
        try:
            if self.events & select.POLLOUT and event & ~select.POLLIN:
                moved += self.send()
        except _NOT_NOW:
            pass
        except OSError as error:
            raise NodeUnreachable(address, f"connection lost while sending ({error})") from None
        return moved

    def receive(self) -> int:
        """Receive once, and all that TLS has decrypted already."""
        reader, before = self.connection.reader, self.received
        while self.events & select.POLLIN:
            count = self.stream.recv_into(reader.buffer())
            if not count:
                raise NodeUnreachable(self.connection.address, "closed the connection before its replies were whole")
            self.received += count
            if reader.received(count):
                self.events &= ~select.POLLIN
            elif not pending(self.stream):
                break
        return self.received - before

    def send(self) -> int:
        """Send once."""
        count = self.stream.send(self.unsent)
        self.unsent = self.unsent[count:]
        if not self.unsent:
            self.events &= ~select.POLLOUT
        return count
