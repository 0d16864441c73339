"""``kvcluster simulate``: its arguments, and its result as a table, as JSON and as a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from kvcluster.errors import ConfigurationError
from kvcluster.rebalance import plot as plots
from kvcluster.rebalance.simulate import FIRST, SCHEMES, WINDOW, Cost, simulate
from kvcluster.rebalance.workload import Workload, read_trace, zipf
from kvcluster.sources import FileSource
from kvcluster.stats.report import percent
from kvcluster.topology import Node, Topology

MAX_COUNT = 1_000
BARS = "▁▂▃▄▅▆▇█"
SHOWN = 24
"""Windows drawn as bars, spread over the whole run."""
SYNTHETIC = ("keys", "exponent", "requests", "size", "seed", "per_second")
"""Options that describe a synthetic workload."""


class Replace(StrEnum):
    """How a machine replaces the last one: under an id of its own, or under the old one."""

    NEW_ID = "new-id"
    SAME_ID = "same-id"


def command(
    context: typer.Context,
    trace: Annotated[
        Path | None, typer.Argument(help="A CSV file with the columns time,key,size,op; without one, a synthetic workload.")
    ] = None,
    from_: Annotated[str, typer.Option("--from", help="Nodes before: how many, host,host,..., or a topology's .toml file.")] = "4",
    to: Annotated[str | None, typer.Option("--to", help="Nodes after, likewise; by default one more than before.")] = None,
    replace: Annotated[Replace | None, typer.Option(help="Instead of --to: the last node becomes another machine.")] = None,
    schemes: Annotated[str, typer.Option(help="Placements to compare; +live migrates live.")] = ",".join(SCHEMES),
    at: Annotated[
        int | None, typer.Option(min=0, help="Requests before the resize; by default none, half of them for a trace.")
    ] = None,
    memory: Annotated[
        float | None, typer.Option(min=0.001, help="Megabytes for items, per node; by default as many as it takes.")
    ] = None,
    rate: Annotated[float, typer.Option(help="Keys that a live migration copies in a second.")] = 10_000,
    keys: Annotated[int, typer.Option(help="Of a synthetic workload: how many keys.")] = 100_000,
    exponent: Annotated[float, typer.Option(help="How unequal their popularity is; 0 is equal.")] = 0.99,
    requests: Annotated[int, typer.Option(help="How many gets.")] = 1_000_000,
    size: Annotated[int, typer.Option(help="Bytes of each value.")] = 100,
    seed: Annotated[int, typer.Option(help="Another seed draws other requests.")] = 1,
    per_second: Annotated[float, typer.Option("--requests-per-second", help="How fast the gets come.")] = 10_000,
    plot: Annotated[Path | None, typer.Option(help="Draw the hit rates into this .svg or .png file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Every figure, for programs.")] = False,
) -> None:
    """Tell what a resize costs under each placement, and with a live migration: on a trace or a synthetic load, asking no node."""
    before = topology_of(from_, "--from")
    after = _after(before, from_, to, replace)
    if plot is not None:
        plots.check_plot(plot)
    if trace is None:
        workload = zipf(keys, exponent, requests, seed, size, per_second)
    else:
        _no_synthetic_options(context)
        workload = read_trace(trace)
    if at is None:
        at = 0 if trace is None else len(workload) // 2
    limit = math.inf if memory is None else memory * (1 << 20)
    names = [name.strip() for name in schemes.split(",")]
    with _progress() as progress:
        costs = simulate(workload, before, after, names, memory=limit, at=at, rate=rate, progress=progress)
    title = f"{_nodes(before)} to {_nodes(after)}: {workload.title}"
    if plot is not None:
        plots.draw(costs, plot, title, WINDOW)
    if as_json:
        print(json.dumps(_document(workload, before, after, costs, memory=memory, at=at, rate=rate), indent=2))
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)  # a pipe has no width
    console.print(title, highlight=False, soft_wrap=True)
    console.print(table(costs, len(workload) - at))
    for note in notes(costs):
        console.print(note, highlight=False, soft_wrap=True)
    if plot is not None:
        console.print(f"plot: {plot}", highlight=False, soft_wrap=True)


def topology_of(text: str, option: str) -> Topology:
    """Nodes as a person names them: a count, addresses between commas, or a topology's file.

    :param option: what errors call it
    :raises ConfigurationError: for anything else

    >>> [node.id for node in topology_of("2", "--from").nodes]
    ['node0', 'node1']
    """
    if text.isdecimal():
        count = int(text)
        if not 1 <= count <= MAX_COUNT:
            raise ConfigurationError(f"{option} must be from 1 to {MAX_COUNT:,} nodes, not {count:,}")
        return Topology([f"node{number}" for number in range(count)])
    if text.endswith(".toml"):
        return FileSource(text).read().topology
    try:
        return Topology([address for part in text.split(",") if (address := part.strip())])
    except ConfigurationError as error:
        raise ConfigurationError(f"{option}: {error}") from None


def _after(before: Topology, from_: str, to: str | None, replace: Replace | None) -> Topology:
    if to is not None and replace is not None:
        raise ConfigurationError("--to and --replace are two answers to one question: give one of them")
    if to is not None:
        return topology_of(to, "--to")
    if replace is not None:
        *kept, last = before.nodes
        machine = Node("replacement", last.weight, last.id if replace is Replace.SAME_ID else None)
        return Topology([*kept, machine], before.placement, before.slots)
    if not from_.isdecimal():
        raise ConfigurationError("say what the nodes become: --to, or --replace")
    return topology_of(str(len(before.nodes) + 1), "--to")


def _no_synthetic_options(context: typer.Context) -> None:
    sources = {name: context.get_parameter_source(name) for name in SYNTHETIC}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if given:
        options = {parameter.name: parameter.opts[0] for parameter in context.command.params}
        raise ConfigurationError(f"{options[given[0]]} describes a synthetic workload, and a trace was given")


def _nodes(topology: Topology) -> str:
    count = len(topology.nodes)
    return f"{count} node" if count == 1 else f"{count} nodes"


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None] | None]:
    """What `simulate` calls as it goes: a bar on a terminal, else nothing."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("replaying"), BarColumn(), TextColumn("{task.completed:,.0f} requests"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("")
        yield lambda done, total: bar.update(task, completed=done, total=total)


