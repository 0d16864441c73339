"""`MemorySocket` behaves as a socket to a node, except that it knows when waiting is in vain."""

from __future__ import annotations

import pytest

from kvcluster.embedded import EmbeddedNode, MemorySocket


@pytest.fixture
def sock() -> MemorySocket:
    return MemorySocket(EmbeddedNode())


def test_replies_are_handed_out_as_there_is_room(sock: MemorySocket) -> None:
    sock.sendall(b"version\r\nver")
    sock.sendall(memoryview(b"sion\r\n"))
    buffer = bytearray(b"." * 20)
    assert sock.recv_into(buffer, 5) == 5
    assert buffer == b"VERSI" + b"." * 15
    assert sock.recv_into(memoryview(buffer)[5:], 100) == 15
    assert buffer == b"VERSION 1.6.18\r\nVERS"
    assert sock.recv_into(buffer) == 12
    assert buffer[:12] == b"ION 1.6.18\r\n"


def test_sendmsg_joins_its_buffers(sock: MemorySocket) -> None:
    assert sock.sendmsg([b"set a 0 0 2\r\n", memoryview(b"hi"), b"\r\n"]) == 17
    buffer = bytearray(100)
    assert buffer[: sock.recv_into(buffer)] == b"STORED\r\n"


def test_waiting_in_vain_is_a_timeout_at_once(sock: MemorySocket) -> None:
    with pytest.raises(TimeoutError):
        sock.recv_into(bytearray(10))
    sock.sendall(b"get a")
    with pytest.raises(TimeoutError):
        sock.recv_into(bytearray(10))
    assert sock.recv_into(bytearray()) == 0


def test_after_quit_the_replies_are_still_read(sock: MemorySocket) -> None:
    sock.sendall(b"mn\r\nquit\r\n")
    buffer = bytearray(10)
    assert sock.recv_into(buffer) == 4
    assert sock.recv_into(buffer) == 0
    with pytest.raises(BrokenPipeError):
        sock.sendall(b"mn\r\n")


def test_after_close_nothing_is_read(sock: MemorySocket) -> None:
    sock.sendall(b"mn\r\n")
    sock.close()
    assert sock.recv_into(bytearray(10)) == 0
    with pytest.raises(BrokenPipeError):
        sock.sendmsg([b"mn\r\n"])
