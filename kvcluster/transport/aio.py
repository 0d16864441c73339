"""The one connection that an asyncio client keeps to each node, and many calls under way on it.

Calls queue what they send; one write at the end of the loop's turn carries all of it, and single gets that follow each other in
one turn become one command with many keys. Only a call to several nodes does not wait for that where nothing else is under way: its
nodes are busy by the end of the turn. Replies come in the order of the requests, so a queue of requests is all it takes to hand
them out. A caller that was cancelled leaves its request in the queue: its reply is read in its place, and reaches nobody.

A node that is silent for longer than ``timeout`` while replies are due loses the connection; every call on it fails as that
node's timeout, and the node is judged by it once. While the socket's buffer is full nothing more is written, so a slow node slows
its callers instead of filling memory.

All of it runs in one event loop. A client used in another loop, once the first has ended, opens new connections there.
"""

from __future__ import annotations

import asyncio
import time
from asyncio import get_running_loop
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias, cast

from kvcluster.errors import (
    BadReply,
    CommandRefused,
    ConfigurationError,
    KvclusterError,
    NodeDown,
    NodeTimeout,
    NodeUnreachable,
    PoolTimeout,
)
from kvcluster.planner import Planner
from kvcluster.protocol.hot import Malformed, Reader
from kvcluster.protocol.requests import Commands, Deletes, Fetch, Request
from kvcluster.stats.counters import Counters
from kvcluster.topology import Node
from kvcluster.transport.pool import REPLAYED_AT_ONCE
from kvcluster.transport.state import NodeState, warn_undecodable

WRITE_HIGH_WATER: Final = 256 << 10
GETS_PER_LINE: Final = 100
SECOND_LOOK: Final = 0.01  # seconds


