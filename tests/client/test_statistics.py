"""Statistics count what was done, by node and by namespace, and leave as a record that does not change."""

from __future__ import annotations

import dataclasses
import pickle
import threading
from typing import Any

import pytest
from mmh3 import mmh3_32_uintdigest

from kvcluster.protocol import requests
from kvcluster.stats.counters import Counts
from tests.client.cluster import Cluster


def test_nothing_done(client: Any, cluster: Cluster) -> None:
    statistics = client.statistics()
    assert statistics.total == Counts()
    assert statistics.total.hit_rate is None
    assert statistics.nodes == {address: Counts() for address in cluster.addresses}
    assert statistics.namespaces == {}


def test_every_command_is_counted(client: Any) -> None:
    client.set("a", 1)  # 1 set
    client.add("b", 1)  # 2
    client.add("b", 1)
    client.replace("a", "x")  # 3
    client.append("a", "y")  # 4
    client.prepend("a", "z")  # 5
    client.set_many({"c": 1, "d": [2]})  # 7
    client.cas("c", 2, client.gets("c")[1])  # 8, and 1 hit
    client.cas("c", 2, 1)
    client.replace("none", 1)
    client.get("a")  # 2 hits
    client.get("none")  # 1 miss
    client.get_many(["a", "b", "none", "two words"])  # 4 hits, 3 misses
    client.gat("a", 60)  # 5 hits
    client.gat("none", 60)  # 4 misses
    client.delete("a")
    client.delete_many(["b", "none"])
    total = client.statistics().total
    assert (total.hits, total.misses, total.sets, total.deletes, total.errors, total.undecodable) == (5, 4, 8, 3, 0, 0)
    assert total.hit_rate == 5 / 9


def test_bytes_are_those_of_the_node(alone: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "opaque", lambda: b"7f")
    client = alone.client()
    client.set("key", b"x" * 1000)
    client.get("key")
    counts = client.statistics().nodes[alone.addresses[0]]
    token = len(b" O7f")
    assert counts.bytes_written == len(b"ms key 1000 T0 F0\r\n\r\n") + token + 1000 + len(b"get key\r\n")
    assert counts.bytes_read == len(b"HD\r\n") + token + len(b"VALUE key 0 1000\r\n\r\nEND\r\n") + 1000


def test_nodes_and_namespaces_add_up(cluster: Cluster) -> None:
    client = cluster.client(prefix="shop:")
    client.set_many({f"{number}": number for number in range(100)})
    client.get_many([f"{number}" for number in range(0, 200, 2)])
    statistics = client.statistics()
    assert statistics.namespaces == {"shop:": statistics.total}
    assert set(statistics.nodes) == set(cluster.addresses)
    for field in dataclasses.fields(Counts):
        assert sum(getattr(counts, field.name) for counts in statistics.nodes.values()) == getattr(statistics.total, field.name)
    assert all(counts.hits for counts in statistics.nodes.values())
    assert (statistics.total.hits, statistics.total.misses) == (50, 50)


@pytest.mark.parametrize(
    "read", [lambda c: c.get("k"), lambda c: c.get_many(["k"]).get("k"), lambda c: c.gat("k"), lambda c: c.gets("k")[0]]
)
@pytest.mark.parametrize(
    "stored", [b"set k 2 0 3\r\nabc\r\n", b"set k 16 0 1\r\n\xff\r\n", b"set k 1 0 3\r\nabc\r\n", b"set k 64 0 1\r\n\xc1\r\n"]
)
def test_a_value_that_cannot_be_decoded_is_a_counted_miss(alone: Cluster, read: Any, stored: bytes) -> None:
    client = alone.client()
    alone.ask(stored)
    assert read(client) is None
    total = client.statistics().total
    assert (total.hits, total.misses, total.undecodable) == (0, 1, 1)


@pytest.mark.parametrize("read", [lambda c: c.get("secret"), lambda c: c.gat("secret")])
def test_values_that_cannot_be_decoded_are_told_now_and_then(
    alone: Cluster, read: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvcluster.transport.state._warned", {})
    client = alone.client(prefix="shop:")
    alone.ask(b"set shop:secret 2 0 7\r\nprivate\r\n")
    for _ in range(3):
        assert read(client) is None
    (record,) = caplog.records
    assert "namespace 'shop:'" in record.getMessage()
    assert f"{mmh3_32_uintdigest(b'shop:secret'):08x}" in record.getMessage()
    assert "secret" not in record.getMessage()
    assert "private" not in record.getMessage()


def test_a_refusal_is_a_counted_error(alone: Cluster) -> None:
    client = alone.client()
    client.set("k", "text")
    with pytest.raises(Exception, match="non-numeric"):
        client.incr("k", 1)
    assert client.statistics().total.errors == 1


def test_a_record_does_not_change(client: Any) -> None:
    client.get("k")
    before = client.statistics()
    with pytest.raises(dataclasses.FrozenInstanceError):
        before.total.hits = 7
    with pytest.raises(dataclasses.FrozenInstanceError):
        before.total = Counts()
    client.get("k")
    assert before.total.misses == 1
    assert client.statistics().total.misses == 2
    assert pickle.loads(pickle.dumps(before)) == before
    assert dataclasses.asdict(before)["total"]["misses"] == 1


def test_counts_outlive_connections(client: Any) -> None:
    for _ in range(3):
        client.get("k")
        client.close()
    assert client.statistics().total.misses == 3


def test_exact_under_threads_while_others_look(client: Any) -> None:
    client.set_many({f"{number}": number for number in range(50)})
    rounds, workers = 200, 8
    looks: list[int] = []

    def work() -> None:
        for number in range(rounds):
            client.get(f"{number % 100}")
            if not number % 50:
                client.close()

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        total = client.statistics().total
        looks.append(total.hits + total.misses)
    for thread in threads:
        thread.join()
    total = client.statistics().total
    assert (total.hits, total.misses) == (workers * rounds // 2, workers * rounds // 2)
    assert looks == sorted(looks)
