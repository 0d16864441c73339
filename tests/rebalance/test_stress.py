"""No read is stale while the cluster is resized, replaced and reweighted under load and its coordinator is killed; and the check
finds one where keys are copied by a plain add.

The suite does so for less than a minute. `make model` checks a million reads, with nodes that restart.
"""

from __future__ import annotations

import pytest

from tests.rebalance.stress import stress


@pytest.mark.slow
def test_no_read_is_stale_while_the_cluster_is_resized_over_and_over() -> None:
    found = stress(reads=10**9, seconds=20.0)
    assert found.counts["stale"] == 0, found.complaints
    assert found.counts["reads"] > 5000
    assert found.counts["hits"] > found.counts["reads"] / 2
    assert found.counts["writes"] > 1000
    assert found.resizes >= 1


@pytest.mark.slow
def test_the_check_finds_what_copying_by_add_brings_back() -> None:
    found = stress(reads=10**9, seconds=60.0, by_add=True, seed=2)
    assert found.counts["stale"] > 0


@pytest.mark.large
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("restarts", [False, True], ids=["kills", "kills and restarts"])
def test_no_read_of_a_million_is_stale(restarts: bool) -> None:
    found = stress(reads=1_000_000, seconds=3000.0, seed=7, restarts=restarts)
    assert found.counts["stale"] == 0, found.complaints
    assert found.counts["reads"] >= 1_000_000
    assert found.kills > 0
