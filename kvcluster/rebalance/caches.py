"""A cluster in memory: what each node holds, without the values, and how a live migration moves it.

Each node is an LRU of item sizes under a limit of bytes. Keys and nodes are numbers. Time is the workload's: nothing is measured.

A live migration is the protocol's MIGRATE phase. A get asks the new owner, then the old one (and fills the new one from it), then
the database; a set stores at the new owner and deletes at the old one; a delete goes to both. Meanwhile a copier takes what each
source held as the phase began, most recently used first, at a fixed rate, until a destination has got its share of memory. Then the
old owners are swept and no longer asked. The order of use is exact here; a real node notes it late for the keys used most, which
reads carry over anyway.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from itertools import islice, zip_longest
from math import inf

BATCH = 100
"""Keys that the copier moves at once."""
FILL = 0.95
"""The part of a node's memory up to which what is free may be filled, as by default in a resize."""


class Lru:
    """The memory of one node: items leave, least recently used first, when the bytes are used up. A key has a size and no value."""

    __slots__ = ("items", "limit", "used")

    def __init__(self, limit: float, items: OrderedDict[int, int] | None = None, used: int = 0) -> None:
        self.limit = limit
        self.items: OrderedDict[int, int] = OrderedDict() if items is None else items
        self.used = used

    def get(self, key: int) -> int:
        """The size of an item, which is then the most recently used; 0 for none."""
        items = self.items
        if key in items:
            items.move_to_end(key)
            return items[key]
        return 0

    def put(self, key: int, size: int) -> None:
        """Store an item. One larger than the whole memory only removes the one before it, as memcached does."""
        items = self.items
        self.used -= items.pop(key, 0)
        if size > self.limit:
            return
        items[key] = size
        self.used += size
        while self.used > self.limit:
            self.used -= items.popitem(last=False)[1]

    def discard(self, key: int) -> None:
        """Delete an item, if it is there."""
        self.used -= self.items.pop(key, 0)

    def copy(self) -> Lru:
        """The same items in the same order."""
        return Lru(self.limit, self.items.copy(), self.used)


class Cluster:
    """Caches, and which of them each key number belongs to.

    :param owners: for each key, the index of its owner
    :param sources: for each key, the cache that is asked when its owner misses: its old owner during a migration, else its owner
    """

    def __init__(self, caches: Sequence[Lru], owners: Sequence[int], sources: Sequence[int]) -> None:
        self.caches = caches
        self.owners = owners
        self.sources = sources

    def get(self, key: int, size: int) -> bool:
        """Whether a read finds its key; if not, its item is loaded and stored."""
        caches = self.caches
        at = self.owners[key]
        owner = caches[at]
        if owner.get(key):
            return True
        source = self.sources[key]
        if source != at and (found := caches[source].get(key)):
            owner.put(key, found)
            return True
        owner.put(key, size)
        return False

    def set(self, key: int, size: int) -> None:
        self.caches[self.owners[key]].put(key, size)
        if self.sources[key] != self.owners[key]:
            self.caches[self.sources[key]].discard(key)

    def delete(self, key: int) -> None:
        for at in {self.sources[key], self.owners[key]}:
            self.caches[at].discard(key)

    def copy(self, owners: Sequence[int], sources: Sequence[int]) -> Cluster:
        """The same items, under other owners."""
        return Cluster([cache.copy() for cache in self.caches], owners, sources)


class Copier:
    """Copies what a cluster's sources hold to its owners, batch by batch; a batch is `due` at a time of the workload.

    :param rate: keys a second
    :param now: when it begins
    """

    def __init__(self, cluster: Cluster, rate: float, now: float) -> None:
        self.copied = 0
        self.due = now
        self._cluster = cluster
        self._pause = BATCH / rate
        self._room = rooms(cluster)
        sources = [
            [key for key in reversed(cache.items) if cluster.sources[key] == at != cluster.owners[key]]
            for at, cache in enumerate(cluster.caches)
        ]
        self._left = iter([key for keys in zip_longest(*sources) for key in keys if key is not None])

    @property
    def finished(self) -> bool:
        return self.due == inf

    def work(self, now: float) -> None:
        """Copy every batch that is due; after the last one, sweep the sources and end the migration."""
        while self.due <= now:
            batch = [*islice(self._left, BATCH)]
            for key in batch:
                self._copy(key)
            self.due += self._pause
            if not batch:
                self._finish()

    def _copy(self, key: int) -> None:
        caches, at = self._cluster.caches, self._cluster.owners[key]
        # The order of use is left alone at the source, as a dump and `mg ... u` leave it.
        size = caches[self._cluster.sources[key]].items.get(key, 0)
        if not size or key in caches[at].items or size > self._room[at]:
            return
        caches[at].put(key, size)
        self._room[at] -= size
        self.copied += 1

    def _finish(self) -> None:
        cluster = self._cluster
        for at, cache in enumerate(cluster.caches):
            for key in [key for key in cache.items if cluster.owners[key] != at]:
                cache.discard(key)
        cluster.sources = cluster.owners
        self.due = inf


def rooms(cluster: Cluster) -> list[float]:
    """The bytes that may be copied to each node: what is free there up to `FILL`, or, where that is more, the part of its memory
    that the keys which move there are of all it owns. More would push out its own keys for colder ones."""
    owned = Counter(cluster.owners)
    arriving = Counter(owner for owner, source in zip(cluster.owners, cluster.sources, strict=True) if owner != source)
    return [
        max(cache.limit * FILL - cache.used, cache.limit * arriving[at] / owned[at]) if arriving[at] else 0.0
        for at, cache in enumerate(cluster.caches)
    ]
