"""Readers and writers in several processes while the cluster is resized over and over, its coordinator killed now and then, and
every read checked.

The database is an array in shared memory: a version for each key, which one process writes. A writer notes what it wrote, makes the
cache know, and only then notes that it did. A reader looks at that note before it reads: an older version is a stale read.

Keys are of kinds, by what their writer does. ``row`` is read through a `Cache`, which loads, leases and refreshes early, and is
invalidated. ``soft`` is marked as stale, and read by leases under the rules of the phases, since a `Cache` does not say whether
what it serves is stale. The others are a client's: ``store`` is set, ``count`` increased by incr, ``swap`` changed by gets and
cas, ``once`` added and deleted.

    python -m tests.rebalance.stress --reads 1000000
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import mmap
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kvcluster.client
from kvcluster import Cache, Client, phases
from kvcluster.errors import KvclusterError, NodeError, OutcomeUnknown, ResizeLocked
from kvcluster.following.copying import copy_command, seen
from kvcluster.planner import expiry
from kvcluster.protocol import requests
from kvcluster.protocol.hot import Reply
from kvcluster.protocol.requests import Commands
from kvcluster.rebalance import Rebalance, Settings, copy
from kvcluster.rebalance.lanes import Lane
from kvcluster.sources import FileSource
from kvcluster.testing.nodes import MemcachedProcess
from kvcluster.topology import Document, Node

KINDS = ("row", "row", "row", "soft", "store", "count", "swap", "once")
KEYS = 1600
WRITERS = READERS = 3
COUNTS = ("reads", "hits", "stale", "writes", "lost", "unknown", "failures")
SLOTS = 1024
PROBE = requests.meta_get(b"__kvc:epoch", b"v")


class Shared:
    """Numbers that all processes see: the database, what the cache was told of it, and what each process counted."""

    def __init__(self, path: Path) -> None:
        self.size = 8 * (2 * KEYS + 1 + len(COUNTS) * (WRITERS + READERS))
        if not path.exists():
            path.write_bytes(bytes(self.size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), self.size)
        self._view = memoryview(self._map)
        numbers = self._view.cast("Q")
        self.database, self.told, self.stop = numbers[:KEYS], numbers[KEYS : 2 * KEYS], numbers[2 * KEYS : 2 * KEYS + 1]
        self._counts = numbers[2 * KEYS + 1 :]

    def counter(self, process: int) -> Counts:
        """The counts of one process."""
        return Counts(self._counts, process * len(COUNTS))

    def total(self, name: str) -> int:
        """One count of all processes."""
        return sum(self._counts[COUNTS.index(name) :: len(COUNTS)])


class Counts:
    """What one process counted."""

    def __init__(self, numbers: memoryview, offset: int) -> None:
        self._numbers, self._offset = numbers, offset

    def add(self, name: str) -> None:
        self._numbers[self._offset + COUNTS.index(name)] += 1


def key_of(number: int) -> str:
    return f"{KINDS[number % len(KINDS)]}:{number}"


class Slow:
    """Sleeps for a moment at random, so that everything meets everything."""

    def __init__(self, seed: int, part: float = 0.04, most: float = 0.012) -> None:
        self._random = random.Random(seed)
        self._part, self._most = part, most

    def __call__(self) -> None:
        if self._random.random() < self._part:
            time.sleep(self._random.random() * self._most)


def client_of(source: FileSource, slow: Slow) -> Client:
    """A client that follows, and is slow between any two steps of a command."""
    exchange_all = kvcluster.client.exchange_all

    def slowly(*arguments: Any) -> Any:
        slow()
        try:
            return exchange_all(*arguments)
        finally:
            slow()

    kvcluster.client.exchange_all = slowly
    return Client.from_topology(source, timeout=2.0, connect_timeout=2.0)


class Newer(Exception):
    """The topology has changed: do it again."""


class Through:
    """Reads through leases, and invalidations that leave the old value to be served, by the rules of the phases."""

    def __init__(self, client: Client, slow: Slow) -> None:
        self._client: Any = client
        self._slow = slow
        self._lanes: dict[str, Lane] = {}

    def _ask(self, address: str, *commands: bytes) -> list[Reply]:
        """The replies of a node, once it and the client agree on the epoch."""
        self._slow()
        try:
            lane = self._lanes.get(address)
            if lane is None:
                self._lanes[address] = lane = Lane(Node(address), 2.0)
            request = Commands(b"".join(commands) + PROBE, len(commands) + 1)
            lane.send(request)
            lane.receive(request)
        except (KvclusterError, OSError):
            if dead := self._lanes.pop(address, None):
                dead.close()
            raise
        theirs = request.replies[-1].value
        verdict = phases.verdict(self._client.planner.epoch, int(theirs) if theirs else None)
        self._slow()
        if verdict in ("good", "lagging"):
            return request.replies[:-1]
        self._client.get("store:4")  # the client finds out, and follows or tells
        raise Newer

    def read(self, key: str, load: Any) -> tuple[Any, bool]:
        """The value, and whether it is known to be outdated."""
        while True:
            with contextlib.suppress(Newer):
                return self._read(key, load)

    def _read(self, key: str, load: Any) -> tuple[Any, bool]:
        planner = self._client.planner
        wire = planner.wire(key)
        reads = [step.action for step in phases.steps(planner.phase, "read")]
        moves = planner.moves(wire)
        first = planner.address(wire)
        reply = self._ask(first, requests.meta_get(wire, b"v f t c N30 R40"))[0]
        there = seen(reply)
        if there.value and not there.won:
            return planner.codec.decode(reply.value, reply.flags), there.stale
        if not there.won:
            return load(), False  # somebody else fills it
        if moves and "lease" in reads and phases.reserved(there) == "read":
            old = self._ask(planner.at("O").address(wire), requests.meta_get(wire, b"v f t c u"))[0]
            if old.won and old.stale:
                self._ask(planner.at("O").address(wire), requests.meta_delete(wire, b"I C%d" % old.cas))
            if phases.copied(seen(old)) == "store":
                self._ask(first, copy_command(planner, wire, reply.cas, old))
                return planner.codec.decode(old.value, old.flags), False
        value = load()
        self._slow()
        data, flags = planner.codec.encode(value)
        with contextlib.suppress(Newer):  # a fill is not done again
            self._ask(first, requests.meta_set(wire, data, b"C%d T60 F%d" % (reply.cas, flags)))
        return value, False

    def soften(self, key: str) -> None:
        """Mark a key as stale at its owners, old then new."""
        while True:
            planner = self._client.planner
            wire = planner.wire(key)
            command = requests.meta_delete(wire, b"I T30")
            with contextlib.suppress(Newer):
                if not planner.moves(wire):
                    self._ask(planner.address(wire), command)
                    return
                for step in phases.steps(planner.phase, "delete"):
                    self._ask(planner.at(step.side).address(wire), command)
                return


class Cached:
    """What is read through a cache."""

    def __init__(self, client: Client, shared: Shared, slow: Slow) -> None:
        self.cache = Cache("stress", ttl=20, xfetch=1.0, client=client)

        @self.cache.loader("row:{number}")
        def row(number: int) -> int:
            slow()
            found = shared.database[number]
            slow()
            return found

        self.row = row


def persist(action: Any) -> Any:
    """Do it until it is done: a delete that failed is not told to anybody."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return action()
        except OutcomeUnknown:
            raise
        except KvclusterError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)


