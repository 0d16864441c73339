"""``ketama``: libmemcached's KETAMA_WEIGHTED, what pylibmc users know as ``ketama_weighted``.

Each node gets about 40 md5 digests of its name and a counter, and each digest yields four points on the ring. Its number of
digests follows its weight, in C's single precision: with 25 equal nodes the rounding gives each 39 digests and not 40, so double
precision would send other keys to other nodes than libmemcached does. The ids of nodes play no part, only their addresses.

Source: libmemcached 1.0, libmemcached/hosts.cc, update_continuum().
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import md5
from math import floor
from struct import Struct, pack, unpack

from kvcluster.placement.ring import RingPlacement
from kvcluster.topology import DEFAULT_PORT, Node

POINTS_PER_NODE = 160
POINTS_PER_DIGEST = 4

_four_words = Struct("<4I").unpack
_first_word = Struct("<I12x").unpack


def f32(value: float) -> float:
    """A number rounded to C's single precision. One operation on such numbers in double precision, rounded by this, is exactly
    the single precision operation."""
    rounded: float = unpack("<f", pack("<f", value))[0]
    return rounded


def digests(weight: int, total: int, live: int) -> int:
    """How many digests a node gets: floor(weight / total * 160 / 4 * live + 1e-10), each step in single precision.

    >>> digests(1, 25, 25), digests(2, 8, 4)
    (39, 40)
    """
    share = f32(f32(weight) / f32(total))
    per_live = f32(f32(share * POINTS_PER_NODE) / POINTS_PER_DIGEST)
    return floor(f32(f32(per_live * live) + 1e-10))


def host_name(node: Node) -> str:
    """A node as libmemcached names it: without the port where that is the default; a Unix socket is its path with port 0."""
    host = node.socket_path or node.host
    return host if node.port == DEFAULT_PORT else f"{host}:{node.port}"


def ketama_points(names: Sequence[str], weights: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Every (point, index of its name) on the ring."""
    total, live = sum(weights), len(names)
    for index, (name, weight) in enumerate(zip(names, weights, strict=True)):
        for counter in range(digests(weight, total, live)):
            for point in _four_words(md5(f"{name}-{counter}".encode(), usedforsecurity=False).digest()):
                yield point, index


def ketama_hash(key: bytes) -> int:
    """Where a key lies on the ring: the first four bytes of its md5, little-endian."""
    hash_: int = _first_word(md5(key, usedforsecurity=False).digest())[0]
    return hash_


class Ketama(RingPlacement):
    """libmemcached's KETAMA_WEIGHTED ring; a node much lighter than the others may get no point, and so no key."""

    name = "ketama"
    hash = staticmethod(ketama_hash)

    @staticmethod
    def points(nodes: Sequence[Node]) -> Iterable[tuple[int, int]]:
        return ketama_points([host_name(node) for node in nodes], [node.weight for node in nodes])
