"""One node's connections: never too many, never shared, handed out fairly, closed when they are of no use."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from kvcluster.errors import NodeTimeout, NodeUnreachable, PoolTimeout
from kvcluster.protocol.requests import Commands, Fetch
from kvcluster.testing.clock import Clock
from kvcluster.topology import Node
from kvcluster.transport.connection import Connection
from kvcluster.transport.pool import IDLE_SECONDS, SWEEP_SECONDS, Endpoint


class Stream:
    """A node that answers every command with a miss."""

    def __init__(self, on_receive: Callable[[], None] = lambda: None) -> None:
        self.asked = 0
        self.closed = False
        self.on_receive = on_receive

    def sendall(self, data: bytes) -> None:
        if self.closed:
            raise BrokenPipeError
        self.asked += data.count(b"\r\n")

    def recv_into(self, buffer: memoryview) -> int:
        self.on_receive()
        if self.closed:
            return 0
        with memoryview(buffer) as view:
            view[:5] = b"END\r\n"
        self.asked -= 1
        return 5

    def close(self) -> None:
        self.closed = True


class Dialer:
    """Opens streams and keeps them for the test to look at."""

    def __init__(self, on_receive: Callable[[], None] = lambda: None) -> None:
        self.streams: list[Stream] = []
        self.on_receive = on_receive

    def __call__(self, node: Node) -> Stream:
        stream = Stream(self.on_receive)
        self.streams.append(stream)
        return stream

    @property
    def open(self) -> int:
        return sum(not stream.closed for stream in self.streams)


def miss() -> Fetch:
    return Fetch((b"k",), ("k",), lambda data, flags: data, {})


@pytest.fixture
def dialer() -> Dialer:
    return Dialer()


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


@pytest.fixture
def endpoint(dialer: Dialer, clock: Clock) -> Endpoint:
    return Endpoint(Node("n"), dialer, size=3, timeout=0.2, clock=clock)


@pytest.fixture
def taken(endpoint: Endpoint) -> Iterator[list[Connection]]:
    """All of the endpoint's connections, in use."""
    connections = [endpoint.acquire() for _ in range(3)]
    yield connections
    for connection in connections:
        endpoint.release(connection, completed=False)


def test_connections_are_opened_when_needed(endpoint: Endpoint, dialer: Dialer) -> None:
    assert not dialer.streams
    for _ in range(5):
        assert endpoint.exchange(miss(), "") is None
    assert len(dialer.streams) == 1
    assert repr(endpoint) == "<Endpoint <n:11211 up, 0 missed deletes>, 1 connections, 1 idle>"


def test_last_in_first_out(endpoint: Endpoint, taken: list[Connection]) -> None:
    for connection in taken:
        endpoint.release(connection, completed=True)
    assert [endpoint.acquire() for _ in taken] == taken[::-1]


def test_never_more_than_its_size(endpoint: Endpoint, taken: list[Connection], dialer: Dialer) -> None:
    with pytest.raises(PoolTimeout, match=r"n:11211: none of 3 connections came free within 0\.2 s"):
        endpoint.acquire()
    assert len(dialer.streams) == 3
    error = endpoint.exchange(miss(), "shop")
    assert isinstance(error, PoolTimeout)
    counts = endpoint.totals()["shop"]
    assert (counts.misses, counts.errors) == (1, 1)


def test_an_exchange_that_did_not_complete_costs_the_connection(endpoint: Endpoint, dialer: Dialer) -> None:
    connection = endpoint.acquire()
    endpoint.release(connection, completed=False)
    assert dialer.open == 0
    assert endpoint.acquire() is not connection


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_interrupted_exchange_costs_the_connection(
    endpoint: Endpoint, dialer: Dialer, interruption: type[BaseException]
) -> None:
    def interrupt() -> None:
        raise interruption

    dialer.on_receive = interrupt
    with pytest.raises(interruption):
        endpoint.exchange(miss(), "")
    assert dialer.open == 0
    dialer.on_receive = lambda: None
    assert endpoint.exchange(miss(), "") is None
    assert endpoint.state.ready


