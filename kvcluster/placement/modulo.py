"""``modulo``: the textbook scheme, kept to show what it costs. One node more or less moves nearly every key.

A key's owner is its murmur3 hash modulo the number of nodes, counted in their given order. Weights play no part.
"""

from __future__ import annotations

from abc import abstractmethod
from math import gcd, lcm
from typing import TYPE_CHECKING

from mmh3 import mmh3_32_uintdigest

from kvcluster.placement.base import Placement

if TYPE_CHECKING:
    from collections.abc import Iterable


class ModuloPlacement(Placement):
    """A placement by hash(key) % n over the nodes in their given order; weights are ignored. A scheme says how a key is hashed."""

    @staticmethod
    @abstractmethod
    def hash(key: bytes, /) -> int:
        """The hash of a wire key, from 0 to 2^32 - 1."""

    def index(self, key: bytes) -> int:
        return self.hash(key) % len(self.nodes)

    def indexes(self, keys: Iterable[bytes]) -> list[int]:
        hash_, count = self.hash, len(self.nodes)
        return [hash_(key) % count for key in keys]

    def shares(self) -> list[float]:
        """1/n each, as if hashes were unbounded; over 2^32 hashes the true shares differ by less than 3e-10."""
        return [1 / len(self.nodes)] * len(self.nodes)

    def exact_move(self, after: Placement) -> float | None:
        # Residues compare only where both sides hash a key to the same number.
        if not isinstance(after, ModuloPlacement) or self.hash is not after.hash:
            return None
        return moved_residues([node.id for node in self.nodes], [node.id for node in after.nodes])


class Modulo(ModuloPlacement):
    """murmur3_32(key) % n."""

    name = "modulo"
    hash = staticmethod(mmh3_32_uintdigest)


def moved_residues(before: list[str], after: list[str]) -> float:
    """The share of integers h where ``before[h % len(before)]`` and ``after[h % len(after)]`` differ; names are unique in each.

    A name at i in one list and at j in the other keeps the h with h = i (mod n) and h = j (mod m). By the Chinese remainder
    theorem that is one h in every lcm(n, m) where i = j (mod gcd(n, m)), and none otherwise.
    """
    n, m = len(before), len(after)
    places = {name: j for j, name in enumerate(after)}
    kept = sum(name in places and (i - places[name]) % gcd(n, m) == 0 for i, name in enumerate(before))
    return 1 - kept / lcm(n, m)
