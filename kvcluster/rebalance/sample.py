"""Comparing a sample of keys on both sides of a resize, while both may have them."""

from __future__ import annotations

import random
from collections.abc import Sequence

from kvcluster.protocol import requests
from kvcluster.protocol.hot import Reply
from kvcluster.protocol.requests import Commands
from kvcluster.rebalance import copy
from kvcluster.rebalance.copy import joined, rearm
from kvcluster.rebalance.lanes import Lane
from kvcluster.rebalance.reports import Difference, Sample

TTL_TOLERANCE = 1  # seconds


class Reservoir:
    """A fair sample of batches of keys, one key of each, of bounded size: algorithm R (Vitter 1985)."""

    def __init__(self, size: int) -> None:
        self.kept: list[tuple[str, bytes]] = []
        self._size = size
        self._shown = 0
        self._random = random.Random()

    def show(self, target: str, wires: Sequence[bytes]) -> None:
        """Show it a batch that went to a target."""
        if not wires:
            return
        self._shown += 1
        if len(self.kept) < self._size:
            self.kept.append((target, self._random.choice(wires)))
        elif (at := self._random.randrange(self._shown)) < self._size:
            self.kept[at] = (target, self._random.choice(wires))


def compared(wires: Sequence[bytes], source: Lane, target: Lane) -> Sample:
    """Read keys on both sides, and compare."""
    sample = Sample()
    for start in range(0, len(wires), copy.BATCH):
        some = wires[start : start + copy.BATCH]
        old, new = _read(source, some), _read(target, some)
        judgements = [judged(wire, source.address, target.address, *replies) for wire, *replies in zip(some, old, new, strict=True)]
        suspects = [at for at, judgement in enumerate(judgements) if judgement.differences or judgement.missing]
        # Who changes a key deletes it at the source first: a source that still has the same item was not overtaken.
        for at, again in zip(suspects, _read(source, [some[at] for at in suspects]), strict=True):
            if again.cas != old[at].cas:
                judgements[at] = Sample(changed=1)
        sample = added(sample, *judgements)
    return sample


def judged(wire: bytes, source: str, target: str, old: Reply, new: Reply) -> Sample:
    """What the replies of both sides to `kvcluster.rebalance.copy.read` say of one key."""
    if copy.verdict(old) != "stored":
        return Sample(changed=1)
    if new.value is None or new.stale or requests.is_placeholder(new):
        return Sample(missing=1)
    if new.value != old.value:
        what = "value"
    elif new.flags != old.flags:
        what = "flags"
    elif (old.ttl < 0) != (new.ttl < 0) or abs(old.ttl - new.ttl) > TTL_TOLERANCE:
        what = "ttl"
    else:
        return Sample(compared=1)
    return Sample(compared=1, differences=(Difference(wire, source, target, what),))


def added(*samples: Sample) -> Sample:
    """Several samples as one."""
    return Sample(
        sum(sample.compared for sample in samples),
        sum(sample.missing for sample in samples),
        sum(sample.changed for sample in samples),
        tuple(difference for sample in samples for difference in sample.differences),
    )


def _read(lane: Lane, wires: Sequence[bytes]) -> list[Reply]:
    if not wires:
        return []
    token = requests.opaque()
    options = b" O" + token
    reading = Commands(joined(copy.read, wires, options), len(wires), opaque=token)
    lane.send(reading)
    lane.receive(reading)
    mending = [rearm(wire, reply, options) for wire, reply in zip(wires, reading.replies, strict=True)]
    rearms = [command for command in mending if command]
    if rearms:
        request = Commands(b"".join(rearms), len(rearms), opaque=token)
        lane.send(request)
        lane.receive(request)
    return reading.replies