def table(costs: Sequence[Cost], requests: int) -> Table:
    """One row for each scheme.

    :param requests: how many came after the resize
    """
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    drawn.add_column("scheme", no_wrap=True)
    headings = ("moved", "hit rate before", f"first {FIRST:,}", f"lowest {WINDOW:,}", "recovered after", "extra database loads")
    for heading in headings:
        drawn.add_column(heading, justify="right")
    drawn.add_column("hit rate since")
    known = [rate for cost in costs for rate in cost.rates if rate is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)
    for cost in costs:
        drawn.add_row(
            cost.scheme,
            percent(cost.moved_share),
            percent(cost.before),
            percent(cost.first),
            percent(cost.lowest),
            f"> {requests:,}" if cost.recovered is None else f"{cost.recovered:,}",
            f"{cost.extra_loads:,}",
            bars(cost.rates, low, high),
        )
    return drawn


def bars(rates: Sequence[float | None], low: float, high: float) -> str:
    """Up to 24 of the rates as bars: the lowest bar is ``low``, the highest ``high``, a space is no rate.

    >>> bars([0.5, 0.75, None, 1.0], 0.5, 1.0)
    '▁▄ █'
    """
    shown = [rates[at * len(rates) // min(SHOWN, len(rates))] for at in range(min(SHOWN, len(rates)))]
    scale = (len(BARS) - 1) / ((high - low) or 1)
    return "".join(" " if rate is None else BARS[int((rate - low) * scale) if high > low else -1] for rate in shown)


def notes(costs: Sequence[Cost]) -> list[str]:
    """What the table does not say of live migrations."""
    return [
        f"{cost.scheme}: {cost.copied:,} keys were copied" + ("" if cost.finished else "; the workload ended before the copier did")
        for cost in costs
        if cost.copied is not None
    ]


def _document(
    workload: Workload, before: Topology, after: Topology, costs: Sequence[Cost], **settings: float | None
) -> dict[str, Any]:
    return {
        "workload": workload.title,
        **settings,
        "from": [{"id": node.id, "address": node.address, "weight": node.weight} for node in before.nodes],
        "to": [{"id": node.id, "address": node.address, "weight": node.weight} for node in after.nodes],
        "window": WINDOW,
        "schemes": [{**asdict(cost), "moved_share": cost.moved_share} for cost in costs],
    }
