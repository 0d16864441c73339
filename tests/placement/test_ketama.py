"""``ketama`` against pylibmc itself: every key must reach the server that libmemcached sends it to."""

from __future__ import annotations

from math import fsum
from typing import TYPE_CHECKING

import pytest

from kvcluster.placement import placement
from kvcluster.placement.ketama import Ketama, digests
from kvcluster.topology import Node
from tests.placement.recorder import KEYS, nodes_at, pylibmc_owners, recording

if TYPE_CHECKING:
    from pathlib import Path


WEIGHTS = {
    "weights 1 1 2 4": [1, 1, 2, 4],
    "25 equal": [1] * 25,
    "weights 1 to 12": list(range(1, 13)),
    "one without a point": [1, 100, 100, 37],
    "single": [3],
}


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_every_key_has_the_owner_that_libmemcached_gives_it(weights: list[int]) -> None:
    with recording(["127.0.0.1:0"] * len(weights)) as recorder:
        nodes = nodes_at(recorder.addresses, weights)
        theirs = pylibmc_owners(recorder, nodes, KEYS, {"ketama_weighted": True})
    assert [node.address for node in placement("ketama", nodes).owners(KEYS)] == theirs


def test_nodes_on_the_default_port_are_named_without_it() -> None:
    try:
        with recording([f"127.83.61.{i}:11211" for i in range(1, 6)]) as recorder:
            nodes = nodes_at(recorder.addresses, [1, 2, 1, 1, 3])
            theirs = pylibmc_owners(recorder, nodes, KEYS, {"ketama_weighted": True})
    except OSError as error:
        pytest.skip(f"port 11211 of 127.83.61.1-5 cannot be had on this machine: {error}")
    assert [node.address for node in placement("ketama", nodes).owners(KEYS)] == theirs


def test_unix_sockets_are_named_by_their_path_and_port_0(tmp_path: Path) -> None:
    # Without weights: pylibmc takes none for a socket.
    with recording(f"unix:{tmp_path}/{name}" for name in "abc") as recorder:
        nodes = nodes_at(recorder.addresses, [1, 1, 1])
        theirs = pylibmc_owners(recorder, nodes, KEYS, {"ketama_weighted": True})
    assert [node.address for node in placement("ketama", nodes).owners(KEYS)] == theirs


def test_printed_vector() -> None:
    nodes = [Node("127.0.0.1:22101"), Node("127.0.0.1:22102"), Node("127.0.0.1:22103", 2), Node("127.0.0.1:22104", 4)]
    owners = placement("ketama", nodes).owners(f"user:{i}" for i in range(8))
    assert [node.port for node in owners] == [22104, 22101, 22104, 22103, 22104, 22104, 22101, 22104]


def test_ids_play_no_part() -> None:
    addresses = ["10.0.0.1", "10.0.0.2:11311", "10.0.0.3"]
    named = [Node(address, id=f"node-{i}") for i, address in enumerate(addresses)]
    plain = placement("ketama", addresses)
    assert placement("ketama", named).indexes(KEYS[:2000]) == plain.indexes(KEYS[:2000])


def test_digests_are_counted_in_single_precision() -> None:
    assert {n: digests(1, n, n) for n in (1, 4, 24, 25, 26)} == {1: 40, 4: 40, 24: 40, 25: 39, 26: 40}


def test_shares_are_the_arcs_of_the_ring() -> None:
    cluster = placement("ketama", nodes_at(["a:1", "b:2", "c:3", "d:4"], [1, 1, 2, 4]))
    shares = cluster.shares()
    indexes = cluster.indexes(KEYS)
    assert fsum(shares) == 1
    assert [indexes.count(i) / len(KEYS) for i in range(4)] == pytest.approx(shares, abs=0.02)


def test_a_node_without_a_point_owns_nothing() -> None:
    cluster = placement("ketama", nodes_at(["a:1", "b:2", "c:3"], [1, 100, 100]))
    assert isinstance(cluster, Ketama)
    assert cluster.shares()[0] == 0.0
    assert 0 not in cluster.ring.owners
