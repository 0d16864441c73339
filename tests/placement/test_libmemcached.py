"""libmemcached's unweighted schemes against pylibmc itself. The keys include bytes over 127, which C hashes as negative."""

from __future__ import annotations

import pytest

from kvcluster.placement import moved, placement
from tests.placement.recorder import KEYS, nodes_at, pylibmc_owners, recording

SCHEMES: dict[str, dict[str, bool]] = {"libmemcached": {}, "libmemcached-consistent": {"ketama": True}}


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("count", [1, 4, 10, 25])
def test_every_key_has_the_owner_that_libmemcached_gives_it(name: str, count: int) -> None:
    with recording(["127.0.0.1:0"] * count) as recorder:
        nodes = nodes_at(recorder.addresses, [1] * count)
        theirs = pylibmc_owners(recorder, nodes, KEYS, SCHEMES[name])
    assert [node.address for node in placement(name, nodes).owners(KEYS)] == theirs


def test_schemes_of_one_kind_but_another_hash_are_not_compared_by_residues_or_arcs() -> None:
    nodes = ["a", "b", "c", "d"]
    for mine, theirs in (("modulo", "libmemcached"), ("ketama", "libmemcached-consistent")):
        before, after = placement(mine, nodes), placement(theirs, nodes)
        assert before.exact_move(after) is None
        assert moved(before, after) == pytest.approx(3 / 4, abs=0.1)
