"""Requests to replay: a trace that was recorded, or draws from a Zipf distribution.

Keys are numbered, and a request is one entry in each of four parallel sequences. A million requests are then a few compact arrays,
and a simulated cache works on small integers.
"""

from __future__ import annotations

import csv
import random
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import isfinite
from pathlib import Path
from typing import TypeVar

from kvcluster.errors import ConfigurationError
from kvcluster.placement.base import wire_key

GET, SET, DELETE = range(3)
OPS = {"get": GET, "set": SET, "delete": DELETE}
COLUMNS = ("time", "key", "size", "op")

ITEM_OVERHEAD = 59
"""Bytes that memcached adds to a key and its value: a header of 48, 8 for CAS, 3 for the ends of key and line."""
MAX_SIZE = 1 << 30
MAX_KEYS = 10_000_000
MAX_REQUESTS = 100_000_000

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Workload:
    """What is asked of the cluster, in order.

    :param names: the wire key of each key number
    :param keys: for each request, the number of its key
    :param sizes: for each request, the bytes that a node accounts for the item it loads or sets
    :param ops: for each request, `GET`, `SET` or `DELETE`; a get that misses loads and stores its item
    :param times: for each request, seconds, never less than those before
    :param start: the first request that counts; those before it warm the caches
    :param title: the workload in a few words
    """

    names: Sequence[bytes]
    keys: Sequence[int]
    sizes: Sequence[int]
    ops: Sequence[int]
    times: Sequence[float]
    start: int = 0
    title: str = ""

    def __len__(self) -> int:
        return len(self.keys) - self.start


def zipf_shares(keys: int, exponent: float) -> list[float]:
    """The share of all requests that each key gets, most popular first: 1/rank^exponent, scaled to sum to 1.

    >>> [round(share, 2) for share in zipf_shares(3, 1)]
    [0.55, 0.27, 0.18]
    """
    weights = [rank**-exponent for rank in range(1, keys + 1)]
    total = sum(weights)
    return [weight / total for weight in weights]


def zipf(
    keys: int = 100_000,
    exponent: float = 0.99,
    requests: int = 1_000_000,
    seed: int = 1,
    size: int = 100,
    per_second: float = 10_000,
) -> Workload:
    """Gets of keys drawn independently by `zipf_shares`; the same arguments give the same requests everywhere.

    The caches are warmed by one get of each key, the least popular first, and then by as many draws as there are keys: so an
    ample cache holds everything, a small one the most popular, and either in the order of its last uses.

    :param exponent: 0 makes all keys equally popular; measured web caches lie between 0.6 and 1.2
    :param size: bytes of every value
    :param per_second: requests a second, which matters to a live migration
    :raises ConfigurationError: for a number outside its range
    """
    _check("keys", keys, 1, MAX_KEYS)
    _check("exponent", exponent, 0, 10)
    _check("requests", requests, 1, MAX_REQUESTS)
    _check("size", size, 0, MAX_SIZE)
    if not (isfinite(per_second) and per_second > 0):
        raise ConfigurationError(f"per_second must be above 0, not {per_second!r}")
    names = [b"key:%d" % rank for rank in range(keys)]
    item_sizes = [ITEM_OVERHEAD + len(name) + size for name in names]
    cumulative = [*accumulate(zipf_shares(keys, exponent))]
    numbers = [*range(keys)]  # one object for each, which a dict recognises sooner than an equal one
    asked = numbers[::-1] + random.Random(seed).choices(numbers, cum_weights=cumulative, k=keys + requests)
    warming = 2 * keys
    times = array("d", bytes(8 * warming))
    times.extend(number / per_second for number in range(requests))
    return Workload(
        names=names,
        keys=asked,
        sizes=array("q", map(item_sizes.__getitem__, asked)),
        ops=bytes(len(asked)),
        times=times,
        start=warming,
        title=f"{keys:,} keys, Zipf {exponent:g}, {requests:,} gets at {per_second:,g} a second, values of {size:,} B, seed {seed}",
    )


def _check(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise ConfigurationError(f"{name} must be from {least:g} to {most:,.0f}, not {value!r}")


def read_trace(path: str | Path) -> Workload:
    """The requests of a CSV file with the columns ``time,key,size,op`` in any order, named in its first line.

    ``time`` is in seconds and never goes back; ``size`` is the value's in bytes, of a get what a miss would load; ``op`` is get,
    set or delete.

    :raises ConfigurationError: for a file that cannot be read; for a line that cannot be used, naming it
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            return _parsed(file, str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"trace {path}: {error}") from None


def _parsed(file: Iterator[str], path: str) -> Workload:
    rows = csv.reader(file)
    numbers: dict[str, int] = {}
    keys: list[int] = []
    sizes, ops, times = array("q"), bytearray(), array("d")
    latest = float("-inf")
    try:
        columns = _columns(next(rows, []))
        width = max(columns) + 1
        for row in rows:
            if not row:
                continue
            if len(row) < width:
                raise ValueError(f"{len(row)} fields where {width} are needed")
            time, key, size, op = (row[column] for column in columns)
            seconds = _seconds(time, latest)
            if not key:
                raise ValueError("key is empty")
            if op not in OPS:
                raise ValueError(f"op must be {', '.join(OPS)}, not {op!r}")
            latest = seconds
            times.append(seconds)
            keys.append(numbers.setdefault(key, len(numbers)))
            sizes.append(ITEM_OVERHEAD + len(key.encode()) + _size(size))
            ops.append(OPS[op])
    except (ValueError, csv.Error) as error:
        raise ConfigurationError(f"trace {path}, line {max(rows.line_num, 1)}: {error}") from None
    if not keys:
        raise ConfigurationError(f"trace {path} has no requests")
    names = [wire_key(key) for key in numbers]
    title = f"{len(names):,} keys and {len(keys):,} requests of {Path(path).name}"
    return Workload(names, keys, sizes, ops, times, title=title)


def _columns(heading: Sequence[str]) -> list[int]:
    named = [name.strip() for name in heading]
    missing = [name for name in COLUMNS if name not in named]
    if missing:
        raise ValueError(f"the heading has no column {', '.join(missing)}; it must name {','.join(COLUMNS)}")
    return [named.index(name) for name in COLUMNS]


def _seconds(text: str, latest: float) -> float:
    seconds = _parse("time", text, float)
    if not isfinite(seconds):
        raise ValueError(f"time must be a number of seconds, not {text!r}")
    if seconds < latest:
        raise ValueError(f"time goes back from {latest:g} to {text}: sort the trace by time")
    return seconds


def _size(text: str) -> int:
    size = _parse("size", text, int)
    if not 0 <= size <= MAX_SIZE:
        raise ValueError(f"size must be from 0 to {MAX_SIZE} bytes, not {text}")
    return size


def _parse(name: str, text: str, kind: Callable[[str], T]) -> T:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{name} must be a number, not {text!r}") from None
