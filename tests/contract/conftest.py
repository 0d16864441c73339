"""A real memcached for the contract suites, started once on a free loopback port; the suites send it bytes and read replies."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


class RealNode:
    """A memcached process and one connection to it, which `ask` opens anew after the server closed it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port
        self._connection: socket.socket | None = None

    def connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=5)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def ask(self, request: bytes, hangs_up: bool = False) -> bytes:
        """Send bytes and return all replies to them, with b"<closed>" at the end where the server hung up.

        :param hangs_up: the server will; otherwise the request must leave no command unfinished
        """
        if hangs_up:
            return self._exchange(request, b"<closed>")
        # A miss that no request here asks for marks the end of the replies.
        return self._exchange(request + b"mg nothing Oend\r\n", b"EN Oend\r\n").removesuffix(b"EN Oend\r\n")

    def dump(self, request: bytes) -> bytes:
        """Send a metadump, which memcached does not take in a pipeline, and return its lines up to and with END."""
        return self._exchange(request, b"END\r\n")

    def _exchange(self, request: bytes, end: bytes) -> bytes:
        if self._connection is None:
            self._connection = self.connect()
        self._connection.sendall(request)
        replies = b""
        while not replies.endswith(end):
            try:
                received = self._connection.recv(1 << 20)
            except ConnectionResetError:
                received = b""
            if not received:
                self.hang_up()
                return replies + b"<closed>"
            replies += received
        return replies

    def hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@contextmanager
def running_node() -> Iterator[RealNode]:
    binary = shutil.which("memcached")
    if binary is None:
        pytest.skip("no memcached binary: the embedded node is not compared with a real one")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    user = ["-u", "root"] if os.geteuid() == 0 else []
    # The LRU maintainer is a thread that now and then holds an item, and decr then makes a new item instead of padding the old one.
    steady = ["-t", "1", "-o", "no_lru_maintainer"]
    process = subprocess.Popen([binary, *user, "-l", "127.0.0.1", "-p", str(port), "-U", "0", "-m", "64", *steady])
    node = RealNode(process, port)
    try:
        deadline = time.monotonic() + 5
        while True:
            try:
                node.connect().close()
                break
            except ConnectionRefusedError:
                assert process.poll() is None, "memcached ended at once"
                assert time.monotonic() < deadline, "memcached does not listen"
                time.sleep(0.01)  # a process gives no signal when it listens
        yield node
    finally:
        node.hang_up()
        process.kill()  # terminating takes memcached a second, and it has nothing to save
        process.wait(timeout=5)


@pytest.fixture(scope="session")
def real_node() -> Iterator[RealNode]:
    """One memcached for many tests."""
    with running_node() as node:
        yield node


@pytest.fixture
def fresh_real_node() -> Iterator[RealNode]:
    """A memcached of the test's own, whose CAS numbers start at 1."""
    with running_node() as node:
        yield node
