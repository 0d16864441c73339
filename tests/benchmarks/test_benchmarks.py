"""The benchmarks run, and believe nobody. No test here looks at a time: what is fast is for `make bench` to say."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import cases, check, marks, measures, report, run
from benchmarks.cases import Case
from benchmarks.rivals import ASYNC, FLOOR, SYNC, Contender
from benchmarks.run import Bench, Row

pytestmark = pytest.mark.skipif(not shutil.which("memcached"), reason="the floor needs real memcached")

MODULES = {"python-binary-memcached": "bmemcached", "python-memcached": "memcache"}


def installed(contenders: Sequence[Contender]) -> list[Contender]:
    """The contenders that this environment has; all of them after `make bench`."""
    names = {contender: contender.rival.distribution for contender in contenders}
    return [one for one, name in names.items() if not name or find_spec(MODULES.get(name, name.replace("-", "_")))]


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with Bench(installed(SYNC + ASYNC), rounds=2, block=0.001) as bench:
        yield bench


TINY = [
    Case("get", nodes=2),
    Case("set", nodes=2),
    Case("get_many", 10, nodes=2),
    Case("set_many", 10, nodes=2, value_bytes=4096),
    Case("delete_many", 10, nodes=2),
    Case("get", nodes=1, callers=3),
    Case("get", nodes=1, callers=3, asyncio=True),
    Case("set", nodes=2, callers=3, asyncio=True, burst=False),
    Case("get", nodes=2, callers=3, asyncio=True, burst=True),
    Case("get_many", 10, nodes=2, asyncio=True),
    Case("delete_many", 10, nodes=1, asyncio=True),
    Case("place", 10, nodes=2),
]


@pytest.mark.parametrize("case", TINY, ids=str)
def test_every_client_passes_its_checks_and_is_timed_in_every_round(bench: Bench, case: Case) -> None:
    (row,) = bench.measure([case])
    assert row.troubles == {}
    names = {contender.name for contender in bench.entitled(case)}
    assert {"kvcluster", "kvcluster pure", row.base} <= names | {"uhashring"}
    assert row.seconds.keys() == names
    assert all(len(times) == 2 and min(times) > 0 for times in row.seconds.values())


def only(name: str) -> list[Contender]:
    return [SYNC[0], Contender("impostor", f"tests.benchmarks.impostors:{name}")]


@pytest.mark.parametrize(
    ("name", "case", "why"),
    [
        ("Forgetful", Case("get", nodes=1), "WrongAnswer"),
        ("Forgetful", Case("get_many", 10, nodes=1), "WrongAnswer"),
        ("Idle", Case("set", nodes=1), "WrongAnswer"),
        ("Idle", Case("delete_many", 10, nodes=1), "WrongAnswer"),
        ("Hanging", Case("get", nodes=1), "no end within 1 s"),
        ("Absent", Case("get", nodes=1), "No module named 'no_such_library'"),
    ],
)
def test_a_client_that_cheats_hangs_or_is_missing_is_listed_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, name: str, case: Case, why: str
) -> None:
    monkeypatch.setattr(run, "PREPARE_LIMIT", 1.0 if name == "Hanging" else 10.0)
    with Bench(only(name), rounds=1, block=0.001) as bench:
        (row,) = bench.measure([case])
    assert why in row.troubles["impostor"]
    assert row.seconds.keys() == {FLOOR}
    assert any(line.startswith("x impostor: ") and why in line and str(case) in line for line in report.ratios([row]))


def made_up(case: Case, **seconds: float) -> Row:
    return Row(case, {name.replace("_", " "): [value] * 4 for name, value in seconds.items()})


def test_marks_are_met_missed_or_not_measured() -> None:
    rows = [
        made_up(marks.GET, floor=1.0, kvcluster=1.1, pylibmc=1.0, kvcluster_pure=2.0),
        made_up(marks.GET_MANY, kvcluster=2.0),
        made_up(marks.LARGE, kvcluster=99.0),
    ]
    lines = report.marks(rows)

    def verdict(case: Case, against: str) -> list[str]:
        (line,) = [line for line in lines if line.startswith(f"{case} ") and f" {against} " in line]
        return line.split()[-4:]

    assert verdict(marks.GET, "floor") == ["1.15", "1.10", "met", "2.00"]
    assert verdict(marks.GET, "pylibmc") == ["1.00", "1.10", "MISSED", "2.00"]
    assert verdict(marks.SET_MANY, "pylibmc")[-3:] == ["not", "measured", "-"]
    assert verdict(marks.LARGE, "its own get_many(100) x 50")[1:3] == ["0.99", "met"]


def test_ratio_is_the_median_of_the_rounds_ratios() -> None:
    # A disturbed second slows both by the same, and leaves no trace in the ratio.
    assert run.ratio([2.0, 20.0, 2.2], [1.0, 10.0, 1.0]) == 2.0
    assert run.ratio([], [1.0]) is None


def test_the_full_profile_holds_the_quick_one_and_nothing_silly() -> None:
    full = list(cases.full())
    assert set(cases.quick()) <= set(full)
    assert len(full) == len(set(full))
    assert not any(case.silly for case in full)
    assert all(case.silly for case in cases.left_out())
    assert {mark.case for mark in marks.MARKS} <= set(cases.quick())


def test_keys_have_one_shape_and_no_two_clients_share_one() -> None:
    case = Case("get_many", 10)
    one, other = cases.items(case, "a"), cases.items(case, "another client")
    assert len(one) == len(other) == cases.KEYS
    assert {(len(key), len(value)) for key, value in (one | other).items()} == {(29, 100)}
    assert not one.keys() & other.keys()


def test_memory_and_descriptors_are_measured(bench: Bench) -> None:
    if not measures.LINUX:
        pytest.skip("/proc is Linux's")
    found = measures.idle_clients(bench, [SYNC[1]])
    memory, descriptors = found["kvcluster"]
    assert descriptors == 4
    assert isinstance(memory, float)
    (big,) = measures.big_clusters(SYNC[1], sizes=(20,), clients=3)
    assert isinstance(big, measures.Big)
    assert (big.nodes, big.clients, big.connected, big.descriptors) == (20, 3, 3, 20)


def test_report_and_plot_are_written(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "ROOT", tmp_path)
    results = report.Results("quick", 2, 0.001, [made_up(marks.GET, floor=1.0, kvcluster=1.1, pylibmc=0.5)])
    results.imports = {"kvcluster": 0.04, "gone": "No module"}
    results.idle = {"kvcluster": (2048.0, 4.0)}
    results.big = {"kvcluster": [measures.Big(10, 100, 100, 0.001, 4096, 1024, 10), "100 nodes: no end"]}
    written = report.save(results)
    assert written[0] == "docs/benchmarks/quick.txt"
    text = (tmp_path / written[0]).read_text()
    assert "memcached 1." in text
    assert "kvcluster 0" in text
    if find_spec("matplotlib"):
        assert [path.rpartition(".")[2] for path in written] == ["txt", "svg", "png"]
        assert "pylibmc" in (tmp_path / written[1]).read_text()


def test_check_says_what_became_slower() -> None:
    row = made_up(Case("get"), floor=1.0, kvcluster=1.5)
    row.seconds |= {"kvcluster (main)": [1.2] * 4, "kvcluster pure": [2.0] * 4, "kvcluster pure (main)": [2.01] * 4}
    slower, alike = check.verdict([row], "main").splitlines()[2:]
    assert slower.split()[-4:] == ["1.20", "1.50", "+25%", "SLOWER"]
    assert alike.split()[-1] == "-0%"


def test_check_of_a_revision_that_is_not_there_only_says_so() -> None:
    told = check.compare("no-such-revision", 1, Console(quiet=True))
    assert told.startswith("cannot compare with no-such-revision: ")
