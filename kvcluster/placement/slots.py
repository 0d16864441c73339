"""``slots``, the default: a key hashes to one of M slots, and a table says which node owns each slot.

The table is filled by rendezvous hashing: in every slot each node draws as many scores as its weight, and the highest score wins.
So adding a node, removing one or changing a weight moves exactly the slots that are won or lost by it, the result does not depend
on history, and 32-bit integer arithmetic is all that another language needs to agree. The table is filled once, when the first key
is asked for; after that a key costs one hash, one shift and one index.

Nodes are known by id, not by address, and ``.nodes`` is sorted by id: the order in which they were listed plays no part.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from struct import pack, unpack
from zlib import crc32

from mmh3 import mmh3_32_uintdigest as hash32

from kvcluster.errors import ConfigurationError
from kvcluster.placement._hot import fill_slots, slot_owners
from kvcluster.placement.base import Placement
from kvcluster.topology import DEFAULT_SLOTS, Node

MAX_NODES = 1 << 16


def slot_of(key: bytes, slots: int) -> int:
    """The slot of a wire key: the top bits of its murmur3 hash.

    >>> slot_of(b"user:1", 16384)
    13034
    """
    return hash32(key) >> shift_for(slots)


def shift_for(slots: int) -> int:
    """By how many bits a 32-bit hash is shifted right to give one of ``slots`` (a power of two)."""
    return 32 - (slots.bit_length() - 1)


def seeds_of(ids: Sequence[str]) -> list[int]:
    """murmur3 of each id.

    :raises ConfigurationError: if two ids have one seed; as they would draw the same scores, the second would never win a slot
    """
    owner_of: dict[int, str] = {}
    for id in ids:
        other = owner_of.setdefault(hash32(id.encode()), id)
        if other is not id:
            raise ConfigurationError(f"node ids {other!r} and {id!r} have one murmur3 hash: rename one")
    return list(owner_of)


def owner_format(nodes: int, slots: int) -> str:
    """The struct format of a table: one byte per slot, or two in little-endian order for more than 256 nodes."""
    return f"<{slots}{'B' if nodes <= 256 else 'H'}"


def moved_slots(before: Sequence[str], after: Sequence[str]) -> float:
    """The share of the key space whose owner differs between two tables of names, each a power of two long.

    Slots are the top bits of one hash, so a slot of the shorter table is a run of slots of the longer one.
    """
    size = max(len(before), len(after))
    step_before, step_after = size // len(before), size // len(after)
    return sum(before[slot // step_before] != after[slot // step_after] for slot in range(size)) / size


@lru_cache(maxsize=16)
def slot_table(seeds: tuple[int, ...], weights: tuple[int, ...], slots: int) -> bytes | tuple[int, ...]:
    """The owner of each slot; one table for all clients of a process that have the same nodes.

    It is looked at in random places, so it is kept in as few cache lines as can be: a byte each where one is enough.
    """
    packed = fill_slots(list(seeds), list(weights), slots)
    return packed if len(packed) == slots else unpack(owner_format(len(seeds), slots), packed)


class Slots(Placement):
    """A table of slots filled by weighted rendezvous hashing.

    :param nodes: up to 65536 nodes, in any order
    :param slots: the size of the table, a power of two; changing it later moves nearly every key
    :raises ConfigurationError: for more nodes than that, or two ids with one hash
    """

    name = "slots"

    def __init__(self, nodes: Sequence[Node], slots: int = DEFAULT_SLOTS) -> None:
        # Code points sort as their UTF-8 bytes do, so another language may sort either.
        super().__init__(sorted(nodes, key=lambda node: node.id))
        if len(self.nodes) > MAX_NODES:
            raise ConfigurationError(f"slots places at most {MAX_NODES} nodes, not {len(self.nodes)}")
        self.slots = slots
        self._seeds = seeds_of([node.id for node in self.nodes])
        self._shift = shift_for(slots)
        self._table: bytes | tuple[int, ...] = ()

    def index(self, key: bytes) -> int:
        return (self._table or self.table)[hash32(key) >> self._shift]

    def indexes(self, keys: Iterable[bytes]) -> list[int]:
        return slot_owners(keys, self._table or self.table, self._shift)

    def hash_table(self) -> tuple[bytes | tuple[int, ...], int] | None:
        return self._table or self.table, self._shift

    @property
    def table(self) -> bytes | tuple[int, ...]:
        """The owner of each slot, as an index into ``.nodes``; bytes for up to 256 nodes."""
        if not self._table:
            # Two threads may both fill it: the tables are equal, and the assignment is atomic.
            self._table = slot_table(tuple(self._seeds), tuple([node.weight for node in self.nodes]), self.slots)
        return self._table

    @property
    def crc(self) -> int:
        """CRC-32 of the table, one byte per slot (over 256 nodes: two, little-endian). Equal tables are equal placements."""
        return crc32(pack(owner_format(len(self.nodes), self.slots), *self.table))

    def shares(self) -> list[float]:
        table = self.table
        return [table.count(index) / self.slots for index in range(len(self.nodes))]

    def exact_move(self, after: Placement) -> float | None:
        if not isinstance(after, Slots):
            return None
        return moved_slots(self._owner_ids(), after._owner_ids())

    def _owner_ids(self) -> list[str]:
        return [self.nodes[index].id for index in self.table]
