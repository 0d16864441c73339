"""The load on one side, and what is counted while it runs.

A side is served by `WORKERS` processes, as a web application is: readers and editors of one are not those of the other, and no
process shares an interpreter lock with the other side or with the screen. Both sides run the same acts in the same seconds with the
same threads, the same seeds and the same due times, so whatever else keeps the machine busy disturbs both alike.

**A wrong page.** Each city is edited by one thread only. When an edit is over (the commit, and whatever the side does to its
cache after it, have returned), the editor notes the row's new version in memory that all processes of the side share. A reader
notes those versions before it begins, reads, and compares: if a row it was shown is older than the version noted, or missing, the
page is wrong. Somebody who was told that an edit is over has then been shown the row as it was before.

**Times.** A read is due at a fixed time, whatever became of the one before, so a side that is stuck still owes its reads. What is
timed is the call itself.
"""

from __future__ import annotations

import logging
import math
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from kvcluster.cli.demo.sides import SIDES, Side
from kvcluster.cli.demo.world import PAGE, Draws, dispose, open_database

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from pathlib import Path

    from sqlalchemy.orm import Session, sessionmaker

WORKERS = 2
READERS = 8
"""Reading threads per worker."""
READS_PER_SECOND = 15
"""Of each reading thread."""
EDITORS = 4
"""Editing threads per worker."""
EDITS_PER_SECOND = 5
"""Of each editing thread."""
CALLERS = 128
"""Threads of a side, over all its workers, that ask for one cold key at the same moment."""


class Longs(Protocol):
    """Memory shared by processes: fixed length, 64-bit integers."""

    def __getitem__(self, index: int) -> int: ...
    def __setitem__(self, index: int, value: int) -> None: ...
    def __len__(self) -> int: ...


COUNTERS = ("reads", "queries", "wrong", "errors", "edits")
_BUCKETS = 8 * 24  # eight per doubling, from 1 µs to 16 s: a percentile is at most 9 % too high
TALLY_SIZE = len(COUNTERS) + _BUCKETS


class Tally:
    """The counters of one worker, in shared memory: any thread of the worker adds, the screen's process only looks."""

    def __init__(self, longs: Longs) -> None:
        self._longs = longs
        self._lock = threading.Lock()

    def add(self, counter: str) -> None:
        with self._lock:
            self._longs[COUNTERS.index(counter)] += 1

    def time(self, seconds: float) -> None:
        bucket = math.ceil(8 * math.log2(max(seconds * 1e6, 1)))
        with self._lock:
            self._longs[len(COUNTERS) + min(bucket, _BUCKETS - 1)] += 1


@dataclass(frozen=True)
class Figures:
    """What was counted: at a moment, or, as the difference of two, in between."""

    longs: tuple[int, ...] = (0,) * TALLY_SIZE

    @classmethod
    def of(cls, tallies: Sequence[Longs]) -> Figures:
        """The sum over the workers of a side."""
        return cls(tuple(sum(longs[i] for longs in tallies) for i in range(TALLY_SIZE)))

    def __sub__(self, before: Figures) -> Figures:
        return Figures(tuple(a - b for a, b in zip(self.longs, before.longs, strict=True)))

    @property
    def reads(self) -> int:
        return self.longs[0]

    @property
    def queries(self) -> int:
        return self.longs[1]

    @property
    def wrong(self) -> int:
        return self.longs[2]

    @property
    def errors(self) -> int:
        return self.longs[3]

    @property
    def edits(self) -> int:
        return self.longs[4]

    def percentile(self, share: float) -> float | None:
        """Seconds within which ``share`` of the reads were answered; None without reads."""
        counts = self.longs[len(COUNTERS) :]
        wanted = share * sum(counts)
        seen = 0
        for bucket, count in enumerate(counts):
            seen += count
            if count and seen >= wanted:
                return float(2.0 ** (bucket / 8) / 1e6)
        return None


@dataclass(frozen=True)
class Setting:
    """What a worker needs to know to open its side.

    :param side: a name in `SIDES`
    :param number: of this worker, from 0
    :param topology: the file that says which nodes there are, for a side that follows it; None for nodes that are not to be resized
    :param cities: (id, population), largest first
    """

    side: str
    number: int
    nodes: tuple[str, ...]
    topology: Path | None
    database: Path
    namespace: str
    cities: tuple[tuple[int, int], ...]


# What a worker can be asked to do. Times are those of `time.time`, the one clock that processes share everywhere.


@dataclass(frozen=True)
class Warm:
    """Read every city once, so that what follows does not measure an empty cache."""


@dataclass(frozen=True)
class Storm:
    """Callers who all ask for the same city at the same moment, once for each of ``cities``, each ``every`` seconds."""

    start: float
    every: float
    cities: tuple[int, ...]


@dataclass(frozen=True)
class Traffic:
    """Readers until ``end`` and, until ``edit_until``, editors of the front page's cities."""

    start: float
    end: float
    edit_until: float
    seed: str
    front: float


@dataclass(frozen=True)
class Join:
    """A node joins."""

    address: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Finish:
    """Wait for the threads of the last order."""


