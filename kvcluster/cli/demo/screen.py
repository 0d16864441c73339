"""What the demo shows while it runs: a split screen on a terminal, plain lines where the output is piped.

`render` is a pure function of a `View`; the two screens only decide when to print.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

from rich import box
from rich.bar import Bar
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from kvcluster.cli.demo.acts import ACTS, Act

if TYPE_CHECKING:
    from types import TracebackType

    from kvcluster.cli.demo.load import Figures
    from kvcluster.cli.demo.stage import Result

LEFT, RIGHT = "pymemcache", "kvcluster"
COLOURS = {LEFT: "yellow", RIGHT: "cyan"}


@dataclass(frozen=True)
class Program:
    """How a side is introduced."""

    who: str
    how: str
    settings: str


PROGRAMS = {
    LEFT: Program(
        "what people run now: pymemcache HashClient",
        "get, SELECT, set; after a commit delete",
        "its docs' Best Practices, pickle serde; else defaults",
    ),
    RIGHT: Program("kvcluster", "cache.repository(City), cache.bind(sessions)", "defaults; which nodes there are, from a file"),
}


def milliseconds(seconds: float | None) -> str:
    """
    >>> milliseconds(0.0123), milliseconds(0.00123), milliseconds(None)
    ('12 ms', '1.2 ms', '-')
    """
    if seconds is None:
        return "-"
    return f"{seconds * 1000:,.{1 if seconds < 0.01 else 0}f} ms"


BARS = "▁▂▃▄▅▆▇█"


def bars(shares: Sequence[float], most: int = 40) -> str:
    """The latest of some shares (0 to 1) as small bars, the oldest first.

    >>> bars([0.0, 0.5, 1.0])
    '▁▄█'
    """
    return "".join(BARS[int(share * (len(BARS) - 1))] for share in shares[-most:])


@dataclass(frozen=True)
class View:
    """One picture.

    :param setting: one line that stays
    :param note: what happened last
    :param figures: of the act so far, by side
    :param curves: the share of reads that needed no database, point after point, by side
    :param done: the acts before
    """

    setting: str
    act: Act
    note: str
    figures: dict[str, Figures]
    curves: dict[str, tuple[float, ...]]
    done: Sequence[tuple[Act, Result]]


def render(view: View) -> RenderableType:
    """The split screen."""
    sides = Table.grid(expand=True)
    sides.add_column(ratio=1)
    sides.add_column(ratio=1)
    sides.add_row(*(_side(side, view.figures, view.curves[side]) for side in (LEFT, RIGHT)))
    parts: list[RenderableType] = [
        Text(view.setting, style="dim"),
        Text.assemble((f"Act {ACTS.index(view.act) + 1} of {len(ACTS)}: {view.act.title}.", "bold"), " ", view.act.story),
        Text.assemble("now: ", (view.note, "bold magenta")),
        sides,
    ]
    if view.done:
        parts.append(acts_table(view.done))
    return Group(*parts)


def _side(side: str, figures: dict[str, Figures], curve: Sequence[float]) -> Panel:
    program, mine = PROGRAMS[side], figures[side]
    counters: tuple[tuple[str, Callable[[Figures], float], Callable[[Figures], str]], ...] = (
        ("database queries", lambda each: each.queries, lambda each: f"{each.queries:,}"),
        ("wrong pages", lambda each: each.wrong, lambda each: f"{each.wrong:,}"),
        ("p99", lambda each: each.percentile(0.99) or 0, lambda each: milliseconds(each.percentile(0.99))),
    )
    body = Table.grid(expand=True, padding=(0, 1))
    body.add_column(width=16)
    body.add_column(width=9, justify="right", style="bold")
    body.add_column(ratio=1)
    for name, value, text in counters:
        # A bar is as long as its side's share of the larger of the two, so the two panels can be compared at a glance.
        most = max(value(each) for each in figures.values())
        body.add_row(name, text(mine), Bar(most or 1, 0, value(mine), color=COLOURS[side]))
    without = Text.assemble("without database ", (bars(curve), COLOURS[side]), no_wrap=True, overflow="crop")
    foot = Text(f"{mine.reads:,} reads, {mine.edits:,} edits, {mine.errors:,} errors", style="dim")
    return Panel(
        Group(Text(program.how), Text(program.settings, style="dim"), Text(), body, without, Text(), foot),
        title=Text(program.who, style=f"bold {COLOURS[side]}"),
        title_align="left",
        border_style=COLOURS[side],
    )


def acts_table(done: Sequence[tuple[Act, Result]]) -> Table:
    """What both sides did, act by act."""
    table = Table(box=box.SIMPLE, header_style="dim", title=Text.assemble((LEFT, COLOURS[LEFT]), " | ", (RIGHT, COLOURS[RIGHT])))
    table.add_column("")
    columns: tuple[tuple[str, Callable[[Figures], str]], ...] = (
        ("database queries", lambda each: f"{each.queries:,}"),
        ("wrong pages", lambda each: f"{each.wrong:,}"),
        ("p99", lambda each: milliseconds(each.percentile(0.99))),
        ("errors", lambda each: f"{each.errors:,}"),
        ("reads", lambda each: f"{each.reads:,}"),
    )
    for name, _ in columns:
        table.add_column(name, justify="right")
    for act, result in done:
        cells = [
            Text.assemble((text(result.total[LEFT]), COLOURS[LEFT]), " | ", (text(result.total[RIGHT]), COLOURS[RIGHT]))
            for _, text in columns
        ]
        table.add_row(act.title, *cells)
    return table


class Screen(Protocol):
    """Where the demo is shown."""

    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...
    def say(self, text: str) -> None:
        """One line that is not part of an act."""
        ...

    def show(self, view: View) -> None:
        """The counters moved, or something happened."""
        ...

    def end_act(self, act: Act, result: Result) -> None: ...


class LiveScreen:
    """For terminals: one picture, redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._live.__exit__(kind, error, trace)

    def say(self, text: str) -> None:
        self._live.update(Text(text), refresh=True)

    def show(self, view: View) -> None:
        self._live.update(render(view))

    def end_act(self, act: Act, result: Result) -> None:
        """The next picture has it."""


class PlainScreen:
    """For pipes and files: a line when something happens, and two at the end of an act."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._act: Act | None = None
        self._note = ""

    def __enter__(self) -> Self:
        for side, program in PROGRAMS.items():
            self.say(f"{side}: {program.how} ({program.settings})")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, view: View) -> None:
        if view.act is not self._act:
            self.say(f"\nAct {ACTS.index(view.act) + 1} of {len(ACTS)}: {view.act.title}. {view.act.story}")
        if (view.act, view.note) != (self._act, self._note):
            self._act, self._note = view.act, view.note
            self.say(f"  {view.note}")

    def end_act(self, act: Act, result: Result) -> None:
        for side in (LEFT, RIGHT):
            mine = result.total[side]
            p99 = milliseconds(mine.percentile(0.99))
            self.say(
                f"  {side:>10}: {mine.queries:6,} database queries, {mine.wrong:5,} wrong pages, p99 {p99:>8}; "
                f"{mine.reads:,} reads, {mine.edits:,} edits, {mine.errors:,} errors"
            )
        if act.name == "join":
            for side in (LEFT, RIGHT):
                self.say(f"  {side:>10}: {bars(result.curves[side])} reads that needed no database, over time")


def screen_for(console: Console) -> Screen:
    """The split screen on a terminal, else plain lines."""
    return LiveScreen(console) if console.is_terminal else PlainScreen(console)
