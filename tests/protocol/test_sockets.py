"""Readers on real sockets, both twins: what they send, what they receive, and what they raise."""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from types import ModuleType

import pytest

from kvcluster.protocol._pure import Malformed
from tests.protocol.twins import TWINS, commands, fetch, twin

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture(params=TWINS)
def hot(request: pytest.FixtureRequest) -> ModuleType:
    return twin(request.param)


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, 100_000))
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 0, 100_000))
    yield ours, theirs
    ours.close()
    theirs.close()


def test_an_exchange_is_one_send_and_one_receive(hot: ModuleType, pair: Pair) -> None:
    ours, theirs = pair
    request, reader = fetch((b"a",)), hot.Reader()
    theirs.sendall(b"VALUE a 0 3\r\nxyz\r\nEND\r\n")
    assert reader.exchange(ours.fileno(), request) == 23
    assert reader.complete
    assert list(request.values.values()) == [b"xyz"]
    assert theirs.recv(100) == b"get a\r\n"


def test_an_unfinished_reply_is_received_further(hot: ModuleType, pair: Pair) -> None:
    ours, theirs = pair
    request, reader = commands(2), hot.Reader()
    reader.begin(request)
    theirs.sendall(b"HD\r\nVA 1000")
    assert reader.receive(ours.fileno()) == 11
    assert not reader.complete
    theirs.sendall(b"00\r\n" + b"x" * 100_000 + b"\r\n")
    while not reader.complete:
        assert reader.receive(ours.fileno()) > 0
    assert [reply.status for reply in request.replies] == ["HD", "VA"]
    assert request.replies[1].value == b"x" * 100_000


def test_the_end_of_the_stream_is_0(hot: ModuleType, pair: Pair) -> None:
    ours, theirs = pair
    reader = hot.Reader()
    reader.begin(fetch((b"a",)))
    theirs.close()
    assert reader.receive(ours.fileno()) == 0
    assert not reader.complete


def test_the_kernels_timeout_is_an_error(hot: ModuleType, pair: Pair) -> None:
    ours, _ = pair
    reader = hot.Reader()
    reader.begin(fetch((b"a",)))
    with pytest.raises(BlockingIOError):
        reader.receive(ours.fileno())
    with pytest.raises(BlockingIOError):
        hot.send_all(ours.fileno(), b"x" * 10_000_000)  # nobody reads


def test_a_broken_pipe_is_an_error(hot: ModuleType, pair: Pair) -> None:
    ours, theirs = pair
    theirs.close()
    with pytest.raises(BrokenPipeError):
        hot.send_all(ours.fileno(), b"get a\r\n")


def test_garbage_is_malformed(hot: ModuleType, pair: Pair) -> None:
    ours, theirs = pair
    reader = hot.Reader()
    reader.begin(fetch((b"a",)))
    theirs.sendall(b"<html>\r\n")
    with pytest.raises(Malformed):
        reader.receive(ours.fileno())


def test_all_are_asked_before_any_is_read(hot: ModuleType) -> None:
    pairs = [socket.socketpair() for _ in range(3)]
    requests = [fetch((b"a",)), commands(1), fetch((b"b",))]
    flights = [(hot.Reader(), ours.fileno(), request) for (ours, _), request in zip(pairs, requests, strict=True)]
    pairs[0][1].sendall(b"VALUE a 0 1\r\n1\r\nEND\r\n")
    pairs[1][1].sendall(b"HD\r\n")
    pairs[2][1].sendall(b"VALUE b 0 1")
    assert hot.scatter(flights, 9.0) == [21, 4, 11]
    assert [reader.complete for reader, _, _ in flights] == [True, True, False]
    assert [theirs.recv(100) for _, theirs in pairs[::2]] == [b"get a\r\n", b"get b\r\n"]
    for stream in [stream for pair in pairs for stream in pair]:
        stream.close()


def test_one_that_fails_keeps_no_other_from_its_part(hot: ModuleType) -> None:
    pairs = [socket.socketpair() for _ in range(4)]
    flights = [(hot.Reader(), ours.fileno(), fetch((b"a",))) for ours, _ in pairs]
    pairs[0][1].close()
    pairs[1][0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, 1000))
    pairs[2][1].sendall(b"<html>\r\n")
    pairs[3][1].sendall(b"END\r\n")
    outcomes = hot.scatter(flights, 9.0)
    assert [type(outcome) for outcome in outcomes] == [BrokenPipeError, BlockingIOError, Malformed, int]
    assert flights[3][0].complete
    for stream in [stream for pair in pairs for stream in pair]:
        stream.close()


def test_nothing_is_received_once_patience_has_ended(hot: ModuleType, pair: Pair) -> None:
    ours, theirs = pair
    theirs.sendall(b"END\r\n")
    request, reader = fetch((b"a",)), hot.Reader()
    assert hot.scatter([(reader, ours.fileno(), request)], -1.0) == [None]
    assert reader.receive(ours.fileno()) == 5
    assert reader.complete


def test_a_large_payload_is_sent_whole(hot: ModuleType, pair: Pair) -> None:
    ours, theirs = pair
    payload = os.urandom(5_000_000)
    got = bytearray()

    def drain() -> None:
        while len(got) < len(payload):
            got.extend(theirs.recv(1 << 20))

    reading = threading.Thread(target=drain)
    reading.start()
    hot.send_all(ours.fileno(), payload)
    reading.join()
    assert got == payload


def test_a_signal_interrupts_a_receive(hot: ModuleType, pair: Pair) -> None:
    """Its handler runs at once, and what it raises gets through; without that the receive goes on."""
    ours, _ = pair
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 10, 0))
    seen: list[int] = []

    def on_alarm(number: int, frame: object) -> None:
        seen.append(number)
        if len(seen) == 2:
            raise InterruptedError("asked to stop")
        signal.setitimer(signal.ITIMER_REAL, 0.05)

    before = signal.signal(signal.SIGALRM, on_alarm)
    try:
        reader = hot.Reader()
        reader.begin(fetch((b"a",)))
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(InterruptedError, match="asked to stop"):
            reader.receive(ours.fileno())
        assert len(seen) == 2
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
