"""Every command means what pymemcache's command of that name means."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pymemcache.client.base import Client as Pymemcache
from pymemcache.exceptions import MemcacheError
from pymemcache.serde import pickle_serde

from kvcluster.errors import CommandRefused, ConfigurationError, IllegalValue
from kvcluster.testing.plugin import NodeFactory
from kvcluster.topology import Node
from tests.client.cluster import Cluster

Story = Callable[[Any], object]


def cas_story(client: Any) -> object:
    client.set("k", "one")
    value, token = client.gets("k")
    results = [value, client.cas("k", "two", token), client.cas("k", "three", token), client.get("k")]
    client.delete("k")
    return [*results, client.cas("k", "four", token), client.get("k")]


STORIES: dict[str, Story] = {
    "get a miss": lambda c: [c.get("k"), c.get("k", 7), c.gets("k"), c.gets("k", 1, 2)],
    "set and get": lambda c: [(c.set("k", v), c.get("k")) for v in (b"bytes", "text", "글자", 0, -5, 10**30, b"\r\nEND\r\n", "")],
    "key forms": lambda c: [c.set("k", 1), c.get(b"k"), c.set(b"j", 2), c.get("j"), c.get_many(["k", b"j"])],
    "flags are stored and bytes come back": lambda c: [c.set("k", b"v", flags=1 << 16), c.get("k")],
    "flags decide how a value is read": lambda c: [c.set("k", b"12", flags=2), c.get("k"), c.set("k", b"ab", flags=16), c.get("k")],
    "add": lambda c: [c.add("k", 1), c.add("k", 2), c.get("k")],
    "replace": lambda c: [c.replace("k", 1), c.set("k", 2), c.replace("k", "3"), c.get("k")],
    "append and prepend": lambda c: [
        c.append("k", "x"),
        c.prepend("k", "x"),
        c.set("k", "m"),
        c.append("k", "z"),
        c.prepend("k", "a"),
        c.get("k"),
    ],
    "append keeps flags": lambda c: [c.set("k", 12), c.append("k", "3"), c.get("k")],
    "cas": cas_story,
    "get_many": lambda c: [c.set("a", 1), c.set("b", b"2"), c.get_many(["a", "b", "c"]), c.get_many(("b",)), c.get_many([])],
    "gets_many": lambda c: [c.set("a", 1), {k: v for k, (v, _) in c.gets_many(["a", "c"]).items()}, c.gets_many([])],
    "set_many": lambda c: [c.set_many({"a": 1, "b": "2", b"c": b"3"}), c.get_many(["a", "b", "c"]), c.set_many({})],
    "delete": lambda c: [c.delete("k"), c.set("k", 1), c.delete("k"), c.get("k")],
    "delete_many": lambda c: [c.set_many({"a": 1, "b": 2}), c.delete_many(["a", "x"]), c.get_many(["a", "b"]), c.delete_many([])],
    "incr and decr": lambda c: [c.incr("n", 1), c.set("n", 9), c.incr("n", 1), c.decr("n", 1), c.get("n"), c.decr("n", 100)],
    # memcached looks for a minus sign behind a stored number above 2^63 too, in whatever was there before.
    "incr wraps at 64 bits": lambda c: [c.set("n", 2**63 - 1), c.incr("n", 2**64 - 1), c.get("n")],
    "incr of digits in text": lambda c: [c.set("n", "41"), c.incr("n", 1), c.get("n")],
    "touch": lambda c: [c.touch("k", 60), c.set("k", 1), c.touch("k", 60), c.touch("k"), c.get("k")],
    "noreply": lambda c: [
        c.set("k", 1, noreply=True),
        c.get("k"),
        c.add("k", 2, noreply=True),
        c.get("k"),
        c.replace("k", 3, noreply=True),
        c.get("k"),
        c.append("k", 4, noreply=True),
        c.prepend("k", 2, noreply=True),
        c.get("k"),
        c.incr("k", 1, noreply=True),
        c.get("k"),
        c.decr("k", 1, noreply=True),
        c.touch("k", 60, noreply=True),
        c.get("k"),
        c.set_many({"k": 5, "l": 6}, noreply=True),
        c.get_many(["k", "l"]),
        c.delete_many(["k"], noreply=True),
        c.delete("l", noreply=True),
        c.get_many(["k", "l"]),
    ],
    "noreply to what is absent": lambda c: [
        c.replace("k", 3, noreply=True),
        c.append("k", 4, noreply=True),
        c.incr("k", 4, noreply=True),
        c.touch("k", 4, noreply=True),
        c.cas("k", 4, 17, noreply=True),
        c.get("k"),
        c.get("k"),
    ],
    "dict access": lambda c: [c.__setitem__("k", 1), c["k"], c.__delitem__("k"), c.get("k")],
    "flush_all": lambda c: [c.set("k", 1), c.flush_all(), c.get("k")],
}


@pytest.fixture
def oracle(kv_nodes: NodeFactory) -> Iterator[Pymemcache]:
    client = Pymemcache(kv_nodes(1)[0].address, serde=pickle_serde, default_noreply=False, timeout=10)
    yield client
    client.close()


@pytest.mark.parametrize("name", STORIES)
def test_the_story_ends_as_with_pymemcache(name: str, client: Any, oracle: Pymemcache) -> None:
    assert STORIES[name](client) == STORIES[name](oracle)


def test_each_reads_what_the_other_wrote(real: Cluster) -> None:
    address = real.addresses[0]
    ours, theirs = real.client([address]), Pymemcache(address, serde=pickle_serde, default_noreply=False)
    for value in (b"bytes", b"", "text", "", "글자", 0, -17, 2**70):
        ours.set("k", value)
        assert (theirs.get("k"), type(theirs.get("k"))) == (value, type(value))
        theirs.set("k", value)
        assert (ours.get("k"), type(ours.get("k"))) == (value, type(value))
    theirs.close()


@pytest.mark.parametrize("value", [None, True, 1.5, [1, "a", None], {"name": "Kim", "tags": [b"x", {"y": 2}]}])
def test_other_values_come_back_as_they_are(client: Any, value: object) -> None:
    assert client.set("k", value)
    assert client.get("k", "absent") == value
    assert client.gets("k")[0] == value
    assert client.get_many(["k"]) == {"k": value}


def test_gat_and_gats_are_get_and_gets_with_a_ttl(client: Any) -> None:
    assert (client.gat("k", 60), client.gat("k", 60, 5), client.gats("k", 60), client.gats("k", 60, 1, 2)) == (
        None,
        5,
        (None, None),
        (1, 2),
    )
    client.set("k", 1)
    assert (client.gat("k", 60), client.gat("k"), client.gats("k", 60)) == (1, 1, client.gets("k"))
    assert client.cas("k", 2, client.gats("k")[1])


def test_keys_may_come_from_an_iterator(client: Any) -> None:
    client.set_many({"a": 1, "b": 2})
    assert client.get_many(iter(["a", "b"])) == {"a": 1, "b": 2}
    assert client.delete_many(iter(["a"]))
    assert client.get_many(["a", "b"]) == {"b": 2}


def test_dict_access_to_an_absent_key_raises(client: Any) -> None:
    with pytest.raises(KeyError):
        client["absent"]


def test_aliases(client: Any) -> None:
    assert client.set_multi({"a": 1, "b": 2}) == []
    assert client.get_multi(["a", "b"]) == {"a": 1, "b": 2}
    assert client.delete_multi(["a"]) is True
    assert client.get_multi(["a", "b"]) == {"b": 2}


def test_many_keys_over_all_nodes(client: Any, cluster: Cluster) -> None:
    values = {f"key:{number}": number for number in range(1000)}
    assert client.set_many(values, expire=60) == []
    assert client.get_many(values) == values
    assert {key: value for key, (value, _) in client.gets_many(values).items()} == values
    lookups = b"".join(b"mg %b v\r\n" % key.encode() for key in values)
    found = [cluster.ask(lookups, address).count(b"VA ") for address in cluster.addresses]
    assert all(found)
    assert sum(found) == 1000  # each at one node only
    client.delete_many(list(values)[::2])
    assert client.get_many(values) == {key: value for key, value in values.items() if value % 2}


def test_a_key_asked_for_twice_is_one_answer(client: Any) -> None:
    client.set("k", 1)
    assert client.get_many(["k", "k", b"k", "absent", "absent"]) == {"k": 1, b"k": 1}


@pytest.mark.parametrize("key", ["two words", "a\r\nset x 0 0 1", b"\x00\x01", "k" * 251, "긴 열쇠" * 100, b"\xff" * 250, " "])
def test_keys_that_memcached_forbids_are_carried(client: Any, key: str | bytes) -> None:
    other = "plain"
    assert client.set_many({key: "v", other: "w"}) == []
    assert client.get(key) == "v"
    assert client.get_many([key, other, "absent"]) == {key: "v", other: "w"}
    assert client.gets(key)[0] == "v"
    assert client.cas(key, 5, client.gets(key)[1])
    assert (client.incr(key, 2), client.decr(key, 1)) == (7, 6)
    assert client.gat(key, 60) == 6
    assert client.touch(key, 60)
    assert client.add(key, 1) is False
    assert client.append(key, 5)
    assert client.get(key) == 65
    assert client.set(key, 3, noreply=True)
    assert client.touch(key, 60, noreply=True)
    assert client.get(key) == 3
    assert client.delete(key)
    assert client.get(key) is None


def test_a_prefix_keeps_clients_apart(cluster: Cluster) -> None:
    left, right, plain = cluster.client(prefix="left:"), cluster.client(prefix=b"right:"), cluster.client()
    left.set("k", 1)
    right.set("k", 2)
    assert (left.get("k"), right.get("k"), plain.get("k")) == (1, 2, None)
    assert left.get_many(["k"]) == {"k": 1}
    # with its prefix a key has the same owner as the same bytes without one
    assert plain.get("left:k") == 1


def test_incr_takes_numbers_of_64_bits_only(client: Any) -> None:
    client.set("n", 1)
    for wrong in (-1, 2**64, 1.0, "1", True):
        with pytest.raises(IllegalValue, match="value must be an integer from 0"):
            client.incr("n", wrong)
    assert client.get("n") == 1


def test_incr_of_what_is_no_number_is_refused(client: Any, cluster: Cluster) -> None:
    client.set("n", "abc")
    for command in (client.incr, client.decr):
        with pytest.raises(CommandRefused, match="non-numeric") as caught:
            command("n", 1)
        assert caught.value.node in cluster.addresses
        assert isinstance(caught.value, MemcacheError)
    assert client.get("n") == "abc"


def test_cas_takes_what_gets_returned(client: Any) -> None:
    client.set("k", 1)
    token = client.gets("k")[1]
    assert client.cas("k", 2, int(token)) is True
    assert client.cas("k", 3, token.decode()) is False
    for wrong in (b"x", None, -1, 2**64):
        with pytest.raises(IllegalValue, match="cas must be a number"):
            client.cas("k", 3, wrong)


# -- ttls, as the node sees them

DAY = 86400


@pytest.mark.parametrize(
    ("expire", "remaining"), [(0, -1), (60, 60), (1.9, 1), (30 * DAY, 30 * DAY), (31 * DAY, 31 * DAY), (2.5e6, 2.5e6)]
)
def test_a_ttl_reaches_the_node(alone: Cluster, expire: float, remaining: float) -> None:
    client = alone.client()
    commands: dict[str, Callable[[], object]] = {
        "set": lambda: client.set("k", 1, expire),
        "set_many": lambda: client.set_many({"k": 1}, expire),
        "add": lambda: client.delete("k") and client.add("k", 1, expire),
        "replace": lambda: client.set("k", 1, 500) and client.replace("k", 2, expire),
        "cas": lambda: client.set("k", 1, 500) and client.cas("k", 2, client.gets("k")[1], expire),
        "touch": lambda: client.set("k", 1, 500) and client.touch("k", expire),
        "touch noreply": lambda: client.set("k", 1, 500) and client.touch("k", expire, noreply=True) and client.get("k"),
        "gat": lambda: client.set("k", 1, 500) and client.gat("k", expire),
        "gats": lambda: client.set("k", 1, 500) and client.gats("k", expire),
    }
    for name, command in commands.items():
        command()
        seen = int(alone.ask(b"mg k t\r\n").split()[1][1:])
        assert remaining - 3 <= seen <= remaining + 1, name  # the node looks at its clock once a second


def test_a_ttl_beyond_10_to_the_9_is_a_point_in_time(alone: Cluster) -> None:
    client = alone.client()
    client.set("k", 1, int(time.time()) + 100)
    assert 97 <= int(alone.ask(b"mg k t\r\n").split()[1][1:]) <= 101
    client.set("k", 1, 1_000_000_001)  # in 2001
    assert client.get("k") is None


def test_append_keeps_the_ttl(alone: Cluster) -> None:
    client = alone.client()
    client.set("k", "a", 500)
    client.append("k", "b", 5)
    client.prepend("k", "c", 5)
    assert int(alone.ask(b"mg k t\r\n").split()[1][1:]) > 400


@pytest.mark.parametrize("expire", [-1, 0.5, 1e-9, float("nan"), float("inf"), 2**32, "60", None, True])
def test_a_ttl_that_cannot_be_is_refused(client: Any, expire: Any) -> None:
    commands: list[Callable[[], object]] = [
        lambda: client.set("k", 1, expire),
        lambda: client.add("k", 1, expire),
        lambda: client.replace("k", 1, expire),
        lambda: client.append("k", 1, expire),
        lambda: client.set_many({"k": 1}, expire),
        lambda: client.cas("k", 1, 1, expire),
        lambda: client.touch("k", expire),
        lambda: client.gat("k", expire),
        lambda: client.gats("k", expire),
    ]
    for command in commands:
        with pytest.raises(ConfigurationError, match="expire must be"):
            command()
    assert client.get("k") is None


# -- administration


def test_version_and_stats_by_node(client: Any, cluster: Cluster) -> None:
    assert set(client.version()) == set(cluster.addresses)
    assert all(version[0].isdigit() for version in client.version().values())
    client.set_many({f"{number}": number for number in range(100)})
    stats = client.stats()
    assert sum(record["cmd_set"] for record in stats.values()) == 100
    assert set(client.stats("items")) == set(cluster.addresses)


def test_flush_all_reaches_every_node(client: Any) -> None:
    values = {f"{number}": number for number in range(100)}
    client.set_many(values)
    assert client.flush_all() is True
    assert client.get_many(values) == {}


def test_a_closed_client_opens_again(client: Any) -> None:
    client.set("k", 1)
    client.close()
    assert client.get("k") == 1
    client.quit()
    client.disconnect_all()
    with client as same:
        assert same.get("k") == 1


def test_repr_shows_the_state(client: Any, cluster: Cluster) -> None:
    client.set("k", 1)
    assert "<Client of 4 nodes, slots" in repr(client)
    assert all(f"<{address} up, 0 missed deletes>" in repr(client) for address in cluster.addresses)
    assert repr(client).count("1 connections, 1 idle") == 1


def test_addresses_of_every_kind(real: Cluster) -> None:
    address = Node(real.addresses[0])
    for form in (
        address,
        address.address,
        (address.host, address.port),
        [f"localhost:{address.port}"],
        [(address.host, address.port)],
    ):
        client = real.client(form)  # type: ignore[arg-type]
        assert client.set("k", 1)
        assert client.get("k") == 1
