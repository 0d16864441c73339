"""The connections that one client keeps to one node.

They are handed out last in, first out, so that few stay busy and the rest can age. No more than ``size`` exist at a time; who
finds none free waits for one. On a good day the way through takes no lock: the idle connections are a deque, whose ``pop`` and
``append`` are atomic with and without the GIL. Opening, waiting, closing and counting happen under one lock per node.

Those who wait are served by whoever gives a connection back, first come first served. If they were only woken, the thread that woke
them would mostly have taken the connection again before they run.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Final

from kvcluster.errors import KvclusterError, NodeTimeout, NodeUnreachable, PoolTimeout
from kvcluster.protocol.requests import Deletes, Request
from kvcluster.stats.counters import Counters
from kvcluster.topology import Node
from kvcluster.transport.connection import Connection, Stream
from kvcluster.transport.hot import EndpointFields, fast_exchange
from kvcluster.transport.state import NodeState

REPLAYED_AT_ONCE: Final = 500  # deletes that a socket's buffer takes whole
IDLE_SECONDS: Final = 300.0
SWEEP_SECONDS: Final = 10.0  # how often the idle connections are looked at


class Endpoint(EndpointFields):
    """One node's connections.

    :param dial: opens a stream to the node, or raises OSError
    :param size: the most connections at a time
    :param timeout: seconds for one exchange, and for the wait for a free connection
    """

    def __init__(
        self, node: Node, dial: Callable[[Node], Stream], size: int, timeout: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.address = node.address
        self.retired = False  # whether the node has left the cluster, and calls still under way leave no connections behind
        self.state = NodeState(node.address, clock)
        self._node = node
        self._dial = dial
        self._size = size
        self._timeout = timeout
        self.clock = clock
        self._start()
        _endpoints.add(self)

    def _start(self) -> None:
        self.idle = deque()
        self._open: set[Connection] = set()
        self._opening = 0
        self.waiters = deque()
        self.sweep_at = self.clock() + IDLE_SECONDS
        self._lock = threading.Lock()

    def after_fork(self) -> None:
        """In a forked child: start without connections, for the parent's answer the parent."""
        idle, inherited = list(self.idle), self._open
        self.state.after_fork()
        self._start()
        for connection in inherited:
            connection.expired = True  # closed when whoever uses it here gives it back
        for connection in idle:
            connection.close()  # only this process's copy: nothing is sent

    def __repr__(self) -> str:
        return f"<Endpoint {self.state!r}, {len(self._open)} connections, {len(self.idle)} idle>"

    # -- one request

    def exchange(self, request: Request, namespace: str) -> KvclusterError | None:
        """Exchange a request. A failure is counted and returned, not raised."""
        held: list[Connection] = []
        try:
            begun = fast_exchange(self, request, namespace, held)
            return None if begun is True else self._exchange(request, namespace, begun, held)
        except BaseException:
            for connection in held:
                self._close(connection)
            self.interrupted(request, namespace)
            raise

    def _exchange(
        self, request: Request, namespace: str, outcome: int | Exception | None, held: list[Connection]
    ) -> KvclusterError | None:
        repeated = False
        while True:
            if not held:
                try:
                    held.append(self.acquire(request.opened_before))
                except KvclusterError as error:
                    self.state.failed(error, request, namespace)
                    return error
            (connection,) = held
            failure: KvclusterError | None = None
            try:
                if outcome is None:
                    connection.send(request)
                connection.conclude(request, namespace, outcome)
                if not self.state.ready:
                    self.state.answered()
            except KvclusterError as error:
                failure = error
            held.clear()
            self.release(connection, failure is None)
            if failure is None:
                return None
            if repeated or not self.repeats(connection, failure, request):
                return self.fail(connection, failure, request, namespace)
            repeated, outcome = True, None

    def repeats(self, connection: Connection, error: KvclusterError, request: Request) -> bool:
        """Whether a request that failed is to be sent once more, over another connection, and is ready for that."""
        if not _died_idle(connection, error):
            return False
        self._drop_idle()
        if request.repeatable:
            request.reset()
        return request.repeatable

    def fail(self, connection: Connection, error: KvclusterError, request: Request, namespace: str) -> KvclusterError:
        """Count an exchange that failed, and judge the node by it; the error that the caller gets."""
        if _died_idle(connection, error):
            self.state.failed_call(request, namespace)
            return NodeUnreachable(self.address, "closed the connection; whether it did what was asked is unknown")
        self.state.failed(error, request, namespace)
        if isinstance(error, NodeUnreachable | NodeTimeout):
            self._drop_idle()
        return error

    def interrupted(self, request: Request, namespace: str) -> None:
        """Keep the deletes of an exchange that something else than a failure ended: a signal's exception, a greenlet's timeout."""
        if isinstance(request, Deletes) and (len(request.replies) < request.count or request.refusal):
            self.state.failed_call(request, namespace)

    # -- connections

    def acquire(self, opened_before: float | None = None) -> Connection:
        """A connection for this caller alone, until it is released.

        :param opened_before: take only one opened before this moment; a fill must not reach a node that was restarted since its
            lease was won, and a connection cannot outlive its node
        :raises NetworkError: where the node is down or cannot be reached, or all connections stay busy
        :raises BadReply: where it does not answer the deletes that it missed
        """
        if self.state.ready and opened_before is None:
            try:
                return self.idle.pop()
            except IndexError:
                return self._wait_or_open(None)
        return self._acquire_carefully(opened_before)

    def release(self, connection: Connection, completed: bool) -> None:
        """Give a connection back. One whose exchange did not complete is closed: its replies may still be on their way."""
        if not completed or connection.expired:
            self._close(connection)
            return
        connection.used = True
        connection.idle_since = self.clock()
        self.idle.append(connection)
        # Only now: who began to wait before this line is seen, who does so after it sees the connection.
        if self.waiters or connection.expired or connection.idle_since > self.sweep_at:
            self.tidy(connection)

    def tidy(self, returned: Connection) -> None:
        """After a connection was returned: serve who waits for one, and close those that are idle for long, or to be closed."""
        if self.waiters:
            with self._lock:
                self._serve()
        if returned.expired:  # the endpoint was closed meanwhile
            self._drop_idle()
        elif returned.idle_since > self.sweep_at:
            self.sweep_at = returned.idle_since + SWEEP_SECONDS
            self._drop_idle(returned.idle_since - IDLE_SECONDS)

    def _acquire_carefully(self, opened_before: float | None) -> Connection:
        """As `acquire`, for a node that failed before: it is sent the deletes it missed before anything else."""
        if not self.state.ready:
            self.state.admit()
            while missed := self.state.missed_batch():
                self._replay(*missed)
        return self._wait_or_open(opened_before)

    def _replay(self, batch: Deletes, number: int) -> None:
        connection = self._wait_or_open(None)
        completed = False
        try:
            connection.exchange(batch, "")
            completed = True
        except KvclusterError:
            self._drop_idle()
            raise
        finally:
            self.release(connection, completed)
        self.state.replayed(batch.deletes, number)

    def replay(self) -> None:
        """Send the deletes that the node missed now, whatever its health, over a connection of their own.

        A node that hangs finds them in its socket's buffer, and carries them out as soon as it wakes: before another process, which
        owes it nothing, reads from it again.
        """
        missed = self.state.missed_batch(REPLAYED_AT_ONCE)
        if missed is None:
            return
        batch, number = missed
        try:
            connection = Connection(self._dial(self._node), self.address, self._timeout, self.clock())
        except OSError:
            return
        try:
            connection.exchange(batch, "")
        except KvclusterError:
            return
        finally:
            connection.close()
            self.state.retire(connection.counters)
        self.state.replayed(batch.deletes, number)
        self.state.answered()

    def _wait_or_open(self, opened_before: float | None) -> Connection:
        waiter = _Waiter(opened_before)
        try:
            with self._lock:
                self.waiters.append(waiter)
                self._serve()
            waiter.served.acquire(timeout=self._timeout)
        except BaseException:
            self._withdraw(waiter)
            raise
        with self._lock:
            if waiter in self.waiters:
                self.waiters.remove(waiter)
        if waiter.connection is not None:
            return waiter.connection
        if waiter.may_open:
            return self._connect()
        if opened_before is not None:
            raise PoolTimeout(self.address, "no connection is left from before the lease was won")
        raise PoolTimeout(self.address, f"none of {self._size} connections came free within {self._timeout:g} s")

    def _withdraw(self, waiter: _Waiter) -> None:
        """End a wait that was interrupted, and pass on what was given by then."""
        with self._lock:
            if waiter in self.waiters:
                self.waiters.remove(waiter)
            elif waiter.may_open:
                self._opening -= 1
                self._serve()
        if waiter.connection is not None:
            self._close(waiter.connection)

    def _serve(self) -> None:
        """Under the lock: give to those who wait a connection or leave to open one, in the order they came."""
        for waiter in list(self.waiters):
            before = waiter.opened_before
            waiter.connection = self._pop(before)
            if waiter.connection is None and before is None:
                if len(self._open) + self._opening >= self._size:
                    continue
                self._opening += 1
                waiter.may_open = True
            elif waiter.connection is None and before is not None and any(c.opened < before for c in self._open):
                continue
            self.waiters.remove(waiter)
            waiter.served.release()

    def _pop(self, opened_before: float | None) -> Connection | None:
        try:
            if opened_before is None:
                return self.idle.pop()
            connection = next(c for c in list(self.idle) if c.opened < opened_before)
            self.idle.remove(connection)
        except (IndexError, StopIteration, ValueError):  # none, or another thread took it
            return None
        return connection

    def _connect(self) -> Connection:
        connection: Connection | None = None
        try:
            connection = Connection(self._dial(self._node), self.address, self._timeout, self.clock())
        except TimeoutError:
            raise NodeTimeout(self.address, "did not accept a connection in time") from None
        except OSError as error:
            raise NodeUnreachable(self.address, f"cannot be reached ({error})") from None
        finally:
            with self._lock:
                self._opening -= 1
                if connection is not None:
                    connection.expired = self.retired
                    self._open.add(connection)
                else:
                    self._serve()
        return connection

    def _close(self, connection: Connection) -> None:
        connection.close()
        with self._lock:
            if connection in self._open:
                self._open.discard(connection)
                self.state.retire(connection.counters)
            self._serve()

    def _drop_idle(self, idle_since: float = float("inf")) -> None:
        """Close the connections that are idle since before a moment, by default all."""
        while True:
            try:
                connection = self.idle.popleft()
            except IndexError:
                return
            if connection.idle_since > idle_since:
                self.idle.appendleft(connection)
                if self.waiters:  # who began to wait while it was out of the deque
                    with self._lock:
                        self._serve()
                return
            self._close(connection)

    def close(self) -> None:
        """Close the idle connections, and each that is in use when it is given back. A later exchange opens new ones."""
        with self._lock:
            for connection in self._open:
                connection.expired = True
        self._drop_idle()

    def totals(self) -> dict[str, Counters]:
        """What was counted, by namespace."""
        with self._lock:
            return self.state.totals([connection.counters for connection in self._open])


class _Waiter:
    """One who waits for a connection, and what was given: a connection, leave to open one, or neither."""

    __slots__ = ("connection", "may_open", "opened_before", "served")

    def __init__(self, opened_before: float | None) -> None:
        self.opened_before = opened_before
        self.connection: Connection | None = None
        self.may_open = False
        self.served = threading.Lock()
        self.served.acquire()


def _died_idle(connection: Connection, error: KvclusterError) -> bool:
    """Whether a connection may have died while it waited in the pool, as all do when a node restarts: no fault of the node's."""
    return isinstance(error, NodeUnreachable) and connection.used


_endpoints: weakref.WeakSet[Endpoint] = weakref.WeakSet()


def _after_fork() -> None:
    for endpoint in list(_endpoints):
        endpoint.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
