"""What a live resize costs, on real memcached on this machine: how fast keys are copied, what a client's latency becomes meanwhile,
and how many hits are lost.

    python -m benchmarks.migration

Three measurements, each on nodes of its own: a node replaced as fast as can be; 4 nodes grown to 5 at the default rate beside a
client that reads at a steady pace, its latencies compared with those just before; and the same with a Zipf load that stores what it
misses.
"""

from __future__ import annotations

import json
import logging
import random
import resource
import select
import subprocess
import sys
import tempfile
import time
from bisect import bisect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from pymemcache.client.base import Client as AdminClient

from kvcluster import Client
from kvcluster.rebalance import Progress, Rebalance, Settings
from kvcluster.rebalance.change import change
from kvcluster.sources import FileSource
from kvcluster.testing.nodes import MemcachedProcess
from kvcluster.topology import Document, Node, Topology

VALUE = b"x" * 100
PACE = 0.001  # seconds between two reads of the latency load


class Town:
    """Nodes, some of which are members, filled with keys of 100 bytes."""

    def __init__(self, closing: ExitStack, members: int, running: int, keys: int, threads: int = 1) -> None:
        place = Path(closing.enter_context(tempfile.TemporaryDirectory()))
        nodes = [closing.enter_context(MemcachedProcess(memory=512, threads=threads)) for _ in range(running)]
        self.addresses = [node.address for node in nodes]
        self.source = FileSource(place / "topology.toml")
        self.source.create(Document(tuple(map(Node, self.addresses[:members]))))
        self.keys = keys
        client = Client(self.addresses[:members], timeout=10.0)
        for start in range(0, keys, 1000):
            client.set_many({f"user:{n}": VALUE for n in range(start, min(keys, start + 1000))}, expire=3600)
        client.close()

    @contextmanager
    def load(self, kind: str) -> Iterator[subprocess.Popen[str]]:
        """A process that reads until its input ends."""
        command = [sys.executable, "-m", "benchmarks.migration", kind, str(self.source.path), str(self.keys)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            yield process
            process.kill()


def said(process: subprocess.Popen[str], word: str) -> Any:
    """Tell the load something, and what it answers."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(word + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def speed(keys: int) -> None:
    """Replace one node by another, without a limit.

    Processor time tells what the copy takes where the machine is busy with other things.
    """
    with ExitStack() as closing:
        town = Town(closing, 1, 2, keys)
        rebalance = Rebalance(town.source, town.addresses[1:], Settings(rate=1e9, bytes_rate=1e12))
        began = time.perf_counter()
        rebalance.plan()
        planned = time.perf_counter() - began
        used: dict[str, complex] = {}
        report = rebalance.run(
            lambda state: used.setdefault(state.doing, time.process_time() + 1j * processor(town.addresses)) and None
        )
        assert report.outcomes["stored"] == keys, report.outcomes
        spent = (used["comparing"] - used["copying"]) / keys * 1e6
        print(f"copied    {keys / report.copying:>9,.0f} keys/s of 100 B, lease first: {keys:,} keys in {report.copying:.1f} s")
        print(f"took      {spent.real:>9.1f} µs of processor time a key, and {spent.imag:.1f} µs of both nodes together")
        print(f"planned   {keys / planned:>9,.0f} keys/s; the whole resize took {report.seconds:.1f} s")


def processor(addresses: Sequence[str]) -> float:
    """Seconds of processor time that the nodes have taken."""
    found = 0.0
    for address in addresses:
        admin = AdminClient(address)
        stats = admin.stats()
        found += stats[b"rusage_user"] + stats[b"rusage_system"]
        admin.close()
    return found


def memory(keys: int) -> None:
    """By how much a process grows at most that plans a resize, and one that carries it out."""
    with ExitStack() as closing:
        town = Town(closing, 1, 2, keys)
        for name in ("plan", "run"):
            command = [sys.executable, "-m", "benchmarks.migration", name, str(town.source.path), town.addresses[1]]
            grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(f"{name:<9} {grown / 1024:>9.0f} MB at most for {keys:,} keys, all of which move")


def grown(name: str, path: Path, address: str) -> None:
    """The process of `memory`: prints kilobytes."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    getattr(Rebalance(FileSource(path), [address], Settings(rate=1e9, bytes_rate=1e12)), name)()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def latency(keys: int, rate: float, rounds: int = 3) -> None:
    """Grow 4 to 5 beside a client that reads at a steady pace, and shrink again."""
    with ExitStack() as closing:
        town = Town(closing, 4, 5, keys)
        load = closing.enter_context(town.load("latency"))
        said(load, "warm")
        for wanted in (town.addresses, town.addresses[:4]) * rounds:
            time.sleep(2.0)
            quiet = said(load, "quiet")
            during: dict[str, float] = {}
            report = Rebalance(town.source, wanted, Settings(rate=rate)).run(partial(while_copying, load, during))
            print(
                f"p99       {quiet['p99'] * 1e6:.0f} -> {during['p99'] * 1e6:.0f} µs, {during['p99'] / quiet['p99']:.2f} times, "
                f"p50 {quiet['p50'] * 1e6:.0f} -> {during['p50'] * 1e6:.0f} µs; "
                f"{report.dumped:,} keys moved in {report.copying:.1f} s; {during['reads']:,} reads"
            )


def while_copying(load: subprocess.Popen[str], during: dict[str, float], state: Progress) -> None:
    """A progress that asks the load what it saw from the first key to the last."""
    if state.phase == "migrate" and state.doing == "copying" and "began" not in during:
        said(load, "copying begins")
        during["began"] = 0.0
    if state.phase == "drain" and "p99" not in during:
        during.update(said(load, "copying is over"))


def hits(keys: int) -> None:
    """Grow 4 to 5 beside a Zipf load that stores what it misses."""
    with ExitStack() as closing:
        town = Town(closing, 4, 5, keys)
        load = closing.enter_context(town.load("zipf"))
        said(load, "warm")
        time.sleep(2.0)
        before = said(load, "before")
        document = town.source.read()
        Rebalance(town.source, town.addresses).run()
        time.sleep(2.0)
        during = said(load, "during and after")
        cold = cold_misses(document.topology, town.source.read().topology, keys, int(during["reads"]))
        part = during["misses"] / cold
        print(
            f"hit rate  {before['rate']:.3%} before, {during['lowest']:.3%} in the lowest 1,000 reads during and after; "
            f"{during['misses']:,} misses in {during['reads']:,} reads, {part:.2%} of the {cold:,.0f} without migration"
        )


def cold_misses(before: Topology, after: Topology, keys: int, reads: int) -> float:
    """How often the database would be asked if nothing was copied: each moved key that is read is missed once."""
    moves = change(before, after)
    weights = [1 / rank**0.99 for rank in range(1, keys + 1)]
    total = sum(weights)
    lines = [(f"user:{number}".encode(), b"") for number in range(keys)]
    moved = [wire for source in moves.sources for _, wire, _ in moves.router(source.address).moving(lines)]
    return sum(1 - (1 - weights[int(wire[5:])] / total) ** reads for wire in moved)


def run_load(kind: str, path: Path, keys: int) -> None:
    """The process of a load: says what it saw whenever it is asked."""
    logging.disable(logging.WARNING)
    client = Client.from_topology(FileSource(path), timeout=5.0)
    chance = random.Random(1)
    if kind == "zipf":
        weights = list(accumulate(1 / (rank**0.99) for rank in range(1, keys + 1)))
        total = weights[-1]
    latencies: list[float] = []
    seen: list[bool] = []
    due = time.perf_counter()
    while True:
        ready, _, _ = select.select([sys.stdin], [], [], 0 if kind == "zipf" else max(0.0, due - time.perf_counter()))
        if ready:
            if not sys.stdin.readline():
                return
            print(json.dumps(summary(latencies, seen)), flush=True)
            latencies.clear()
            seen.clear()
        due = max(due + PACE, time.perf_counter() - PACE)
        number = bisect(weights, chance.random() * total) if kind == "zipf" else chance.randrange(keys)
        began = time.perf_counter()
        value = client.get(f"user:{number}")
        latencies.append(time.perf_counter() - began)
        seen.append(value is not None)
        if value is None and kind == "zipf":
            client.set(f"user:{number}", VALUE, expire=3600)


def summary(latencies: Sequence[float], seen: Sequence[bool]) -> dict[str, float]:
    """Latencies and hits since the last question."""
    ordered = sorted(latencies) or [0.0]
    chunks = [seen[start : start + 1000] for start in range(0, len(seen) - 999, 1000)]
    return {
        "reads": len(seen),
        "misses": len(seen) - sum(seen),
        "rate": sum(seen) / max(1, len(seen)),
        "lowest": min((sum(chunk) / 1000 for chunk in chunks), default=1.0),
        "p50": ordered[len(ordered) // 2],
        "p99": ordered[int(len(ordered) * 0.99)],
    }


def main() -> None:
    """All measurements, or the process of a load."""
    if len(sys.argv) == 4 and sys.argv[1] in ("plan", "run"):
        grown(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
        return
    if len(sys.argv) == 4:
        run_load(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
        return
    speed(300_000)
    memory(1_000_000)
    latency(300_000, Settings().rate)
    hits(100_000)


if __name__ == "__main__":
    main()
