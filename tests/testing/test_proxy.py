"""Each fault does to the bytes what it says, seen from both ends of a real connection."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvcluster.testing.proxy import FaultProxy

TIMEOUT = 5.0


class Echo:
    """A server that sends back what it receives, and remembers it."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.received = b""
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        handlers = []
        while True:
            connection, _ = self.listener.accept()
            if connection.recv(1) == b"!":
                connection.close()
                break
            handlers.append(threading.Thread(target=self._echo, args=(connection,)))
            handlers[-1].start()
        for handler in handlers:
            handler.join()

    def _echo(self, connection: socket.socket) -> None:
        with connection:
            connection.sendall(b">")
            while data := connection.recv(1000):
                self.received += data
                connection.sendall(data)

    def close(self) -> None:
        """Wait until all connections have ended. Without effect the second time."""
        if not self._thread.is_alive():
            return
        with socket.socket(self.listener.family) as last:
            last.connect(self.listener.getsockname())
            last.sendall(b"!")
            self._thread.join()
        self.listener.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo(socket.create_server(("127.0.0.1", 0)))
    yield server
    server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[FaultProxy]:
    with FaultProxy(f"127.0.0.1:{echo.listener.getsockname()[1]}") as proxy:
        yield proxy


def connect(proxy: FaultProxy) -> socket.socket:
    """A connection through the proxy on which one byte has gone each way."""
    host, port = proxy.address.split(":")
    connection = socket.create_connection((host, int(port)), timeout=TIMEOUT)
    connection.sendall(b"<")
    assert connection.recv(1) == b">"
    return connection


def receive(connection: socket.socket, size: int) -> bytes:
    """Up to `size` bytes, fewer where the connection ends."""
    data = b""
    while len(data) < size and (piece := connection.recv(size - len(data))):
        data += piece
    return data


def test_passes_bytes_as_they_are(proxy: FaultProxy) -> None:
    payload = bytes(range(256)) * 1000
    with connect(proxy) as connection:
        sender = threading.Thread(target=connection.sendall, args=(payload,))
        sender.start()
        assert receive(connection, len(payload)) == payload
        sender.join()
        assert proxy.accepted == proxy.open == 1
        assert proxy.requests.passed == proxy.replies.passed == len(payload) + 1


def test_an_end_of_either_side_is_passed_on(proxy: FaultProxy, echo: Echo) -> None:
    connect(proxy).close()
    with connect(proxy) as second:
        second.sendall(b"a")
        assert second.recv(1) == b"a"


@pytest.mark.parametrize("size", [0, 1, 4])
def test_cut_after_in_the_reply(proxy: FaultProxy, echo: Echo, size: int) -> None:
    with connect(proxy) as connection:
        proxy.replies.cut_after(size)
        connection.sendall(b"hello")
        assert receive(connection, 5) == b"hello"[:size]
        assert connection.recv(1) == b""
    assert echo.received == b"hello"
    with connect(proxy) as connection:  # once only
        connection.sendall(b"again")
        assert receive(connection, 5) == b"again"


def test_cut_after_in_the_request(proxy: FaultProxy, echo: Echo) -> None:
    with connect(proxy) as connection:
        proxy.requests.cut_after(2)
        connection.sendall(b"hello")
        assert b"he".startswith(receive(connection, 5))
    echo.close()
    assert echo.received == b"he"


def test_cut_counts_over_pieces(proxy: FaultProxy) -> None:
    with connect(proxy) as connection:
        proxy.replies.cut_after(3)
        connection.sendall(b"ab")
        assert receive(connection, 2) == b"ab"
        connection.sendall(b"cd")
        assert receive(connection, 2) == b"c"


def test_stall_and_resume(proxy: FaultProxy, echo: Echo) -> None:
    with connect(proxy) as connection:
        proxy.requests.stall()
        connection.sendall(b"late")
        connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        assert echo.received == b""
        proxy.requests.resume()
        connection.settimeout(TIMEOUT)
        assert receive(connection, 4) == b"late"


def test_close_ends_a_stalled_and_a_delayed_connection(proxy: FaultProxy) -> None:
    with connect(proxy) as connection:
        proxy.requests.stall()
        proxy.replies.delay = 1000.0
        connection.sendall(b"never")
        proxy.close()
        assert proxy.open == 0


def test_delay(proxy: FaultProxy) -> None:
    with connect(proxy) as connection:
        proxy.replies.delay = 0.1
        begun = time.monotonic()
        connection.sendall(b"slow")
        assert receive(connection, 4) == b"slow"
        assert time.monotonic() - begun >= 0.1


def test_drop(proxy: FaultProxy, echo: Echo) -> None:
    with connect(proxy) as connection:
        proxy.replies.drop = True
        connection.sendall(b"lost")
        connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        proxy.replies.clear()
        connection.settimeout(TIMEOUT)
        connection.sendall(b"kept")
        assert receive(connection, 4) == b"kept"
    assert echo.received == b"lostkept"


def test_garble(proxy: FaultProxy, echo: Echo) -> None:
    with connect(proxy) as connection:
        proxy.replies.garble = lambda piece: piece[::-1]
        connection.sendall(b"ab")
        assert receive(connection, 2) == b"ba"
    assert echo.received == b"ab"


def test_refuse_and_accept(proxy: FaultProxy) -> None:
    with connect(proxy) as old:
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        old.sendall(b"still here")
        assert receive(old, 10) == b"still here"
        proxy.accept()
        proxy.accept()
        connect(proxy).close()


def test_cut_closes_what_is_open_and_accepts_what_is_new(proxy: FaultProxy) -> None:
    with connect(proxy) as first, connect(proxy) as second:
        assert proxy.open == 2
        proxy.cut()
        assert first.recv(1) == b""
        assert second.recv(1) == b""
    connect(proxy).close()


def test_a_dead_upstream_closes_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with FaultProxy(f"127.0.0.1:{port}") as proxy, socket.create_connection(("127.0.0.1", int(proxy.address.split(":")[1]))) as end:
        assert end.recv(1) == b""


def test_upstream_on_a_unix_socket(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    server = Echo(listener)
    with FaultProxy(f"unix:{tmp_path / 's'}") as proxy, connect(proxy) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
    server.close()
