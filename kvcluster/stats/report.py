"""`NodeStats` for people: a table on a terminal, plain aligned text in a pipe or where rich is not installed.

Both show the same cells. A node that did not answer keeps its line, with its error at the end of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TextIO

from kvcluster.errors import MissingExtra
from kvcluster.stats.server import NodeStats, total

if TYPE_CHECKING:
    from rich.table import Table

UNKNOWN = "-"


def size(value: float) -> str:
    """Bytes in the unit that leaves one to four digits before the point.

    >>> size(0), size(1536), size(67108864)
    ('0 B', '1.5 KiB', '64.0 MiB')
    """
    units = iter(("B", "KiB", "MiB", "GiB", "TiB"))
    unit = next(units)
    while value >= 1024 and unit != "TiB":
        value /= 1024
        unit = next(units)
    return f"{value:.0f} B" if unit == "B" else f"{value:,.1f} {unit}"


def duration(seconds: int) -> str:
    """Seconds as the two greatest units that matter.

    >>> duration(59), duration(3725), duration(400_000)
    ('59s', '1h 2m', '4d 15h')
    """
    days, rest = divmod(seconds, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, rest = divmod(rest, 60)
    parts = [f"{count}{unit}" for count, unit in ((days, "d"), (hours, "h"), (minutes, "m"), (rest, "s"))]
    first = next((index for index, part in enumerate(parts) if not part.startswith("0")), 3)
    return " ".join(parts[first : first + 2])


def percent(share: float | None) -> str:
    """A share from 0 to 1; - where there is none.

    >>> percent(0.9315), percent(None)
    ('93.2 %', '-')
    """
    return UNKNOWN if share is None else f"{share:.1%}".replace("%", " %")


# What each column is called and how a record fills it; the first is the node itself.
COLUMNS: dict[str, Callable[[NodeStats], str]] = {
    "version": lambda record: record.version,
    "uptime": lambda record: duration(record.uptime) if record.version else "",
    "items": lambda record: f"{record.items:,}",
    "memory": lambda record: f"{size(record.bytes)} {percent(record.fill)}",
    "hit rate": lambda record: percent(record.hit_rate),
    "gets": lambda record: f"{record.gets:,}",
    "sets": lambda record: f"{record.sets:,}",
    "evictions": lambda record: f"{record.evictions:,}",
    "conns": lambda record: f"{record.connections:,}",
}


def cells(record: NodeStats) -> list[str]:
    """The line of one node, without the column for errors."""
    if record.error is not None:
        return [record.address, *(UNKNOWN for _ in COLUMNS)]
    return [record.address, *(fill(record) for fill in COLUMNS.values())]


def lines(records: Sequence[NodeStats]) -> list[list[str]]:
    """Heading, one line per node, and the total; a column for errors only where there is one."""
    heading = ["node", *COLUMNS]
    body = [cells(record) for record in (*records, total(records))]
    errors = [record.error or "" for record in records]
    if not any(errors):
        return [heading, *body]
    return [[*line, error] for line, error in zip((heading, *body), ("error", *errors, ""), strict=True)]


def text(records: Sequence[NodeStats]) -> str:
    """The lines as plain text: the first column and errors to the left, figures to the right."""
    table = lines(records)
    figures = range(1, len(COLUMNS) + 1)
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in figures else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    )


def table(records: Sequence[NodeStats], title: str | None = None) -> Table:
    """The lines as a table of rich, with what went wrong in red.

    :raises MissingExtra: without the extra ``cli``
    """
    try:
        from rich import box
        from rich.table import Table
        from rich.text import Text
    except ImportError as error:
        raise MissingExtra("cli", "a table on the terminal") from error

    heading, *body, last = lines(records)
    drawn = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(heading):
        figure = 0 < number <= len(COLUMNS)
        drawn.add_column(name, justify="right" if figure else "left", no_wrap=number == 0)
    for record, line in zip(records, body, strict=True):
        drawn.add_row(*map(Text, line), style="red" if record.error else None, end_section=record is records[-1])
    drawn.add_row(*map(Text, last), style="bold")
    return drawn


def show(records: Sequence[NodeStats], file: TextIO | None = None) -> None:
    """Print the report: a table where `file` is a terminal and rich is installed, else plain text.

    :param file: standard output where none is given
    """
    out = sys.stdout if file is None else file
    if out.isatty():
        try:
            drawn = table(records)
        except MissingExtra:
            pass
        else:
            from rich.console import Console

            Console(file=out).print(drawn)
            return
    print(text(records), file=out)
