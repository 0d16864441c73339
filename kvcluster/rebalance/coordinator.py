"""Resizing a cluster while it serves: the phases, one after the other, and what is done in each.

    old      take the lock; the new nodes must be empty
    prepare  delete at the new owners what is not theirs yet; copy the stamps to the new nodes
    migrate  copy the keys that move, and compare a sample of them
    drain    nothing: readers of the old owners come to an end
    new      delete at the old owners what they no longer own
    old      give the lock back

A resize that cannot be finished, because a new node died for good, goes back: from `migrate` to `prepare`, and from there to `old`
with the nodes before. Readers and writers of two neighbouring phases get along, whichever of them comes first: in `migrate` every
write deletes at the old owner, which so holds nothing outdated, and in `prepare` every write deletes at the new one, as long as
somebody may read there. After `migrate` there is no way back, because the old owners are asked for nothing then.

Each phase begins with a document of the next epoch in the source, then the epoch on every node of it, old and new. A barrier: a
client learns of the epoch from the answer to whatever it does next, so once all nodes have it, nobody works by a phase further back
than the one before.

A coordinator may die at any moment. The document says which phase the cluster is in, and whoever continues makes all nodes know it,
takes the lock by writing the next epoch, and does the work of the phase again: copying is idempotent, and so is everything else. A
coordinator that was thought dead and is not finds its lock lost, at the next write of the document or at the next batch that it
reserves: with the reservations it reads the new owner's epoch, as a client does, and stops where that is not its own. A batch that
was reserved before is harmless, because it is stored against reservations at the new owner, which every writer removes.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, Self

from kvcluster.errors import ConfigurationError, ResizeRefused
from kvcluster.rebalance import planning
from kvcluster.rebalance.change import change
from kvcluster.rebalance.copying import clear_targets, copy_all, copy_stamps, sweep
from kvcluster.rebalance.journal import Journal
from kvcluster.rebalance.lock import Lock
from kvcluster.rebalance.reports import Plan, Progress, Report
from kvcluster.rebalance.running import Run, Settings, Stopping, Times
from kvcluster.sources import TopologySource
from kvcluster.topology import Document, NodeSpec, Topology, as_node

LOOKS: Final = 3  # at the source, after which a client has noticed a new document there


class Rebalance:
    """The resize of one cluster. One thread at a time may use it; only `stop` may come from any other.

    The same call continues a resize to the same nodes that was stopped or has crashed; `resume` does so without naming them.

    :param source: where the cluster's document is
    :param wanted: the nodes as they are to be, or their topology; None for those of the resize that is under way
    :param settings: how it is done
    :param times: where time comes from
    :raises ConfigurationError: for nodes that cannot be used
    """

    def __init__(
        self,
        source: TopologySource,
        wanted: Topology | Iterable[NodeSpec] | None,
        settings: Settings | None = None,
        times: Times | None = None,
    ) -> None:
        if isinstance(wanted, str):
            raise ConfigurationError(f"wanted must be a list of nodes, not the text {wanted!r}")
        self.source = source
        self.settings = settings or Settings()
        self.owner = self.settings.owner or f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._wanted = wanted if wanted is None or isinstance(wanted, Topology) else tuple(as_node(node) for node in wanted)
        self._times = times or Times()
        self._stopped = False

    @classmethod
    def resume(cls, source: TopologySource, settings: Settings | None = None, times: Times | None = None) -> Self:
        """To continue the resize that is under way, whichever it is.

        :raises ResizeRefused: where there is none
        """
        document = source.read()
        if document.phase == "old":
            raise ResizeRefused(f"{source!r}: no resize is under way (epoch {document.epoch})")
        return cls(source, None, settings, times)

    def stop(self) -> None:
        """Make `run` stop at the next point from which it can be continued, and return its report. For any thread, and for the
        handler of a signal."""
        self._stopped = True

    def plan(self) -> Plan:
        """What `run` would do, by dumps of the nodes that lose keys. Changes nothing.

        :raises ConfigurationError: where the wanted nodes are the present ones, or cannot take their place
        :raises SourceUnavailable: where the source cannot be read
        :raises ResizeRefused: where a resize is under way
        """
        document = self.source.read()
        if document.phase != "old":
            raise ResizeRefused(f"{self.source!r}: a resize is under way, in phase {document.phase}: continue it first")
        return planning.plan(self.source, document, self._topology(document), self.settings, self._times)

    def verify(self) -> Report:
        """Compare a sample of keys on both sides of a resize that is under way, or count what nodes hold without owning it.

        :raises SourceUnavailable: where the source cannot be read
        :raises NetworkError: where a node fails
        """
        document = self.source.read()
        return planning.verify(document, self.settings, self._times)

    def run(self, progress: Callable[[Progress], None] | None = None) -> Report:
        """Resize the cluster, or continue to.

        :param progress: called a few times a second
        :return: what was done; ``.finished`` is False where `stop` ended it early
        :raises ConfigurationError: where the wanted nodes are the present ones, or cannot take their place
        :raises ResizeRefused: where it cannot begin: a new node is not empty, a node does not answer, a client does not follow
        :raises ResizeLocked: where another coordinator is at work
        :raises ResizeStopped: where it cannot go on; it can be continued later, as after any other error
        :raises SourceUnavailable: where the source cannot be read or written
        """
        document = self.source.read()
        wanted = self._topology(document)
        run = self._begun(document, wanted, progress)

        def forth() -> None:
            self._go(run, wanted, document.epoch)

        return self._carried_out(run, document, forth, "run")

    def abort(self, progress: Callable[[Progress], None] | None = None) -> Report:
        """Go back to the nodes before the resize that is under way, as where a new node died for good. Nodes that the resize added
        are given up where they do not answer; what was written to the new nodes meanwhile is missed.

        :param progress: called a few times a second
        :return: what was done; ``.finished`` is False where `stop` ended it early
        :raises ResizeRefused: where none is under way, or it is past the phase ``migrate``
        :raises ResizeLocked: where another coordinator is at work
        :raises ResizeStopped: where it cannot go on; it can be continued later, as after any other error
        :raises SourceUnavailable: where the source cannot be read or written
        """
        document = self.source.read()
        if document.phase not in ("prepare", "migrate"):
            why = "no resize is under way" if document.phase == "old" else f"there is no way back from phase {document.phase}"
            raise ResizeRefused(f"{self.source!r}: {why} (epoch {document.epoch})")
        run = self._begun(document, document.topology, progress)
        run.leaving = run.change.added
        return self._carried_out(run, document, lambda: self._go_back(run), "abort")

    def _begun(self, document: Document, wanted: Topology, progress: Callable[[Progress], None] | None) -> Run:
        lock = Lock(self.source, document, self.owner, self.settings.lease, self._times.clock)
        journal = Journal(self.settings.journal or _beside(self.source))
        found = change(document.former or document.topology, wanted)
        return Run(self.settings, self._times, found, lock, journal, progress, lambda: self._stopped)

    def _carried_out(self, run: Run, document: Document, work: Callable[[], None], verb: str) -> Report:
        """Do the work of a run under the lock."""
        lock = run.lock
        lock.require_free()
        finished = False
        try:
            if document.phase == "old":
                planning.require_ready(self.source, document, run)
            # Whoever wrote this document may have died before all nodes knew its epoch; one that is two behind counts as cut off.
            _barrier(run, self.source)
            lock.take()
            _barrier(run, self.source)
            work()
            finished = True
        except Stopping:
            run.tally.notes.append(f"stopped in phase {lock.document.phase}: {verb} it again to continue")
        finally:
            run.lanes.close()
            run.journal.close()
            if lock.held:
                lock.release()
        return run.report(finished)

    def _go(self, run: Run, wanted: Topology, before: int) -> None:
        """From the phase of the document to the end.

        :param before: the epoch of the document as it was found
        """
        lock = run.lock
        if lock.document.phase == "old":
            planning.require_empty(run)
            self._enter(run, phase="prepare", nodes=wanted.nodes, previous=lock.document.nodes)
        if lock.document.phase == "prepare":
            clear_targets(run)
            copy_stamps(run)
            before = 0  # no journal is of what has not begun
            self._enter(run, phase="migrate")
        if lock.document.phase == "migrate":
            copy_all(run, before)
            self._enter(run, phase="drain")
        if lock.document.phase == "drain":
            self._enter(run, phase="new")
        if lock.document.phase == "new":
            sweep(run)
            run.journal.remove()
            self._enter(run, phase="old", previous=(), owner="", lease_until=0.0)

    def _go_back(self, run: Run) -> None:
        """From the phase of the document to the nodes before."""
        if run.lock.document.phase == "migrate":
            self._enter(run, phase="prepare")
        clear_targets(run)
        run.journal.remove()
        self._enter(run, phase="old", nodes=run.lock.document.previous, previous=(), owner="", lease_until=0.0)

    def _enter(self, run: Run, **changes: object) -> None:
        """Begin a phase."""
        run.tick()
        run.lock.step(**changes)
        _barrier(run, self.source)

    def _topology(self, document: Document) -> Topology:
        """What is wanted, with the placement of the document where only nodes were given.

        :raises ResizeRefused: where another resize is under way, or none is and none was named
        """
        if document.phase == "old":
            if self._wanted is None:
                raise ResizeRefused(f"{self.source!r}: no resize is under way (epoch {document.epoch})")
            if isinstance(self._wanted, Topology):
                return self._wanted
            return Topology(self._wanted, document.placement, document.slots)
        wanted = self._wanted.nodes if isinstance(self._wanted, Topology) else self._wanted
        if wanted is not None and set(wanted) != set(document.nodes):
            nodes = ", ".join(str(node) for node in document.nodes)
            raise ResizeRefused(
                f"{self.source!r}: a resize to {nodes} is under way, in phase {document.phase}: continue that first"
            )
        return document.topology


def _barrier(run: Run, source: TopologySource) -> None:
    """Make every node of the document know its epoch. New nodes are none of it before the phase ``prepare``, nor are those that
    left after the last one.

    :raises ResizeStopped: where a node that stays does not acknowledge it
    """
    run.doing(f"epoch {run.lock.document.epoch}, waiting for every node to acknowledge it")
    for node in run.lock.document.members:
        run.tell_epoch(node)
    if run.dead:
        # What leads clients on from a node that is dead to this process, and perhaps not to them, is the source alone.
        run.wait(LOOKS * source.patience)


def _beside(source: TopologySource) -> Path | None:
    path = getattr(source, "path", None)
    return Path(f"{path}.journal") if path is not None else None
