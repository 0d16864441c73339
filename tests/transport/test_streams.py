"""A node that hangs costs no more than the timeout, whatever the socket is: the kernel's, TLS, or gevent's."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from kvcluster import AsyncClient, Client
from kvcluster.testing.nodes import find_memcached, free_port
from kvcluster.testing.plugin import NodeFactory
from kvcluster.transport.connection import blocking_timeout
from tests.transport.test_pool import until

TIMEOUT = 0.3
GENEROUS = 3.0  # seconds: far above the timeout, far below for ever


class TlsNode:
    """A memcached that speaks TLS only, and what its clients need to trust it."""

    def __init__(self, directory: Path, binary: str) -> None:
        authority = trustme.CA()
        certificate = authority.issue_cert("127.0.0.1")
        certificate.private_key_pem.write_to_path(directory / "key.pem")
        certificate.cert_chain_pems[0].write_to_path(directory / "chain.pem")
        for path in (directory, directory / "key.pem", directory / "chain.pem"):
            path.chmod(0o755)
        self.context = ssl.create_default_context()
        authority.configure_trust(self.context)
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        options = f"ssl_chain_cert={directory}/chain.pem,ssl_key={directory}/key.pem"
        user = ["-u", "root"] if os.geteuid() == 0 else []
        command = [binary, *user, "-l", "127.0.0.1", "-p", str(port), "-m", "256", "-Z", "-o", options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(200):
            if self.process.poll() is not None:
                pytest.skip("this memcached was built without TLS")
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                time.sleep(0.02)
        raise AssertionError("memcached with TLS did not start")


@pytest.fixture
def tls_node(tmp_path: Path) -> Iterator[TlsNode]:
    binary = find_memcached()
    if binary is None:
        pytest.skip("there is no memcached binary, and embedded nodes speak no TLS")
    node = TlsNode(tmp_path, binary)
    yield node
    node.process.send_signal(signal.SIGCONT)
    node.process.kill()
    node.process.wait()


def test_only_plain_sockets_of_python_are_left_to_the_kernel(tls_node: TlsNode) -> None:
    plain = socket.socket()
    host, port = tls_node.address.split(":")
    encrypted = tls_node.context.wrap_socket(socket.create_connection((host, int(port))), server_hostname=host)
    assert blocking_timeout(plain, TIMEOUT) is None
    assert blocking_timeout(encrypted, TIMEOUT) == TIMEOUT
    plain.close()
    encrypted.close()


def test_a_hanging_plain_node(kv_nodes: NodeFactory) -> None:
    (node,) = kv_nodes(1)
    with Client([node.address], timeout=TIMEOUT) as client:
        client.set("a", "value")
        node.pause()
        try:
            began = time.monotonic()
            assert client.get("a") is None
            assert TIMEOUT * 0.9 <= time.monotonic() - began < GENEROUS
        finally:
            node.resume()


def test_tls_commands_values_and_administration(tls_node: TlsNode) -> None:
    with Client([tls_node.address], tls_context=tls_node.context, timeout=2) as client:
        values = {f"key{number}": os.urandom(20_000) for number in range(2_000)}
        assert client.set_many(values) == []  # 40 MB, far beyond the socket's buffers
        assert client.get_many(values) == values
        assert client.get("key7") == values["key7"]
        assert client.version().keys() == {tls_node.address}

    async def again() -> None:
        async with AsyncClient([tls_node.address], tls_context=tls_node.context, timeout=2) as client:
            assert await client.get_many(values) == values
            assert await client.delete("key7")

    asyncio.run(again())


def test_a_node_without_a_trusted_certificate_is_not_believed(tls_node: TlsNode) -> None:
    with Client([tls_node.address], tls_context=ssl.create_default_context(), timeout=TIMEOUT) as client:
        assert client.get("a") is None
        assert client.statistics().total.errors == 1


def test_a_hanging_tls_node(tls_node: TlsNode) -> None:
    with Client([tls_node.address], tls_context=tls_node.context, timeout=TIMEOUT) as client:
        client.set("a", "value")
        assert client.get("a") == "value"
        tls_node.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, tls_node.process.pid, os.WSTOPPED | os.WNOWAIT)
        began = time.monotonic()
        assert client.get("a") is None
        assert TIMEOUT * 0.9 <= time.monotonic() - began < GENEROUS
        tls_node.process.send_signal(signal.SIGCONT)
        until(lambda: client.get("a") == "value")  # the node may need its time to greet again


def test_gevent(kv_nodes: NodeFactory) -> None:
    """In a process of its own, because patching is for good."""
    node, moving = kv_nodes(2)
    program = f"""
        from gevent import monkey

        monkey.patch_all()
        import gevent, os, signal, time
        import kvcluster

        client = kvcluster.Client([{node.address!r}, {moving.address!r}], timeout={TIMEOUT})
        values = {{f"key{{number}}": os.urandom(20_000) for number in range(2_000)}}
        assert client.set_many(values) == []
        assert client.get_many(values) == values
        jobs = [gevent.spawn(client.get, f"key{{number}}") for number in range(200)]
        gevent.joinall(jobs)
        assert [job.value for job in jobs] == [values[f"key{{number}}"] for number in range(200)]

        hung = kvcluster.Client([{node.address!r}], timeout={TIMEOUT})
        hung.set("a", "value")
        print("ready", flush=True)
        input()
        ticks = []
        ticking = gevent.spawn(lambda: [ticks.append(gevent.sleep(0.01)) for _ in range(10)])
        began = time.monotonic()
        assert hung.get("a") is None
        assert {TIMEOUT * 0.9} <= time.monotonic() - began < {GENEROUS}, time.monotonic() - began
        ticking.join()
        assert len(ticks) == 10  # others ran meanwhile
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        first = process.stdout.readline()
        node.pause()
        try:
            _, errors = process.communicate("\n", timeout=60)
        finally:
            node.resume()
        assert (first, process.returncode) == ("ready\n", 0), errors
