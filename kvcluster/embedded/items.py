"""The items of one node: looking up, storing, expiring, evicting and counting them. No protocol here.

The store does what memcached 1.6.18 does in items.c and memcached.c, on an ordered dict in LRU order, oldest first:

- Time is whole seconds of a clock that is passed in, counted from two seconds before the store was made, as memcached does: so 0 is
  free to mean never and 1 is always over. An item expires when its second has come.
- Expired and flushed items are dropped when they are looked up, so nothing runs in the background.
- An item's size is what memcached would account for it: a header of 48 bytes, 8 for CAS, the key, the value and its line end.
- Every link of an item, every invalidation and every flush takes the next CAS number, so numbers follow the real server's.

The caller holds the node's lock.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from kvcluster.embedded.parsing import unsigned64

ITEM_SIZE_MAX = 1 << 20
SLAB_PAGE_SIZE = 1 << 20
RELATIVE_TTL_MAX = 60 * 60 * 24 * 30

_ITEM_HEADER, _CAS_SIZE, _FLAGS_SIZE = 48, 8, 4
_FIRST_SECOND = 2
_EXPIRED = 1


def _slab_chunk_sizes() -> list[int]:
    """Chunk sizes of memcached's slab classes 1, 2, ... at its default growth factor (slabs.c, slabs_init)."""
    largest, growth, sizes, size = SLAB_PAGE_SIZE // 2, 1.25, [], 96.0
    while size < largest / growth:
        size += -int(size) % 8
        sizes.append(int(size))
        size = int(int(size) * growth)
    return [*sizes, largest]


SLAB_CHUNK_SIZES = _slab_chunk_sizes()


class Mode(Enum):
    """What a storage command asks for."""

    SET = "set"
    ADD = "add"
    REPLACE = "replace"
    APPEND = "append"
    PREPEND = "prepend"
    CAS = "cas"


class Outcome(Enum):
    """What became of a storage command."""

    STORED = "STORED"
    NOT_STORED = "NOT_STORED"
    EXISTS = "EXISTS"
    NOT_FOUND = "NOT_FOUND"


class NotANumber(Exception):
    """An item's value cannot be incremented or decremented."""


@dataclass(slots=True)
class Item:
    """One cached value and what memcached knows of it. Times are seconds of `Store.now`; an ``exptime`` of 0 is never."""

    key: bytes
    value: bytes
    flags: int = 0
    exptime: int = 0
    last_access: int = 0
    cas: int = 0
    fetched: bool = False
    stale: bool = False
    token_sent: bool = False
    binary_key: bool = False

    @property
    def size(self) -> int:
        """Bytes of memory that memcached accounts for this item."""
        flags = _FLAGS_SIZE if self.flags else 0
        return _ITEM_HEADER + _CAS_SIZE + len(self.key) + 1 + flags + len(self.value) + 2

    @property
    def slab_class(self) -> int:
        return min(bisect_left(SLAB_CHUNK_SIZES, self.size), len(SLAB_CHUNK_SIZES) - 1) + 1


