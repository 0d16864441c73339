"""The epoch key of a node: written by compare-and-set, and only upward.

A late plain write would take it back, and clients that are ahead of it would take the node for one that was cut off.
"""

from __future__ import annotations

from typing import Final

from kvcluster.errors import CommandRefused
from kvcluster.protocol import requests
from kvcluster.rebalance.lanes import Lane

EPOCH_KEY: Final = b"__kvc:epoch"
_ATTEMPTS: Final = 100


def raise_epoch(lane: Lane, epoch: int) -> int:
    """Make a node's epoch at least this; the epoch that it has then.

    :raises NetworkError: where the node cannot be asked
    """
    for _ in range(_ATTEMPTS):
        there = lane.ask(requests.meta_get(EPOCH_KEY, b"v c"))
        if there.value is not None and (known := int(there.value)) >= epoch:
            return known
        condition = b"ME" if there.value is None else b"C%d" % there.cas
        if lane.ask(requests.meta_set(EPOCH_KEY, b"%d" % epoch, condition + b" T0")).status == "HD":
            return epoch
    raise CommandRefused(lane.address, f"its epoch could not be written in {_ATTEMPTS} attempts")
