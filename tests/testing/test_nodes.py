"""Every kind of node can be disturbed in the same ways."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from pymemcache.client.base import Client

from kvcluster.errors import ConfigurationError
from kvcluster.stats.server import ask
from kvcluster.testing import nodes
from kvcluster.testing.nodes import Kind, MemcachedProcess, NodeDidNotStart, RunningNode, free_port, start_node

binary_only = pytest.mark.skipif(nodes.find_memcached() is None, reason="no memcached binary here")


@pytest.fixture(params=nodes.KINDS)
def node(request: pytest.FixtureRequest) -> Iterator[RunningNode]:
    kind: Kind = request.param
    if kind == "binary" and nodes.find_memcached() is None:
        pytest.skip("no memcached binary here")
    if kind == "docker" and not nodes.docker_answers():
        pytest.skip("no Docker engine answers here")
    running = start_node(kind, memory=16)
    yield running
    running.stop()


def connect(node: RunningNode) -> Client:
    return Client(node.address, timeout=5, connect_timeout=5, default_noreply=False)


def open_socket(node: RunningNode) -> socket.socket:
    host, port = node.address.split(":")
    return socket.create_connection((host, int(port)), timeout=5)


def test_answers_at_its_address_within_its_memory(node: RunningNode) -> None:
    record = ask(node.address)
    assert record.error is None
    assert record.limit == 16 << 20
    assert node.alive


def test_pause_holds_answers_back_and_resume_gives_them(node: RunningNode) -> None:
    with open_socket(node) as connection:
        node.pause()
        node.pause()
        assert node.alive
        connection.settimeout(0.2)
        connection.sendall(b"version\r\n")
        with pytest.raises(TimeoutError):
            connection.recv(100)
        node.resume()
        node.resume()
        connection.settimeout(5)
        assert connection.recv(100).startswith(b"VERSION ")


def test_kill_refuses_and_restart_is_empty_at_the_same_address(node: RunningNode) -> None:
    client = connect(node)
    client.set("key", "value")
    client.close()
    address = node.address
    node.kill()
    assert not node.alive
    node.kill()
    with pytest.raises(ConnectionRefusedError):
        open_socket(node)
    node.restart()
    assert node.alive
    assert node.address == address
    client = connect(node)
    assert client.get("key") is None
    client.close()


def test_restart_of_a_paused_node(node: RunningNode) -> None:
    node.pause()
    node.restart()
    assert ask(node.address).error is None


def test_stop_ends_a_paused_node() -> None:
    running = start_node("embedded")
    running.pause()
    running.stop()
    assert not running.alive


@binary_only
def test_options_reach_memcached() -> None:
    with MemcachedProcess(memory=8, threads=2, arguments=["-I", "2m"]) as node:
        client = connect(node)
        settings = client.stats("settings")
        client.close()
    assert settings[b"maxbytes"] == 8 << 20
    assert settings[b"num_threads"] == 2
    assert settings[b"item_size_max"] == 2 << 20


@binary_only
def test_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "node.sock"
    with MemcachedProcess(socket_path=str(path)) as node:
        assert node.address == f"unix:{path}"
        assert ask(node.address).pid == node.pid
        node.restart()
        assert ask(node.address).pid == node.pid
    assert not path.exists()


@binary_only
def test_a_port_that_was_taken_meanwhile_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with MemcachedProcess() as first:
        taken = int(first.address.rpartition(":")[2])
        guesses = iter([taken, taken, free_port()])
        monkeypatch.setattr(nodes, "free_port", lambda: next(guesses))
        with MemcachedProcess() as second:
            assert second.address != first.address
            assert ask(first.address).pid == first.pid
            assert ask(second.address).pid == second.pid


@binary_only
def test_a_node_that_cannot_run_says_why() -> None:
    with pytest.raises(NodeDidNotStart, match="ended while it started") as caught:
        MemcachedProcess(arguments=["--no-such-option"])
    assert any("no-such-option" in note for note in caught.value.__notes__)


def test_without_a_binary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigurationError, match="no memcached on the PATH"):
        start_node("binary")


@pytest.mark.parametrize(("binary", "docker", "kind"), [("/m", True, "binary"), (None, True, "docker"), (None, False, "embedded")])
def test_best_kind(monkeypatch: pytest.MonkeyPatch, binary: str | None, docker: bool, kind: Kind) -> None:
    monkeypatch.setattr(nodes, "find_memcached", lambda: binary)
    monkeypatch.setattr(nodes, "docker_answers", lambda: docker)
    assert nodes.best_kind() == kind


def test_wrong_arguments() -> None:
    with pytest.raises(ConfigurationError, match="kind of node must be"):
        start_node("redis")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="takes no options"):
        start_node("embedded", arguments=["-I", "2m"])
