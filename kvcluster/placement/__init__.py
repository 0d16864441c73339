"""Which node owns a key: pure functions of an immutable list of nodes.

>>> cluster = placement("slots", ["cache1", "cache2:11311"])
>>> cluster.owner("user:2").address
'cache1:11211'
"""

from __future__ import annotations

from collections.abc import Iterable

from kvcluster.errors import ConfigurationError
from kvcluster.placement.base import Placement
from kvcluster.placement.ketama import Ketama
from kvcluster.placement.libmemcached import Libmemcached, LibmemcachedConsistent
from kvcluster.placement.modulo import Modulo
from kvcluster.placement.moves import moved
from kvcluster.placement.slots import Slots
from kvcluster.topology import DEFAULT_SLOTS, NodeSpec, Topology

__all__ = ["SCHEMES", "Placement", "moved", "placement"]

_ALL: tuple[type[Placement], ...] = (Slots, Modulo, Ketama, Libmemcached, LibmemcachedConsistent)
SCHEMES = {scheme.name: scheme for scheme in _ALL}


def placement(name: str, nodes: Iterable[NodeSpec], slots: int = DEFAULT_SLOTS) -> Placement:
    """Bind a scheme to its nodes.

    :param name: one of `SCHEMES`
    :param nodes: `Node` values or addresses, at least one
    :param slots: the size of the slot table, a power of two from 64 to 1048576; only ``slots`` has one
    :raises ConfigurationError: for an unknown name, no nodes, two nodes with one id or address, or a size that is no power of two

    >>> placement("modulo", ["a", "b"]).shares()
    [0.5, 0.5]
    """
    scheme = SCHEMES.get(name)
    if scheme is None:
        raise ConfigurationError(f"placement {name!r} is unknown; known are {', '.join(sorted(SCHEMES))}")
    topology = Topology(nodes, name, slots)
    return Slots(topology.nodes, topology.slots) if scheme is Slots else scheme(topology.nodes)