class AsyncConnection(asyncio.BufferedProtocol):
    """A stream to a node with its queue of requests.

    :param address: the node's, for errors
    :param timeout: seconds of silence that end it
    :param ended: called once when it ends, whether or not anybody waits for it
    """

    def __init__(
        self, address: str, timeout: float, loop: asyncio.AbstractEventLoop, ended: Callable[[AsyncConnection], None]
    ) -> None:
        self.address = address
        self.loop = loop
        self.opened = time.monotonic()
        self.counters: dict[str, Counters] = {}  # by namespace
        self.used = False  # whether the node ever answered on it
        self.expired = False  # whether to close it once nothing is under way
        self.failure: KvclusterError | None = None
        self._timeout = timeout
        self._ended = ended
        self._transport: asyncio.Transport | None = None
        self._reader = Reader()
        self._due: deque[_Call] = deque()  # written, in order; the reader reads the first one's replies
        self._unsent: deque[_Call] = deque()
        self._gets: dict[str, _Gets] = {}  # by namespace: the single gets of this turn
        self._flushing = False
        self._paused = False
        self._received = 0  # bytes of the first call's replies so far
        self._heard = 0.0  # when the node last gave a sign of life, or when the first call was written
        self._backlog = 0  # bytes that the socket had not taken at the last look
        self._doubted = 0.0  # the value of `_heard` that a look found too old
        self._watch: asyncio.TimerHandle | None = None

    # -- for callers

    @property
    def died_idle(self) -> bool:
        """Whether its end says nothing about the node: one that worked may have died since, as all do when a node restarts."""
        return self.used and isinstance(self.failure, NodeUnreachable)

    def submit(self, request: Request, namespace: str, at_once: bool = False) -> asyncio.Future[KvclusterError | None]:
        """Queue a request. The future's result is None once it holds its replies, or the failure; it is never an exception.

        :param at_once: write it now, where nothing is under way
        """
        future: asyncio.Future[KvclusterError | None] = self.loop.create_future()
        if self.failure is not None:
            future.set_result(self.failure)
        else:
            self._bundle_gets()
            self._unsent.append(_Call(request, namespace, future))
            if at_once and not self._due and not self._paused:
                self._write()
            else:
                self._schedule()
        return future

    def submit_get(self, wire: bytes, planner: Planner) -> asyncio.Future[Any]:
        """Queue a get of one plain key, to travel with the others of this turn.

        The future's result is the value, `MISSING` or `DOUBTFUL`, or this connection where it ended first.
        """
        future: asyncio.Future[Any] = self.loop.create_future()
        gets = self._gets.get(planner.namespace)
        if gets is None:
            if self.failure is not None:
                future.set_result(self)
                return future
            self._gets[planner.namespace] = gets = _Gets(self, planner)
            self._schedule()
        gets.wires.append(wire)
        gets.futures.append(future)
        if len(gets.wires) == GETS_PER_LINE:
            del self._gets[planner.namespace]
            self._unsent.append(gets.call())
        return future

    def expire(self) -> None:
        """Close the stream once nothing is under way."""
        self.expired = True
        if not self._due and not self._unsent and not self._gets:
            self.close()

    def close(self) -> None:
        """Close the stream; calls under way fail."""
        self._end(NodeDown(self.address, "the client was closed"))

    # -- writing

    def _schedule(self) -> None:
        if not self._flushing:
            self._flushing = True
            self.loop.call_soon(self._flush)

    def _bundle_gets(self) -> None:
        """Let the gets so far travel before what follows, for requests keep the order of the calls."""
        if self._gets:
            self._unsent.extend([gets.call() for gets in self._gets.values()])
            self._gets = {}

    def _flush(self) -> None:
        """Write what callers queued, until the socket's buffer is full."""
        self._flushing = False
        if self._paused or self.failure is not None:
            return
        self._bundle_gets()
        while self._unsent and not self._paused:
            self._write()

    def _write(self) -> None:
        """Write the next calls at once, about as many as the socket's buffer is to hold."""
        if not self._due:
            self._start(self._unsent[0])
            self._heard = self.loop.time()
            if self._watch is None:
                self._watch = self.loop.call_later(self._timeout, self._check)
        payloads: list[bytes] = []
        size = 0
        while self._unsent and size < WRITE_HIGH_WATER:
            call = self._unsent.popleft()
            self._due.append(call)
            if call.request.owed:  # nobody waits, but the no-op's reply is read in its place
                self._due.append(_Call(_Drain(), call.namespace, None))
            payloads.append(call.request.payload)
            size += len(call.request.payload)
        assert self._transport is not None
        self._transport.write(payloads[0] if len(payloads) == 1 else b"".join(payloads))
        self._backlog = self._transport.get_write_buffer_size()
        if not self._due[0].request.count:
            self._complete()

    def pause_writing(self) -> None:
        """The socket's buffer is full."""
        self._paused = True

    def resume_writing(self) -> None:
        """The socket's buffer has room again."""
        self._paused = False
        self._flush()

    # -- reading

    def _start(self, call: _Call) -> None:
        self._received = 0
        if call.request.count:
            self._reader.begin(call.request)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the loop receives into."""
        return self._reader.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """Take in what the loop received, and complete every call that has its replies by it."""
        if not self._due:
            self._end(BadReply(self.address, "sent what nobody asked for"))
            return
        self._heard = self.loop.time()
        self._received += nbytes
        try:
            while self._reader.received(nbytes):
                nbytes = 0
                self.used = True
                self._complete()
                if not self._due:
                    if self._reader.excess:
                        raise Malformed("more than was asked for")
                    if self.expired:
                        self.expire()
                    return
                if not self._reader.excess:
                    return
        except Malformed as error:
            self._end(BadReply(self.address, f"sent what is no reply: {error}"))

    def _complete(self) -> None:
        """Settle the first call, and start on the next."""
        call = self._due[0]
        request = call.request
        if isinstance(request, _Drain) and request.replies[0].status != "MN":
            request.reset()
            self._reader.begin(request)
            return
        if request.misplaced:
            raise Malformed("an answer to another request than the one that waits")
        self._due.popleft()
        received = self._received
        if self._due:
            self._start(self._due[0])
        counters = self.counters.get(call.namespace)
        if counters is None:
            counters = self.counters[call.namespace] = Counters()
        counters.bytes_written += len(request.payload)
        counters.bytes_read += received
        refusal = request.refusal if isinstance(request, Deletes) else None
        if refusal is None:
            request.settle(counters)
            if request.failure is not None:
                warn_undecodable(self.address, call.namespace, request.failure)
        call.land(None if refusal is None else CommandRefused(self.address, refusal))
        if self._due and not self._due[0].request.count:
            self._complete()

    # -- ending

    def _check(self) -> None:
        """End a connection that was silent for too long with replies due."""
        self._watch = None
        if not self._due:
            return
        assert self._transport is not None
        backlog, before = self._transport.get_write_buffer_size(), self._backlog
        self._backlog = backlog
        if backlog < before:  # it still takes what it is sent
            self._heard = self.loop.time()
        silent = self.loop.time() - self._heard
        if silent < self._timeout:
            self._watch = self.loop.call_later(self._timeout - silent, self._check)
        elif self._doubted != self._heard:
            # It may be the loop that had no time. What has arrived meanwhile is read before the next look.
            self._doubted = self._heard
            self._watch = self.loop.call_later(SECOND_LOOK, self._check)
        else:
            self._end(NodeTimeout(self.address, f"no answer within {self._timeout:g} s"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The stream is open."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without saying so
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_WATER)

    def eof_received(self) -> bool:
        """The node will send no more."""
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """The stream is closed."""
        self._end(NodeUnreachable(self.address, f"closed the connection{f' ({error})' if error else ''}"))

    def _end(self, failure: KvclusterError) -> None:
        if self.failure is not None:
            return
        self.failure = failure
        if self._watch is not None:
            self._watch.cancel()
        if self._transport is not None:
            self._transport.abort()
        self._bundle_gets()
        calls = [*self._due, *self._unsent]
        self._due.clear()
        self._unsent.clear()
        self._ended(self)
        for call in calls:
            call.land(failure)


class _Call:
    """A request under way, and who waits for it."""

    __slots__ = ("future", "namespace", "request")

    def __init__(self, request: Request, namespace: str, future: asyncio.Future[KvclusterError | None] | None) -> None:
        self.request = request
        self.namespace = namespace
        self.future = future

    def land(self, failure: KvclusterError | None) -> None:
        """Tell who waits, unless nobody does any more."""
        if self.future is not None and not self.future.done():
            self.future.set_result(failure)


class _Drain(Commands):
    """Reads up to the no-op that ends a request nobody waits for."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(b"", 1)