class Writer:
    """Writes the keys that are its own."""

    def __init__(self, shared: Shared, counts: Counts, client: Client, slow: Slow) -> None:
        self.shared, self.counts, self.client = shared, counts, client
        self.through, self.cached = Through(client, slow), Cached(client, shared, slow)

    def write(self, number: int) -> None:
        key, shared = key_of(number), self.shared
        known = shared.database[number]
        version = known + 1
        match key.split(":")[0]:
            case "row":
                shared.database[number] = version
                persist(lambda: self.cached.row.invalidate(number))
                shared.told[number] = version
            case "soft":
                shared.database[number] = version
                persist(lambda: self.through.soften(key))
                shared.told[number] = version
            case "store":
                shared.database[number] = version
                if not self.client.set(key, version, expire=60):
                    persist(lambda: self.client.delete(key))
                shared.told[number] = version
            case "count":
                self.count(number, key, known)
            case "swap":
                self.swap(number, key, known)
            case "once":
                shared.database[number] = version
                self.client.add(key, version, expire=60)  # refused where the one before is still there
                shared.told[number] = max(shared.told[number], known)
                persist(lambda: self.client.delete(key))
                shared.told[number] = version + 1
                shared.database[number] = version
        self.counts.add("writes")

    def count(self, number: int, key: str, known: int) -> None:
        try:
            now = self.client.incr(key, 1)
        except OutcomeUnknown:
            self.counts.add("unknown")
            persist(lambda: self.client.delete(key))
            now = None
        if now is None:
            self.counts.add("lost")
            with contextlib.suppress(OutcomeUnknown):
                self.client.add(key, known)
            return
        if now != known + 1:
            self.counts.add("stale")
            print(f"{key}: {known} was increased to {now}", file=sys.stderr)
        self.shared.database[number] = self.shared.told[number] = now

    def swap(self, number: int, key: str, known: int) -> None:
        value, token = self.client.gets(key)
        if value is None:
            with contextlib.suppress(OutcomeUnknown):
                self.client.add(key, known)
            return
        if value != known:
            self.counts.add("stale")
            print(f"{key}: {known} was swapped in, and {value} is there", file=sys.stderr)
        try:
            if self.client.cas(key, known + 1, token):
                self.shared.database[number] = self.shared.told[number] = known + 1
        except OutcomeUnknown:
            self.counts.add("unknown")
            persist(lambda: self.client.delete(key))


