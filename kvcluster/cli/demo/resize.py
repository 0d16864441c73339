"""``kvcluster demo resize``: what a fifth node costs under each placement.

For each placement, every city's name is stored on four nodes, and readers draw cities by population, a page at a time: what is not
found is loaded (here from a dict, the cost that counts is the miss) and stored, as a read-through cache does. Then the fifth node
joins and the readers go on. The hit rate is taken over windows of reads, so it does not depend on how fast this machine is.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.live import Live
from rich.table import Table

from kvcluster import Client
from kvcluster.cli.demo.stage import KINDS
from kvcluster.cli.demo.world import Draws, real_cities
from kvcluster.placement import placement
from kvcluster.testing.nodes import Kind, find_memcached, start_node

if TYPE_CHECKING:
    from rich.console import Console

PLACEMENTS = ("modulo", "ketama", "slots")
WINDOW = 2000
"""Gets that one hit rate is taken over."""
MULTI_GET = 100
BARS = " ▁▂▃▄▅▆▇█"
SHOWN = 24
"""Windows drawn as bars."""


@dataclass(frozen=True)
class Resized:
    """What was seen of one placement.

    :param moved: keys whose owner changed
    :param rates: hit rates of the windows after the node joined, oldest first
    :param loads: what had to be loaded after the node joined
    """

    placement: str
    keys: int
    moved: int
    before: float
    rates: tuple[float, ...]
    loads: int

    @property
    def dip(self) -> str:
        """The first windows after the join as small bars, each as high as its hit rate."""
        return "".join(BARS[int(rate * (len(BARS) - 1))] for rate in self.rates[:SHOWN])

    @property
    def lowest(self) -> float:
        return min(self.rates)

    @property
    def after(self) -> float:
        return self.rates[-1]


def window(client: Client, names: dict[str, str], draws: Draws) -> tuple[float, int]:
    """The hit rate of one window of read-through gets, and how many of them had to be loaded."""
    asked = loads = 0
    for _ in range(WINDOW // MULTI_GET):
        keys = [f"city:{id}" for id in draws.cities(MULTI_GET)]
        missing = set(keys) - client.get_many(keys).keys()
        client.set_many({key: names[key] for key in missing}, expire=600)
        asked += len(keys)
        loads += sum(key in missing for key in keys)
    return 1 - loads / asked, loads


def resized(name: str, nodes: list[str], names: dict[str, str], draws: Draws, seconds: float) -> Iterator[Resized]:
    """Store everything on all but the last node, let the last one join, read for so many seconds; yields after each window."""
    keys = list(names)
    small, large = placement(name, nodes[:-1]), placement(name, nodes)
    moved = sum(a.id != b.id for a, b in zip(small.owners(keys), large.owners(keys), strict=True))
    with Client(nodes[:-1], placement=name, prefix=f"{name}:") as client:
        for at in range(0, len(keys), 1000):
            client.set_many({key: names[key] for key in keys[at : at + 1000]}, expire=600)
        before, _ = window(client, names, draws)
        client.set_nodes(nodes)
        rates: list[float] = []
        total = 0
        end = time.monotonic() + seconds
        while not rates or time.monotonic() < end:
            rate, loads = window(client, names, draws)
            rates.append(rate)
            total += loads
            yield Resized(name, len(keys), moved, before, tuple(rates), total)


def table(rows: list[Resized]) -> Table:
    """One row for each placement."""
    it = Table(title="A fifth node joins", title_justify="left", box=box.SIMPLE)
    it.add_column("placement")
    for column in ("keys moved", "of all", "hit rate before", "lowest", "after", "loads", "gets"):
        it.add_column(column, justify="right")
    it.add_column("first windows after it")
    for row in rows:
        it.add_row(
            row.placement,
            f"{row.moved:,}",
            f"{row.moved / row.keys:.1%}",
            f"{row.before:.1%}",
            f"{row.lowest:.1%}",
            f"{row.after:.1%}",
            f"{row.loads:,}",
            f"{len(row.rates) * WINDOW:,}",
            row.dip,
        )
    return it


def show_resize(seconds: float, console: Console) -> None:
    """Run all placements and show them as they go."""
    cities = real_cities()
    names = {f"city:{city['id']}": city["name"] for city in cities}
    kind: Kind = "binary" if find_memcached() else "embedded"
    with ExitStack() as stack:
        nodes = []
        for _ in range(5):
            node = start_node(kind)
            stack.callback(node.stop)
            nodes.append(node.address)
        console.print(
            f"{len(cities):,} real cities on 4 {KINDS[kind]}, drawn by population; hit rates over {WINDOW:,} gets each",
            highlight=False,
        )
        rows: list[Resized] = []
        with Live(console=console, transient=True, refresh_per_second=4) if console.is_terminal else ExitStack() as live:
            for name in PLACEMENTS:
                # The same draws for each placement.
                draws = Draws([city["id"] for city in cities], [city["population"] for city in cities], "resize")
                for row in resized(name, nodes, names, draws, seconds / len(PLACEMENTS)):
                    if isinstance(live, Live):
                        live.update(table([*rows, row]))
                rows.append(row)
        console.print(table(rows))
