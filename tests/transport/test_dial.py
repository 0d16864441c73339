"""Sockets to nodes: what cannot be dialled is an OSError, and leaves no socket open."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from pymemcache.client.base import KeepaliveOpts

from kvcluster.topology import Node
from kvcluster.transport import connection
from kvcluster.transport.connection import dial


def test_a_socket_whose_options_are_refused_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[socket.socket] = []

    def refuse(stream: socket.socket, options: KeepaliveOpts) -> None:
        made.append(stream)
        raise OSError("no such option")

    monkeypatch.setattr(connection, "keep_alive", refuse)
    with pytest.raises(OSError, match="no such option"):
        dial(Node("127.0.0.1:1"), 1.0, 1.0, KeepaliveOpts())
    assert made
    assert all(stream.fileno() == -1 for stream in made)


def test_a_name_that_the_resolver_cannot_encode_is_an_oserror(monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(*arguments: Any, **options: Any) -> Any:
        return b"x".decode("idna") and "a..b".encode("idna")

    monkeypatch.setattr(socket, "getaddrinfo", encode)
    with pytest.raises(OSError, match="is no host's name"):
        dial(Node("h"), 1.0, 1.0)


def test_a_timeout_below_a_microsecond_is_not_for_ever() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, dial(Node(f"127.0.0.1:{server.getsockname()[1]}"), 5.0, 1e-7) as stream:
        assert stream.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16) != bytes(16)
        with pytest.raises(BlockingIOError):
            stream.recv(1)
