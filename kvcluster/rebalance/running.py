"""One run of a coordinator: what its steps share, and what happens between any two moments of them.

`Run.tick` is that: it keeps the lock, reports progress, and ends the run where somebody asked for it. Steps call it wherever they
could stop and be continued.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kvcluster.errors import ConfigurationError, KvclusterError, NetworkError, ResizeStopped
from kvcluster.following.epochs import EPOCH_KEY, tell_epoch
from kvcluster.protocol import requests
from kvcluster.rebalance.change import Change
from kvcluster.rebalance.journal import Journal
from kvcluster.rebalance.lanes import Figures, Lanes, figures
from kvcluster.rebalance.lock import Lock
from kvcluster.rebalance.pace import Pace
from kvcluster.rebalance.reports import Progress, Report, Sample, asked
from kvcluster.topology import Node

REPORTED_EVERY: Final = 0.2  # seconds
ATTEMPTS: Final = 10
RETRIED_EVERY: Final = 0.2  # seconds
ASKED_EVERY: Final = 2.0  # seconds between two looks at the nodes' hits


@dataclass(frozen=True, slots=True)
class Settings:
    """How a resize is done.

    :ivar rate: keys copied a second, at most
    :ivar bytes_rate: bytes copied a second, at most
    :ivar flush_new: empty new nodes that are not empty, instead of refusing them
    :ivar fill: part of a target's memory, 0 to 1, that copying may fill. A target that is full already gives up to the keys it
        gains the part of its memory that is their share of its slots
    :ivar longest_ttl: seconds that keys are moved by reads alone where a source cannot be dumped: the longest ttl in use. Where
        None, such a source is refused
    :ivar sample: keys per source that are compared after they were copied
    :ivar lease: seconds that the lock lasts unless renewed
    :ivar timeout: seconds that a node may take for one reply
    :ivar patience: seconds to try again a node that does not answer or will not dump, and to wait for clients that do not follow
    :ivar journal: a file for the slots that are done; where None, beside the source's own file if it is one
    :ivar owner: what the lock says of who holds it, different for each coordinator; where empty, host, process and a random number
    :raises ConfigurationError: for a number that is none, or out of its bounds
    """

    rate: float = 10_000.0
    bytes_rate: float = 50e6
    flush_new: bool = False
    fill: float = 0.95
    longest_ttl: float | None = None
    sample: int = 1000
    lease: float = 30.0
    timeout: float = 5.0
    patience: float = 30.0
    journal: Path | None = None
    owner: str = ""

    def __post_init__(self) -> None:
        for name in ("rate", "bytes_rate", "fill", "lease", "timeout"):
            value = getattr(self, name)
            if not _number(value) or not value > 0:
                raise ConfigurationError(f"{name} must be a number above 0, not {value!r}")
        if self.fill > 1:
            raise ConfigurationError(f"fill must be at most 1, not {self.fill!r}")
        for name in ("patience", "sample", "longest_ttl"):
            value = getattr(self, name)
            if not (value is None and name == "longest_ttl") and (not _number(value) or value < 0):
                raise ConfigurationError(f"{name} must be a number from 0, not {value!r}")
        if not isinstance(self.owner, str):
            raise ConfigurationError(f"owner must be str, not {type(self.owner).__name__}")


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True, slots=True)
class Times:
    """Where time comes from: ``clock`` in seconds since 1970, ``monotonic`` for durations, and ``sleep``."""

    clock: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep


class Stopping(Exception):
    """Somebody asked the run to end."""


@dataclass
class SourceTally:
    """What became of the keys of one source.

    :ivar outcomes: keys by what became of them, see `kvcluster.rebalance.copy`; also ``journalled``, by an earlier attempt, and
        ``cold``, left behind for want of memory
    :ivar dumped: keys that its dump lists as moving; an estimate before
    """

    dumped: int
    outcomes: Counter[str] = field(default_factory=Counter)
    bytes: int = 0


@dataclass
class Tally:
    """What has been done so far."""

    sources: dict[str, SourceTally] = field(default_factory=dict)
    copying: float = 0.0
    swept: int = 0
    sample: Sample = field(default_factory=Sample)
    notes: list[str] = field(default_factory=list)

    @property
    def outcomes(self) -> Counter[str]:
        """Of all sources."""
        return sum((one.outcomes for one in self.sources.values()), Counter())

    @property
    def keys(self) -> int:
        """Keys dealt with."""
        return sum(one.outcomes.total() for one in self.sources.values())

    @property
    def asked(self) -> int:
        """Those of them that this run asked the nodes for."""
        return asked(self.outcomes)

    @property
    def dumped(self) -> int:
        """Keys to deal with."""
        return sum(one.dumped for one in self.sources.values())

    @property
    def bytes(self) -> int:
        """Bytes of the values read."""
        return sum(one.bytes for one in self.sources.values())


class Run:
    """What the steps of one run share.

    :param stopping: whether somebody asked the run to end
    :ivar migrating: since when the phase is ``migrate``, by ``times.monotonic``
    :ivar leaving: nodes that are given up where they do not answer
    :ivar dead: addresses of those that were
    """

    def __init__(
        self,
        settings: Settings,
        times: Times,
        change: Change,
        lock: Lock,
        journal: Journal,
        progress: Callable[[Progress], None] | None,
        stopping: Callable[[], bool],
    ) -> None:
        self.settings = settings
        self.times = times
        self.change = change
        self.lock = lock
        self.journal = journal
        self.lanes = Lanes(change.members, settings.timeout)
        self.pace = Pace(settings.rate, settings.bytes_rate)
        self.tally = Tally()
        self.leaving = change.removed
        self.dead: set[str] = set()
        self.began = self.migrating = times.monotonic()
        self._progress = progress
        self.stopping = stopping
        self._doing = ""
        self._source = ""
        self._reported = -REPORTED_EVERY
        self._asked = -ASKED_EVERY
        self._gets: dict[str, tuple[int, int]] = {}  # hits and misses of each node, as it counts them
        self._own_gets = ((0, 0), (0, 0))  # those of them that are this run's, at the sources and at the targets
        self._rates: tuple[float | None, float | None] = (None, None)
        self._lately: tuple[float, int] = (self.began, 0)
        self._rate = 0.0

    def doing(self, step: str, source: str = "") -> None:
        """Say what comes next."""
        self._doing, self._source = step, source
        self._reported = -REPORTED_EVERY
        self.tick()

    def tick(self) -> None:
        """Call it often, where the run may end and be continued.

        :raises ResizeStopped: where the lock is lost
        :raises Stopping: where somebody asked for it
        """
        self.beat()
        if self.stopping():
            raise Stopping

    def beat(self) -> None:
        """Call it often, where the run may not end.

        :raises ResizeStopped: where the lock is lost
        """
        self.lock.renew()
        now = self.times.monotonic()
        if self._progress is not None and now - self._reported >= REPORTED_EVERY:
            self._reported = now
            self._progress(self._state(now))

    def wait(self, seconds: float) -> None:
        """Let time pass, with ticks."""
        end = self.times.monotonic() + seconds
        while (left := end - self.times.monotonic()) > 0:
            self.tick()
            self.times.sleep(min(left, REPORTED_EVERY))

    def tell_epoch(self, node: Node) -> None:
        """Make a node know the epoch of the document, however long it takes to answer. One that leaves and does not is given up.

        :raises ResizeStopped: where it is to stay, and does not acknowledge it, or holds a later one
        """
        epoch = self.lock.document.epoch
        for _ in range(ATTEMPTS):
            if node.address in self.dead:
                return
            try:
                lane = self.lanes(node.address)
                if lane.run(tell_epoch("", [node.address], epoch)):
                    held = lane.ask(requests.meta_get(EPOCH_KEY, b"v")).value
                    if held == b"%d" % epoch:
                        return
                    if held is not None and held.isdigit() and int(held) > epoch:
                        self.lock.confirm()
                        raise ResizeStopped(
                            f"{node.address} holds epoch {int(held)}, which is another cluster's: where it is not a member there, "
                            "flush it, and continue"
                        )
            except NetworkError as error:
                self.await_node(error)
        raise ResizeStopped(f"{node.address} does not take epoch {epoch}; continue once it is well")

    def figures(self, node: Node) -> Figures | None:
        """What a node says of itself, however long it takes to answer; None for one that is given up.

        :raises ResizeStopped: where it is to stay, and does not answer
        """
        while node.address not in self.dead:
            try:
                return figures(node, self.settings.timeout)
            except NetworkError as error:
                self.await_node(error)
        return None

    def await_node(self, error: NetworkError) -> None:
        """After a node failed, wait until it answers. One that leaves and does not is given up.

        :raises ResizeStopped: where it is to stay, and does not answer while the patience lasts
        """
        self.lanes.close()
        node = next(node for node in self.change.members if node.address == error.node)
        self.doing("waiting for an answer of", node.address)
        deadline = self.times.monotonic() + self.settings.patience
        while True:
            self.wait(RETRIED_EVERY)
            try:
                figures(node, self.settings.timeout)
                return
            except NetworkError as still:
                if self.times.monotonic() < deadline:
                    continue
                if node in self.leaving:
                    self.give_up(node, still)
                    return
                back = self.lock.document.phase in ("prepare", "migrate") and node in self.change.added
                way = "bring it back at this address, empty or not, and continue" + (", or abort the resize" if back else "")
                raise ResizeStopped(f"{still}; {way}") from error

    def recover(self, error: NetworkError) -> None:
        """After a node failed, wait until it answers, and make sure that it knows the epoch; it may have come back empty.

        :raises ResizeStopped: where it is to stay, and does not, or the lock is lost
        :raises SourceUnavailable: where the source cannot be read
        """
        self.await_node(error)
        self.lock.confirm()
        for node in self.lock.document.members:
            self.tell_epoch(node)

    def give_up(self, node: Node, error: KvclusterError) -> None:
        """Go on without a node that leaves."""
        self.dead.add(node.address)
        self.tally.notes.append(f"{node.address} was given up, and what it held with it: {error}")

    def report(self, finished: bool) -> Report:
        """What was done so far."""
        tally = self.tally
        return Report(
            document=self.lock.document,
            finished=finished,
            outcomes=dict(tally.outcomes),
            dumped=tally.dumped,
            bytes=tally.bytes,
            seconds=self.times.monotonic() - self.began,
            copying=tally.copying,
            sample=tally.sample,
            swept=tally.swept,
            given_up=tuple(sorted(self.dead)),
            notes=tuple(tally.notes),
        )

    def _state(self, now: float) -> Progress:
        tally, (since, keys) = self.tally, self._lately
        if now - since >= 1.0:
            self._rate = (tally.asked - keys) / (now - since)
            self._lately = (now, tally.asked)
        if now - self._asked >= ASKED_EVERY:
            self._asked = now
            self._rates = self._hit_rates()
        total = max(tally.keys, tally.dumped)
        return Progress(
            epoch=self.lock.document.epoch,
            phase=self.lock.document.phase,
            doing=self._doing,
            source=self._source,
            keys=tally.keys,
            keys_total=total,
            bytes=tally.bytes,
            seconds=now - self.began,
            rate=self._rate,
            seconds_left=(total - tally.keys) / self._rate if self._rate > 0 else None,
            throttle=self.pace.factor,
            outcomes=dict(tally.outcomes),
            hit_rate_sources=self._rates[0],
            hit_rate_targets=self._rates[1],
        )

    def _hit_rates(self) -> tuple[float | None, float | None]:
        """Hits per get at the sources and at the targets since the last call, of nodes that answer, without this run's own gets:
        a reservation is a hit at the target, and the read that follows it one at the source, unless the key is gone."""
        lately: dict[str, tuple[int, int]] = {}
        for node in self.change.members:
            try:
                now = figures(node, 1.0)
            except KvclusterError:
                continue
            hits, misses = self._gets.get(node.address, (now.hits, now.misses))
            self._gets[node.address] = now.hits, now.misses
            lately[node.address] = max(0, now.hits - hits), max(0, now.misses - misses)  # one that restarted counts from 0
        outcomes = self.tally.outcomes
        own = (self.tally.asked - outcomes["newer"] - outcomes["gone"], outcomes["gone"]), (self.tally.asked, 0)
        sources, targets = (
            _hit_rate([lately[node.address] for node in nodes if node.address in lately], mine, before)
            for nodes, mine, before in zip((self.change.sources, self.change.targets), own, self._own_gets, strict=True)
        )
        self._own_gets = own
        return sources, targets


def _hit_rate(gets: Iterable[tuple[int, int]], own: tuple[int, int], before: tuple[int, int]) -> float | None:
    """Hits per get; None without any.

    :param gets: hits and misses of each node
    :param own: those to leave out, of all nodes, and ``before`` how many of them there were at the last look

    >>> _hit_rate([(90, 5), (30, 5)], own=(130, 20), before=(100, 10)), _hit_rate([(30, 0)], (30, 0), (0, 0))
    (1.0, None)
    """
    counted = zip((0, 0), *gets, strict=True)
    hits, misses = (max(0, sum(all_) - mine + earlier) for all_, mine, earlier in zip(counted, own, before, strict=True))
    return hits / (hits + misses) if hits + misses else None
