"""What a person wants of a cluster, as a topology: one more node, one less, another machine, other weights. Pure functions.

A node is named by its address or its id.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace

from kvcluster.errors import ConfigurationError
from kvcluster.topology import Node, Topology, canonical_id, format_address, parse_address


def add(topology: Topology, addresses: Iterable[str], weight: int = 1) -> Topology:
    """With these nodes more.

    :raises ConfigurationError: for an address that cannot be used, or that a node has already

    >>> [node.id for node in add(Topology(["a", "b"]), ["c"]).nodes]
    ['a', 'b', 'c']
    """
    return replace(topology, nodes=(*topology.nodes, *(Node(address, weight) for address in addresses)))


def remove(topology: Topology, names: Iterable[str]) -> Topology:
    """Without these nodes.

    :raises ConfigurationError: for a node that is not there, or where none would be left

    >>> [node.id for node in remove(Topology(["a", "b", "c"]), ["b:11211"]).nodes]
    ['a', 'c']
    """
    gone = [find(topology, name) for name in names]
    return replace(topology, nodes=tuple(node for node in topology.nodes if node not in gone))


def exchange(topology: Topology, name: str, address: str, *, new_id: bool = False) -> Topology:
    """With another machine in the place of a node. It takes over the node's id, and so exactly its keys.

    :param new_id: give it an id of its own instead: then keys of other nodes move, too
    :raises ConfigurationError: for a node that is not there, or an address that cannot be used or that a node has already

    >>> exchange(Topology(["a", "b"]), "b", "c").nodes[1]
    Node(address='c:11211', weight=1, id='b')
    """
    old = find(topology, name)
    new = Node(address, old.weight, None if new_id else old.id)
    return replace(topology, nodes=tuple(new if node == old else node for node in topology.nodes))


def reweight(topology: Topology, weights: Mapping[str, int]) -> Topology:
    """With other weights, by the names of nodes.

    :raises ConfigurationError: for a node that is not there, or a weight outside 1 to 100

    >>> [node.weight for node in reweight(Topology(["a", "b"]), {"b": 3}).nodes]
    [1, 3]
    """
    changed = {find(topology, name): weight for name, weight in weights.items()}
    nodes = [Node(node.address, changed.get(node, node.weight), node.id) for node in topology.nodes]
    return replace(topology, nodes=tuple(nodes))


def find(topology: Topology, name: str) -> Node:
    """The node with this address or id.

    :raises ConfigurationError: where there is none
    """
    names = {name, canonical_id(name)}
    with suppress(ConfigurationError):  # or it can only be an id
        names.add(format_address(*parse_address(name)))
    for node in topology.nodes:
        if node.address in names or node.id in names:
            return node
    raise ConfigurationError(f"no node is {name!r}: there are {', '.join(node.id for node in topology.nodes)}")
