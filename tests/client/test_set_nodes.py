"""Nodes that join and leave while a client is in use."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from kvcluster.placement import moved, placement
from kvcluster.topology import Node
from tests.client.cluster import Cluster, stat

VALUES = {f"key:{number}": number for number in range(500)}


@pytest.mark.parametrize("scheme", ["slots", "modulo", "ketama"])
def test_it_takes_effect_at_once(cluster: Cluster, scheme: str) -> None:
    three, four = cluster.addresses[:3], cluster.addresses
    client = cluster.client(three, placement=scheme)
    client.set_many(VALUES)
    before, after = placement(scheme, three), placement(scheme, four)
    assert client.set_nodes(four) == moved(before, after) > 0
    assert [str(node) for node in client.topology.nodes] == four
    kept = [key for key in VALUES if before.owner(key) == after.owner(key)]
    assert client.get_many(VALUES) == {key: VALUES[key] for key in kept}
    assert all((client.get(key) is not None) == (key in kept) for key in list(VALUES)[:50])
    assert client.set_nodes(four) == 0


def test_a_weight_that_changes_moves_keys(cluster: Cluster) -> None:
    client = cluster.client()
    share = client.set_nodes([Node(cluster.addresses[0], weight=3), *cluster.addresses[1:]])
    assert 0.2 < share < 0.3  # from a quarter to a half


def test_a_machine_may_change_under_its_id(cluster: Cluster) -> None:
    client = cluster.client([Node(cluster.addresses[0], id="left"), Node(cluster.addresses[1], id="right")])
    client.set_many(VALUES)
    assert client.set_nodes([Node(cluster.addresses[2], id="left"), Node(cluster.addresses[1], id="right")]) == 0
    assert 0 < len(client.get_many(VALUES)) < len(VALUES)  # the new machine is cold


def test_a_node_that_leaves_keeps_its_counts_and_no_connection(cluster: Cluster) -> None:
    client = cluster.client()
    client.set_many(VALUES)
    before = client.statistics()
    gone = cluster.addresses[3]
    client.set_nodes(cluster.addresses[:3])
    assert client.statistics().nodes[gone] == before.nodes[gone]
    assert client.statistics().total == before.total
    client.get_many(VALUES)
    assert client.statistics().nodes[gone] == before.nodes[gone]
    assert stat(gone, "curr_connections") == 1  # that which asks
    client.set_nodes(cluster.addresses)
    client.get_many(VALUES)
    assert client.statistics().nodes[gone].hits == before.nodes[gone].sets


def test_calls_under_way_notice_nothing(real: Cluster) -> None:
    client = real.client(real.addresses[:3])
    stop, errors, calls = threading.Event(), [], [0] * 8

    def work(number: int) -> None:
        try:
            while not stop.is_set():
                calls[number] += 1
                client.set_many({f"{number}:{key}": key for key in range(20)})
                found: dict[str, Any] = client.get_many([f"{number}:{key}" for key in range(20)])
                assert all(key == f"{number}:{value}" for key, value in found.items())
                assert client.get(f"{number}:7") in (7, None)
                client.delete(f"{number}:3")
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    choices = [real.addresses, real.addresses[1:], real.addresses[:1], real.addresses[:3]]
    for round_ in range(60):
        client.set_nodes(choices[round_ % 4])
        if not round_ % 10:
            reached = sum(calls) + 8
            while sum(calls) < reached and not errors:
                stop.wait(0.001)
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors
    assert client.statistics().total.errors == 0
    client.set_nodes(real.addresses[:1])
    for gone in real.addresses[1:]:
        assert client._endpoints[gone]._open == set()
        assert stat(gone, "curr_connections") == 1
