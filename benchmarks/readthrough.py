"""`python -m benchmarks --readthrough`: what reading through the cache costs, and what it spares the database; two minutes.

It takes real nodes, and the databases that run here. The marks are what kvcluster set out to reach; times in them are those of
this machine, ratios are taken in one interleaved run.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks import costs, herds
from benchmarks.report import compiled, cpu, figure, heading, memcached, table
from benchmarks.run import ROOT
from kvcluster.testing.nodes import start_node

NODES = 4
HERD_ROUNDS, ORPHAN_ROUNDS, STORM_ROUNDS, COMMIT_ROUNDS = 5, 3, 2, 10
STORM_SECONDS = 3.0
NODE_MEMORY = 256  # megabytes
ALLOWANCE = 0.015  # seconds that a waiter may lose on top of the load
NAME = "readthrough"


@dataclass
class Results:
    """All that one run found."""

    rounds: int
    groups: dict[str, costs.Group] = field(default_factory=dict)
    cold: dict[str, herds.Waits] = field(default_factory=dict)
    orphaned: herds.Waits = field(default_factory=herds.Waits)
    unrefreshed: herds.Waits = field(default_factory=herds.Waits)
    storms: dict[str, herds.Storm] = field(default_factory=dict)
    load: float = field(default_factory=lambda: os.getloadavg()[0])
    taken: datetime = field(default_factory=lambda: datetime.now(UTC))


def run(rounds: int, tell: Callable[[str], object]) -> Results:
    """Take all figures."""
    results = Results(rounds)
    nodes = [start_node(memory=NODE_MEMORY) for _ in range(NODES)]
    try:
        addresses = [node.address for node in nodes]
        with herds.Herd(addresses) as herd:
            results.cold = herd.cold(HERD_ROUNDS, tell)
            results.orphaned = herd.orphaned(ORPHAN_ROUNDS, tell)
            results.unrefreshed = herd.unrefreshed(ORPHAN_ROUNDS, tell)
            results.storms = herd.storm(STORM_ROUNDS, STORM_SECONDS, tell)
        groups = []
        tell("hits")
        groups.append(costs.hits(addresses, rounds))
        for keys in (100, 1000):
            tell(f"{keys} cold keys")
            groups.append(costs.bulk(addresses, keys, rounds))
        tell("commits")
        groups += costs.commits(addresses, COMMIT_ROUNDS)
        results.groups = {group.name: group for group in groups}
    finally:
        for node in nodes:
            node.stop()
    return results


@dataclass(frozen=True)
class Mark:
    """What must not be more than a limit, and how to find it among the results."""

    what: str
    against: str
    most: str
    measured: Callable[[Results], tuple[float, float] | None]  # the figure, and the limit in the same unit
    unit: str = ""


def _cost(group: str, name: str, most: float) -> Mark:
    """A ratio to a group's base."""

    def measured(results: Results) -> tuple[float, float] | None:
        found = results.groups[group].ratio(name) if group in results.groups else None
        return None if found is None else (found, most)

    base = {"hit": costs.HIT}.get(group, "raw get_many + set_many" if group.startswith("bulk") else "without outbox")
    return Mark(name, base, figure(most), measured)


def _near(results: Results) -> tuple[float, float] | None:
    found = results.groups["hit"].middle("an L1 hit")
    return None if found is None else (found * 1e6, 3.0)