def popular(chance: random.Random, count: int) -> int:
    """A number below ``count``, the small ones more often than the others."""
    return int(min(chance.paretovariate(0.3), 1e12) - 1) % count


def write(source: FileSource, shared: Shared, process: int) -> None:
    """A process that writes until it is told to stop."""
    slow = Slow(process)
    client = client_of(source, slow)
    writer = Writer(shared, shared.counter(process), client, slow)
    chance = random.Random(process)
    own = range(process, KEYS, WRITERS)
    while not shared.stop[0]:
        try:
            writer.write(own[popular(chance, len(own))])
        except KvclusterError as error:
            if isinstance(error, NodeError):
                raise
            writer.counts.add("failures")
    client.close()


def read(source: FileSource, shared: Shared, process: int) -> None:
    """A process that reads and checks until it is told to stop."""
    slow = Slow(process, part=0.01)
    client = client_of(source, slow)
    through, cached = Through(client, slow), Cached(client, shared, slow)
    counts, chance = shared.counter(process), random.Random(process)
    while not shared.stop[0]:
        number = popular(chance, KEYS)
        key = key_of(number)
        kind = key.split(":")[0]
        told = shared.told[number]
        outdated = False
        try:
            if kind == "soft":
                value, outdated = through.read(key, lambda: shared.database[number])  # noqa: B023
            elif kind == "row":
                value = cached.row(number)
            else:
                value = client.get(key)
        except KvclusterError:
            counts.add("failures")
            continue
        counts.add("reads")
        if value is not None:
            counts.add("hits")
            if value < told and not outdated:
                counts.add("stale")
                epoch = client.planner.epoch, client.planner.phase
                print(f"{key}: read {value} after {told} was told, {epoch}", file=sys.stderr, flush=True)
    client.close()


class AddBatch(copy.Batch):
    """What many a tool does instead: read the source, then add to the target. Here to show that the checker can fail."""

    def reserve(self) -> Commands:
        self._won = [(wire, 0) for wire in self.wires]
        self._mending: list[bytes] = []
        return Commands(b"", 0)

    def read(self) -> Commands:
        token = b" O" + self._token
        self._read = Commands(b"".join([copy.read(wire, token) for wire in self.wires]), len(self.wires), opaque=self._token)
        return self._read

    def fill(self, now: float) -> tuple[Commands, Commands]:
        adds = [
            requests.meta_set(wire, reply.value, b"ME T%d F%d O%b" % (expiry(reply.ttl, now), reply.flags, self._token))
            for wire, reply in zip(self.wires, self._read.replies, strict=True)
            if reply.value is not None and reply.ttl
        ]
        self._filled = len(adds)
        self._stores = Commands(b"".join(adds), len(adds), opaque=self._token)
        return self._stores, Commands(b"", 0)


def coordinate(source: FileSource, wanted: Sequence[Node], seed: int, by_add: bool) -> None:
    """A coordinator that is slow now and then, in a process that may be killed."""
    slow = Slow(seed, part=0.9, most=0.3)
    batch: Any = AddBatch if by_add else copy.Batch

    def slowed(step: Any) -> Any:
        def slowly(*arguments: Any) -> Any:
            slow()
            return step(*arguments)

        return slowly

    for name in ("reserve", "read"):
        setattr(copy.Batch, name, getattr(batch, name))
    copy.Batch.fill = slowed(batch.fill)  # type: ignore[method-assign]
    settings = Settings(rate=3000.0, lease=1.0, patience=30.0, sample=50)
    while (present := source.read()).phase != "old" or present.nodes != tuple(wanted):
        try:
            report = Rebalance(source, wanted, settings).run()
        except ResizeLocked:
            time.sleep(0.05)
            continue
        values = [difference for difference in report.sample.differences if difference.what != "ttl"]
        if values and not by_add:
            sys.exit(f"differences: {values}")
        return


