"""Stamps as they are named, as they travel, and what renewing them does on real nodes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Column, Integer, MetaData, Table

from kvcluster import Cache, Client
from kvcluster.cache.stamps import stamp_wire, table_stamps
from kvcluster.errors import ConfigurationError, DeleteFailed
from kvcluster.plan import Invalidation
from kvcluster.protocol.requests import BinaryKey, Renewals
from kvcluster.testing.nodes import RunningNode
from kvcluster.testing.proxy import FaultProxy
from tests.cache.shop import Everything, User
from tests.client.cluster import ask


def held(nodes: list[RunningNode], stamp: bytes) -> set[bytes]:
    """What the nodes hold under a stamp's key."""
    return {ask(node.address, b"mg %b s v\r\n" % stamp) for node in nodes}


def test_wires_are_ones_that_memcached_takes_as_they_are(cache: Cache) -> None:
    planner = cache.planner
    assert stamp_wire(planner, "tag:author:42") == b"shop:__stamp:tag:author:42"
    assert stamp_wire(planner, "tag:서울") == "shop:__stamp:tag:서울".encode()
    wires = {stamp_wire(planner, f"tag:{text}") for text in ("a b", "a%20b", "a\nb", "a\r\n" * 200, "a b" * 200)}
    assert len(wires) == 5
    assert not any(isinstance(wire, BinaryKey) or len(wire) > 250 or b" " in wire for wire in wires)


def test_a_bump_gives_every_node_the_same_new_value(cache: Cache, nodes: list[RunningNode]) -> None:
    stamp = stamp_wire(cache.planner, "tag:author:42")
    seen = set()
    for _ in range(3):
        cache.invalidate_tag("author:42")
        (value,) = held(nodes, stamp)
        assert value.startswith(b"VA 8 s8\r\n")
        seen.add(value)
    assert len(seen) == 3
    assert cache.client.statistics().total.deletes == 0, "a stamp is no key of the caller's"


@pytest.mark.parametrize("target", [User, User.__table__], ids=["a mapped class", "a table"])
def test_a_tables_stamps(cache: Cache, nodes: list[RunningNode], target: object) -> None:
    cache.invalidate_table(target)
    for name in ("table:user", "rows:user"):
        (value,) = held(nodes, stamp_wire(cache.planner, name))
        assert value.startswith(b"VA 8")


def test_what_is_no_table() -> None:
    assert table_stamps(User, Everything) == ("table:user", "rows:user", "table:everything", "rows:everything")
    assert table_stamps(Table("user", MetaData(), Column("id", Integer), schema="shop")) == ("table:shop.user", "rows:shop.user")
    for wrong in ("user", None, User.id, User(), object()):
        with pytest.raises(ConfigurationError, match="a mapped class, a Table or a Django model is wanted"):
            table_stamps(wrong)


def test_keys_and_stamps_go_in_one_request_to_each_node(cache: Cache, client: Client, nodes: list[RunningNode]) -> None:
    keys = [f"row:{n}" for n in range(20)]
    wires = tuple(cache.planner.wire(key) for key in keys)
    for wire in wires:
        ask(cache.planner.address(wire), b"ms %b 1\r\nx\r\n" % wire)
    plan = cache.planner.invalidate(Invalidation(wires, (b"shop:__stamp:tag:a", b"shop:__stamp:tag:b")))
    assert sorted(plan.requests) == sorted(node.address for node in nodes)
    found = client.run(plan)
    assert [wire for wire in wires if not found[wire]] == []
    assert client.statistics().total.deletes == 20
    assert len(held(nodes, b"shop:__stamp:tag:a") | held(nodes, b"shop:__stamp:tag:b")) == 1
    without = cache.planner.invalidate(Invalidation(wires[:1]))
    assert len(without.requests) == 1


def test_nothing_to_invalidate_asks_nobody(cache: Cache) -> None:
    assert not Invalidation()
    cache.invalidate(Invalidation())
    assert cache.planner.invalidate(Invalidation()).requests == {}


def test_a_request_that_is_sent_again_deletes_its_stamps() -> None:
    request = Renewals([b"key"], [b"stamp"], b"12345678")
    token = request.opaque
    first = b"md key O%b\r\nms stamp 8 T0 O%b\r\n12345678\r\n" % (token, token)
    assert request.payload == first
    request.reset()
    assert request.payload == b"md key O%b\r\nmd stamp O%b\r\n" % (token, token)
    assert request.count == 2


@pytest.fixture
def proxy(nodes: list[RunningNode]) -> Iterator[FaultProxy]:
    with FaultProxy(nodes[0].address) as proxy:
        yield proxy


def test_a_node_that_could_not_be_told_loses_key_and_stamp_before_it_is_read_again(
    proxy: FaultProxy, nodes: list[RunningNode]
) -> None:
    others = [node.address for node in nodes[1:]]
    with Client([proxy.address, *others], timeout=0.3, connect_timeout=0.3) as client:
        cache = Cache("shop", ttl="10m", client=client)
        stamp = stamp_wire(cache.planner, "tag:author:42")
        cache.invalidate_tag("author:42")
        proxy.requests.drop = True
        with pytest.raises(DeleteFailed) as raised:
            cache.invalidate_tag("author:42")
        assert raised.value.keys == (stamp,)
        assert raised.value.node == proxy.address
        assert len(held(nodes, stamp)) == 2, "the others were told"
        proxy.requests.clear()
        assert client.replay_deletes() == 0
    assert ask(nodes[0].address, b"mg %b s v\r\n" % stamp) == b"EN\r\n"


def test_keys_of_stamps_are_the_caches_own(cache: Cache) -> None:
    with pytest.raises(ConfigurationError, match="keys that begin with '__' are the cache's own"):
        cache.loader("__stamp:{tag}")(lambda tag: None)
