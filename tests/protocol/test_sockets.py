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
    hot.send_all(ours.fileno(), request.payload)
    reader.begin(request)
    assert reader.receive(ours.fileno()) == 23
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