@dataclass
class Outcome:
    """What a stress found."""

    seconds: float = 0.0
    resizes: int = 0
    kills: int = 0
    restarts: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    complaints: str = ""

    def __getattr__(self, name: str) -> int:
        return self.counts[name]


def topologies(addresses: Sequence[str]) -> Iterator[list[Node]]:
    """One resize after the other, over and over: grow, reweight, replace, shrink, replace under the same id, and back."""
    a, b, c, d, e, f = addresses

    def nodes(*members: Any) -> list[Node]:
        return [member if isinstance(member, Node) else Node(member) for member in members]

    while True:
        yield nodes(a, b, c, d, e)
        yield nodes(a, b, c, d, Node(e, 3))
        yield nodes(a, f, c, d, Node(e, 3))
        yield nodes(a, f, c, d)
        yield nodes(a, f, Node(b, id=c), d)
        yield nodes(a, f, c, d)
        yield nodes(a, b, c, d)


def stress(reads: int, seconds: float, by_add: bool = False, seed: int = 1, restarts: bool = False) -> Outcome:
    """Resize under load until so many reads are checked, or the time is over."""
    outcome, chance = Outcome(), random.Random(seed)
    with contextlib.ExitStack() as closing:
        place = Path(closing.enter_context(tempfile.TemporaryDirectory()))
        nodes = [closing.enter_context(MemcachedProcess(threads=2)) for _ in range(6)]
        addresses = [node.address for node in nodes]
        source = FileSource(place / "topology.toml")
        source.create(Document(tuple(Node(address) for address in addresses[:4]), slots=SLOTS))
        shared = Shared(place / "shared")
        complaints = closing.enter_context((place / "complaints").open("w+"))

        def start(*arguments: object) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-m", "tests.rebalance.stress", *map(str, arguments)]
            return subprocess.Popen(command, stderr=complaints, cwd=Path(__file__).parents[2])

        workers = [start("write", place, number) for number in range(WRITERS)]
        workers += [start("read", place, WRITERS + number) for number in range(READERS)]
        try:
            began = time.monotonic()
            for wanted in topologies(addresses):
                if shared.total("reads") >= reads or time.monotonic() - began > seconds:
                    break
                if by_add and shared.total("stale"):
                    break
                text = ",".join(f"{node.address}/{node.weight}/{node.id}" for node in wanted)
                while True:
                    coordinator = start("coordinate", place, text, chance.randrange(1 << 30), int(by_add))
                    try:
                        patience = chance.random() * 4 if chance.random() < 0.5 else 120.0
                        if coordinator.wait(patience):
                            raise AssertionError(_text(complaints))
                        break
                    except subprocess.TimeoutExpired:
                        coordinator.send_signal(signal.SIGKILL)
                        coordinator.wait()
                        outcome.kills += 1
                        if patience == 120.0:
                            raise AssertionError("a resize took two minutes") from None
                outcome.resizes += 1
                if restarts and chance.random() < 0.3:
                    chance.choice([node for node in nodes if node.address in text]).restart()
                    outcome.restarts += 1
                dead = [worker.args for worker in workers if worker.poll() is not None]
                assert not dead, _text(complaints)
            shared.stop[0] = 1
            for worker in workers:
                assert worker.wait(30) == 0, _text(complaints)
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
        outcome.seconds = time.monotonic() - began
        outcome.counts = {name: shared.total(name) for name in COUNTS}
        outcome.complaints = _text(complaints)
    return outcome


def _text(file: Any) -> str:
    file.seek(0)
    return str(file.read())[-4000:]


def main() -> None:
    """One process of the stress, or all of it."""
    if len(sys.argv) > 2 and sys.argv[1] in ("read", "write", "coordinate"):
        role, place, *rest = sys.argv[1:]
        logging.disable(logging.WARNING)  # each client says of each epoch that it follows
        source = FileSource(Path(place) / "topology.toml")
        if role == "coordinate":
            wanted = [Node(address, int(weight), id) for address, weight, id in (part.split("/") for part in rest[0].split(","))]
            coordinate(source, wanted, int(rest[1]), rest[2] == "1")
        else:
            {"read": read, "write": write}[role](source, Shared(Path(place) / "shared"), int(rest[0]))
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("--reads", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--by-add", action="store_true")
    parser.add_argument("--restarts", action="store_true")
    options = parser.parse_args()
    found = stress(options.reads, options.seconds, options.by_add, options.seed, options.restarts)
    print(f"{found.seconds:.0f} s, {found.resizes} resizes, {found.kills} kills, {found.restarts} restarts, {found.counts}")
    print(found.complaints)


if __name__ == "__main__":
    main()
