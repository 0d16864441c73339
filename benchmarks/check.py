"""Has the working tree become slower? Both revisions run in one interleaved race, each judged by its ratio to the same floor.

The other revision is checked out into a temporary worktree and built there by pip, exactly as a user would build it. The answer is
advice: the noise of a busy machine looks like a change, so nothing fails by it.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.cases import Case
from benchmarks.report import failures, figure, table
from benchmarks.rivals import ASYNC, FLOOR, PURE, SYNC, Contender
from benchmarks.run import ROOT, Bench, Row, together

CASES = (
    Case("get"),
    Case("set"),
    Case("get_many", 100),
    Case("get_many", 5000),
    Case("set_many", 100),
    Case("delete_many", 100),
    Case("get_many", 100, value_bytes=4 << 10),
    Case("get", callers=8),
    Case("get", callers=50, asyncio=True),
    Case("get_many", 100, asyncio=True),
)
NOTABLE = 0.05  # a change of the ratio by less than this share is not worth a word
AGREEMENT = 0.85  # the share of rounds that must say the same; of 15 rounds, by chance once in 135 times if they were independent


def compare(revision: str, rounds: int, console: Console, cases: Sequence[Case] = CASES) -> str:
    """Compare the working tree with a revision; what to tell. Whatever goes wrong is told, too, and fails nothing."""
    with tempfile.TemporaryDirectory(prefix="kvcluster-bench-") as folder:
        try:
            site = build(revision, Path(folder), console)
        except subprocess.CalledProcessError as error:
            why = (error.stderr or error.stdout or str(error)).strip().splitlines()
            return f"cannot compare with {revision}: {why[-1] if why else error}"
        contenders = [contender for kind in (SYNC, ASYNC) for contender in race(kind, revision, site)]
        with Bench(contenders, rounds) as bench, console.status("") as status:
            rows = [row for group in together(cases) for row in bench.measure(group, status.update)]
    return verdict(rows, revision)


def build(revision: str, folder: Path, console: Console) -> Path:
    """Check a revision out and install it into a folder of its own; that folder."""
    tree, site = folder / "tree", folder / "site"

    def run(*command: str) -> None:
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)

    run("git", "worktree", "add", "--detach", str(tree), revision)
    try:
        with console.status(f"building {revision}"):
            run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(tree))
    finally:
        run("git", "worktree", "remove", "--force", str(tree))
    return site


def race(kind: Sequence[Contender], revision: str, site: Path) -> list[Contender]:
    """The floor, and both twins of this tree and of the other."""
    floor, compiled, pure = kind[:3]
    there = {"PYTHONPATH": str(site)}
    return [
        floor,
        compiled,
        pure,
        Contender(f"{compiled.name} ({revision})", compiled.adapter, there),
        Contender(f"{pure.name} ({revision})", pure.adapter, {**PURE, **there}),
    ]


def verdict(rows: Sequence[Row], revision: str) -> str:
    """Both ratios to the floor for each case and twin, and what became slower or faster."""
    lines = []
    for row in rows:
        for name in ("kvcluster", "kvcluster pure"):
            other = f"{name} ({revision})"
            change, sure = changed(row, name, other)
            said = "" if change is None or not sure or abs(change) < NOTABLE else "SLOWER" if change > 0 else "faster"
            share = "-" if change is None else f"{change:+.0%}"
            lines.append([f"{name}: {row.case}", figure(row.ratio(other)), figure(row.ratio(name)), share, said])
    return "\n".join(table(["ratio to the floor", revision, "this tree", "change", ""], lines) + failures(rows))


def changed(row: Row, name: str, other: str) -> tuple[float | None, bool]:
    """By which share the time changed, and whether the rounds agree on it."""
    if not all(row.seconds.get(who) for who in (name, other, FLOOR)):
        return None, False
    shares = [mine / theirs - 1 for mine, theirs in zip(row.seconds[name], row.seconds[other], strict=True)]
    agreeing = max(sum(share > 0 for share in shares), sum(share < 0 for share in shares))
    return statistics.median(shares), agreeing >= AGREEMENT * len(shares)
