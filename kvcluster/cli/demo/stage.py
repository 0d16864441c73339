"""The stage the acts are played on: nodes, two copies of the database, and the processes that serve each side.

What it tells about an act is read from the workers' counters while they run; nothing here knows what the numbers ought to be.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kvcluster.cli.demo.load import TALLY_SIZE, WORKERS, Figures, Finish, Join, Order, Report, Setting, Warm, work
from kvcluster.cli.demo.sides import SIDES
from kvcluster.cli.demo.world import create, real_cities
from kvcluster.errors import NodeUnreachable
from kvcluster.rebalance import Progress, Rebalance
from kvcluster.rebalance import Report as Resize
from kvcluster.sources import FileSource
from kvcluster.stats.server import NodeStats, collect
from kvcluster.testing.nodes import Kind, RunningNode, find_memcached, start_node
from kvcluster.topology import Document, as_node

NODES = 4
KINDS: dict[Kind, str] = {
    "binary": "memcached processes",
    "embedded": "embedded nodes in pure Python, as there is no memcached here",
}
FOLLOWER = "kvcluster"
"""The side whose cluster can be resized while it serves."""
TICK = 0.25
SAMPLED = 0.5
"""Seconds of reads that one point of a curve is taken over."""


@dataclass
class Result:
    """What both sides did in an act.

    :param total: figures of the whole act, by side
    :param tail: figures since the act's last event, by side
    :param facts: numbers of the act's own, for the closing sentences
    :param curves: the share of reads that needed no database, point after point, by side
    """

    total: dict[str, Figures] = field(default_factory=dict)
    tail: dict[str, Figures] = field(default_factory=dict)
    facts: dict[str, float] = field(default_factory=dict)
    curves: dict[str, tuple[float, ...]] = field(default_factory=dict)


class Stage:
    """See `open_stage`."""

    def __init__(
        self, kind: str, nodes: dict[str, list[str]], running: dict[str, RunningNode], cities: list[dict[str, Any]]
    ) -> None:
        self.kind = kind
        self.nodes = nodes
        self.cities = cities
        self.note = ""
        self.on_tick: Callable[[], None] = lambda: None
        self._running = running
        self._source: FileSource | None = None
        self._reports: dict[str, list[Report]] = {}
        self._tallies: dict[str, list[Any]] = {side: [] for side in SIDES}
        self._workers: list[tuple[str, Any, Any]] = []
        self._begin = {side: Figures() for side in SIDES}
        self._mark = dict(self._begin)
        self._curves: dict[str, list[float]] = {side: [] for side in SIDES}
        self._sampled = dict(self._begin)
        self._sampled_at = 0.0
        self._first_stats = {side: collect(self.nodes[side]) for side in SIDES}

    @property
    def can_hang(self) -> bool:
        """Only nodes that the demo started itself may be stopped."""
        return bool(self._running)

    def start_workers(self, folder: Path) -> None:
        """Start the processes of both sides on their own copies of the database."""
        # A fork would copy the threads' locks of this process, and a spawned one is the same on every system.
        context = multiprocessing.get_context("spawn")
        cities = tuple((city["id"], city["population"]) for city in self.cities)
        run = f"{time.time_ns() // 1_000_000:x}"
        if self.can_hang:
            self._source = FileSource(folder / "topology.toml")
            self._source.create(Document(tuple(as_node(address) for address in self.nodes[FOLLOWER][:-1])))
        for side in SIDES:
            topology = self._source.path if side == FOLLOWER and self._source else None
            create(folder / f"{side}.db", self.cities)
            versions = context.Array("q", len(cities), lock=False)
            for number in range(WORKERS):
                tally = context.Array("q", TALLY_SIZE, lock=False)
                ours, theirs = context.Pipe()
                nodes = tuple(self.nodes[side][:-1])
                setting = Setting(side, number, nodes, topology, folder / f"{side}.db", f"demo-{side}-{run}", cities)
                process = context.Process(target=work, args=(setting, theirs, tally, versions), daemon=True)
                process.start()
                theirs.close()
                self._tallies[side].append(tally)
                self._workers.append((side, process, ours))
        self._collect()

    def stop_workers(self) -> None:
        for _, _, pipe in self._workers:
            pipe.close()
        for _, process, _ in self._workers:
            process.join(2)
            if process.is_alive():
                process.terminate()
                process.join(2)

    def warm(self) -> None:
        """Fill both caches by reading every city once."""
        self.order(Warm())

    def order(self, order: Order) -> None:
        """Have all workers do something; the screen goes on meanwhile."""
        for _, _, pipe in self._workers:
            pipe.send(order)
        self._collect()

    def _collect(self) -> None:
        reports: dict[str, list[Report]] = {side: [] for side in SIDES}
        for side, _, pipe in self._workers:
            while not pipe.poll(TICK):
                self.on_tick()
            try:
                reports[side].append(pipe.recv())
            except EOFError:
                raise RuntimeError(f"a process of {side} ended; what it said is above") from None
        self._reports = reports

    def begin(self) -> None:
        """From here on figures count for a new act."""
        self._begin = self._mark = self._sampled = self._now()
        self._sampled_at = time.time()
        self._curves = {side: [] for side in SIDES}

    def mark(self, note: str) -> None:
        """Something happened."""
        self.note = note
        self._mark = self._now()

    def _now(self) -> dict[str, Figures]:
        return {side: Figures.of(tallies) for side, tallies in self._tallies.items()}

    def figures(self) -> dict[str, Figures]:
        """What was counted since the act began."""
        return {side: now - self._begin[side] for side, now in self._now().items()}

    def curves(self) -> dict[str, tuple[float, ...]]:
        """The share of reads that needed no database since the act began, a point for each half second of them."""
        return {side: tuple(curve) for side, curve in self._curves.items()}

    def wait(self, until: float) -> None:
        while (left := until - time.time()) > 0:
            self._pass(min(left, TICK))

    def _pass(self, seconds: float) -> None:
        time.sleep(seconds)
        if time.time() - self._sampled_at >= SAMPLED:
            self._sampled_at, now = time.time(), self._now()
            for side, curve in self._curves.items():
                since = now[side] - self._sampled[side]
                if since.reads:
                    curve.append(max(0.0, 1 - since.queries / since.reads))
            self._sampled = now
        self.on_tick()

    def finish(self, **facts: float) -> Result:
        """Wait for the end of what was ordered."""
        self.order(Finish())
        now = self._now()
        tail = {side: now[side] - self._mark[side] for side in now}
        return Result(self.figures(), tail, facts, self.curves())

    def pause(self, index: int) -> None:
        for side in SIDES:
            self._running[self.nodes[side][index]].pause()

    def resume(self, index: int) -> None:
        for side in SIDES:
            self._running[self.nodes[side][index]].resume()

    def join(self) -> Resize | None:
        """The last node of each side joins. Sides may have other nodes, so each is told about its own.

        The side that follows a topology is resized live instead; what that did is returned once it is over. On nodes of the user's
        it joins empty as well: a live resize deals with every key of a node, and not all of them are the demo's.
        """
        for side, _, pipe in self._workers:
            pipe.send(Join(self.nodes[side][-1], tuple(self.nodes[side])))
        resize = self._resize() if self._source else None
        self._collect()
        return resize

    def _resize(self) -> Resize:
        assert self._source is not None
        rebalance = Rebalance(self._source, [as_node(address) for address in self.nodes[FOLLOWER]])
        ended: list[Resize | BaseException] = []

        def show(progress: Progress) -> None:
            self.note = f"the new node joins, empty | live, phase {progress.phase}: {progress.keys:,} keys moved"

        def run() -> None:
            try:
                ended.append(rebalance.run(show))
            except BaseException as error:
                ended.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        while thread.is_alive():
            self._pass(TICK)
        (outcome,) = ended
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def errors(self) -> dict[str, Counter[str]]:
        """What was raised so far, by side and kind."""
        return {side: sum((report.errors for report in reports), Counter()) for side, reports in self._reports.items()}

    def node_stats(self, side: str) -> list[NodeStats]:
        """The nodes of a side: hits and misses since the stage was opened, items as they are now.

        Hits and misses are those that the side's clients counted, else the nodes' own: memcached counts it as a hit when a reader
        is told that nothing is there and gets the lease to load it.
        """
        stats = []
        for first, now in zip(self._first_stats[side], collect(self.nodes[side]), strict=True):
            counted = [report.nodes[now.address] for report in self._reports[side] if now.address in report.nodes]
            counted = counted or [(now.hits - first.hits, now.misses - first.misses)]
            stats.append(replace(now, hits=sum(hits for hits, _ in counted), misses=sum(misses for _, misses in counted)))
        return stats


@contextmanager
def open_stage(given: Sequence[str] = ()) -> Iterator[Stage]:
    """Everything the demo needs, removed again at the end.

    :param given: addresses of the user's own nodes, at least two; both sides use them, under namespaces of their own. Without any,
        each side gets nodes of its own, so that their statistics can be told apart
    :raises ConfigurationError: for an address that cannot be used
    :raises NodeUnreachable: for a given node that does not answer
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvcluster-demo-")))
        if given:
            addresses = [as_node(address).address for address in given]
            for record in collect(addresses):
                if record.error is not None:
                    raise NodeUnreachable(record.address, record.error)
            stage = Stage("your own nodes", dict.fromkeys(SIDES, addresses), {}, real_cities())
        else:
            kind: Kind = "binary" if find_memcached() else "embedded"
            nodes: dict[str, list[str]] = {side: [] for side in SIDES}
            running = {}
            for side in SIDES:
                for _ in range(NODES + 1):
                    node = start_node(kind)
                    stack.callback(node.stop)
                    running[node.address] = node
                    nodes[side].append(node.address)
            stage = Stage(KINDS[kind], nodes, running, real_cities())
        stack.callback(stage.stop_workers)
        stage.start_workers(folder)
        yield stage
