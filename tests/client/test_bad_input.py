"""Bad input gets an error that names the argument and the limit, before a byte is sent where that can be known."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from pymemcache.exceptions import MemcacheClientError, MemcacheError, MemcacheIllegalInputError

from kvcluster import Client
from kvcluster.client import Client as SyncClient
from kvcluster.errors import CallerError, ConfigurationError, IllegalKey, IllegalValue, KvclusterError
from kvcluster.topology import Node
from tests.client.cluster import Cluster, embedded_addresses


class Recording(SyncClient):
    """A client of one embedded node that keeps every byte it sends."""

    def __init__(self, **settings: Any) -> None:
        self.sent = bytearray()
        super().__init__(embedded_addresses(1), **settings)

    def _dial(self, node: Node) -> Any:
        stream, client = super()._dial(node), self

        class Stream:
            recv_into, close = stream.recv_into, stream.close

            def sendall(self, data: bytes) -> None:
                client.sent += data
                stream.sendall(data)

        return Stream()


COMMANDS: dict[str, Callable[[Any, Any], object]] = {
    "get": lambda c, k: c.get(k),
    "gets": lambda c, k: c.gets(k),
    "gat": lambda c, k: c.gat(k, 60),
    "gats": lambda c, k: c.gats(k, 60),
    "get_many": lambda c, k: c.get_many(["fine", k]),
    "gets_many": lambda c, k: c.gets_many(["fine", k]),
    "set": lambda c, k: c.set(k, 1),
    "add": lambda c, k: c.add(k, 1),
    "replace": lambda c, k: c.replace(k, 1),
    "append": lambda c, k: c.append(k, 1),
    "prepend": lambda c, k: c.prepend(k, 1),
    "cas": lambda c, k: c.cas(k, 1, 1),
    "set_many": lambda c, k: c.set_many({"fine": 1, k: 1}),
    "delete": lambda c, k: c.delete(k),
    "delete_many": lambda c, k: c.delete_many(["fine", k]),
    "incr": lambda c, k: c.incr(k, 1),
    "decr": lambda c, k: c.decr(k, 1),
    "touch": lambda c, k: c.touch(k, 60),
    "c[k]": lambda c, k: c[k],
    "c[k] = v": lambda c, k: c.__setitem__(k, 1),
    "del c[k]": lambda c, k: c.__delitem__(k),
}


@pytest.mark.parametrize(
    ("key", "words"), [("", "empty"), (b"", "empty"), (None, "not NoneType"), (7, "not int"), (("a",), "not tuple")]
)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_key_that_is_none(name: str, key: object, words: str) -> None:
    with Recording() as client:
        with pytest.raises(IllegalKey, match=f"key must .*{words}") as caught:
            COMMANDS[name](client, key)
        assert not client.sent
    assert isinstance(caught.value, CallerError | ValueError)
    assert isinstance(caught.value, MemcacheIllegalInputError)  # as pymemcache's users expect


@pytest.mark.parametrize(
    ("key", "words"), [("k" * 251, "at most 250 bytes"), ("글" * 84, "at most 250"), ("a b", "spaces"), (b"\x7f", "control")]
)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_key_that_memcached_forbids_where_the_caller_asks_for_an_error(name: str, key: str | bytes, words: str) -> None:
    with Recording(strict_keys=True) as client:
        with pytest.raises(IllegalKey, match=f"key must .*{words}"):
            COMMANDS[name](client, key)
        assert not client.sent


def test_the_prefix_counts_towards_the_limit() -> None:
    with Recording(strict_keys=True, prefix="12345") as client:
        assert client.set("k" * 245, 1)
        with pytest.raises(IllegalKey, match="at most 250 bytes with its prefix, not 251"):
            client.set("k" * 246, 1)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"x" * ((1 << 20) + 1), "1048577 bytes encoded, and the limit .item_size_max. is 1048576"),
        ((1, 2), "tuple"),
        ({"a": {1}}, "set"),
        (object(), "value cannot be stored"),
        ({"a": 1 << 64}, "value cannot be stored"),
        ("\ud800", "value cannot be stored"),
    ],
)
def test_a_value_that_cannot_be_stored(value: object, words: str) -> None:
    with Recording() as client:
        commands: list[Callable[[], object]] = [
            lambda: client.set("k", value),
            lambda: client.add("k", value),
            lambda: client.replace("k", value),
            lambda: client.append("k", value),
            lambda: client.cas("k", value, 1),
            lambda: client.set_many({"fine": 1, "k": value}),
            lambda: client.set("k", value, noreply=True),
        ]
        for command in commands:
            with pytest.raises(IllegalValue, match=words):
                command()
        assert not client.sent


@pytest.mark.parametrize("flags", [-1, 1 << 32, 1.0, "1", True])
def test_flags_that_memcached_cannot_hold(flags: Any) -> None:
    with Recording() as client:
        with pytest.raises(ConfigurationError, match="flags must be an integer from 0"):
            client.set("k", 1, flags=flags)
        with pytest.raises(ConfigurationError, match="flags must be an integer from 0"):
            client.set_many({"k": 1}, flags=flags)
        assert not client.sent


def test_a_value_that_only_the_server_finds_too_large(alone: Cluster) -> None:
    client, value = alone.client(item_size_max=8 << 20), b"x" * (2 << 20)

    def replace(key: str, value: bytes) -> None:
        client.set(key, b"small")
        client.replace(key, value)

    for command in (client.set, client.add, replace):
        with pytest.raises(IllegalValue, match="too large for node") as caught:
            command("k", value)
        assert alone.addresses[0] in str(caught.value)
    assert client.set_many({"small": b"1", "large": value}) == ["large"]
    assert client.get_many(["small", "large"]) == {"small": b"1"}
    client.set("k", value, noreply=True)
    assert client.get("k") is None
    assert client.set("k", "usable as before")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"nodes": []}, "at least one node"),
        ({"nodes": ["h", "h:11211"]}, "'h' is the id of two"),
        ({"nodes": [Node("h1", id="x"), Node("h2", id="x")]}, "'x' is the id of two"),
        ({"nodes": [Node("h", id="x"), Node("h", id="y")]}, "'h:11211' is the address of two"),
        ({"nodes": ["h:0"]}, "port must be from 1"),
        ({"nodes": ["h:99999"]}, "port must be from 1"),
        ({"nodes": ["h:x"]}, "address 'h:x' is none of"),
        ({"nodes": [""]}, "address '' is none of"),
        ({"nodes": ["a b"]}, "is none of"),
        ({"nodes": ["::1"]}, "is none of"),
        ({"nodes": ["unix:relative"]}, "is none of"),
        ({"nodes": [("h",)]}, "address must be a string"),
        ({"nodes": [("h", "11211")]}, "address must be a string"),
        ({"nodes": [7]}, "address must be a string"),
        ({"nodes": 7}, "nodes must be"),
        ({"nodes": b"h"}, "address must be a string"),
        ({"nodes": ["h"], "placement": "none such"}, "none such"),
        ({"nodes": ["h"], "slots": 100}, "slots must be a power of two"),
        ({"nodes": ["h"], "timeout": 0}, "timeout must be a number of seconds above 0"),
        ({"nodes": ["h"], "timeout": -1}, "timeout must be"),
        ({"nodes": ["h"], "timeout": None}, "timeout must be"),
        ({"nodes": ["h"], "timeout": float("nan")}, "timeout must be"),
        ({"nodes": ["h"], "connect_timeout": "1"}, "connect_timeout must be"),
        ({"nodes": ["h"], "pool_size": 0}, "pool_size must be an integer of at least 1"),
        ({"nodes": ["h"], "pool_size": 1.5}, "pool_size must be"),
        ({"nodes": ["h"], "prefix": "a b"}, "prefix must be at most 150 bytes"),
        ({"nodes": ["h"], "prefix": "p" * 151}, "prefix must be at most 150 bytes"),
        ({"nodes": ["h"], "prefix": "\n"}, "prefix must"),
        ({"nodes": ["h"], "prefix": 7}, "prefix must"),
    ],
)
def test_settings_that_cannot_be_used(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(CallerError, match=words) as caught:
        Client(**settings)
    assert isinstance(caught.value, MemcacheClientError | ValueError)
    assert isinstance(caught.value, MemcacheError | KvclusterError)


@pytest.mark.parametrize("weight", [0, -1, 101, 1.5, True, "2", None])
def test_a_weight_that_cannot_be(weight: Any) -> None:
    with pytest.raises(ConfigurationError, match="weight of node 'h' must be an integer from 1 to 100"):
        Node("h", weight=weight)


@pytest.mark.parametrize("nodes", [[], ["h", "h"], ["h:0"], 7])
def test_set_nodes_refuses_the_same_and_changes_nothing(nodes: Any) -> None:
    addresses = embedded_addresses(2)
    with Client(addresses) as client:
        client.set("k", 1)
        with pytest.raises(ConfigurationError):
            client.set_nodes(nodes)
        assert [node.address for node in client.topology.nodes] == addresses
        assert client.get("k") == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"item_size_max": "1m"}, "item_size_max must be an integer"),
        ({"item_size_max": 0}, "item_size_max must be an integer"),
        ({"codec": 5}, "codec must have"),
        ({"prefix": "\ud800"}, "prefix must be encodable"),
    ],
)
def test_settings_are_checked_when_the_client_is_made(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(CallerError, match=words):
        Client("h", **settings)


def test_a_ttl_beyond_memcacheds_clock() -> None:
    """At a time of 2**31 - 4e8, what ends at 2**31 or later would be stored as if it had expired."""
    planner = dataclasses.replace(Client("h").planner, clock=lambda: 2.0**31 - 4e8)
    assert planner.ttl(4e8 - 1) == 2**31 - 1
    for late in (4e8, 9e8, 2**31):
        with pytest.raises(CallerError, match="expire must be over by 2147483647"):
            planner.ttl(late)


@pytest.mark.parametrize("call", ["get_many", "gets_many", "delete_many"])
@pytest.mark.parametrize("keys", ["abc", b"abc"])
def test_one_key_where_several_are_wanted(call: str, keys: str | bytes) -> None:
    with Client.from_url("memory://several") as client:
        client.set_many({"a": 1, "b": 2, "c": 3})
        with pytest.raises(IllegalKey, match="keys must be several keys"):
            getattr(client, call)(keys)
        assert "a" in client
        assert "d" not in client
