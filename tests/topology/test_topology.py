"""Addresses, nodes and sets of nodes."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcluster.errors import ConfigurationError
from kvcluster.topology import DEFAULT_SLOTS, Node, Topology, as_node, canonical_id, format_address, parse_address


@pytest.mark.parametrize(
    ("written", "address", "host", "port", "id"),
    [
        ("h", "h:11211", "h", 11211, "h"),
        ("h:11211", "h:11211", "h", 11211, "h"),
        ("h:1", "h:1", "h", 1, "h:1"),
        ("10.0.0.1:65535", "10.0.0.1:65535", "10.0.0.1", 65535, "10.0.0.1:65535"),
        ("[::1]", "[::1]:11211", "::1", 11211, "[::1]"),
        ("[fe80::1%eth0]:5", "[fe80::1%eth0]:5", "fe80::1%eth0", 5, "[fe80::1%eth0]:5"),
        ("unix:/run/mc.sock", "unix:/run/mc.sock", "unix:/run/mc.sock", 0, "unix:/run/mc.sock"),
        ("memory:a-1.b_c", "memory:a-1.b_c", "memory:a-1.b_c", 0, "memory:a-1.b_c"),
    ],
)
def test_addresses(written: str, address: str, host: str, port: int, id: str) -> None:
    node = Node(written)
    assert (node.address, node.host, node.port, node.id, str(node)) == (address, host, port, id, address)
    assert Node(node.address) == node
    assert parse_address(address) == (host, port)


def test_where_a_node_off_the_network_is() -> None:
    assert (Node("unix:/a/b").socket_path, Node("unix:/a/b").memory_name) == ("/a/b", None)
    assert (Node("memory:m").socket_path, Node("memory:m").memory_name) == (None, "m")
    assert (Node("h").socket_path, Node("h").memory_name) == (None, None)


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        " ",
        "h ",
        " h",
        "a b",
        "h:",
        "h:x",
        "h:-1",
        "h:0",
        "h:65536",
        "h:99999999999",
        ":1",
        "::1",
        "[::1",
        "::1]",
        "[]:1",
        "[h]x:1",
        "h:1:2",
        "a,b",
        "a/b",
        "unix:",
        "unix:relative",
        "unix:/a b",
        "unix:/a\x00",
        "memory:",
        "memory:a b",
        "h\n",
        "h:" + "9" * 5000,
        b"h",
        None,
        7,
        ("h", 1),
    ],
)
def test_what_is_no_address(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="address"):
        Node(wrong)


@given(st.text(max_size=30) | st.from_regex(r"[\w.\[\]:%/-]{1,30}", fullmatch=True))
def test_any_text_is_an_address_or_a_configuration_error(text: str) -> None:
    try:
        node = Node(text)
    except ConfigurationError:
        return
    assert Node(node.address).address == node.address
    assert format_address(node.host, node.port) == node.address


def test_nodes_are_values() -> None:
    assert Node("h:11211") == Node("h") != Node("h", weight=2) != Node("h", weight=2, id="x")
    assert len({Node("h"), Node("h:11211"), Node("h:2")}) == 2
    assert pickle.loads(pickle.dumps(Node("h", 2, "x"))) == Node("h", 2, "x")
    with pytest.raises(dataclasses.FrozenInstanceError):
        Node("h").weight = 3  # type: ignore[misc]
    assert repr(Node("h", id="left")) == "Node(address='h:11211', weight=1, id='left')"


@pytest.mark.parametrize("id", ["", 7, b"x"])
def test_what_is_no_id(id: Any) -> None:
    with pytest.raises(ConfigurationError, match="id of node 'h' must be a non-empty string"):
        Node("h", id=id)


def test_what_a_node_may_be_written_as() -> None:
    assert as_node("h:1") == as_node(("h", 1)) == as_node(Node("h:1")) == Node("h:1")
    assert as_node(("::1", 1)) == Node("[::1]:1")
    assert canonical_id(":11211") == ":11211"


def test_topologies_are_values() -> None:
    topology = Topology(["b", ("a", 1), Node("c", weight=2)])
    assert topology.nodes == (Node("b"), Node("a:1"), Node("c", weight=2))
    assert (topology.placement, topology.slots) == ("slots", DEFAULT_SLOTS)
    assert topology == Topology(iter(topology.nodes))
    assert Topology("h").nodes == (Node("h"),)
    assert pickle.loads(pickle.dumps(topology)) == topology
    with pytest.raises(dataclasses.FrozenInstanceError):
        topology.slots = 64  # type: ignore[misc]


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([], "at least one node"),
        (["h", "h:11211"], "'h' is the id of two"),
        ([Node("h", id="x"), Node("i", id="x")], "'x' is the id of two"),
        ([Node("h", id="x"), Node("h", id="y")], "'h:11211' is the address of two"),
    ],
)
def test_nodes_that_make_no_topology(nodes: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Topology(nodes)


@pytest.mark.parametrize("slots", [0, 1, 63, 65, 1 << 21, -64, 64.0, "64", True, None])
def test_tables_of_an_impossible_size(slots: Any) -> None:
    with pytest.raises(ConfigurationError, match="slots must be a power of two from 64 to 1048576"):
        Topology("h", slots=slots)


@pytest.mark.parametrize(
    "wrong", ["cache..internal", "a" * 64 + ".x", "h\x00x", "h\x1bx", "\ud800", "me:secret@h", "secret@h:1", "unix:/a\x07"]
)
def test_a_host_that_no_resolver_takes_is_refused_here(wrong: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Node(wrong)
    assert "secret" not in str(caught.value)
