"""What a client counts, and the frozen record it leaves in.

Each connection counts for itself. It has one user at a time, so counting takes no lock and loses nothing under threads; a snapshot
sums the connections. What happens without a connection (a node that is down) is counted under the node's own lock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


class Counters:
    """Running totals of one connection, node or namespace."""

    __slots__ = (
        "bytes_read",
        "bytes_written",
        "deletes",
        "errors",
        "hits",
        "misses",
        "refreshes",
        "sets",
        "stale",
        "takeovers",
        "timeouts",
        "undecodable",
        "unstored",
    )

    def __init__(self) -> None:
        self.hits = 0  # keys asked for and found
        self.misses = 0  # keys asked for and not found, for whatever reason
        self.sets = 0  # values stored: set, add, replace, append, prepend, cas and fills
        self.deletes = 0  # deletes a node confirmed, found or not
        self.errors = 0  # exchanges that failed: a node was down, silent, or answered with an error
        self.undecodable = 0  # values found that could not be decoded; each is a miss too
        self.unstored = 0  # loaded values not stored, because something newer came in between or the node could not be reached
        self.stale = 0  # values served past their ttl, because somebody refreshed them or could not; each is a hit or a miss too
        self.refreshes = 0  # values stored by a refresh, which found one there; each is a set too
        self.takeovers = 0  # leases and refreshes taken over, because their winner was silent for too long
        self.timeouts = 0  # calls that ran out of their soft or hard timeout
        self.bytes_read = 0  # bytes received
        self.bytes_written = 0  # bytes sent

    def add(self, other: Counters) -> None:
        """Add another's totals to these."""
        for name in Counters.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def frozen(self) -> Counts:
        """These totals as an immutable record."""
        return Counts(**{name: getattr(self, name) for name in Counters.__slots__})


@dataclass(frozen=True, slots=True)
class Counts:
    """Totals at one moment; the fields are those of `Counters`. ``hit_rate`` is from 0 to 1, or None where nothing was asked."""

    hits: int = 0
    misses: int = 0
    sets: int = 0
    deletes: int = 0
    errors: int = 0
    undecodable: int = 0
    unstored: int = 0
    stale: int = 0
    refreshes: int = 0
    takeovers: int = 0
    timeouts: int = 0
    bytes_read: int = 0
    bytes_written: int = 0

    @property
    def hit_rate(self) -> float | None:
        asked = self.hits + self.misses
        return self.hits / asked if asked else None


@dataclass(frozen=True, slots=True)
class Statistics:
    """What one client did since it was made.

    ``nodes`` holds the counts by node address, ``namespaces`` by namespace (a client's own calls are under its prefix, a cache's
    under its name), ``total`` all of them.
    """

    total: Counts
    nodes: Mapping[str, Counts] = field(default_factory=dict)
    namespaces: Mapping[str, Counts] = field(default_factory=dict)
