"""What a resize moves: the slots whose owner differs between two topologies, and so the keys.

A slot moves where the *address* of its owner changes: a machine that is replaced under its old id takes over all of its slots. Only
what the present owner holds is moved. A key that lies on a node without belonging there is of no use to anybody, and stays behind.

Stamps are kept on every node, and the epoch belongs to the node it lies on: no slot moves them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from kvcluster.errors import ConfigurationError
from kvcluster.following.epochs import EPOCH_KEY
from kvcluster.placement import placement
from kvcluster.placement._hot import slot_owners
from kvcluster.placement.slots import Slots, shift_for
from kvcluster.topology import Node, Topology

_STAMP = re.compile(rb":__stamp:(tag|table|rows|watch):").search  # after a cache's namespace, see `kvcluster.cache.stamps`


def is_stamp(wire: bytes) -> bool:
    """Whether a key is a stamp's. A key is a caller's own where it only holds the word.

    >>> is_stamp(b"shop:__stamp:table:users"), is_stamp(b"doc:__stamp:1")
    (True, False)
    """
    return b":__stamp:" in wire and _STAMP(wire) is not None  # most have not even that


def pinned(wire: bytes) -> bool:
    """Whether a key belongs to its node rather than to a slot.

    >>> pinned(b"shop:__stamp:table:users"), pinned(b"__kvc:epoch"), pinned(b"user:1")
    (True, True, False)
    """
    return wire == EPOCH_KEY or is_stamp(wire)


def any_pinned(wires: Iterable[bytes]) -> bool:
    """Whether any of these keys may be `pinned`, at a tenth of the time of asking for each."""
    text = b"\n".join(wires)
    return EPOCH_KEY in text or b":__stamp:" in text


@dataclass(frozen=True)
class Change:
    """The difference between two topologies that place keys by slots. Get it from `change`.

    :ivar moves: how many slots move, by the addresses of their old and their new owner
    """

    before: Topology
    after: Topology

    @cached_property
    def _tables(self) -> tuple[list[str], list[str]]:
        """The address of each slot's owner, before and after."""
        return _addresses(self.before), _addresses(self.after)

    @cached_property
    def moves(self) -> Counter[tuple[str, str]]:
        return Counter(pair for pair in zip(*self._tables, strict=True) if pair[0] != pair[1])

    @property
    def share(self) -> float:
        """The share of the key space that moves, from 0 to 1."""
        return self.moves.total() / self.before.slots

    @cached_property
    def sources(self) -> tuple[Node, ...]:
        """The nodes that lose slots, in the order of their addresses."""
        return _by_address(self.before.nodes, {source for source, _ in self.moves})

    @cached_property
    def targets(self) -> tuple[Node, ...]:
        """The nodes that gain slots, in the order of their addresses."""
        return _by_address(self.after.nodes, {target for _, target in self.moves})

    @property
    def dumped(self) -> tuple[Node, ...]:
        """The nodes whose keys have to be known: those that lose slots, and present ones that gain some."""
        return *self.sources, *(node for node in self.targets if node not in (*self.sources, *self.added))

    @cached_property
    def added(self) -> tuple[Node, ...]:
        """The nodes that only the new topology has."""
        old = {node.address for node in self.before.nodes}
        return tuple(node for node in self.after.nodes if node.address not in old)

    @cached_property
    def removed(self) -> tuple[Node, ...]:
        """The nodes that only the old topology has."""
        new = {node.address for node in self.after.nodes}
        return tuple(node for node in self.before.nodes if node.address not in new)

    @cached_property
    def members(self) -> tuple[Node, ...]:
        """All nodes of both, each once."""
        return (*self.after.nodes, *self.removed)

    def shares(self) -> tuple[dict[str, float], dict[str, float]]:
        """The share of the key space that each address owns, before and after."""
        before, after = (Counter(table) for table in self._tables)
        slots = self.before.slots
        return ({node: count / slots for node, count in before.items()}, {node: count / slots for node, count in after.items()})

    def gained(self, target: str) -> float:
        """Which part of what an address owns afterwards is new to it, from 0 to 1."""
        owned = self._tables[1].count(target)
        return sum(count for (_, new), count in self.moves.items() if new == target) / owned if owned else 0.0

    def lost(self, source: str) -> float:
        """Which part of what an address owns before is not its own afterwards, from 0 to 1."""
        owned = self._tables[0].count(source)
        return sum(count for (old, _), count in self.moves.items() if old == source) / owned if owned else 0.0

    def portion(self, source: str, target: str) -> float:
        """Which part of what an address gains comes from another, from 0 to 1."""
        total = sum(count for (_, new), count in self.moves.items() if new == target)
        return self.moves[source, target] / total if total else 0.0

    def router(self, source: str) -> Router:
        """Where the keys of one node go."""
        numbers = {node.address: number for number, node in enumerate(self.targets)}
        table = [numbers[new] if old == source and new != source else -1 for old, new in zip(*self._tables, strict=True)]
        return Router([node.address for node in self.targets], tuple(table), self.before.slots)

    def strangers(self, address: str, wires: Sequence[bytes]) -> list[bytes]:
        """The keys among these that are not to stay on an address.

        A node that leaves keeps nothing but its epoch, which leads on a client that asks it late: stamps that missed what happened
        meanwhile would be wrong when it returns.
        """
        if any(node.address == address for node in self.removed):
            return [wire for wire in wires if wire != EPOCH_KEY]
        return self._foreign(self._tables[1], address, wires)

    def strays(self, address: str, wires: Sequence[bytes]) -> list[bytes]:
        """The keys among these that an address holds and does not own before the change."""
        return self._foreign(self._tables[0], address, wires)

    def _foreign(self, owners: Sequence[str], address: str, wires: Sequence[bytes]) -> list[bytes]:
        table = tuple(owner == address for owner in owners)
        owned = slot_owners(wires, table, shift_for(len(owners)))
        return [wire for wire, own in zip(wires, owned, strict=True) if not own and not pinned(wire)]


