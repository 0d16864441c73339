"""Batches on their way: four steps each, and up to three batches under way, so that nodes and this process work at the same time.

In one round a batch is reserved at its target, the one before it is read at the source, the one before that is stored, and the
replies to the stores of the one before that are read. On each connection replies are read in the order in which the requests were
sent, and nobody waits for a reply that is not due yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, repeat

from kvcluster.errors import OutcomeUnknown
from kvcluster.protocol.requests import Commands
from kvcluster.rebalance.copy import Batch
from kvcluster.rebalance.lanes import Lane
from kvcluster.rebalance.moves import Work

DEPTH = 3  # rounds from a batch's reservation to the replies to its stores


class Copied(Batch):
    """A batch under way: the work that it is, its target, and what it waits for."""

    __slots__ = ("asked", "given_back", "target", "work")

    def __init__(self, work: Work, epoch: int, target: Lane) -> None:
        super().__init__(work.wires, epoch)
        self.work = work
        self.target = target
        self.asked: Commands
        self.given_back: Commands


def copied(
    works: Iterable[Work | None], epoch: int, source: Lane, lane: Callable[[str], Lane], clock: Callable[[str], float]
) -> Iterator[Copied | None]:
    """Copy works from one source to their targets. Each round yields the batch that is done by then, or None.

    :param works: None is a round without a new batch: those under way move on. `DEPTH` of them empty the pipeline
    :param epoch: of the phase in which they are copied
    :param lane: a connection to a target, by its address
    :param clock: seconds since 1970 by a target's clock
    :raises NetworkError: where a node fails, or a target has another epoch. What was reserved then ends by its own ttl
    """
    reserved: Copied | None = None
    read: Copied | None = None
    stored: Copied | None = None
    for work in chain(works, repeat(None, DEPTH)):
        fresh = None
        if work is not None:
            fresh = Copied(work, epoch, lane(work.target))
            fresh.asked = _sent(fresh.target, fresh.reserve())
        if reserved is not None:
            _received(reserved.target, reserved.asked)
            reading = reserved.read()
            if not reserved.current:
                raise OutcomeUnknown(reserved.target.address, f"does not hold epoch {epoch}: it restarted, or the resize went on")
            reserved.asked = _sent(source, reading)
        if read is not None:
            _received(source, read.asked)
            stores, rearms = read.fill(clock(read.work.target))
            read.asked, read.given_back = _sent(read.target, stores), _sent(source, rearms)
        if stored is not None:
            _received(stored.target, stored.asked)
            _received(source, stored.given_back)
            stored.finish()
        yield stored
        stored, read, reserved = read, reserved, fresh


def _sent(lane: Lane, request: Commands) -> Commands:
    if request.count:
        lane.send(request)
    return request


def _received(lane: Lane, request: Commands) -> None:
    if request.count:
        lane.receive(request)
