"""What a lease leaves on a node, a placeholder or a stale item, is nothing to plain commands, and they do it no harm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.client.cluster import Cluster

KEYS = ["k", "two words"]
ENCODED = {"k": b"k", "two words": b"dHdvIHdvcmRz b"}


@pytest.fixture
def alone_client(alone: Cluster) -> Any:
    return alone.client()


def take_lease(cluster: Cluster, key: str) -> None:
    name, _, b = ENCODED[key].partition(b" ")
    assert b" W" in cluster.ask(b"mg %b s N30 %b\r\n" % (name, b))


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    "read",
    [
        lambda c, k: c.get(k),
        lambda c, k: c.gets(k)[0],
        lambda c, k: c.get_many([k]).get(k),
        lambda c, k: c.gets_many([k]).get(k),
        lambda c, k: c.gat(k, 60),
        lambda c, k: c.gats(k, 60)[0],
        lambda c, k: c.touch(k, 60) or None,
        lambda c, k: c.incr(k, 1),
        lambda c, k: c.decr(k, 1),
    ],
    ids=["get", "gets", "get_many", "gets_many", "gat", "gats", "touch", "incr", "decr"],
)
def test_a_placeholder_is_a_miss(alone: Cluster, alone_client: Any, key: str, read: Callable[[Any, str], object]) -> None:
    take_lease(alone, key)
    assert read(alone_client, key) is None
    # and stays one: nothing that later commands would take for a value
    assert alone_client.get(key) is None
    assert alone_client.add(key, "value")
    assert alone_client.get(key) == "value"


@pytest.mark.parametrize("key", KEYS)
def test_reads_leave_the_lease_with_its_holder(alone: Cluster, alone_client: Any, key: str) -> None:
    name, _, b = ENCODED[key].partition(b" ")
    token = alone.ask(b"mg %b c N30 %b\r\n" % (name, b)).split()[1][1:]
    assert (alone_client.get(key), alone_client.gets(key), alone_client.get_many([key])) == (None, (None, None), {})
    assert alone.ask(b"ms %b 5 C%b %b\r\nfresh\r\n" % (name, token, b)).startswith(b"HD")
    assert alone_client.get(key) == b"fresh"


@pytest.mark.parametrize("key", KEYS)
def test_add_takes_a_placeholder_for_absent(alone: Cluster, alone_client: Any, key: str) -> None:
    take_lease(alone, key)
    assert alone_client.add(key, 1, expire=60) is True
    assert alone_client.get(key) == 1
    assert alone_client.add(key, 2) is False
    assert alone_client.get(key) == 1


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("name", ["append", "prepend", "replace"])
def test_what_needs_a_value_takes_a_placeholder_for_absent(alone: Cluster, alone_client: Any, key: str, name: str) -> None:
    take_lease(alone, key)
    assert getattr(alone_client, name)(key, "junk") is False
    assert alone_client.get(key) is None
    assert getattr(alone_client, name)(key, "junk") is False
    assert alone_client.add(key, "value")
    assert alone_client.get(key) == "value"


@pytest.mark.parametrize("key", KEYS)
def test_set_and_delete_end_a_lease(alone: Cluster, alone_client: Any, key: str) -> None:
    take_lease(alone, key)
    assert alone_client.set(key, "value")
    assert alone_client.get(key) == "value"
    alone_client.delete(key)
    take_lease(alone, key)
    alone_client.delete(key)
    take_lease(alone, key)  # it was gone, for this one is won again


def test_an_empty_value_of_another_client_is_no_placeholder(alone: Cluster, alone_client: Any) -> None:
    alone.ask(b"set k 0 0 0\r\n\r\n")
    assert alone_client.get("k") == b""
    assert alone_client.gets("k")[0] == b""
    assert alone_client.get_many(["k", "absent"]) == {"k": b""}
    assert alone_client.add("k", 1) is False
    assert alone_client.append("k", b"more")
    assert alone_client.get("k") == b"more"


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    "command",
    [
        lambda c, k: c.get(k),
        lambda c, k: c.gets(k),
        lambda c, k: c.get_many([k, "absent"]),
        lambda c, k: c.gat(k, 60),
        lambda c, k: c.gats(k, 60),
        lambda c, k: c.touch(k, 60),
        lambda c, k: c.add(k, 1),
    ],
    ids=["get", "gets", "get_many", "gat", "gats", "touch", "add"],
)
def test_the_right_to_refill_a_stale_item_is_not_taken(
    alone: Cluster, alone_client: Any, key: str, command: Callable[[Any, str], object]
) -> None:
    name, _, b = ENCODED[key].partition(b" ")
    alone.ask(b"ms %b 3 %b\r\nold\r\nmd %b I T30 %b\r\n" % (name, b, name, b))
    for _ in range(3):
        command(alone_client, key)
    assert b" W" in alone.ask(b"mg %b s %b\r\n" % (name, b))


@pytest.mark.parametrize(
    "command", [lambda c: c.get("k"), lambda c: c.gets("k"), lambda c: c.gat("k", 60), lambda c: c.touch("k", 60)]
)
def test_a_lease_that_was_taken_over_is_still_to_be_won(
    alone: Cluster, alone_client: Any, command: Callable[[Any], object]
) -> None:
    take_lease(alone, "k")
    alone.ask(b"md k I T30\r\n")
    for _ in range(3):
        command(alone_client)
    take_lease(alone, "k")


def test_statistics_count_a_placeholder_as_one_miss(alone: Cluster, alone_client: Any) -> None:
    take_lease(alone, "k")
    alone_client.get("k")
    alone_client.get_many(["k", "absent"])
    total = alone_client.statistics().total
    assert (total.hits, total.misses, total.errors) == (0, 3, 0)


@pytest.mark.parametrize("noreply", [False, True])
@pytest.mark.parametrize("command", ["replace", "append", "prepend"])
def test_a_placeholder_is_never_written_to(alone: Cluster, alone_client: Any, command: str, noreply: bool) -> None:
    take_lease(alone, "k")
    before = alone.ask(b"mg k v s c\r\n")
    assert getattr(alone_client, command)("k", b"JUNK", noreply=noreply) is noreply
    assert alone.ask(b"mg k v s c\r\n") == before  # the very item, never another one meanwhile


def test_add_without_an_answer_replaces_a_placeholder_too(alone: Cluster, alone_client: Any) -> None:
    take_lease(alone, "k")
    assert alone_client.add("k", b"value", noreply=True) is True
    assert alone_client.get("k") == b"value"
