"""Clusters named by a URL."""

from __future__ import annotations

from typing import Any

import pytest

from kvcluster import Client
from kvcluster.errors import ConfigurationError
from kvcluster.topology import Node


@pytest.mark.parametrize(
    ("url", "nodes"),
    [
        ("memcached://h1", [Node("h1")]),
        ("memcached://h1:11212,h2", [Node("h1:11212"), Node("h2")]),
        ("memcached://Host.Example:1", [Node("Host.Example:1")]),
        ("memcached://h1,h2?weights=1,3", [Node("h1"), Node("h2", weight=3)]),
        ("memcached://[::1]", [Node("[::1]")]),
        ("memcached://h1,[::1]:11212,[fe80::2]", [Node("h1"), Node("[::1]:11212"), Node("[fe80::2]")]),
        ("memcached:///run/memcached.sock", [Node("unix:/run/memcached.sock")]),
        ("memcached://h1/", [Node("h1")]),
        ("memory://", [Node("memory:default")]),
        ("memory://a,b", [Node("memory:a"), Node("memory:b")]),
    ],
)
def test_nodes(url: str, nodes: list[Node]) -> None:
    assert list(Client.from_url(url).topology.nodes) == nodes


def test_settings() -> None:
    url = "memcached://h1,h2?placement=ketama&timeout=1.5&connect_timeout=2&prefix=shop%3A&pool_size=2&item_size_max=10"
    client = Client.from_url(url)
    assert client.topology.placement == "ketama"
    assert (client.planner.prefix, client.planner.item_size_max) == (b"shop:", 10)
    assert Client.from_url("memcached://h1?slots=64").topology.slots == 64


def test_arguments_win() -> None:
    assert Client.from_url("memcached://h1?prefix=a", prefix="b").planner.prefix == b"b"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "must be 'memcached://host:port"),
        ("h1:11211", "must be 'memcached://host:port"),
        ("redis://h1", "must be 'memcached://host:port"),
        ("memcached://", "must be 'memcached://host:port"),
        ("memcached://h1,", "address '' is none of"),
        ("memcached://h1:x", "address 'h1:x' is none of"),
        ("memcached://[::1", "is none of"),
        ("memcached://::1]", "is none of"),
        ("memcached://user:secret@h1", "must not name a user"),
        ("memcached://h1,h1", "is the id of two"),
        ("memcached://h1?colour=red", "unknown setting 'colour'"),
        ("memcached://h1?timeout=soon", "timeout must be a number"),
        ("memcached://h1?timeout=0", "timeout must be a number of seconds above 0"),
        ("memcached://h1?pool_size=1.5", "pool_size must be a number"),
        ("memcached://h1?pool_size=0", "pool_size must be an integer of at least 1"),
        ("memcached://h1?weights=1,2", "weights must be 1 integers"),
        ("memcached://h1?weights=x", "weights must be 1 integers"),
        ("memcached://h1?weights=0", "weight of node 'h1' must be an integer"),
        ("memcached://h1?placement=none", "none"),
    ],
)
def test_a_url_that_cannot_be_used(url: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Client.from_url(url)


def test_the_environment_is_read_where_nothing_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVCLUSTER_URL", "memcached://env1,env2?placement=ketama&weights=1,2")
    for client in (Client(), Client.from_url()):
        assert [str(node) for node in client.topology.nodes] == ["env1:11211", "env2:11211"]
        assert client.topology.placement == "ketama"
    assert str(Client("given").topology.nodes[0]) == "given:11211"
    assert str(Client.from_url("memcached://given").topology.nodes[0]) == "given:11211"


def test_settings_in_the_environment_hold_where_no_argument_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVCLUSTER_URL", "memcached://env1?prefix=shop:&placement=modulo&slots=64&item_size_max=10")
    for client in (Client(), Client.from_url()):
        assert (client.planner.prefix, client.planner.item_size_max) == (b"shop:", 10)
        assert (client.topology.placement, client.topology.slots) == ("modulo", 64)
    client = Client(placement="ketama", prefix="own:")
    assert (client.topology.placement, client.topology.slots, client.planner.prefix) == ("ketama", 64, b"own:")


@pytest.mark.parametrize("make", [Client, Client.from_url])
def test_neither_nodes_nor_environment(monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    monkeypatch.delenv("KVCLUSTER_URL", raising=False)
    with pytest.raises(ConfigurationError, match="nodes must be given, or a URL in the environment variable KVCLUSTER_URL"):
        make()


@pytest.mark.parametrize(
    "url", ["redis://:s3cret@h/0", "memcached://me:s3cret@h:11211", "memcached://me:s3,cret@h", "memcached://me:s3/cret@h"]
)
def test_no_error_shows_a_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Client.from_url(url)
    assert "s3" not in str(caught.value)