class Router:
    """Where the keys of one node go.

    :param targets: addresses
    :param table: for each slot the number of its target, or -1 where it does not move
    """

    def __init__(self, targets: Sequence[str], table: tuple[int, ...], slots: int) -> None:
        self.targets = targets
        self._table = table
        self._shift = shift_for(slots)
        self._identity = tuple(range(slots))
        self.size = slots

    def moving(self, lines: Sequence[tuple[bytes, bytes]]) -> list[tuple[int, bytes, bytes]]:
        """Of some lines of a dump those whose keys move: the number of the target in ``targets``, the key, and the rest."""
        wires = [wire for wire, _ in lines]
        numbers = slot_owners(wires, self._table, self._shift)
        found = [(number, *line) for number, line in zip(numbers, lines, strict=True) if number >= 0]
        return [line for line in found if not pinned(line[1])] if any_pinned(wires) else found

    def slots(self, wires: Iterable[bytes]) -> list[int]:
        """The slot of each key."""
        return slot_owners(wires, self._identity, self._shift)


def change(present: Topology, wanted: Topology) -> Change:
    """What has to move so that the wanted topology takes the place of the present one.

    :raises ConfigurationError: where they do not differ, place keys otherwise than by slots, or have tables of different sizes

    >>> grow = change(Topology(["a", "b"]), Topology(["a", "b", "c"]))
    >>> round(grow.share, 2), [node.address for node in grow.targets]
    (0.33, ['c:11211'])
    """
    for topology in (present, wanted):
        if topology.placement != "slots":
            raise ConfigurationError(
                f"placement must be 'slots' for a cluster that is resized while it serves, not {topology.placement!r}"
            )
    if present.slots != wanted.slots:
        raise ConfigurationError(
            f"slots must stay {present.slots}, the size the cluster was born with, not {wanted.slots}: nearly every key would move"
        )
    found = Change(present, wanted)
    if not found.moves and set(present.nodes) == set(wanted.nodes):
        raise ConfigurationError("the wanted topology is the present one: there is nothing to move")
    return found


def _addresses(topology: Topology) -> list[str]:
    table = placement("slots", topology.nodes, topology.slots)
    assert isinstance(table, Slots)
    return [table.nodes[owner].address for owner in table.table]


def _by_address(nodes: Iterable[Node], addresses: set[str]) -> tuple[Node, ...]:
    return tuple(sorted((node for node in nodes if node.address in addresses), key=lambda node: node.address))
