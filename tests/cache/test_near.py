"""Values kept in the process: for how long, how many, and what an invalidation does to those on their way."""

from __future__ import annotations

import multiprocessing
import threading

import pytest

from kvcluster import Cache, Client
from kvcluster.cache.near import ABSENT, Near
from kvcluster.codec import StandardCodec
from kvcluster.plan import Invalidation
from kvcluster.testing.clock import Clock

CODEC = StandardCodec()
DECODE = CODEC.decode


def test_values_end_with_their_ttl() -> None:
    clock = Clock(100.0)
    near = Near(10, clock)
    near.put(b"a", 1, b"1", 2, 5.0, near.generation)
    clock.advance(4.9)
    assert near.get(b"a", DECODE) == 1
    assert near.left(b"a") == pytest.approx(0.1)
    clock.advance(0.1)
    assert near.get(b"a", DECODE) is ABSENT
    assert near.left(b"a") is None
    assert near.hits == 1


def test_the_oldest_make_room() -> None:
    near = Near(3, Clock(0.0))
    for key in (b"a", b"b", b"a", b"c", b"d"):
        near.put(key, key, key, 0, 5.0, near.generation)
    assert [near.get(key, DECODE) is not ABSENT for key in (b"a", b"b", b"c", b"d")] == [True, False, True, True]
    assert len(near) == 3


def test_what_was_asked_for_before_an_invalidation_is_not_kept() -> None:
    near = Near(3, Clock(0.0))
    generation = near.generation
    near.forget([b"a"])
    near.put(b"a", "old", b"old", 16, 5.0, generation)
    assert near.get(b"a", DECODE) is ABSENT
    generation = near.generation
    near.clear()
    near.put(b"a", "old", b"old", 16, 5.0, generation)
    assert len(near) == 0


@pytest.mark.parametrize("value", [7, "text", b"bytes", None, 2.5, True])
def test_what_nobody_can_change_is_given_out_as_it_is(value: object) -> None:
    near = Near(1, Clock(0.0))
    near.put(b"a", value, *CODEC.encode(value), 5.0, near.generation)
    assert near.get(b"a", DECODE) is value


class Text(str):
    """A text with attributes, which can be changed."""


@pytest.mark.parametrize("value", [[1], {"a": [1]}, (1, [2]), Text("text"), bytearray(b"bytes")])
def test_what_can_be_changed_is_decoded_for_each(value: object) -> None:
    near = Near(1, Clock(0.0))
    near.put(b"a", value, b"their bytes", 7, 5.0, near.generation)
    one, other = [near.get(b"a", lambda data, flags: [data, flags]) for _ in range(2)]
    assert one == other == [b"their bytes", 7]
    assert one is not other


def test_tuples_of_what_nobody_can_change_are_too() -> None:
    near, value = Near(1, Clock(0.0)), (1, "a", None)
    near.put(b"a", value, b"", 0, 5.0, near.generation)
    assert near.get(b"a", DECODE) is value


def test_hits_ask_no_node_and_give_objects_of_their_own(client: Client) -> None:
    cache = Cache("shop", ttl="10m", client=client)
    load = cache.loader("list:{n}", l1=60)(lambda n: [n])
    assert [load(1), load(1)] == [[1], [1]]
    read = client.statistics().total.bytes_read
    one, other = load(1), load(1)
    one.append(2)
    assert (one, other, load(1)) == ([1, 2], [1], [1])
    assert cache.l1_hits == 3
    assert client.statistics().total.bytes_read == read


@pytest.mark.parametrize("soft", [False, True])
def test_own_invalidations_are_seen_at_once(client: Client, soft: bool) -> None:
    cache = Cache("shop", ttl="10m", client=client, l1=60)
    version = ["old"]
    load = cache.loader("row:{n}")(lambda n: version[0])
    assert [load(1), load(1)] == ["old"] * 2
    version[0] = "new"
    assert load(1) == "old", "it is kept here"
    load.invalidate(1, soft=soft)
    assert [load(1), load(1)] == ["new"] * 2
    version[0] = "newer"
    assert load.refresh(1) == load(1) == "newer"


def test_own_bumps_of_a_stamp_are_seen_at_once(client: Client) -> None:
    cache = Cache("shop", ttl="10m", client=client, l1=60)
    version = ["old"]
    load = cache.loader("row:{n}")(lambda n: version[0])
    load.stamps_of = lambda arguments: (f"tag:row-{arguments['n']}",)
    assert [load(1), load(1)] == ["old"] * 2
    version[0] = "new"
    assert load(1) == "old", "it is kept here"
    cache.invalidate_tag("row-1")
    assert [load(1), load(1)] == ["new"] * 2


def test_others_invalidations_are_seen_when_the_ttl_is_over(client: Client) -> None:
    cache, other = Cache("shop", ttl="10m", client=client), Cache("shop", ttl="10m", client=client)
    version = ["old"]
    load = cache.loader("row:{n}", l1=0.2)(lambda n: version[0])
    theirs = other.loader("row:{n}")(lambda n: version[0])
    load(1), load(1)
    version[0] = "new"
    theirs.invalidate(1)
    assert load(1) == "old"
    assert threading.Event().wait(0.25) is False
    assert load(1) == "new"


def test_a_value_is_kept_no_longer_than_it_is_fresh(client: Client) -> None:
    cache = Cache("shop", ttl=5, client=client, jitter=0)
    load = cache.loader("row", l1="10m", stale_while_revalidate="1h")(lambda: 1)
    load(), load()
    left = cache._near.left(b"shop:row")
    assert left is not None
    assert 0 < left <= 5


def test_reads_of_many_fill_it(client: Client) -> None:
    cache = Cache("shop", ttl="10m", client=client)
    load = cache.loader("row:{n}", l1=60)(lambda n: n)
    load.get_many([1, 2]), load.get_many([1, 2])
    assert len(cache._near) == 2
    cache.invalidate(Invalidation((b"shop:row:1",)))
    assert len(cache._near) == 1


def _size(near: Near, sizes: object) -> None:
    sizes.put(len(near))  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_begins_without_any() -> None:
    near = Near(3)
    near.put(b"a", b"1", b"1", 0, 60, near.generation)
    fork = multiprocessing.get_context("fork")
    sizes = fork.SimpleQueue()
    child = fork.Process(target=_size, args=(near, sizes))
    child.start()
    assert sizes.get() == 0
    child.join(10)
    assert len(near) == 1
