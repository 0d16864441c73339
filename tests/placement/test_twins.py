"""The compiled slot fill and its pure twin: one suite for both, and both against the definition written out."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence

import mmh3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcluster.placement import _pure

Fill = Callable[[Sequence[int], Sequence[int], int], bytes]
SlotOwners = Callable[[Iterable[bytes], tuple[int, ...], int], list[int]]

TABLES = {bits: tuple(range(1 << bits)) for bits in (6, 14, 20)}  # by the bits of a slot; each slot is its own owner

NATIVE = importlib.util.find_spec("kvcluster.placement._native") is not None
needs_native = pytest.mark.skipif(not NATIVE, reason="kvcluster.placement._native is not built: only the pure twin was tested")


# One function for the whole module: hypothesis may call a test many times with it.
@pytest.fixture(scope="module", params=["pure", pytest.param("native", marks=needs_native)])
def fill(request: pytest.FixtureRequest) -> Fill:
    if request.param == "pure":
        return _pure.fill_slots
    from kvcluster.placement import _native

    return _native.fill_slots


def fmix32(h: int) -> int:
    h = (h ^ h >> 16) * 0x85EBCA6B % 2**32
    h = (h ^ h >> 13) * 0xC2B2AE35 % 2**32
    return h ^ h >> 16


def defined(seeds: Sequence[int], weights: Sequence[int], slots: int) -> list[int]:
    """The definition, one line per line of the specification."""

    def score(s: int, i: int) -> int:
        return max(fmix32((fmix32((s * 0x9E3779B1 + seeds[i]) % 2**32) + j * 0x85EBCA77) % 2**32) for j in range(weights[i]))

    return [max(range(len(seeds)), key=lambda i: (score(s, i), -i)) for s in range(slots)]


word = st.one_of(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 2**31, 2**32 - 1]))
members = st.lists(st.tuples(word, st.integers(1, 6)), min_size=1, max_size=8)


@settings(deadline=None)
@given(members=members)
def test_follows_the_definition(fill: Fill, members: list[tuple[int, int]]) -> None:
    seeds, weights = [seed for seed, _ in members], [weight for _, weight in members]
    assert list(fill(seeds, weights, 64)) == defined(seeds, weights, 64)


def test_a_tie_goes_to_the_lower_index(fill: Fill) -> None:
    assert fill([7, 7, 7], [1, 1, 1], 256) == bytes(256)


def test_heavy_nodes(fill: Fill) -> None:
    assert list(fill([1, 2, 3], [100, 1, 99], 64)) == defined([1, 2, 3], [100, 1, 99], 64)


@pytest.mark.parametrize(("nodes", "width"), [(256, 1), (257, 2), (600, 2)])
def test_owners_are_two_bytes_wide_over_256_nodes(fill: Fill, nodes: int, width: int) -> None:
    seeds = [i * 0x01000193 % 2**32 for i in range(nodes)]
    packed = fill(seeds, [1] * nodes, 64)
    owners = [int.from_bytes(packed[at : at + width], "little") for at in range(0, len(packed), width)]
    assert owners == defined(seeds, [1] * nodes, 64)


def test_unequal_lists_are_refused(fill: Fill) -> None:
    with pytest.raises(ValueError, match=r"weights|zip"):
        fill([1, 2], [1], 64)


@needs_native
@settings(max_examples=50, deadline=None)
@given(members=st.lists(st.tuples(word, st.integers(1, 12)), min_size=1, max_size=20), bits=st.integers(6, 14))
def test_twins_agree(members: list[tuple[int, int]], bits: int) -> None:
    from kvcluster.placement import _native

    seeds, weights = [seed for seed, _ in members], [weight for _, weight in members]
    assert _native.fill_slots(seeds, weights, 1 << bits) == _pure.fill_slots(seeds, weights, 1 << bits)


@pytest.fixture(scope="module", params=["pure", pytest.param("native", marks=needs_native)])
def slot_owners(request: pytest.FixtureRequest) -> SlotOwners:
    if request.param == "pure":
        return _pure.slot_owners
    from kvcluster.placement import _native

    return _native.slot_owners


@settings(deadline=None)
@given(keys=st.lists(st.one_of(st.binary(max_size=20), st.binary(max_size=260))), bits=st.sampled_from(list(TABLES)))
def test_owners_are_what_the_table_says_for_mmh3(slot_owners: SlotOwners, keys: list[bytes], bits: int) -> None:
    table = TABLES[bits]
    assert slot_owners(iter(keys), table, 32 - bits) == [table[mmh3.hash(key, 0, signed=False) >> 32 - bits] for key in keys]


def test_owners_of_every_length_of_key(slot_owners: SlotOwners) -> None:
    keys = [pattern[:size] for size in range(257) for pattern in (bytes(range(1, 257 - 1)) * 2, b"\xff" * 256)]
    assert slot_owners(keys, TABLES[20], 12) == [mmh3.hash(key, 0, signed=False) >> 12 for key in keys]


@pytest.mark.parametrize("key", [None, 7])
def test_only_bytes_have_an_owner(slot_owners: SlotOwners, key: object) -> None:
    with pytest.raises(TypeError):
        slot_owners([b"fine", key], TABLES[6], 26)  # type: ignore[list-item]


def test_a_table_too_short_is_an_error(slot_owners: SlotOwners) -> None:
    with pytest.raises(IndexError):
        slot_owners([b"%d" % i for i in range(100)], (0,), 26)


def chosen(*, code: str = "", pure: str | None = None) -> str:
    """The module whose `fill_slots` a fresh interpreter uses."""
    environment = {name: value for name, value in os.environ.items() if name != "KVCLUSTER_PURE"}
    if pure is not None:
        environment["KVCLUSTER_PURE"] = pure
    program = f"{code}\nfrom kvcluster.placement import _hot, slots\nprint(_hot.COMPILED, slots.fill_slots is _hot.fill_slots)"
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_the_compiled_twin_is_used_where_it_was_built() -> None:
    assert chosen() == f"{NATIVE} True"


def test_the_pure_twin_can_be_asked_for() -> None:
    assert chosen(pure="1") == "False True"


def test_the_pure_twin_stands_in_where_the_other_cannot_be_imported() -> None:
    assert chosen(code="import sys; sys.modules['kvcluster.placement._native'] = None") == "False True"
