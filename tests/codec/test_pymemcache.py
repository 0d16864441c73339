"""What pymemcache wrote kvcluster reads, and the other way round, by way of a real node."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymemcache import serde
from pymemcache.client.base import Client as PlainClient

from kvcluster import Client, PickleCodec, StandardCodec
from kvcluster.testing.nodes import RunningNode, start_node

PLAIN = [b"bytes", b"\0\r\n\xff", "", "text", "김\r\n", 0, 7, -7, 2**63, 10**30]
PICKLED = [None, True, 1.5, (1, "a"), {1, 2}, {"a": [1, (2,)]}, b"x" * 3 == b"y"]
LONG = ["long text " * 1000, b"long bytes" * 1000]

text = st.text(alphabet=st.characters(exclude_categories=["Cs"]))
plain = st.one_of(st.binary(min_size=1), text, st.integers())
real = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def node() -> Iterator[RunningNode]:
    running = start_node()
    yield running
    running.stop()


@pytest.fixture(scope="module", params=[serde.pickle_serde, serde.compressed_serde], ids=["pickle_serde", "compressed_serde"])
def theirs(request: pytest.FixtureRequest, node: RunningNode) -> Iterator[PlainClient]:
    client = PlainClient(node.address, serde=request.param, timeout=5, default_noreply=False)
    yield client
    client.close()


def connected(node: RunningNode, codec: StandardCodec) -> Iterator[Client]:
    with Client([node.address], timeout=5, codec=codec) as client:
        yield client


@pytest.fixture(scope="module")
def ours(node: RunningNode) -> Iterator[Client]:
    yield from connected(node, StandardCodec())


@pytest.fixture(scope="module")
def ours_with_pickle(node: RunningNode) -> Iterator[Client]:
    yield from connected(node, PickleCodec())


def same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other


@pytest.mark.parametrize("value", PLAIN + LONG, ids=lambda value: repr(value)[:20])
def test_plain_values_both_ways(theirs: PlainClient, ours: Client, value: Any) -> None:
    assert theirs.set("key", value)
    assert same(ours.get("key"), value)
    assert same(ours.gets_many(["key"])["key"][0], value)
    assert ours.set("key", value)
    assert same(theirs.get("key"), value)


@real
@given(value=plain)
def test_any_plain_value_both_ways(theirs: PlainClient, ours: Client, value: Any) -> None:
    theirs.set("key", value)
    assert same(ours.get("key"), value)
    ours.set_many({"key": value})
    assert same(theirs.get("key"), value)


def test_empty_bytes_both_ways(theirs: PlainClient, ours: Client) -> None:
    theirs.set("key", b"")
    assert same(ours.get("key"), b"")
    ours.set("key", b"")
    assert same(theirs.get("key"), b"")


@pytest.mark.parametrize("value", PICKLED, ids=repr)
def test_pickled_values_both_ways_where_asked_for(theirs: PlainClient, ours_with_pickle: Client, value: Any) -> None:
    theirs.set("key", value)
    assert same(ours_with_pickle.get("key"), value)
    ours_with_pickle.set("key", value)
    assert same(theirs.get("key"), value)


def test_a_long_pickle_both_ways(theirs: PlainClient, ours_with_pickle: Client) -> None:
    value = {"numbers": list(range(5000)), "pairs": [(1, 2)] * 500}
    theirs.set("key", value)
    assert same(ours_with_pickle.get("key"), value)
    ours_with_pickle.set("key", value)
    assert same(theirs.get("key"), value)


class Bomb:
    """Says so where it is unpickled."""

    exploded = False

    def __reduce__(self) -> Any:
        return setattr, (Bomb, "exploded", True)


def test_by_default_a_pickle_is_a_counted_miss_and_is_not_run(theirs: PlainClient, ours: Client) -> None:
    before = ours.statistics().total
    theirs.set("key", Bomb())
    theirs.set("fine", 7)
    assert ours.get("key", "default") == "default"
    assert ours.get_many(["key", "fine"]) == {"fine": 7}
    assert ours.gat("key", 100) is None
    after = ours.statistics().total
    assert not Bomb.exploded
    assert after.undecodable - before.undecodable == 3
    assert after.misses - before.misses == 3
    assert after.hits - before.hits == 1
    assert after.errors == before.errors


def test_the_bomb_of_these_tests_would_explode() -> None:
    pickle.loads(pickle.dumps(Bomb()))
    assert Bomb.exploded
    Bomb.exploded = False