@dataclass(frozen=True)
class Report:
    """What a worker answers to every order, since it began.

    :param errors: by kind
    :param nodes: hits and misses by node, where its side counts them
    """

    errors: Counter[str]
    nodes: dict[str, tuple[int, int]]


Order = Warm | Storm | Traffic | Join | Finish


class Worker:
    """One process of a side."""

    def __init__(self, setting: Setting, side: Side, tally: Tally, versions: Longs) -> None:
        self._setting = setting
        self._side = side
        self._tally = tally
        self._versions = versions
        self._ids = [id for id, _ in setting.cities]
        self._populations = [population for _, population in setting.cities]
        self._place = {id: place for place, id in enumerate(self._ids)}
        self._threads: list[threading.Thread] = []
        self.errors: Counter[str] = Counter()

    def obey(self, order: Order) -> None:
        """Do what is asked; `Storm` and `Traffic` only begin, `Finish` waits for their end."""
        match order:
            case Warm():
                share = self._ids[self._setting.number :: WORKERS]
                for at in range(0, len(share), 500):
                    self._side.page(share[at : at + 500])
            case Storm():
                for _ in range(CALLERS // WORKERS):
                    self._start(self._storm, order)
            case Traffic():
                for number in range(READERS):
                    self._start(self._read_on, order, number)
                for number in range(EDITORS):
                    self._start(self._edit_on, order, number)
            case Join():
                self._side.join(order.address, order.nodes)
            case Finish():
                for thread in self._threads:
                    thread.join()
                self._threads.clear()

    def report(self) -> Report:
        """What is answered to an order."""
        return Report(self.errors, self._side.hits_and_misses())

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        self._threads.append(threading.Thread(target=target, args=args, daemon=True))
        self._threads[-1].start()

    def read(self, ids: Sequence[int]) -> None:
        """One timed and checked read."""
        known = {id: self._versions[self._place[id]] for id in ids}
        began = time.perf_counter()
        try:
            shown = self._side.city(ids[0]) if len(ids) == 1 else self._side.page(ids)
        except Exception as error:  # whatever a side lets out, its user gets to see
            self._count_error("a read", error)
        else:
            self._tally.time(time.perf_counter() - began)
            if any(shown.get(id, -1) < version for id, version in known.items()):
                self._tally.add("wrong")
        self._tally.add("reads")

    def edit(self, id: int) -> None:
        """One edit, and the note that it is over."""
        try:
            self._versions[self._place[id]] = self._side.edit(id)
        except Exception as error:  # nobody was told that it is over, so nothing is noted
            self._count_error("an edit", error)
        self._tally.add("edits")

    def _count_error(self, what: str, error: Exception) -> None:
        self._tally.add("errors")
        self.errors[f"{type(error).__name__} in {what}"] += 1

    def _storm(self, storm: Storm) -> None:
        for round, city in enumerate(storm.cities):
            _sleep_until(storm.start + round * storm.every)
            self.read([city])

    def _read_on(self, traffic: Traffic, number: int) -> None:
        reader = self._setting.number * READERS + number
        draws = Draws(self._ids, self._populations, f"{traffic.seed} reader {reader}", front=traffic.front)
        phase = reader / (READERS * WORKERS)  # keeps the readers out of step
        for turn, ids in enumerate(draws):
            due = traffic.start + (turn + phase) / READS_PER_SECOND
            if due >= traffic.end or time.time() >= traffic.end:
                return
            _sleep_until(due)
            self.read(ids)

    def _edit_on(self, traffic: Traffic, number: int) -> None:
        editor = self._setting.number * EDITORS + number
        editors = EDITORS * WORKERS
        mine = self._ids[:PAGE][editor::editors]
        dice = random.Random(f"{traffic.seed} editor {editor}")
        # Edits arrive at random, as people do: evenly spaced ones would never meet a load of the row they change.
        due = traffic.start
        while (due := due + dice.expovariate(EDITS_PER_SECOND)) < traffic.edit_until and time.time() < traffic.edit_until:
            _sleep_until(due)
            self.edit(dice.choice(mine))


def _sleep_until(moment: float) -> None:
    while (left := moment - time.time()) > 0:
        time.sleep(left)


def work(setting: Setting, orders: Connection, tally_longs: Longs, versions: Longs) -> None:
    """The main function of a worker's process: obey orders until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that shows the screen; it ends this one
    logging.getLogger("kvcluster").addHandler(logging.NullHandler())  # lines in between would tear the screen
    tally = Tally(tally_longs)
    sessions: sessionmaker[Session] = open_database(setting.database, lambda: tally.add("queries"), callers=CALLERS // WORKERS)
    side = SIDES[setting.side](setting.nodes, setting.topology, sessions, setting.namespace)
    worker = Worker(setting, side, tally, versions)
    orders.send(worker.report())
    while True:
        try:
            order = orders.recv()
        except EOFError:
            break
        worker.obey(order)
        orders.send(worker.report())
    side.close()
    dispose(sessions)