def test_who_waits_is_served_in_order(endpoint: Endpoint, taken: list[Connection]) -> None:
    endpoint._timeout = 10
    got: list[int] = []

    def wait(number: int) -> None:
        connection = endpoint.acquire()
        got.append(number)
        endpoint.release(connection, completed=True)

    threads = []
    for number in range(5):
        thread = threading.Thread(target=wait, args=(number,))
        thread.start()
        threads.append(thread)
        until(lambda: len(endpoint.waiters) == len(threads))
    endpoint.release(taken[0], completed=True)
    for thread in threads:
        thread.join()
    assert got == [0, 1, 2, 3, 4]


def test_who_gives_a_connection_back_cannot_take_it_before_those_who_wait(endpoint: Endpoint, taken: list[Connection]) -> None:
    endpoint._timeout = 10
    thread = threading.Thread(target=lambda: endpoint.release(endpoint.acquire(), completed=True))
    thread.start()
    until(lambda: bool(endpoint.waiters))
    endpoint.release(taken[0], completed=True)
    assert not endpoint.idle
    thread.join()


def test_a_connection_that_is_closed_makes_room_for_who_waits(endpoint: Endpoint, taken: list[Connection]) -> None:
    endpoint._timeout = 10
    thread = threading.Thread(target=lambda: endpoint.release(endpoint.acquire(), completed=True))
    thread.start()
    until(lambda: bool(endpoint.waiters))
    endpoint.release(taken[0], completed=False)
    thread.join()
    assert len(endpoint._open) == 3


