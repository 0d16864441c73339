"""``libmemcached`` and ``libmemcached-consistent``: what pylibmc does by default, and with ``ketama`` but no weights.

Both hash with Bob Jenkins' one-at-a-time. The first takes the hash modulo the number of nodes in their given order, so one node
more or less moves nearly every key. The second puts 100 points per node on a ring. Neither knows weights or ids.

Source: libmemcached 1.0, libhashkit/one_at_a_time.cc and libmemcached/hosts.cc.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvcluster.placement.ketama import host_name
from kvcluster.placement.modulo import ModuloPlacement
from kvcluster.placement.ring import RingPlacement

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kvcluster.topology import Node

POINTS_PER_NODE = 100


def one_at_a_time(data: bytes) -> int:
    """Bob Jenkins' one-at-a-time hash as C computes it where ``char`` is signed, as on x86.

    >>> one_at_a_time(b"a")
    3392050242
    """
    value = 0
    for byte in data:
        value += byte - 256 if byte > 127 else byte
        value = value * 0x401 & 0xFFFFFFFF
        value ^= value >> 6
    value = value * 9 & 0xFFFFFFFF
    value ^= value >> 11
    return value * 0x8001 & 0xFFFFFFFF


class Libmemcached(ModuloPlacement):
    """one_at_a_time(key) % n over the nodes in their given order; weights are ignored."""

    name = "libmemcached"
    hash = staticmethod(one_at_a_time)


class LibmemcachedConsistent(RingPlacement):
    """A ring of 100 one-at-a-time points per node; weights are ignored."""

    name = "libmemcached-consistent"
    hash = staticmethod(one_at_a_time)

    @staticmethod
    def points(nodes: Sequence[Node]) -> Iterable[tuple[int, int]]:
        for index, node in enumerate(nodes):
            for counter in range(POINTS_PER_NODE):
                yield one_at_a_time(f"{host_name(node)}-{counter}".encode()), index
