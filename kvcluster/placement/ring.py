"""A ring of points: each key goes to the owner of the first point at or after its hash, wrapping to the first.

Pure functions over plain lists, shared by every scheme of this family; the schemes differ in how they name points and hash keys.
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from kvcluster.placement.base import Placement

if TYPE_CHECKING:
    from kvcluster.topology import Node

SPACE = 1 << 32


class Ring(NamedTuple):
    """``points`` in ascending order and the owner of each; ``owners`` ends with the first owner again, for hashes past the last."""

    points: list[int]
    owners: list[int]


def build_ring(points: Iterable[tuple[int, int]]) -> Ring:
    """A `Ring` of (point, owner index) pairs. Of two owners at one point the lower index comes first, and so gets its keys."""
    ordered = sorted(points)
    owners = [owner for _, owner in ordered]
    return Ring([point for point, _ in ordered], [*owners, owners[0]])


def owner_on(ring: Ring, hash_: int) -> int:
    """The owner index of a hash."""
    return ring.owners[bisect_left(ring.points, hash_)]


def arcs(points: Sequence[int]) -> Iterable[tuple[int, int]]:
    """Each point, in ascending order, with the number of hashes for which it is the first point at or after them."""
    previous = points[-1] - SPACE
    for point in points:
        yield point, point - previous
        previous = point


def ring_shares(ring: Ring, count: int) -> list[float]:
    """The exact share of all 2^32 hashes owned by each of ``count`` owners."""
    owned = [0] * count
    # Not zip(strict=True): owners has the wrapped entry at its end.
    for (_, arc), owner in zip(arcs(ring.points), ring.owners, strict=False):
        owned[owner] += arc
    return [hashes / SPACE for hashes in owned]


def moved_arcs(before: Ring, after: Ring, names_before: Sequence[str], names_after: Sequence[str]) -> float:
    """The exact share of all 2^32 hashes whose owner's name differs between two rings."""
    # Between two neighbouring points of either ring both owners are constant.
    moving = 0
    for point, arc in arcs(sorted({*before.points, *after.points})):
        if names_before[owner_on(before, point)] != names_after[owner_on(after, point)]:
            moving += arc
    return moving / SPACE


class RingPlacement(Placement):
    """A placement by a ring of 32-bit points. A scheme says where the points of its nodes lie and how a key is hashed."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        super().__init__(nodes)
        self.ring = build_ring(self.points(self.nodes))

    @staticmethod
    @abstractmethod
    def points(nodes: Sequence[Node]) -> Iterable[tuple[int, int]]:
        """Every (point, index of its node) on the ring."""

    @staticmethod
    @abstractmethod
    def hash(key: bytes, /) -> int:
        """Where a wire key lies on the ring, from 0 to 2^32 - 1."""

    def index(self, key: bytes) -> int:
        points, owners = self.ring
        return owners[bisect_left(points, self.hash(key))]

    def indexes(self, keys: Iterable[bytes]) -> list[int]:
        points, owners = self.ring
        hash_ = self.hash
        return [owners[bisect_left(points, hash_(key))] for key in keys]

    def shares(self) -> list[float]:
        return ring_shares(self.ring, len(self.nodes))

    def exact_move(self, after: Placement) -> float | None:
        # Arcs compare only where both sides hash a key to the same place.
        if not isinstance(after, RingPlacement) or self.hash is not after.hash:
            return None
        return moved_arcs(self.ring, after.ring, [node.id for node in self.nodes], [node.id for node in after.nodes])