def test_a_wait_that_is_interrupted_leaves_no_trace(
    endpoint: Endpoint, taken: list[Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: object, waiter: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Endpoint, "_serve", lambda self: interrupted(self, None))
        with pytest.raises(KeyboardInterrupt):
            endpoint.acquire()
    assert not endpoint.waiters
    endpoint.release(taken[0], completed=True)
    assert endpoint.acquire() is taken[0]


def test_a_wait_interrupted_after_it_was_served_passes_on_what_it_was_given(endpoint: Endpoint, dialer: Dialer) -> None:
    serve = Endpoint._serve

    def serve_and_be_interrupted() -> None:
        serve(endpoint)
        raise KeyboardInterrupt

    for idle in (0, 1):
        connections = [endpoint.acquire() for _ in range(idle)]
        for connection in connections:
            endpoint.release(connection, completed=True)
        endpoint._serve = serve_and_be_interrupted  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            endpoint._wait_or_open(None)
        del endpoint._serve
        assert len([endpoint.acquire() for _ in range(3)]) == 3
        endpoint._start()


def test_a_node_that_refuses_keeps_no_place(clock: Clock) -> None:
    def refuse(node: Node) -> Stream:
        raise ConnectionRefusedError("nobody there")

    endpoint = Endpoint(Node("n"), refuse, size=1, timeout=0.2, clock=clock)
    for _ in range(3):
        with pytest.raises(NodeUnreachable, match=r"n:11211: cannot be reached \(nobody there\)"):
            endpoint.acquire()


def test_a_node_that_does_not_accept_is_late(clock: Clock) -> None:
    def late(node: Node) -> Stream:
        raise TimeoutError

    endpoint = Endpoint(Node("n"), late, size=1, timeout=0.2, clock=clock)
    with pytest.raises(NodeTimeout, match="did not accept a connection in time"):
        endpoint.acquire()


def test_idle_connections_are_closed_by_the_clock(
    endpoint: Endpoint, dialer: Dialer, clock: Clock, taken: list[Connection]
) -> None:
    for connection in taken:
        endpoint.release(connection, completed=True)
    for _ in range(int(IDLE_SECONDS / 50) - 1):
        clock.advance(50)
        endpoint.exchange(miss(), "")  # always by the one that came last
    assert dialer.open == 3
    clock.advance(50 + SWEEP_SECONDS)
    endpoint.exchange(miss(), "")
    assert dialer.open == 1
    assert not dialer.streams[2].closed


def test_the_only_connection_is_not_closed_for_its_age(endpoint: Endpoint, dialer: Dialer, clock: Clock) -> None:
    for _ in range(20):
        clock.advance(100)
        first, second = endpoint.acquire(), endpoint.acquire()
        endpoint.release(second, completed=True)
        endpoint.release(first, completed=True)
    assert len(dialer.streams) == 2


def test_closing(endpoint: Endpoint, dialer: Dialer) -> None:
    first, second = endpoint.acquire(), endpoint.acquire()
    endpoint.release(second, completed=True)
    endpoint.close()
    assert dialer.open == 1
    endpoint.release(first, completed=True)
    assert dialer.open == 0
    assert endpoint.exchange(miss(), "") is None
    assert dialer.open == 1


def test_a_retired_node_is_served_and_keeps_no_connection(endpoint: Endpoint, dialer: Dialer) -> None:
    endpoint.retired = True
    assert endpoint.exchange(miss(), "") is None
    assert dialer.open == 0


def test_an_old_connection_where_one_is_wanted(endpoint: Endpoint, clock: Clock) -> None:
    old = endpoint.acquire()
    clock.advance(1)
    won, young = clock(), endpoint.acquire()
    endpoint.release(old, completed=True)
    endpoint.release(young, completed=True)
    assert endpoint.acquire(opened_before=won) is old
    endpoint.release(old, completed=False)
    started = time.monotonic()
    with pytest.raises(PoolTimeout, match="no connection is left from before the lease was won"):
        endpoint.acquire(opened_before=won)
    assert time.monotonic() - started < 0.15  # known at once
    error = endpoint.exchange(Commands(b"mn\r\n", 1, opened_before=won), "")
    assert isinstance(error, PoolTimeout)
    assert endpoint.state.ready


def test_who_wants_an_old_connection_does_not_keep_others_waiting(endpoint: Endpoint, clock: Clock) -> None:
    endpoint._timeout = 10
    old = endpoint.acquire()
    clock.advance(1)
    won = clock()
    young = [endpoint.acquire(), endpoint.acquire()]
    got: dict[str, Connection] = {}
    picky = threading.Thread(target=lambda: got.update(picky=endpoint.acquire(opened_before=won)))
    picky.start()
    until(lambda: len(endpoint.waiters) == 1)
    other = threading.Thread(target=lambda: got.update(other=endpoint.acquire()))
    other.start()
    until(lambda: len(endpoint.waiters) == 2)
    endpoint.release(young[0], completed=True)
    other.join()
    assert got == {"other": young[0]}
    endpoint.release(old, completed=True)
    picky.join()
    assert got["picky"] is old


@pytest.mark.parametrize("size", [1, 3])
def test_no_wake_up_is_lost(size: int) -> None:
    dialer = Dialer(on_receive=lambda: time.sleep(0))  # lets another thread in
    endpoint = Endpoint(Node("n"), dialer, size, timeout=10)
    failures: list[object] = []

    def work() -> None:
        for _ in range(500):
            failures.extend(filter(None, [endpoint.exchange(miss(), "")]))

    threads = [threading.Thread(target=work) for _ in range(16)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(dialer.streams) <= size
    assert endpoint.totals()[""].misses == 16 * 500
    assert not endpoint.waiters
    assert endpoint._opening == 0
    assert time.monotonic() - started < 9  # nobody slept until its time was up


def test_nobody_starves() -> None:
    endpoint = Endpoint(Node("n"), Dialer(on_receive=lambda: time.sleep(0.0005)), size=1, timeout=0.5)
    stop = time.monotonic() + 1.5
    done = [0] * 16
    failures: list[object] = []

    def work(number: int) -> None:
        while time.monotonic() < stop:
            failures.extend(filter(None, [endpoint.exchange(miss(), "")]))
            done[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert min(done) * 3 > max(done), done


def until(condition: Callable[[], bool]) -> None:
    """Wait for another thread to get where it is expected."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)
