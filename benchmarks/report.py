"""What was measured, as text: the marks, the ratios of every case, and the conditions they were taken under."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from benchmarks.cases import left_out, size
from benchmarks.marks import MARKS, PURE
from benchmarks.measures import Big
from benchmarks.rivals import ASYNC, FLOOR, SYNC
from benchmarks.run import ROOT, Row, versions


@dataclass
class Results:
    """All that one run found."""

    profile: str
    rounds: int
    block: float
    rows: list[Row] = field(default_factory=list)
    imports: Mapping[str, float | str] = field(default_factory=dict)
    idle: Mapping[str, tuple[float, float] | str] = field(default_factory=dict)
    big: Mapping[str, Sequence[Big | str]] = field(default_factory=dict)
    load: tuple[float, float, float] = field(default_factory=os.getloadavg)
    taken: datetime = field(default_factory=lambda: datetime.now(UTC))


def text(results: Results) -> str:
    """The whole report."""
    parts = [
        heading("Conditions"),
        *conditions(results),
        "",
        heading("Marks: ratio to another, at most"),
        *marks(results.rows),
        "",
        heading("Ratios: time of a call / time of the floor, medians"),
        *ratios(results.rows),
    ]
    if results.profile == "full":
        parts += [
            "",
            "Left out, because a call would move more than 10 MB: "
            + "; ".join(map(str, left_out()))
            + " (over any number of nodes).",
        ]
    if results.imports:
        parts += ["", heading("Import of the client, added to the start of Python"), *import_times(results.imports)]
    if results.idle:
        parts += [
            "",
            heading("One more idle client, connected to its nodes (4, or the only one it can have)"),
            *idle_memory(results.idle),
        ]
    if results.big:
        parts += ["", heading("Many clients of many nodes in one process"), *big_clusters(results.big)]
    return "\n".join(parts) + "\n"


def heading(words: str) -> str:
    """A line and its underline."""
    return f"{words}\n{'=' * len(words)}"


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """Columns as wide as they need to be: the first to the left, the others to the right."""
    rows = [list(head), *map(list, lines)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(head))]
    shown = [
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width) for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return [shown[0].rstrip(), "  ".join("-" * width for width in widths), *(row.rstrip() for row in shown[1:])]


def figure(value: float | None) -> str:
    """A ratio with as many digits as mean something."""
    if value is None:
        return "-"
    return f"{value:.3f}" if value < 0.2 else f"{value:.2f}" if value < 10 else f"{value:.0f}"


def conditions(results: Results) -> list[str]:
    """The machine, the moment and the versions."""
    rounds = f"{results.rounds} rounds of {results.block * 1000:g} ms blocks"
    installed = ", ".join(f"{name} {version}" for name, version in versions(SYNC + ASYNC).items())
    return [
        f"{results.taken:%Y-%m-%d %H:%M} UTC, {results.profile} profile, {rounds}",
        f"{cpu()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, load before the run {results.load[0]:.1f}",
        f"{platform.python_implementation()} {platform.python_version()}, {memcached()} with one thread per node, on loopback",
        f"{installed}; {compiled()}",
    ]


def cpu() -> str:
    """The processor's name."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def memcached() -> str:
    """The version of the nodes."""
    binary = shutil.which("memcached")
    return (
        subprocess.run([binary, "-V"], capture_output=True, text=True, check=True).stdout.strip()
        if binary
        else "no memcached binary"
    )


def compiled() -> str:
    """Whether kvcluster's compiled twins were built, and libmemcached's version."""
    from kvcluster.placement import _hot
    from kvcluster.protocol import hot

    built = "kvcluster compiled" if hot.COMPILED and _hot.COMPILED else "kvcluster NOT compiled: both its columns are the pure twin"
    try:
        import pylibmc
    except ImportError:
        return built
    return f"{built}, libmemcached {pylibmc.libmemcached_version}"