MISSING: Final = object()
DOUBTFUL: Final = object()


class _Gets:
    """Single gets that travel as one."""

    __slots__ = ("connection", "futures", "planner", "wires")

    def __init__(self, connection: AsyncConnection, planner: Planner) -> None:
        self.connection = connection
        self.planner = planner
        self.wires: list[bytes] = []
        self.futures: list[asyncio.Future[Any]] = []

    def call(self) -> _GetsCall:
        """The one command."""
        fetch = Fetch(self.wires, range(len(self.wires)), self.planner.codec.decode, {})
        return _GetsCall(fetch, self.planner.namespace, self.futures, self.connection)


class _GetsCall(_Call):
    """One command that carries the gets of several callers."""

    __slots__ = ("connection", "futures")

    def __init__(self, fetch: Fetch, namespace: str, futures: list[asyncio.Future[Any]], connection: AsyncConnection) -> None:
        super().__init__(fetch, namespace, None)
        self.futures = futures
        self.connection = connection

    def land(self, failure: KvclusterError | None) -> None:
        """Give each caller its value."""
        if failure is not None:
            for future in self.futures:
                if not future.done():
                    future.set_result(self.connection)
            return
        fetch = self.request
        assert isinstance(fetch, Fetch)
        values = fetch.values
        for at in fetch.doubtful or ():
            values[at] = DOUBTFUL
        for at, future in enumerate(self.futures):
            if not future.done():
                future.set_result(values.get(at, MISSING))


