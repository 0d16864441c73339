"""The benchmarks of the cache over a database run, and believe nobody. No test here looks at a time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks import costs, herds, readthrough
from kvcluster.testing.nodes import start_node
from tests import databases

pytestmark = pytest.mark.skipif(not shutil.which("memcached"), reason="real memcached is what is measured")


@pytest.fixture(scope="module")
def addresses() -> Iterator[list[str]]:
    nodes = [start_node() for _ in range(2)]
    yield [node.address for node in nodes]
    for node in nodes:
        node.stop()


def quiet(text: str) -> None:
    """Nobody is told how far it is."""


@pytest.mark.slow
def test_a_herd_of_every_contender_waits_for_its_loads(addresses: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(herds, "PROCESSES", 2)
    with herds.Herd(addresses) as herd:
        cold = herd.cold(1, quiet)
        assert cold.keys() == herds.KINDS.keys()
        for name, waits in cold.items():
            if waits.trouble.startswith("ModuleNotFoundError"):  # it is there after `make bench`
                continue
            assert waits.trouble == "", name
            assert 1 <= waits.loads[0] <= 2 * herds.CALLERS
            assert waits.late[0] >= waits.middle[0] >= herds.LOAD
        assert cold["kvcluster"].loads == [1]
        orphaned = herd.orphaned(1, quiet)
        assert orphaned.loads == [2]
        unrefreshed = herd.unrefreshed(1, quiet)
        assert unrefreshed.loads == [2]
        assert unrefreshed.middle[0] >= 3 * herds.LOAD - 0.05
        storms = herd.storm(2, 0.3, quiet)
    for storm in storms.values():
        assert storm.seconds == pytest.approx(0.6)
        assert storm.writes == 24
        assert storm.reads > 0
        assert sum(storm.per_second(3)) * 0.2 == pytest.approx(len(storm.loads))
    assert len(storms[herds.UNLEASED].loads) > 0


def test_a_contender_that_fails_is_listed_with_the_reason(addresses: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(herds, "PROCESSES", 1)
    # The processes, which are new, know no contender of the first name.
    monkeypatch.setattr(herds, "KINDS", {"missing": herds.Own, "kvcluster": herds.Own})
    with herds.Herd(addresses) as herd:
        cold = herd.cold(1, quiet)
    assert cold["missing"].trouble == "KeyError: 'missing'"
    assert not cold["missing"].loads
    assert cold["kvcluster"].loads == [1]


def test_costs_are_timed_in_every_round(addresses: list[str]) -> None:
    for group, name in ((costs.hits(addresses, 2), "a hit"), (costs.bulk(addresses, 10, 2), "cold, 10 keys")):
        assert {group.base, name} <= group.seconds.keys()
        assert group.ratio(group.base) == 1.0
        assert all(len(times) == 2 and min(times) > 0 for times in group.seconds.values())


def test_commits_are_timed_where_there_is_a_database(addresses: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(databases, "describe", lambda kind: "SQLite" if kind == "sqlite" else f"no {kind}")
    sqlite, *others = costs.commits(addresses, 2)
    assert sqlite.troubles == {}
    assert [*sqlite.seconds] == ["sqlite: without outbox", "sqlite: with outbox"]
    assert all(len(times) == 2 and min(times) > 0 for times in sqlite.seconds.values())
    assert {name: why for group in others for name, why in group.troubles.items()} == {
        "mariadb: with outbox": "no mariadb",
        "postgresql: with outbox": "no postgresql",
    }


def test_calls_that_fail_are_listed_and_the_others_go_on() -> None:
    group = costs.Group("some", "good")

    def broken() -> Any:
        raise ValueError("no")

    calls = costs.prepared(group, {"good": lambda: len, "never made": broken, "fails": lambda: broken})
    costs.interleaved(group, {"good": lambda: None, "fails": calls["fails"]}, rounds=3, block=0.0001)
    assert group.troubles == {"never made": "ValueError: no", "fails": "ValueError: no"}
    assert len(group.seconds["good"]) == 3


def results() -> readthrough.Results:
    hit = costs.Group("hit", costs.HIT, {costs.HIT: [1e-5, 1e-5], "a hit": [1.2e-5, 1.3e-5], "an L1 hit": [4e-6, 4e-6]})
    bulk = costs.Group("bulk 100", "raw, 100 keys", {"raw, 100 keys": [1e-3], "cold, 100 keys": [3e-3]}, {"other": "Error: why"})
    found = readthrough.Results(2, {group.name: group for group in (hit, bulk)})
    found.cold = {
        "kvcluster": herds.Waits([1, 1, 1], [0.2, 0.2, 0.2], [0.21, 0.3, 0.21]),
        "other": herds.Waits(trouble="Error: no"),
    }
    found.orphaned = herds.Waits([2, 3], [0.5, 0.5], [0.6, 0.61])
    found.storms = {
        herds.UNLEASED: herds.Storm([0.1, 0.1, 0.1, 0.9], reads=100, writes=10, seconds=1.0),
        herds.LEASED: herds.Storm([0.5], reads=110, writes=10, seconds=1.0),
    }
    return found


def test_marks_are_met_missed_or_not_measured() -> None:
    lines = readthrough.marks(results())
    said = {line.split("  ")[0]: line.split()[-1] for line in lines[2:]}
    assert said["cold herd: loads, most of all rounds"] == "met"
    assert said["cold herd: p99, median of rounds"] == "met", "one disturbed round of three is no verdict"
    assert said["winner killed: loads, most of all rounds"] == "MISSED"
    assert said["winner killed: p99, median of rounds"] == "met"
    assert said["a hit"] == "met"
    assert said["an L1 hit"] == "MISSED"
    assert said["cold, 100 keys"] == "MISSED"
    assert said["cold, 1000 keys"] == "measured", "not measured"


def test_report_and_plot_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readthrough, "ROOT", tmp_path)
    written = readthrough.save(results())
    text = (tmp_path / "docs/benchmarks/readthrough.txt").read_text()
    assert "x other: Error: no" in text
    assert "x other: Error: why" in text
    assert "Leases spare 4.0x of the loads, 3.0x at the peak" in text
    if find_spec("matplotlib"):
        assert written == ["docs/benchmarks/readthrough.txt", "docs/benchmarks/readthrough.svg"]
        assert "without leases: 4/s" in (tmp_path / "docs/benchmarks/readthrough.svg").read_text()
