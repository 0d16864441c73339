"""What the demo says at its end. Every sentence is built from what was counted, and says so too where nothing was gained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from kvcluster.cli.demo.load import CALLERS, Figures
from kvcluster.cli.demo.screen import LEFT, RIGHT, milliseconds
from kvcluster.stats.server import NodeStats, total

if TYPE_CHECKING:
    from collections import Counter

    from kvcluster.cli.demo.stage import Result


def snippet(nodes: Sequence[str] = ()) -> str:
    """Ten lines that run as they stand.

    :param nodes: addresses to put in; without any, a node inside the process
    """
    url = f"memcached://{','.join(nodes)}" if nodes else "memory://"
    return f"""\
from kvcluster import Cache
from kvcluster.cli.demo.world import City, sample_database  # or your own mapped class and sessionmaker
sessions = sample_database("cities.db")
cache = Cache("shop", ttl="10m")
cache.connect("{url}")  # your nodes: memcached://host:port,host:port
cities = cache.repository(City, sessions)
cache.bind(sessions)  # from here on a commit invalidates what it changed
with sessions.begin() as session:
    session.get_one(City, 1850147).population += 1
print([city.name for city in cities.list([1850147, 1816670, 1835848])])  # one multi-get; what is missing, in one SELECT
"""


def compare(left: float, right: float) -> str:
    """The right side's figure against the left's, in words.

    >>> compare(300, 100), compare(100, 104), compare(0, 0), compare(100, 150), compare(7, 0)
    ('3.0 times fewer', 'about as many', 'none on either side', '1.5 times more', 'none')
    """
    if left == right == 0:
        return "none on either side"
    if right == 0:
        return "none"
    if left == 0:
        return "only there"
    ratio = left / right
    if 0.9 <= ratio <= 1.1:
        return "about as many"
    return f"{ratio:.1f} times fewer" if ratio > 1 else f"{1 / ratio:.1f} times more"


def sentences(results: Mapping[str, Result]) -> list[str]:
    """One sentence for each act that was played.

    :param results: by the name of the act
    """
    writers = {"cold": _cold, "editors": _editors, "hang": _hang, "join": _join}
    return [write(results[name]) for name, write in writers.items() if name in results]


def _pair(result: Result) -> tuple[Figures, Figures]:
    return result.total[LEFT], result.total[RIGHT]


def _p99(left: Figures, right: Figures) -> str:
    return f"p99 was {milliseconds(left.percentile(0.99))} with {LEFT} and {milliseconds(right.percentile(0.99))} with {RIGHT}"


def _cold(result: Result) -> str:
    left, right = _pair(result)
    rounds = int(result.facts["rounds"])
    once = "one for each city" if right.queries == rounds else compare(left.queries, right.queries)
    return (
        f"{CALLERS} callers at once asked {rounds} times for a city that was not cached: that cost {left.queries:,} database "
        f"queries with {LEFT} and {right.queries:,} with {RIGHT} ({once}); {_p99(left, right)}."
    )


def _wrong(result: Result, since: str) -> str:
    left, right = _pair(result)
    late_left, late_right = result.tail[LEFT].wrong, result.tail[RIGHT].wrong
    return (
        f"{LEFT} showed {left.wrong:,} wrong pages in {left.reads:,} reads ({late_left:,} of them {since}), "
        f"{RIGHT} {right.wrong:,} in {right.reads:,} ({late_right:,} {since})"
    )


def _editors(result: Result) -> str:
    left, right = _pair(result)
    return (
        f"While {left.edits:,} and {right.edits:,} edits were made, {_wrong(result, 'after the editors had stopped')}; "
        f"the database answered {left.queries:,} and {right.queries:,} queries ({compare(left.queries, right.queries)})."
    )


def _hang(result: Result) -> str:
    left, right = _pair(result)
    return (
        f"While one node hung for {result.facts['first']:.1f} s and another for {result.facts['second']:.1f} s, "
        f"{_wrong(result, 'after both had come back')}; {left.errors:,} and "
        f"{right.errors:,} reads or edits failed, {left.queries:,} and {right.queries:,} queries reached the database "
        f"({compare(left.queries, right.queries)}), and {_p99(left, right)}."
    )


def _join(result: Result) -> str:
    left, right = result.tail[LEFT], result.tail[RIGHT]
    if "copied" not in result.facts:
        return (
            f"A node that joined empty cost the database {left.queries:,} queries in {left.reads:,} reads with {LEFT} and "
            f"{right.queries:,} in {right.reads:,} with {RIGHT} ({compare(left.queries, right.queries)})."
        )
    lowest = {side: min(curve, default=1.0) for side, curve in result.curves.items()}
    return (
        f"A node that joined empty cost the database {left.queries:,} queries in {left.reads:,} reads with {LEFT}, and in the "
        f"worst half second {lowest[LEFT]:.0%} of the reads needed none; with {RIGHT} {int(result.facts['copied']):,} keys were "
        f"moved live in {result.facts['seconds']:.1f} s, which cost {right.queries:,} in {right.reads:,} "
        f"({compare(left.queries, right.queries)}), at worst {lowest[RIGHT]:.0%}."
    )


def errors_line(errors: Mapping[str, Counter[str]]) -> str | None:
    """What was raised, by side; None where nothing was."""
    parts = [f"{side}: {count} x {kind}" for side, kinds in errors.items() for kind, count in kinds.most_common(3)]
    return "Errors seen: " + "; ".join(parts) if parts else None


def nodes_table(title: str, records: Sequence[NodeStats]) -> Table:
    """One row for each node, and their total, as the nodes themselves counted."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    table.add_column("node")
    for name in ("hits", "misses", "hit rate", "items"):
        table.add_column(name, justify="right")
    for record in (*records, total(records)):
        rate = "-" if record.hit_rate is None else f"{record.hit_rate:.1%}"
        table.add_row(
            record.address, f"{record.hits:,}", f"{record.misses:,}", rate, f"{record.items:,}", end_section=record is records[-1]
        )
    return table