Submission: TypeAlias = tuple[AsyncConnection, "asyncio.Future[KvclusterError | None]"]


def _seen(task: asyncio.Task[AsyncConnection]) -> None:
    """Look at a task's failure, which all who waited for it may have been cancelled before seeing."""
    if not task.cancelled():
        task.exception()


class AsyncEndpoint:
    """One node's connection in the running loop.

    :param dial: opens a connection to the node, or raises OSError
    :param timeout: seconds of silence that end a connection
    """

    def __init__(
        self,
        node: Node,
        dial: Callable[[Node, Callable[[], AsyncConnection]], Awaitable[AsyncConnection]],
        timeout: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.address = node.address
        self.retired = False  # whether the node has left the cluster, and calls still under way leave no connection behind
        self.state = NodeState(node.address, clock)
        self._node = node
        self._dial = dial
        self._timeout = timeout
        self._connection: AsyncConnection | None = None
        self._preparing: asyncio.Task[AsyncConnection] | None = None

    def __repr__(self) -> str:
        return f"<AsyncEndpoint {self.state!r}, {'connected' if self._connection else 'not connected'}>"

    def connection(self) -> AsyncConnection | None:
        """The connection to use at once, or None where one must be made or the node needs care first."""
        connection = self._connection
        if connection is None or connection.failure is not None or not self.state.ready:
            return None
        return connection if connection.loop is get_running_loop() else None

    def submit(self, request: Request, namespace: str, at_once: bool) -> Submission | None:
        """Queue a request on the open connection; None where `exchange` must see to the connection first."""
        connection = self.connection() if request.opened_before is None else None
        return None if connection is None else (connection, connection.submit(request, namespace, at_once))

    async def exchange(self, request: Request, namespace: str, submitted: Submission | None = None) -> KvclusterError | None:
        """Exchange a request, or wait for one that was submitted. A failure is counted and returned, not raised."""
        repeated = False
        while True:
            if submitted is None:
                try:
                    connection = self.connection() or await self._prepared()
                    if request.opened_before is not None and connection.opened >= request.opened_before:
                        raise PoolTimeout(self.address, "no connection is left from before the lease was won")
                except KvclusterError as error:
                    self.state.failed_call(request, namespace)
                    if isinstance(error, ConfigurationError):
                        raise
                    return error
                submitted = (connection, connection.submit(request, namespace))
            connection, future = submitted
            failure = await future
            if failure is None:
                if not self.state.ready:
                    self.state.answered()
                return None
            if repeated or not (connection.died_idle and request.repeatable):
                self.state.failed_call(request, namespace)
                return failure
            request.reset()
            submitted, repeated = None, True

    def get(self, wire: bytes, planner: Planner) -> Awaitable[Any]:
        """The value of one plain key, `MISSING`, `DOUBTFUL`, or a connection that ended first: then `get_alone` is to get it."""
        connection = self._connection
        if connection is not None and connection.loop is get_running_loop() and connection.failure is None and self.state.ready:
            return connection.submit_get(wire, planner)
        return self.get_alone(wire, planner)

    async def get_alone(self, wire: bytes, planner: Planner, ended: AsyncConnection | None = None) -> Any:
        """As `get`, by an exchange of its own; a miss where a connection ``ended`` that could not have died before."""
        fetch = Fetch((wire,), (0,), planner.codec.decode, {})
        if ended is not None and not ended.died_idle:
            self.state.failed_call(fetch, planner.namespace)
            return MISSING
        await self.exchange(fetch, planner.namespace)
        return DOUBTFUL if fetch.doubtful else fetch.values.get(0, MISSING)

    async def _prepared(self) -> AsyncConnection:
        """A connection to a node that is not connected, or that failed before and is sent the deletes it missed first.

        However many callers wait, there is one attempt. It goes on when they are cancelled.
        """
        loop = asyncio.get_running_loop()
        self._check_loop(loop)
        if not self.state.ready:
            self.state.admit()
        preparing = self._preparing
        if preparing is None or preparing.done() or preparing.get_loop() is not loop:
            self._preparing = preparing = loop.create_task(self._prepare(loop))
            preparing.add_done_callback(_seen)
        await asyncio.wait((preparing,))
        if preparing.cancelled():
            raise NodeDown(self.address, "the client was closed")
        return preparing.result()

    def _check_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Refuse a second loop while the first one runs, in another thread: what it waits for could only be taken from it."""
        connection, preparing = self._connection, self._preparing
        owners = [connection.loop] if connection is not None and connection.failure is None else []
        if preparing is not None and not preparing.done():
            owners.append(preparing.get_loop())
        if any(owner is not loop and owner.is_running() for owner in owners):
            raise ConfigurationError("this AsyncClient is in use by another running event loop; make one for each loop")

    async def _prepare(self, loop: asyncio.AbstractEventLoop) -> AsyncConnection:
        connection = self._connection
        if connection is None or connection.failure is not None or connection.loop is not loop:
            self._connection = connection = await self._connect(loop)
        while not self.state.ready and (missed := self.state.missed_batch()):
            batch, number = missed
            failure = await connection.submit(batch, "")
            if failure is not None:
                raise failure
            self.state.replayed(batch.deletes, number)
        return connection

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> AsyncConnection:
        self._retire()
        try:
            connection = await self._dial(self._node, lambda: AsyncConnection(self.address, self._timeout, loop, self._ended))
        except TimeoutError:
            failure: KvclusterError = NodeTimeout(self.address, "did not accept a connection in time")
        except OSError as error:
            failure = NodeUnreachable(self.address, f"cannot be reached ({error})")
        else:
            if connection.failure is None:
                connection.expired = self.retired
                return connection
            failure = connection.failure
        self.state.judge(failure)
        raise failure

    def _ended(self, connection: AsyncConnection) -> None:
        """Judge the node by the end of its connection: once for all calls that it carried, and also where all were cancelled."""
        if connection is self._connection:
            self._retire()
            if connection.failure is not None and not connection.died_idle:
                self.state.judge(connection.failure)

    async def replay(self) -> None:
        """Send the deletes that the node missed now, whatever its health, over a connection of their own; see `Endpoint.replay`."""
        missed = self.state.missed_batch(REPLAYED_AT_ONCE)
        if missed is None:
            return
        batch, number = missed
        loop = asyncio.get_running_loop()
        try:
            connection = await self._dial(self._node, lambda: AsyncConnection(self.address, self._timeout, loop, self._ended))
        except OSError:
            return
        try:
            failure = await connection.submit(batch, "")
        finally:
            connection.close()
            self.state.retire(connection.counters)
        if failure is None:
            self.state.replayed(batch.deletes, number)
            self.state.answered()

    def _retire(self) -> None:
        """Let go of the connection, and keep its counts."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self.state.retire(connection.counters)
            if not connection.loop.is_closed():
                connection.close()

    def close(self) -> None:
        """Close the connection; calls under way fail. A later call opens a new one."""
        self._retire()
        if self._preparing is not None and not self._preparing.get_loop().is_closed():
            self._preparing.cancel()

    def drain(self) -> None:
        """Close the connection once the calls under way are done."""
        if self._connection is not None:
            self._connection.expire()

    def totals(self) -> dict[str, Counters]:
        """What was counted, by namespace."""
        return self.state.totals([self._connection.counters] if self._connection is not None else [])