class Store:
    """The items of one node within a memory limit.

    :param memory_limit: bytes that all items together may take
    :param clock: returns the time in seconds
    """

    def __init__(self, memory_limit: int, clock: Callable[[], float]) -> None:
        self.memory_limit = memory_limit
        self.count: Counter[str] = Counter()
        self.connections = 0
        self.verbosity = 0
        self._clock = clock
        self.epoch = int(clock()) - _FIRST_SECOND
        self._items: OrderedDict[bytes, Item] = OrderedDict()
        self._memory_used = 0
        self._last_cas = 0
        self._oldest_live: int | None = None

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        """All items, the least recently used first, without those that are expired or flushed."""
        now = self.now()
        return (item for item in self._items.values() if not (self._is_expired(item, now) or self._is_flushed(item, now)))

    @property
    def memory_used(self) -> int:
        """Bytes that all items together take."""
        return self._memory_used

    @property
    def uptime(self) -> int:
        """Seconds since the store was made."""
        return self.now() - _FIRST_SECOND

    def now(self) -> int:
        """Seconds since `epoch`, which is a time of the clock."""
        return int(self._clock()) - self.epoch

    def expiry(self, ttl: int) -> int:
        """The second in which a ttl given now ends: 0 never, up to 30 days relative, beyond that an absolute time."""
        if ttl == 0:
            return 0
        if ttl < 0 or RELATIVE_TTL_MAX < ttl <= self.epoch:
            return _EXPIRED
        return ttl - self.epoch if ttl > RELATIVE_TTL_MAX else self.now() + ttl

    def next_cas(self) -> int:
        self._last_cas += 1
        return self._last_cas

    def lookup(self, key: bytes, bump: bool = False) -> Item | None:
        """The live item of a key, or None.

        :param bump: count this as a use of the item: it becomes the most recently used one
        """
        item = self._items.get(key)
        if item is None:
            return None
        now = self.now()
        if self._is_flushed(item, now):
            self.count["get_flushed"] += 1
        elif self._is_expired(item, now):
            self.count["get_expired"] += 1
        else:
            if bump:
                self.bump(item)
            return item
        self.unlink(item)
        return None

    def bump(self, item: Item) -> None:
        item.fetched = True
        item.last_access = self.now()
        self._items.move_to_end(item.key)

    def link(self, item: Item) -> None:
        """Put an item in place, over an older one of its key, and evict the least recently used ones while memory is short."""
        old = self._items.get(item.key)
        if old is not None:
            self.unlink(old)
        item.last_access = self.now()
        item.cas = self.next_cas()
        self._items[item.key] = item
        self._memory_used += item.size
        self.count["total_items"] += 1
        while self._memory_used > self.memory_limit:
            self._evict_one()

    def unlink(self, item: Item) -> None:
        del self._items[item.key]
        self._memory_used -= item.size

    def refusal(self, item: Item, value_size: int = 0) -> str | None:
        """Why an item cannot be stored when its value grows by ``value_size`` bytes, as memcached says it, or None."""
        if item.size + value_size > ITEM_SIZE_MAX:
            self.count["store_too_large"] += 1
            return "SERVER_ERROR object too large for cache"
        if item.size + value_size > self.memory_limit:
            self.count["store_no_memory"] += 1
            return "SERVER_ERROR out of memory storing object"
        return None

    def store(self, mode: Mode, item: Item, cas: int = 0, invalidate: bool = False) -> Outcome:
        """Store an item. What is stored gets its CAS number; a caller finds it in ``item.cas``, which stays 0 otherwise.

        :param cas: the CAS number that the present item must have; 0 does not compare (but never matches in mode CAS)
        :param invalidate: in mode CAS, accept a number lower than the present item's and mark the value stale
        """
        old = self.lookup(item.key)
        if old is None:
            return self._store_absent(mode, item)
        match mode:
            case Mode.ADD:
                self._items.move_to_end(old.key)
                return Outcome.NOT_STORED
            case Mode.CAS:
                return self._store_compared(old, item, cas, invalidate)
            case Mode.APPEND | Mode.PREPEND:
                return self._store_joined(mode, old, item, cas)
            case _:
                self.link(item)
                return Outcome.STORED

    def add_delta(self, key: bytes, delta: int, sign: int, cas: int = 0) -> tuple[Item, bytes] | Outcome:
        """Add ``delta`` to the decimal value of an item (``sign`` 1) or subtract it (-1); above 64 bits it wraps, below 0 it is 0.

        Returns the item and the digits of the new value, or NOT_FOUND, or EXISTS where ``cas`` is not 0 and differs.

        As in memcached, a shorter result is padded with spaces to the old length, and a longer one makes a new item while the old
        one is returned: a ttl that the caller then sets is lost.

        :raises NotANumber: the value is not a number of 64 bits
        """
        item = self.lookup(key)
        if item is None:
            return Outcome.NOT_FOUND
        if not item.value:
            raise NotANumber
        if cas and cas != item.cas:
            return Outcome.EXISTS
        number = unsigned64(item.value)
        if number is None:
            raise NotANumber
        self.count["incr_hits" if sign > 0 else "decr_hits"] += 1
        digits = b"%d" % (max(number + sign * delta, 0) % (1 << 64))
        if len(digits) <= len(item.value):
            item.value = digits.ljust(len(item.value))
            item.cas = self.next_cas()
            self._items.move_to_end(key)
        else:
            longer = Item(key, digits, item.flags, item.exptime)
            self.link(longer)
            item.cas = longer.cas
        return item, digits

    def flush(self, ttl: int) -> None:
        """Invalidate all items now, or those that are there when the ttl, in seconds, ends."""
        self.count["cmd_flush"] += 1
        if ttl > 0:
            # memcached flushes within the second before: what was stored up to then goes.
            self._oldest_live = self.expiry(ttl) - 1
        else:
            self._oldest_live = None
        if self._oldest_live is None or self._oldest_live <= self.now():
            self.next_cas()
            self._items.clear()
            self._memory_used = 0

    def _store_absent(self, mode: Mode, item: Item) -> Outcome:
        if mode is Mode.CAS:
            self.count["cas_misses"] += 1
            return Outcome.NOT_FOUND
        if mode not in (Mode.SET, Mode.ADD):
            return Outcome.NOT_STORED
        self.link(item)
        return Outcome.STORED

    def _store_compared(self, old: Item, item: Item, cas: int, invalidate: bool) -> Outcome:
        if cas != old.cas:
            if not (invalidate and 0 < cas < old.cas):
                self.count["cas_badval"] += 1
                return Outcome.EXISTS
            item.exptime, item.stale, item.token_sent = old.exptime, True, old.token_sent
        self.count["cas_hits"] += 1
        self.link(item)
        return Outcome.STORED

    def _store_joined(self, mode: Mode, old: Item, item: Item, cas: int) -> Outcome:
        if cas and cas != old.cas:
            return Outcome.EXISTS
        value = old.value + item.value if mode is Mode.APPEND else item.value + old.value
        joined = Item(old.key, value, old.flags, old.exptime)
        if self.refusal(joined):
            return Outcome.NOT_STORED
        self.link(joined)
        item.cas = joined.cas
        return Outcome.STORED

    def _evict_one(self) -> None:
        item = next(iter(self._items.values()))
        now = self.now()
        gone = self._is_expired(item, now) or self._is_flushed(item, now)
        self.count["reclaimed" if gone else "evictions"] += 1
        self.unlink(item)

    def _is_expired(self, item: Item, now: int) -> bool:
        return item.exptime != 0 and item.exptime <= now

    def _is_flushed(self, item: Item, now: int) -> bool:
        return self._oldest_live is not None and item.last_access <= self._oldest_live <= now