def _waits(what: str, waits: Callable[[Results], herds.Waits], loads: int, most: float) -> tuple[Mark, Mark]:
    """The loads and the 99th percentile of a herd, both in the worst of its rounds."""

    def loaded(results: Results) -> tuple[float, float] | None:
        found = waits(results).loads
        return (max(found), loads) if found else None

    def late(results: Results) -> tuple[float, float] | None:
        found = waits(results).late
        return (sorted(found)[len(found) // 2] * 1000, most * 1000) if found else None

    return (
        Mark(f"{what}: loads, most of all rounds", "-", str(loads), loaded),
        Mark(f"{what}: p99, median of rounds", f"load of {herds.LOAD * 1000:g} ms", f"{most * 1000:g} ms", late, " ms"),
    )


MARKS = (
    *_waits("cold herd", lambda results: results.cold.get(herds.LEASED, herds.Waits()), 1, herds.LOAD + ALLOWANCE),
    *_waits("winner killed", lambda results: results.orphaned, 2, 3 * herds.LOAD + ALLOWANCE),
    *_waits(
        "killed in a refresh", lambda results: results.unrefreshed, 2, 3 * herds.LOAD + ALLOWANCE + 2 * herds.GLANCE
    ),  # seen by the next read
    _cost("bulk 100", "cold, 100 keys", 2.0),
    _cost("bulk 1000", "cold, 1000 keys", 2.0),
    _cost("hit", "a hit", 1.3),
    _cost("hit", "a hit with two stamps", 1.4),
    Mark("an L1 hit", "-", "3 us", _near, " us"),
    *(_cost(kind, f"{kind}: with outbox", 1.3) for kind in ("sqlite", "mariadb", "postgresql")),
)


def text(results: Results) -> str:
    """The whole report."""
    callers = f"{herds.PROCESSES} processes x {herds.CALLERS} callers"
    parts = [
        heading("Conditions"),
        *conditions(results),
        "",
        heading("Marks: at most"),
        *marks(results),
        "",
        heading(f"Cold key, {callers}, a load of {herds.LOAD * 1000:g} ms"),
        *waits(results),
        "",
        heading("Costs: time of a call, and its ratio in the same rounds"),
        *ratios(results),
        "",
        heading(f"Loads of the database under a herd with a writer, {callers}"),
        *storms(results),
    ]
    return "\n".join(parts) + "\n"


def conditions(results: Results) -> list[str]:
    """The machine, the moment and the versions."""
    distributions = sorted({kind.distribution for kind in herds.KINDS.values()} | {"SQLAlchemy"})
    rounds = f"{results.rounds} rounds of {costs.BLOCK * 1000:g} ms blocks, {HERD_ROUNDS} of each herd"
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return [
        f"{results.taken:%Y-%m-%d %H:%M} UTC, {rounds}",
        f"{cpu()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, load before the run {results.load:.1f}",
        f"{python}, {NODES} nodes of {memcached()} with one thread each, on loopback",
        ", ".join(f"{name} {_version(name)}" for name in distributions) + f"; {compiled()}",
    ]


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"


def marks(results: Results) -> list[str]:
    """Each mark, what was measured, and whether it is met."""
    lines = []
    for mark in MARKS:
        found = mark.measured(results)
        shown = "-" if found is None else f"{found[0]:.0f}{mark.unit}" if found[0] >= 100 else f"{figure(found[0])}{mark.unit}"
        verdict = "not measured" if found is None else "met" if found[0] <= found[1] else "MISSED"
        lines.append([mark.what, mark.against, mark.most, shown, verdict])
    return table(["kvcluster", "against", "at most", "measured", ""], lines)


def waits(results: Results) -> list[str]:
    """How each contender's herd waited; a range over the rounds."""
    rows = {
        **results.cold,
        "kvcluster, winner killed by -9": results.orphaned,
        "kvcluster, killed in a refresh; until a new value": results.unrefreshed,
    }
    lines = [
        [
            name,
            _range(each.loads, 1, "%.0f"),
            _range(each.middle, 1000, "%.0f"),
            _range(each.late, 1000, "%.0f"),
        ]
        for name, each in rows.items()
    ]
    notes = [f"x {name}: {each.trouble}" for name, each in rows.items() if each.trouble]
    return table(["", "loads", "p50 ms", "p99 ms"], lines) + notes


def _range(values: Sequence[float], times: float, form: str) -> str:
    if not values:
        return "x"
    least, most = form % (min(values) * times), form % (max(values) * times)
    return least if least == most else f"{least}-{most}"


def ratios(results: Results) -> list[str]:
    """Every call of every group."""
    lines = [
        [name, f"{middle * 1e6:.1f}" if middle < 1e-4 else f"{middle * 1e6:.0f}", group.base, figure(group.ratio(name))]
        for group in results.groups.values()
        for name in group.seconds
        if (middle := group.middle(name)) is not None
    ]
    notes = [f"x {name}: {why}" for group in results.groups.values() for name, why in group.troubles.items()]
    return table(["", "us", "beside", "ratio"], lines) + notes


def storms(results: Results) -> list[str]:
    """Loads a second with and without leases."""
    lines = []
    for name, storm in results.storms.items():
        rates = storm.per_second(_bins(storm))
        lines.append(
            [
                "with leases" if name == herds.LEASED else name,
                f"{len(storm.loads) / storm.seconds:.0f}",
                f"{max(rates):.0f}",
                f"{storm.writes / storm.seconds:.0f}",
                f"{storm.reads / storm.seconds:.0f}",
            ]
        )
    without, leased = results.storms[herds.UNLEASED], results.storms[herds.LEASED]
    share = len(without.loads) / max(1, len(leased.loads))
    peak = max(without.per_second(_bins(without))) / max(1, max(leased.per_second(_bins(leased))))
    return [
        *table(["", "loads/s", "at the peak", "writes/s", "reads/s"], lines),
        "",
        f"Leases spare {share:.1f}x of the loads, {peak:.1f}x at the peak; in Facebook's trace it was 13x at the peak (NSDI'13).",
        f"{herds.STORM_KEYS} keys; a load takes {herds.STORM_LOAD * 1000:g} ms, a caller waits {herds.STORM_PAUSE * 1000:g} ms.",
    ]


def _bins(storm: herds.Storm) -> int:
    return round(storm.seconds / 0.1)


def draw(results: Results, folder: Path) -> list[Path]:
    """Write the plot of the loads a second; nothing where matplotlib is not installed."""
    try:
        import matplotlib as mpl
    except ImportError:
        return []
    mpl.use("svg")
    import matplotlib.pyplot as plt

    from benchmarks.plot import INK, OTHERS, OWN

    path = folder / f"{NAME}.svg"
    with mpl.rc_context({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "kvcluster"}):
        picture, panel = plt.subplots(figsize=(9, 3.4), layout="constrained")
        for name, colour, words in ((herds.UNLEASED, OTHERS, "without leases"), (herds.LEASED, OWN, "with leases")):
            storm = results.storms[name]
            rates = storm.per_second(_bins(storm))
            panel.stairs(rates, [storm.seconds * at / len(rates) for at in range(len(rates) + 1)], fill=True, color=colour)
            panel.annotate(
                f"{words}: {len(storm.loads) / storm.seconds:.0f}/s",
                (storm.seconds, rates[-1]),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                color=INK,
            )
        _plain(panel, results)
        picture.savefig(path, metadata={"Date": None})
        plt.close(picture)
    return [path]


def _plain(panel: Any, results: Results) -> None:
    panel.set_title("Loads of the database a second, under a herd with a writer", loc="left")
    panel.set_xlabel(
        f"seconds; {herds.PROCESSES * herds.CALLERS} callers, {herds.STORM_KEYS} keys, a write every "
        f"{herds.STORM_WRITE * 1000:g} ms, a load of {herds.STORM_LOAD * 1000:g} ms; {results.taken:%Y-%m-%d}"
    )
    panel.set_ylim(bottom=0)
    panel.set_xlim(0, results.storms[herds.LEASED].seconds)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def save(results: Results) -> list[str]:
    """Write the text and the plot under ``docs/benchmarks/``; the paths, seen from the root of the project."""
    folder = ROOT / "docs" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / f"{NAME}.txt"]
    written[0].write_text(text(results))
    written += draw(results, folder)
    return [str(path.relative_to(ROOT)) for path in written]
