"""Exchanges over socket pairs: what one end was told to answer, and how each of several nodes fares."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest

from kvcluster.errors import BadReply, KvclusterError, NodeTimeout, NodeUnreachable
from kvcluster.plan import Plan
from kvcluster.protocol.requests import Commands, Fetch, Request
from kvcluster.topology import as_node
from kvcluster.transport.connection import _TIMEVAL
from kvcluster.transport.exchange import exchange
from kvcluster.transport.pool import Endpoint

TIMEOUT = 0.2  # seconds


class Peers:
    """Endpoints whose nodes are the other ends of socket pairs, each with an idle connection."""

    def __init__(self, count: int, closing: ExitStack) -> None:
        self.endpoints: dict[str, Endpoint] = {}
        self.ends: list[socket.socket] = []
        for number in range(count):
            ours, theirs = (closing.enter_context(end) for end in socket.socketpair())
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                ours.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL.pack(0, round(TIMEOUT * 1e6)))
            node = as_node(f"node{number}:1")
            endpoint = Endpoint(node, lambda _, ours=ours: ours, 1, TIMEOUT)  # type: ignore[misc]
            endpoint.release(endpoint.acquire(), completed=True)
            self.endpoints[node.address] = endpoint
            self.ends.append(theirs)

    def ask(self, requests: list[Request], seconds: float = 2 * TIMEOUT) -> dict[str, KvclusterError]:
        return exchange(self.endpoints, Plan("", dict(zip(self.endpoints, requests, strict=True))), seconds)


@pytest.fixture
def peers() -> Iterator[Callable[[int], Peers]]:
    with ExitStack() as closing:
        yield lambda count: Peers(count, closing)


def fetch(name: bytes) -> Fetch:
    return Fetch((name,), (name,), lambda data, flags: data, {})


def test_each_is_asked_and_read(peers: Callable[[int], Peers]) -> None:
    three = peers(3)
    first, second, third = fetch(b"a"), Commands(b"md b\r\n", 1), fetch(b"c")
    for end, reply in zip(three.ends, (b"VALUE a 0 1\r\n1\r\nEND\r\n", b"HD\r\n", b"END\r\n"), strict=True):
        end.sendall(reply)
    assert three.ask([first, second, third]) == {}
    assert first.values == {b"a": b"1"}
    assert [reply.status for reply in second.replies] == ["HD"]
    assert [end.recv(100) for end in three.ends] == [b"get a\r\n", b"md b\r\n", b"get c\r\n"]
    counted = [endpoint.totals()[""] for endpoint in three.endpoints.values()]
    assert [(its.hits, its.misses, its.bytes_written, its.bytes_read) for its in counted] == [
        (1, 0, 7, 21),
        (0, 0, 6, 4),
        (0, 1, 7, 5),
    ]
    assert all(len(endpoint.idle) == 1 for endpoint in three.endpoints.values())


def test_one_that_fails_keeps_no_other_from_its_part(peers: Callable[[int], Peers]) -> None:
    four = peers(4)
    requests = [fetch(b"a") for _ in four.ends]
    for endpoint in four.endpoints.values():
        endpoint.idle[0].used = False  # or it would be taken for one that died idle, and the request repeated
    four.ends[0].close()
    four.ends[2].sendall(b"<html>\r\n")
    four.ends[3].sendall(b"VALUE a 0 1\r\n1\r\nEND\r\n")
    failures = four.ask(list(requests))
    assert [type(error) for _, error in sorted(failures.items())] == [NodeUnreachable, NodeTimeout, BadReply]
    assert requests[3].values == {b"a": b"1"}
    assert [len(endpoint.idle) for endpoint in four.endpoints.values()] == [0, 0, 0, 1]
    assert [endpoint.totals()[""].misses for endpoint in four.endpoints.values()] == [1, 1, 1, 0]


def test_a_reply_may_come_in_pieces(peers: Callable[[int], Peers]) -> None:
    two = peers(2)
    requests = [fetch(b"a"), fetch(b"b")]
    value = b"x" * 300_000

    def answer(end: socket.socket, name: bytes) -> None:
        end.recv(100)
        for piece in (b"VALUE %b 0 %d\r\n" % (name, len(value)), value, b"\r\nEND\r\n"):
            end.sendall(piece)

    threads = [threading.Thread(target=answer, args=pair) for pair in zip(two.ends, (b"a", b"b"), strict=True)]
    for thread in threads:
        thread.start()
    assert two.ask(list(requests)) == {}
    for thread in threads:
        thread.join()
    assert [request.values for request in requests] == [{b"a": value}, {b"b": value}]
    assert all(len(endpoint.idle) == 1 for endpoint in two.endpoints.values())


def test_the_time_is_that_of_all_together(peers: Callable[[int], Peers]) -> None:
    """Each node has its own timeout, but no node gets one after the other where there is less time than that."""
    two = peers(2)
    failures = two.ask([fetch(b"a"), fetch(b"b")], seconds=TIMEOUT / 4)
    assert [type(error) for error in failures.values()] == [NodeTimeout, NodeTimeout]


def test_a_connection_closed_meanwhile_is_not_kept(peers: Callable[[int], Peers], monkeypatch: pytest.MonkeyPatch) -> None:
    one = peers(1)
    (endpoint,) = one.endpoints.values()
    one.ends[0].sendall(b"END\r\n")
    clock = endpoint.clock

    def closes() -> float:
        endpoint.close()  # as another thread may, while this one gives its connection back
        return clock()

    monkeypatch.setattr(endpoint, "clock", closes)
    assert one.ask([fetch(b"a")]) == {}
    assert not endpoint.idle
    assert endpoint.totals()[""].misses == 1


class SoftLimit(BaseException):
    """What a signal handler raises."""


@pytest.mark.parametrize("nodes", [1, 2])
def test_an_interruption_in_the_middle_of_a_reply_closes_the_connection(peers: Callable[[int], Peers], nodes: int) -> None:
    """The signal is noticed once compiled code returns with what came so far."""
    some = peers(nodes)

    def interrupt(*arguments: object) -> None:
        raise SoftLimit

    def answer() -> None:
        some.ends[-1].recv(100)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        time.sleep(0.01)
        with suppress(OSError):  # where Python alone receives, the connection is closed by now
            some.ends[-1].sendall(b"VALUE a 0 3\r\nx")

    for end in some.ends[:-1]:
        end.sendall(b"END\r\n")
    before = signal.signal(signal.SIGUSR1, interrupt)
    thread = threading.Thread(target=answer)
    thread.start()
    try:
        with pytest.raises(SoftLimit):
            some.ask([fetch(b"a") for _ in some.ends])
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    for endpoint in some.endpoints.values():
        assert endpoint._open == set(endpoint.idle), "a connection is idle, or closed"


def test_who_waits_while_idle_connections_are_looked_at_is_served(peers: Callable[[int], Peers]) -> None:
    (endpoint,) = peers(1).endpoints.values()
    waiting = threading.Thread(target=lambda: endpoint.release(endpoint.acquire(), completed=True))

    class Idle(type(endpoint.idle)):  # type: ignore[misc]
        def appendleft(self, connection: object) -> None:
            waiting.start()
            while not endpoint.waiters:
                time.sleep(0.001)
            super().appendleft(connection)

    endpoint.idle = Idle(endpoint.idle)
    endpoint._drop_idle(idle_since=0.0)
    waiting.join()
    assert len(endpoint.idle) == 1, "it was given to who waited, and given back"
