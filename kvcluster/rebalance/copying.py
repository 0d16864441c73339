"""The phase MIGRATE: the keys of each source on their way to their targets, at the pace that the source bears.

A probe of its own measures how long the source takes to answer. Before the pace makes the copy wait, the batches under way are
finished, because a reservation that waits makes readers wait.

A node that fails ends the copy of a source, which is tried again from the last slot that is done. Keys that were reserved and not
stored are then found as reserved; they are put aside, and asked for again at the end, at last when such reservations have run out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import repeat
from typing import Final

from kvcluster.errors import NetworkError, ResizeStopped
from kvcluster.protocol import requests
from kvcluster.protocol.requests import Deletes
from kvcluster.rebalance.change import is_stamp
from kvcluster.rebalance.copy import BATCH, RESERVED
from kvcluster.rebalance.dump import Dump, DumpUnavailable, dump
from kvcluster.rebalance.lanes import Figures, Lane
from kvcluster.rebalance.moves import Moves, Work
from kvcluster.rebalance.pipeline import DEPTH, copied
from kvcluster.rebalance.running import Run, SourceTally
from kvcluster.rebalance.sample import Reservoir, added, compared
from kvcluster.topology import Node

PROBE_EVERY: Final = 0.005  # seconds
QUIET_PROBES: Final = 100
IDLE: Final = 0.002  # seconds; a shorter wait is not worth emptying the pipeline for
FAILURES: Final = 20  # of nodes that answer again each time
ASIDE: Final = (0.1, 0.4, 1.5, 3.0, RESERVED - 4.0)  # seconds between two attempts at what was put aside, more than RESERVED in all
PUT_ASIDE: Final = 100_000  # keys of one source; the others are left to those who fill them


def copy_all(run: Run, previous_epoch: int) -> None:
    """Copy all keys that move, and compare a sample of them.

    :param previous_epoch: whose journal is continued
    :raises ResizeStopped: where a node fails for good
    :raises Stopping: where somebody asked for it
    """
    run.migrating = run.times.monotonic()
    targets = _targets(run)
    run.journal.open(previous_epoch, run.lock.document.epoch, _starts(targets))
    for source in run.change.sources:
        if (told := run.figures(source)) is not None:
            run.tally.sources[source.address] = SourceTally(round(told.items * run.change.lost(source.address)))
    done: set[str] = set()
    failures = 0
    while True:
        try:
            for source in _living(run):
                if source.address not in done:
                    _copy_source(run, source, targets)
                    done.add(source.address)
        except NetworkError as error:
            failures += 1
            _recover(run, error, failures)
        now = _targets(run)
        if _starts(now) != _starts(targets):  # what was copied to a target that came back empty is to be copied again
            run.journal.open(run.lock.document.epoch, run.lock.document.epoch, _starts(now))
            done.clear()
            targets = now
        elif done.issuperset(source.address for source in _living(run)):
            return


def _living(run: Run) -> list[Node]:
    return [source for source in run.change.sources if source.address not in run.dead]


def _targets(run: Run) -> dict[str, Figures]:
    return {target.address: told for target in run.change.targets if (told := run.figures(target)) is not None}


def _starts(targets: Mapping[str, Figures]) -> dict[str, int]:
    return {address: one.started for address, one in targets.items()}


def _recover(run: Run, error: NetworkError, failures: int) -> None:
    """After a node failed, wait until it answers again."""
    if failures > FAILURES:
        raise ResizeStopped(f"{error}, for the {failures}th time; continue once it is well") from error
    run.recover(error)


def _copy_source(run: Run, source: Node, targets: Mapping[str, Figures]) -> None:
    address = source.address
    try:
        moves = _moves(run, source)
    except DumpUnavailable as error:
        if run.settings.longest_ttl is None:
            raise ResizeStopped(
                f"{error}: its keys can be moved by reads alone; continue with longest_ttl (--longest-ttl), in seconds"
            ) from error
        run.tally.notes.append(f"{address} cannot be dumped: its keys were moved by reads alone")
        run.doing("moving keys by reads alone", address)
        run.wait(run.migrating + run.settings.longest_ttl - run.times.monotonic())
        return
    tally = run.tally.sources[address] = SourceTally(moves.keys.total())
    try:
        moves.fit(
            {
                target: room(one, run.settings.fill, run.change.gained(target)) * run.change.portion(address, target)
                for target, one in targets.items()
                if one.limit
            }
        )
        skew = {target: one.now - run.times.clock() for target, one in targets.items()}
        reservoir = Reservoir(run.settings.sample)
        run.doing("copying", address)
        with closing(Probe(run, source)) as probe:
            began = run.times.monotonic()
            waiting = _pump(run, source, moves.works(run.journal.done(address)), tally, skew, probe, reservoir)
            run.tally.copying += run.times.monotonic() - began
            for pause in ASIDE if waiting else ():
                run.doing("waiting for keys that somebody else fills", address)
                run.wait(pause)
                waiting = _pump(run, source, batched(waiting), tally, skew, probe, reservoir)
                if not waiting:
                    break
            tally.outcomes["newer"] += len(waiting)
    finally:
        moves.close()
    run.doing("comparing", address)
    for target in targets:
        wires = [wire for owner, wire in reservoir.kept if owner == target]
        run.tally.sample = added(run.tally.sample, compared(wires, run.lanes(address), run.lanes(target)))
        run.tick()


def _moves(run: Run, source: Node) -> Moves:
    """The keys of a source that move."""
    run.doing("dumping", source.address)
    with ExitStack() as unless_whole:
        moves = unless_whole.enter_context(closing(Moves(run.change.router(source.address))))
        with _listing(run, source) as listing:
            for lines in listing.blocks():
                moves.add(lines)
                run.tick()
        unless_whole.pop_all()
    return moves


def _pump(
    run: Run,
    source: Node,
    works: Iterable[Work],
    tally: SourceTally,
    skew: Mapping[str, float],
    probe: Probe,
    reservoir: Reservoir,
) -> list[tuple[str, bytes]]:
    """Copy works; the keys that somebody else is filling, each with its target."""
    waiting: list[tuple[str, bytes]] = []
    clock = run.times.clock
    source_lane, epoch = run.lanes(source.address), run.lock.document.epoch
    for batch in copied(paced(run, works, probe), epoch, source_lane, run.lanes, lambda target: clock() + skew[target]):
        if batch is None:
            continue
        work = batch.work
        tally.outcomes.update(batch.outcomes)
        tally.outcomes["cold"] += work.cold
        tally.outcomes["journalled"] += work.journalled
        tally.bytes += batch.bytes
        if batch.waiting and len(waiting) < PUT_ASIDE:
            waiting.extend((work.target, wire) for wire in batch.waiting)
        else:
            tally.outcomes["newer"] += len(batch.waiting)
            run.journal.add(source.address, work.slots)
        reservoir.show(work.target, work.wires)
        run.beat()
    run.tick()
    return waiting


def batched(keys: Sequence[tuple[str, bytes]]) -> Iterator[Work]:
    """Keys, each with its target, as works."""
    for target in sorted({target for target, _ in keys}):
        wires = [wire for owner, wire in keys if owner == target]
        for start in range(0, len(wires), BATCH):
            yield Work(target, wires[start : start + BATCH], 0)


def paced(run: Run, works: Iterable[Work], probe: Probe) -> Iterator[Work | None]:
    """The works, each when the pace allows for it, until somebody asks the run to end; None where those under way are to move
    on."""
    monotonic = run.times.monotonic
    for work in works:
        wait = run.pace.spend(len(work.wires), work.bytes, monotonic())
        if wait > IDLE:
            due = monotonic() + wait
            yield from repeat(None, DEPTH)
            while (left := due - monotonic()) > 0 and not run.stopping():
                run.times.sleep(min(left, 0.1))
                run.beat()
        if run.stopping():
            return
        probe()
        yield work


class Probe:
    """Measures how long a source takes to answer, on a connection of its own, and tells the pace."""

    def __init__(self, run: Run, source: Node) -> None:
        self._lane = Lane(source, run.settings.timeout)
        self._run = run
        self._due = 0.0
        run.pace.restarted()
        for _ in range(QUIET_PROBES):
            self._measure()
            run.times.sleep(PROBE_EVERY / 5)
        run.pace.started()

    def __call__(self) -> None:
        """Measure, where it is time."""
        if self._run.times.monotonic() >= self._due:
            self._measure()

    def _measure(self) -> None:
        begin = self._run.times.monotonic()
        self._lane.ask(requests.NOOP)
        end = self._run.times.monotonic()
        self._due = end + PROBE_EVERY
        self._run.pace.observe(end - begin)

    def close(self) -> None:
        """Close the connection."""
        self._lane.close()


def room(target: Figures, fill: float, gained: float) -> float:
    """How many bytes may be copied to a target.

    :param fill: part of its memory that may be full
    :param gained: part of what it owns afterwards that is new to it; so much of its memory those keys may take from the others

    >>> full = Figures(0, 0, "", items=9, bytes=1000, limit=1000, hits=0, misses=0)
    >>> room(full, 0.95, 0.25)
    237.5
    """
    usable = target.limit * fill
    return max(usable - target.bytes, usable * gained)


def copy_stamps(run: Run) -> None:
    """Copy the stamps of all old nodes to each new one, which would else take every value that depends on one for outdated."""
    for source in run.change.before.nodes if run.change.added else ():
        run.doing("copying stamps", source.address)
        _until_done(run, source, partial(_copy_stamps, run, source))


def _copy_stamps(run: Run, source: Node) -> None:
    try:
        with _listing(run, source) as listing:
            stamps = [wire for lines in listing.blocks() for wire, _ in lines if is_stamp(wire)]
    except DumpUnavailable:
        run.tally.notes.append(
            f"{source.address} cannot be dumped: values that depend on its stamps are loaded anew where they move"
        )
        return
    keys = [(target.address, stamp) for target in run.change.added for stamp in stamps]
    source_lane, epoch = run.lanes(source.address), run.lock.document.epoch
    for _ in copied(batched(keys), epoch, source_lane, run.lanes, lambda target: run.times.clock()):
        run.beat()


def clear_targets(run: Run) -> None:
    """Delete at the new owners what they hold of keys that are not theirs yet. Left behind long ago, it would be taken for newer
    than what is copied. New nodes are known to be empty.

    In this phase nobody stores such keys, so at a target that cannot be dumped they are gone once the longest ttl is over.

    :raises ResizeStopped: for such a target, where that is not known
    """
    began = run.times.monotonic()
    for target in run.change.targets:
        if target not in run.change.added:
            run.doing("clearing", target.address)
            try:
                _until_done(run, target, partial(_delete, run, target, partial(run.change.strays, target.address)))
            except DumpUnavailable as error:
                if run.settings.longest_ttl is None:
                    raise ResizeStopped(
                        f"{error}: what it holds that is not its own can only end by its ttl; continue with "
                        "longest_ttl (--longest-ttl), in seconds"
                    ) from error
                run.tally.notes.append(f"{target.address} cannot be dumped: it was cleared by the ttls of what it held")
                run.wait(began + run.settings.longest_ttl - run.times.monotonic())


def sweep(run: Run) -> None:
    """Delete at the old owners what they no longer own. What they kept would be taken for present if its slot came back one day."""
    for source in run.change.sources:
        run.doing("sweeping", source.address)
        try:
            _until_done(run, source, partial(_delete, run, source, partial(run.change.strangers, source.address)))
        except DumpUnavailable:
            run.tally.notes.append(f"{source.address} cannot be dumped, nor swept: what it keeps ends by its ttl")


def _delete(run: Run, node: Node, unwanted: Callable[[Sequence[bytes]], list[bytes]]) -> None:
    """Delete what a node is to be rid of, among all that it holds.

    :raises DumpUnavailable: where it does not tell what it holds
    """
    with _listing(run, node) as listing, closing(Probe(run, node)) as probe:
        for lines in listing.blocks():
            wires = unwanted([wire for wire, _ in lines])
            for start in range(0, len(wires), BATCH):
                deletes = Deletes.of(wires[start : start + BATCH])
                run.lanes(node.address).send(deletes)
                run.lanes(node.address).receive(deletes)
                run.tally.swept += deletes.confirmed
                probe()
                run.wait(run.pace.spend(deletes.count, 0, run.times.monotonic()))
                run.tick()


def _until_done(run: Run, node: Node, action: Callable[[], None]) -> None:
    """Do something to a node, again where it failed meanwhile; nothing to one that is given up."""
    for _ in range(FAILURES):
        if node.address in run.dead:
            return
        try:
            action()
            return
        except NetworkError as error:
            run.recover(error)
    raise ResizeStopped(f"{node.address} failed {FAILURES} times; continue once it is well")


def _listing(run: Run, node: Node) -> Dump:
    return dump(node, patience=run.settings.patience, waiting=run.tick, sleep=run.times.sleep)
