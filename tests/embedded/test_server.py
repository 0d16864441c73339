"""The TCP server, in this process and as ``python -m kvcluster.embedded``."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator
from unittest.mock import create_autospec

import pytest
from pymemcache import Client

from kvcluster.embedded import EmbeddedNode, server


@pytest.fixture
def port() -> Iterator[int]:
    """The port of a node that runs as a process of its own."""
    command = [sys.executable, "-m", "kvcluster.embedded", "--port", "0", "--memory", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        host, _, port = process.stdout.readline().removeprefix("listening on ").strip().rpartition(":")
        assert host == "127.0.0.1"
        yield int(port)
        process.terminate()
        assert process.wait(timeout=10) == 0


def test_a_client_of_others_can_use_it(port: int) -> None:
    client = Client(("127.0.0.1", port), timeout=5)
    value = bytes(range(256)) * 4000
    assert client.set("large", value, noreply=False)
    assert client.get("large") == value
    assert client.set_many({f"k{i}": b"%d" % i for i in range(100)}, noreply=False) == []
    assert client.get_many([f"k{i}" for i in range(100)]) == {f"k{i}": b"%d" % i for i in range(100)}
    assert client.incr("k1", 41) == 42
    stats = client.stats()
    assert stats[b"curr_items"] == 101
    assert stats[b"limit_maxbytes"] == 2 << 20
    assert stats[b"curr_connections"] == 1
    client.close()


def test_it_hangs_up_after_quit_and_serves_the_next(port: int) -> None:
    for _ in range(2):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(b"mn\r\nquit\r\n")
            assert connection.makefile("rb").read() == b"MN\r\n"


@pytest.mark.parametrize("arguments", [["--memory", "0"], ["--port", "65536"], ["--port", "x"]])
def test_bad_arguments_are_named(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "kvcluster.embedded", *arguments], capture_output=True, text=True, timeout=20)
    assert done.returncode == 2
    assert arguments[0] in done.stderr


def test_a_port_in_use_is_reported(port: int) -> None:
    command = [sys.executable, "-m", "kvcluster.embedded", "--port", str(port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_large_replies_arrive_whole(port: int) -> None:
    value = b"x" * 1_000_000
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(b"set a 0 0 1000000\r\n" + value + b"\r\n" + b"get a\r\n" * 20 + b"quit\r\n")
        assert connection.makefile("rb").read() == b"STORED\r\n" + (b"VALUE a 0 1000000\r\n" + value + b"\r\nEND\r\n") * 20


def test_reading_pauses_while_replies_are_not_taken() -> None:
    transport = create_autospec(asyncio.Transport, instance=True)
    connection = server._Connection(EmbeddedNode().session)
    connection.connection_made(transport)
    connection.pause_writing()
    transport.pause_reading.assert_called_once_with()
    transport.resume_reading.assert_not_called()
    connection.resume_writing()
    transport.resume_reading.assert_called_once_with()


def test_nagle_is_off() -> None:
    async def main() -> None:
        accepted = asyncio.get_running_loop().create_future()

        class Watched(server._Connection):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                super().connection_made(transport)
                accepted.set_result(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

        listening = await asyncio.get_running_loop().create_server(lambda: Watched(EmbeddedNode().session), "127.0.0.1", 0)
        async with listening:
            _, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
            assert await accepted
            writer.close()
            await writer.wait_closed()

    asyncio.run(main())