def marks(rows: Sequence[Row]) -> list[str]:
    """Each mark, what was measured, and whether it is met; beside it the pure twin's figure."""
    lines = []
    for mark in MARKS:
        measured = mark.measured(rows)
        verdict = "not measured" if measured is None else "met" if measured <= mark.most else "MISSED"
        lines.append([str(mark.case), mark.other, figure(mark.most), figure(measured), verdict, figure(mark.measured(rows, PURE))])
    return table(["kvcluster", "against", "at most", "measured", "", "pure"], lines)


def ratios(rows: Sequence[Row]) -> list[str]:
    """For sync, asyncio and placement each a table: a line per case, a column per client, and below it what needs a word."""
    lines: list[str] = []
    kinds = {
        "to the floor": [row for row in rows if not row.case.asyncio and row.base == FLOOR],
        "to the floor, asyncio": [row for row in rows if row.case.asyncio],
        "to uhashring": [row for row in rows if row.base != FLOOR],
    }
    for title, chosen in kinds.items():
        if not chosen:
            continue
        names = list(dict.fromkeys(name for row in chosen for name in (*row.seconds, *row.troubles)))
        if lines:
            lines.append("")
        lines += table(
            [title, "us", *names], [[str(row.case), micros(row), *(cell(row, name) for name in names)] for row in chosen]
        )
    if any(row.loops for row in rows):
        lines += ["", "* one call after the other (asyncio: all started at once), because the client has no method for many keys"]
    return lines + failures(rows)


def failures(rows: Sequence[Row]) -> list[str]:
    """Who could not take part in what, and why: a line for each client and reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for name, why in row.troubles.items():
            found.setdefault((name, why), []).append(str(row.case))
    return [f"x {name}: {why} ({'; '.join(cases)})" for (name, why), cases in found.items()]


def micros(row: Row) -> str:
    """The middle time of what the others are compared with, for orientation."""
    times = sorted(row.seconds.get(row.base, []))
    return f"{times[len(times) // 2] * 1e6:.0f}" if times else "-"


def cell(row: Row, name: str) -> str:
    """One client's ratio in one case; ``x`` where it failed, ``-`` where it cannot take part."""
    if name in row.troubles:
        return "x"
    return figure(row.ratio(name, row.base)) + ("*" if name in row.loops and name in row.seconds else "")


def import_times(imports: Mapping[str, float | str]) -> list[str]:
    """Milliseconds of each import."""
    return table(
        ["", "ms"], [[name, f"{cost * 1000:.0f}" if isinstance(cost, float) else f"x {cost}"] for name, cost in imports.items()]
    )


def idle_memory(idle: Mapping[str, tuple[float, float] | str]) -> list[str]:
    """Resident memory and descriptors of each."""
    return table(
        ["", "KB", "descriptors"],
        [
            [name, f"x {found}", ""] if isinstance(found, str) else [name, f"{found[0] / 1024:.1f}", f"{found[1]:.0f}"]
            for name, found in idle.items()
        ],
    )


def big_clusters(big: Mapping[str, Sequence[Big | str]]) -> list[str]:
    """A line per size of cluster; the columns per node stay level where the cost is linear."""
    lines = []
    for name, found in big.items():
        for entry in found:
            if isinstance(entry, str):
                lines.append([f"{name}: {entry}", *[""] * 7])
                continue
            lines.append(
                [
                    f"{name}, {entry.clients} clients",
                    str(entry.nodes),
                    f"{entry.build * 1000:.1f}",
                    f"{entry.build / entry.nodes * 1e6:.0f}",
                    size(round(entry.client)),
                    size(round(entry.client / entry.nodes)),
                    f"{entry.descriptors:.0f}",
                    size(round(entry.connection)),
                ]
            )
    return table(["", "nodes", "placement ms", "us per node", "a client", "per node", "descriptors", "a connection"], lines)


def save(results: Results) -> list[str]:
    """Write the text and the plot under ``docs/benchmarks/``; the paths, seen from the root of the project."""
    from benchmarks.plot import draw

    folder = ROOT / "docs" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / f"{results.profile}.txt"]
    written[0].write_text(text(results))
    written += draw(results, folder)
    return [str(path.relative_to(ROOT)) for path in written]
