"""What a node tells of itself: ``stats`` and ``lru_crawler metadump``.

The figures are those a client can act on: operations, hits, items, memory, evictions, connections. What describes the inside of the
real server (threads, slab rebalancing, LRU segments) is left out rather than invented.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import quote_from_bytes

from kvcluster.embedded.items import ITEM_SIZE_MAX, SLAB_CHUNK_SIZES, SLAB_PAGE_SIZE, Item, Store
from kvcluster.embedded.parsing import Refusal, unsigned32

if TYPE_CHECKING:
    from kvcluster.embedded.answers import Command

MAX_SLAB_CLASSES = 64

_COUNTERS = (
    *("cmd_get", "cmd_set", "cmd_flush", "cmd_touch", "cmd_meta", "get_hits", "get_misses", "get_expired", "get_flushed"),
    *("delete_misses", "delete_hits", "incr_misses", "incr_hits", "decr_misses", "decr_hits", "cas_misses", "cas_hits"),
    *("cas_badval", "touch_hits", "touch_misses", "store_too_large", "store_no_memory", "bytes_read", "bytes_written"),
)


def stats(store: Store, tokens: list[bytes]) -> bytes:
    if len(tokens) == 1:
        return _report(_general(store))
    match tokens[1]:
        case b"settings":
            return _report(_settings(store))
        case b"items":
            return _report(_items(store))
        case b"slabs":
            return _report(_slabs(store))
        case b"reset":
            store.count.clear()
            return b"RESET\r\n"
    return b"ERROR\r\n"


def metadump(store: Store, tokens: list[bytes]) -> bytes:
    if tokens[1] != b"metadump":
        return b"ERROR\r\n"
    classes = _slab_classes(tokens[2])
    return b"".join(_dump_line(store.epoch, item) for item in store if item.slab_class in classes) + b"END\r\n"


def _report(figures: Iterable[tuple[str, object]]) -> bytes:
    return "".join(f"STAT {name} {value}\r\n" for name, value in figures).encode() + b"END\r\n"


def _general(store: Store) -> Iterable[tuple[str, object]]:
    yield from {
        "pid": os.getpid(),
        "uptime": store.uptime,
        "time": store.epoch + store.now(),
        "version": "1.6.18",
        "pointer_size": 64,
        "curr_connections": store.connections,
        "total_connections": store.count["total_connections"],
    }.items()
    for name in _COUNTERS:
        yield name, store.count[name]
    yield from {
        "limit_maxbytes": store.memory_limit,
        "accepting_conns": 1,
        "threads": 1,
        "bytes": store.memory_used,
        "curr_items": len(store),
        "total_items": store.count["total_items"],
        "evictions": store.count["evictions"],
        "reclaimed": store.count["reclaimed"],
    }.items()


def _settings(store: Store) -> Iterable[tuple[str, object]]:
    return {
        "maxbytes": store.memory_limit,
        "verbosity": store.verbosity,
        "evictions": "on",
        "growth_factor": 1.25,
        "chunk_size": 48,
        "num_threads": 1,
        "cas_enabled": "yes",
        "item_size_max": ITEM_SIZE_MAX,
        "slab_chunk_max": SLAB_CHUNK_SIZES[-1],
        "flush_enabled": "yes",
        "dump_enabled": "yes",
    }.items()


def _by_class(store: Store) -> dict[int, list[Item]]:
    classes: dict[int, list[Item]] = {}
    for item in store:
        classes.setdefault(item.slab_class, []).append(item)
    return dict(sorted(classes.items()))


def _items(store: Store) -> Iterable[tuple[str, object]]:
    now = store.now()
    for number, items in _by_class(store).items():
        yield f"items:{number}:number", len(items)
        yield f"items:{number}:age", now - items[0].last_access
        yield f"items:{number}:mem_requested", sum(item.size for item in items)


def _slabs(store: Store) -> Iterable[tuple[str, object]]:
    classes = _by_class(store)
    all_pages = 0
    for number, items in classes.items():
        chunk_size = SLAB_CHUNK_SIZES[number - 1]
        per_page = SLAB_PAGE_SIZE // chunk_size
        pages = -(-len(items) // per_page)
        all_pages += pages
        yield f"{number}:chunk_size", chunk_size
        yield f"{number}:chunks_per_page", per_page
        yield f"{number}:total_pages", pages
        yield f"{number}:total_chunks", pages * per_page
        yield f"{number}:used_chunks", len(items)
        yield f"{number}:free_chunks", pages * per_page - len(items)
    yield "active_slabs", len(classes)
    yield "total_malloced", all_pages * SLAB_PAGE_SIZE


def _slab_classes(token: bytes) -> range | set[int]:
    if token in (b"all", b"hash"):
        return range(1, MAX_SLAB_CLASSES)
    classes = {unsigned32(number) or 0 for number in token.split(b",") if number}
    if any(not 0 < number < MAX_SLAB_CLASSES for number in classes):
        raise Refusal("BADCLASS invalid class id")
    return classes


def _dump_line(epoch: int, item: Item) -> bytes:
    # Lines of a dump end in a bare line feed, unlike everything else.
    return b"key=%b exp=%d la=%d cas=%d fetch=%b cls=%d size=%d\n" % (
        quote_from_bytes(item.key, safe="").encode(),
        epoch + item.exptime if item.exptime else -1,
        epoch + item.last_access,
        item.cas,
        b"yes" if item.fetched else b"no",
        item.slab_class,
        item.size,
    )


# name: the command, and how many tokens its line may have, itself included
COMMANDS: dict[bytes, tuple[Command, range]] = {
    b"stats": (stats, range(1, 1 << 31)),
    b"lru_crawler": (metadump, range(3, 4)),
}
