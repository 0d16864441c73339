"""Figures of real nodes, and of servers that are none."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymemcache.client.base import Client

from kvcluster.errors import ConfigurationError
from kvcluster.stats.server import NodeStats, ask, collect, parse, total
from kvcluster.testing.plugin import NodeFactory

COUNTERS = [field.name for field in fields(NodeStats) if field.name not in ("address", "error", "version", "pid", "uptime")]


def test_figures_of_real_nodes(kv_nodes: NodeFactory) -> None:
    nodes = kv_nodes(2, memory=16)
    client = Client(nodes[0].address, default_noreply=False)
    client.set("a", b"x" * 1000)
    client.set("b", b"y")
    client.get("a")
    client.get("a")
    client.get("nothing")
    client.delete("b")
    client.delete("nothing")

    used, idle = collect([node.address for node in nodes])
    client.close()

    assert (used.address, idle.address) == (nodes[0].address, nodes[1].address)
    assert used.error is idle.error is None
    assert (used.items, used.gets, used.hits, used.misses, used.sets, used.deletes) == (1, 3, 2, 1, 2, 2)
    assert used.hit_rate == 2 / 3
    assert used.limit == idle.limit == 16 << 20
    assert 1000 < used.bytes < 1200
    assert used.connections >= 2
    assert used.bytes_read > 1000
    assert used.bytes_written > 2000
    assert used.version.count(".") == 2
    assert (idle.items, idle.gets, idle.bytes, idle.hit_rate) == (0, 0, 0, None)


def test_a_dead_node_is_a_record_among_the_others(kv_nodes: NodeFactory) -> None:
    nodes = kv_nodes(3)
    nodes[1].kill()
    records = collect([node.address for node in nodes])
    assert [record.error for record in records] == [None, "Connection refused", None]
    assert records[1] == NodeStats(nodes[1].address, error="Connection refused")


def test_a_paused_node_costs_its_timeout(kv_nodes: NodeFactory) -> None:
    (node,) = kv_nodes()
    node.pause()
    assert ask(node.address, timeout=0.1).error == "no answer within 0.1 s"


@contextmanager
def server(reply: bytes, ready: threading.Barrier | None = None) -> Iterator[str]:
    """Answers one connection with `reply`, once all of `ready` were asked, and closes it."""

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(100)
            if ready is not None:
                ready.wait(timeout=10)
            connection.sendall(reply)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


def test_all_nodes_are_asked_at_the_same_time() -> None:
    ready = threading.Barrier(8)
    with ExitStack() as stack:
        addresses = [stack.enter_context(server(b"STAT curr_items 1\r\nEND\r\n", ready)) for _ in range(8)]
        records = collect(addresses, timeout=5)
    assert [(record.address, record.error, record.items) for record in records] == [(address, None, 1) for address in addresses]


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (b"", "the node closed the connection"),
        (b"STAT pid 1", "the node closed the connection"),
        (b"STAT\r\n", "not a memcached reply"),
        (b"STAT pid one\r\nEND\r\n", "not a memcached reply"),
        (b"HTTP/1.1 400 Bad Request\r\n", "not a memcached reply"),
        (b"\xff\xfe\r\n", "not a memcached reply"),
        (b"SERVER_ERROR out of memory\r\n", "out of memory"),
        (b"ERROR\r\n", "not a memcached reply"),
    ],
)
def test_what_is_no_reply_to_stats_is_an_error(reply: bytes, error: str) -> None:
    with server(reply) as address:
        record = ask(address)
    assert record.error is not None
    assert error in record.error
    assert record == NodeStats(address, error=record.error)


@pytest.mark.parametrize("count", [0, 1])
def test_collect_of_few(count: int) -> None:
    assert [record.error for record in collect(["127.0.0.1:1"] * count)] == ["Connection refused"] * count


def test_wrong_addresses_are_the_callers() -> None:
    with pytest.raises(ConfigurationError, match="port"):
        collect(["127.0.0.1:99999"])


def test_a_node_inside_a_process_says_so() -> None:
    assert "that process alone" in (ask("memory:default").error or "")


figures = st.fixed_dictionaries({name: st.integers(0, 1 << 60) for name in COUNTERS})


@given(st.lists(figures))
def test_total_is_the_sum(each: list[dict[str, int]]) -> None:
    records = [replace(NodeStats(f"n{number}", version="1", pid=number, uptime=9), **values) for number, values in enumerate(each)]
    summed = total([*records, NodeStats("dead", error="refused")])
    assert {name: getattr(summed, name) for name in COUNTERS} == {name: sum(values[name] for values in each) for name in COUNTERS}
    assert (summed.address, summed.error, summed.version, summed.pid, summed.uptime) == ("total", None, "", 0, 0)


def test_figures_that_a_node_does_not_give_are_zero() -> None:
    assert parse("a", {}) == NodeStats("a")
    assert parse("a", {}).hit_rate is parse("a", {}).fill is None


def test_as_dict_has_every_figure() -> None:
    record = NodeStats("a", hits=1, misses=3, bytes=5, limit=10)
    assert record.as_dict() == {field.name: getattr(record, field.name) for field in fields(record)} | {
        "hit_rate": 0.25,
        "fill": 0.5,
    }
