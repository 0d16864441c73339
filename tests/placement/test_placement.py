"""What every scheme promises, whichever it is."""

from __future__ import annotations

from math import fsum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcluster.errors import ConfigurationError, IllegalKey
from kvcluster.placement import SCHEMES, Placement, placement
from kvcluster.topology import Node

NODES: list[Node | str] = ["cache1", "cache2:11311", "[::1]:22122", "unix:/run/memcached.sock", Node("cache5", weight=3, id="five")]
BAD_NODES: list[list[Node | str]] = [[], ["a", "a:11211"], [Node("a", id="x"), Node("b", id="x")], ["a", "bad address"]]
every_scheme = pytest.mark.parametrize("cluster", [placement(name, NODES) for name in SCHEMES], ids=SCHEMES)


@every_scheme
@given(key=st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_str_and_bytes_have_one_owner(cluster: Placement, key: str) -> None:
    wire = key.encode()
    assert cluster.owner(key) is cluster.owner(wire) is cluster.nodes[cluster.index(wire)]


@every_scheme
@given(keys=st.lists(st.binary(max_size=300), max_size=20))
def test_many_keys_have_the_owners_of_each(cluster: Placement, keys: list[bytes]) -> None:
    assert cluster.indexes(keys) == [cluster.index(key) for key in keys]
    assert cluster.owners(keys) == [cluster.owner(key) for key in keys]


@every_scheme
def test_shares_sum_to_one_and_every_node_has_keys(cluster: Placement) -> None:
    shares = cluster.shares()
    assert fsum(shares) == pytest.approx(1, abs=1e-12)
    owners = cluster.indexes([b"key:%d" % i for i in range(20_000)])
    assert [owners.count(index) / 20_000 for index in range(5)] == pytest.approx(shares, abs=0.02)


@every_scheme
@pytest.mark.parametrize("key", [None, 7, bytearray(b"key"), "\ud800"], ids=repr)
def test_what_is_no_key_is_refused(cluster: Placement, key: object) -> None:
    with pytest.raises(IllegalKey):
        cluster.owner(key)  # type: ignore[arg-type]
    with pytest.raises(IllegalKey):
        cluster.owners(["fine", key])  # type: ignore[list-item]


@every_scheme
def test_the_hot_pair_takes_wire_keys_only(cluster: Placement) -> None:
    with pytest.raises(TypeError):
        cluster.index("key")  # type: ignore[arg-type]


@every_scheme
def test_repr_shows_scheme_and_nodes(cluster: Placement) -> None:
    assert repr(cluster).startswith(f"<{cluster.name} placement of 5 nodes: ")
    assert all(node.id in repr(cluster) for node in cluster.nodes)


@pytest.mark.parametrize("name", SCHEMES)
def test_a_single_node_owns_everything(name: str) -> None:
    cluster = placement(name, ["only"])
    assert cluster.shares() == [1.0]
    assert {node.id for node in cluster.owners(f"key:{i}" for i in range(1000))} == {"only"}


def test_modulo_counts_nodes_in_their_given_order() -> None:
    nodes: list[Node | str] = ["c", "a", "b", Node("d", weight=50), "e"]
    # The widely published vectors of murmur3_32, seed 0.
    hashes = {"": 0, "hello": 0x248BFA47, "hello, world": 0x149BBB7F, "The quick brown fox jumps over the lazy dog": 0x2E4FF723}
    assert [node.id for node in placement("modulo", nodes).owners(hashes)] == ["cabde"[hash % 5] for hash in hashes.values()]


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigurationError) as caught:
        placement("rendezvous", ["a"])
    known = "ketama, libmemcached, libmemcached-consistent, modulo, slots"
    assert str(caught.value) == f"placement 'rendezvous' is unknown; known are {known}"


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("nodes", BAD_NODES, ids=str)
def test_bad_nodes_are_refused(name: str, nodes: list[Node | str]) -> None:
    with pytest.raises(ConfigurationError):
        placement(name, nodes)


@pytest.mark.parametrize("slots", [0, 1000, 32, 1 << 21])
def test_a_table_that_is_no_power_of_two_is_refused(slots: int) -> None:
    with pytest.raises(ConfigurationError, match="slots must be a power of two"):
        placement("slots", ["a"], slots)
