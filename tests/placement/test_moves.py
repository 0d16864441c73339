"""`moved`: exact within a scheme, checked by counting; estimated between schemes, checked to be near and repeatable."""

from __future__ import annotations

from math import lcm

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcluster.placement import moved, placement
from kvcluster.placement.modulo import moved_residues
from kvcluster.placement.ring import SPACE, build_ring, moved_arcs, owner_on, ring_shares
from kvcluster.placement.slots import moved_slots
from kvcluster.topology import Node

TEN = [f"cache{i}" for i in range(10)]
PROBES = [b"probe:%d" % i for i in range(40_000)]


def counted(before: str, after: str, old: list[str], new: list[str]) -> float:
    owned, owning = placement(before, old).owners(PROBES), placement(after, new).owners(PROBES)
    return sum(a.id != b.id for a, b in zip(owned, owning, strict=True)) / len(PROBES)


@pytest.mark.parametrize("before", ["slots", "modulo", "ketama"])
@pytest.mark.parametrize("after", ["slots", "modulo", "ketama"])
@pytest.mark.parametrize("new", [TEN[1:], [*TEN, "cache10"], TEN[::-1]], ids=["removed", "added", "reversed"])
def test_agrees_with_counting_other_keys(before: str, after: str, new: list[str]) -> None:
    share = moved(placement(before, TEN), placement(after, new))
    assert share == pytest.approx(counted(before, after, TEN, new), abs=0.02)
    assert share == moved(placement(before, TEN), placement(after, new))


@pytest.mark.parametrize("name", ["slots", "modulo", "ketama"])
def test_nothing_moves_to_itself(name: str) -> None:
    assert moved(placement(name, TEN), placement(name, TEN)) == 0.0


@pytest.mark.parametrize("name", ["slots", "modulo", "ketama"])
def test_everything_moves_to_other_nodes(name: str) -> None:
    assert moved(placement(name, TEN), placement(name, ["other1", "other2"])) == 1.0


def test_the_cost_of_one_node_more() -> None:
    assert moved(placement("modulo", TEN), placement("modulo", [*TEN, "x"])) == pytest.approx(10 / 11)
    assert moved(placement("slots", TEN), placement("slots", [*TEN, "x"])) == placement("slots", [*TEN, "x"]).shares()[-1]


def test_what_moves_to_a_new_ketama_node_is_its_share() -> None:
    # 1 of 11 equal: rounding leaves every node its 40 digests, so nothing moves between the others.
    after = placement("ketama", [*TEN, "x"])
    assert moved(placement("ketama", TEN), after) == pytest.approx(after.shares()[-1], abs=1e-12)


def test_a_new_address_under_the_old_id_moves_nothing() -> None:
    before = placement("slots", [Node("10.0.0.1", id="left"), Node("10.0.0.2", id="right")])
    assert moved(before, placement("slots", [Node("10.0.0.9", id="left"), Node("10.0.0.2", id="right")])) == 0.0


def test_another_table_size_moves_nearly_everything() -> None:
    nodes = [f"n{i}" for i in range(30)]
    share = moved(placement("slots", nodes, 16384), placement("slots", nodes, 65536))
    assert share == pytest.approx(29 / 30, abs=0.01)


names = st.lists(st.sampled_from("abcdefgh"), unique=True, min_size=1, max_size=8)


@given(names, names)
def test_residues(before: list[str], after: list[str]) -> None:
    period = lcm(len(before), len(after))
    differing = sum(before[h % len(before)] != after[h % len(after)] for h in range(period))
    assert moved_residues(before, after) == pytest.approx(differing / period)


tables = st.sampled_from([1, 2, 4, 8]).flatmap(lambda size: st.lists(st.sampled_from("abc"), min_size=size, max_size=size))


@given(tables, tables)
def test_slots(before: list[str], after: list[str]) -> None:
    assert moved_slots(before, after) == sum(before[h * len(before) // 64] != after[h * len(after) // 64] for h in range(64)) / 64


# Points on a grid of 64: the owner of a hash is that of the grid line at or after it, so 64 hashes stand for all 2^32.
GRID = SPACE // 64
lines = st.lists(st.tuples(st.integers(0, 63).map(GRID.__mul__), st.integers(0, 4)), min_size=1, max_size=20)


@given(lines, lines)
def test_arcs(before: list[tuple[int, int]], after: list[tuple[int, int]]) -> None:
    old, new = build_ring(before), build_ring(after)
    hashes = range(0, SPACE, GRID)
    differing = sum("abcde"[owner_on(old, h)] != "fdbca"[owner_on(new, h)] for h in hashes)
    assert moved_arcs(old, new, "abcde", "fdbca") == differing / 64
    assert ring_shares(old, 5) == [sum(owner_on(old, h) == owner for h in hashes) / 64 for owner in range(5)]


@given(lines, st.integers(0, SPACE - 1))
def test_the_owner_on_a_ring_is_the_first_point_at_or_after(points: list[tuple[int, int]], hash_: int) -> None:
    assert owner_on(build_ring(points), hash_) == min(points, key=lambda item: ((item[0] - hash_) % SPACE, item[1]))[1]
