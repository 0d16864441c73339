"""What a resize costs, told without a cluster: a workload is replayed against caches in memory.

Owners come from `kvcluster.placement`, so a simulated key goes where a real one would. The requests before the resize run once for
each placement. From there, on copies of the same caches, the rest runs without a resize, with one, and with a live migration. Extra
loads and recovery are told against the run without a resize, so what a small memory or a trace's new keys miss anyway is not blamed
on the resize.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import expm1, inf, isfinite, log1p

from kvcluster.errors import ConfigurationError
from kvcluster.placement import placement
from kvcluster.placement.base import Placement
from kvcluster.rebalance.caches import Cluster, Copier, Lru
from kvcluster.rebalance.workload import GET, SET, Workload
from kvcluster.topology import Topology

SCHEMES = ("modulo", "ketama", "slots", "slots+live")
"""What is compared by default: placements, and one with a live migration."""
LIVE = "+live"

FIRST = 1_000
"""Requests after the resize that the first hit rate is taken over."""
WINDOW = 10_000
"""Requests that every other hit rate is taken over."""
RECOVERED = 0.005
"""A window has recovered when its hit rate is at most so far below that of the run without a resize."""

_MISS, _HIT, _WRITE = range(3)
_CHUNK = 50_000  # requests between two calls of `progress`


@dataclass(frozen=True, slots=True)
class Cost:
    """What a resize cost under one scheme. Rates and shares go from 0 to 1; a rate over no gets is None.

    :param keys: how many keys the workload has
    :param moved: how many of them change their node
    :param before: the hit rate of the last window before the resize; where there was no request, of the first without a resize
    :param first: the hit rate of the first 1,000 requests after it
    :param lowest: the lowest of any window of 10,000 after it
    :param recovered: after how many requests every window is within half a point of its hit rate without a resize; None where the
        last one is not
    :param extra_loads: gets that went to the database because of the resize
    :param rates_before: of the windows up to the resize; the last one ends with it
    :param rates: of the windows from the resize on; the last may be shorter
    :param copied: keys that the copier of a live migration moved; None without one
    :param finished: whether that copier was done when the workload ended
    """

    scheme: str
    keys: int
    moved: int
    before: float | None
    first: float | None
    lowest: float | None
    recovered: int | None
    extra_loads: int
    rates_before: tuple[float | None, ...]
    rates: tuple[float | None, ...]
    copied: int | None = None
    finished: bool = True

    @property
    def moved_share(self) -> float:
        return self.moved / self.keys


def simulate(
    workload: Workload,
    before: Topology,
    after: Topology,
    schemes: Sequence[str] = SCHEMES,
    *,
    memory: float = inf,
    at: int = 0,
    rate: float = 10_000,
    progress: Callable[[int, int], None] | None = None,
) -> list[Cost]:
    """Replay a workload over a resize, once for each scheme.

    :param before: the nodes until the resize; its scheme is not used
    :param after: the nodes from then on. A node is another one where its address differs: under its old id it keeps its keys
        and still comes empty
    :param schemes: names of placements, each with ``+live`` at its end for a live migration
    :param memory: bytes of each node for items
    :param at: how many of the workload's requests come before the resize
    :param rate: keys that a live migration copies in a second of the workload
    :param progress: called now and then with how many requests were replayed, and of how many
    :raises ConfigurationError: for an unknown scheme, a resize that changes nothing, or a number outside its range

    >>> from kvcluster.rebalance.workload import zipf
    >>> four, five = Topology(["a", "b", "c", "d"]), Topology(["a", "b", "c", "d", "e"])
    >>> costs = simulate(zipf(keys=1000, requests=20_000), four, five)
    >>> [(cost.scheme, cost.moved, cost.extra_loads) for cost in costs]
    [('modulo', 804, 786), ('ketama', 190, 186), ('slots', 187, 184), ('slots+live', 187, 0)]
    """
    if before.nodes == after.nodes:
        raise ConfigurationError("the nodes after the resize are those before it: there is nothing to simulate")
    if before.slots != after.slots:
        raise ConfigurationError(
            f"slots cannot change with a resize, from {before.slots} to {after.slots}: nearly every key would move"
        )
    if not 0 <= at < len(workload):
        raise ConfigurationError(f"at must be from 0 to {len(workload) - 1:,}, below the number of requests, not {at:,}")
    for name, value in (("memory", memory), ("rate", rate)):
        if not value > 0:
            raise ConfigurationError(f"{name} must be above 0, not {value!r}")
    if not isfinite(rate):
        raise ConfigurationError(f"rate must be a number of keys a second, not {rate!r}")
    if not schemes:
        raise ConfigurationError("schemes must name at least one")
    names = [*dict.fromkeys(scheme.removesuffix(LIVE) for scheme in schemes)]
    pairs = [(placement(name, before.nodes, before.slots), placement(name, after.nodes, after.slots)) for name in names]
    meter = _Meter(progress, len(pairs) * len(workload.keys) + len(schemes) * (len(workload) - at))
    costs: dict[str, Cost] = {}
    for name, (old, new) in zip(names, pairs, strict=True):
        study = _Study(workload, old, new, memory, at, meter)
        costs |= {scheme: study.cost(scheme, rate) for scheme in schemes if scheme.removesuffix(LIVE) == name}
    return [costs[scheme] for scheme in schemes]


class _Meter:
    """Counts requests replayed."""

    def __init__(self, report: Callable[[int, int], None] | None, total: int) -> None:
        self._report = report
        self._done = 0
        self._total = total

    def add(self, requests: int) -> None:
        self._done += requests
        if self._report is not None:
            self._report(self._done, self._total)


class _Study:
    """One pair of placements: the run up to the resize, the run without it, and from there whichever scheme is asked for."""

    def __init__(self, workload: Workload, old: Placement, new: Placement, memory: float, at: int, meter: _Meter) -> None:
        addresses = [*dict.fromkeys(node.address for node in (*old.nodes, *new.nodes))]
        self._workload = workload
        self._meter = meter
        self._resize = workload.start + at
        self._old, self._new = ([*_owners(bound, workload.names, addresses)] for bound in (old, new))
        self._cluster = Cluster([Lru(memory) for _ in addresses], self._old, self._old)
        self._replay(self._cluster, 0, workload.start)
        self._past = self._replay(self._cluster, workload.start, self._resize)
        self._steady = self._replay(self._cluster.copy(self._old, self._old), self._resize)

    def cost(self, scheme: str, rate: float) -> Cost:
        """Of a scheme whose placements these are."""
        copier = None
        if scheme.endswith(LIVE):
            cluster = self._cluster.copy(self._new, self._old)
            copier = Copier(cluster, rate, self._workload.times[self._resize])
        else:
            cluster = self._cluster.copy(self._new, self._new)
        outcomes = self._replay(cluster, self._resize, copier=copier)
        steady, rates = _rates(self._steady), _rates(outcomes)
        rates_before = _rates(self._past[len(self._past) % WINDOW if len(self._past) > WINDOW else 0 :])
        known = [rate for rate in rates if rate is not None]
        return Cost(
            scheme=scheme,
            keys=len(self._workload.names),
            moved=sum(old != new for old, new in zip(self._old, self._new, strict=True)),
            before=rates_before[-1] if rates_before else steady[0],
            first=_rate(outcomes[:FIRST]),
            lowest=min(known, default=None),
            recovered=_recovered(rates, steady),
            extra_loads=outcomes.count(_MISS) - self._steady.count(_MISS),
            rates_before=rates_before,
            rates=rates,
            copied=None if copier is None else copier.copied,
            finished=copier is None or copier.finished,
        )

    def _replay(self, cluster: Cluster, begin: int, end: int | None = None, copier: Copier | None = None) -> bytes:
        """What became of each request from ``begin`` to ``end``."""
        workload = self._workload
        end = len(workload.keys) if end is None else end
        outcomes = bytearray()
        for at in range(begin, end, _CHUNK):
            chunk = slice(at, min(at + _CHUNK, end))
            columns = (workload.keys[chunk], workload.sizes[chunk], workload.ops[chunk], workload.times[chunk])
            _serve(cluster, zip(*columns, strict=True), copier, outcomes)
            self._meter.add(chunk.stop - chunk.start)
        return bytes(outcomes)


def _owners(bound: Placement, names: Sequence[bytes], addresses: Sequence[str]) -> Iterator[int]:
    """The owner of each key, as an index into ``addresses``."""
    at = [addresses.index(node.address) for node in bound.nodes]
    return map(at.__getitem__, bound.indexes(names))


def _serve(cluster: Cluster, requests: Iterable[tuple[int, int, int, float]], copier: Copier | None, outcomes: bytearray) -> None:
    note = outcomes.append
    owners, held = cluster.owners, [cache.items for cache in cluster.caches]
    due = inf if copier is None else copier.due
    for key, size, op, time in requests:
        if time >= due:
            assert copier is not None
            copier.work(time)
            due = copier.due
        if op == GET:
            items = held[owners[key]]
            if key in items:  # what `Cluster.get` does first, without two calls
                items.move_to_end(key)
                note(_HIT)
            else:
                note(cluster.get(key, size))
            continue
        if op == SET:
            cluster.set(key, size)
        else:
            cluster.delete(key)
        note(_WRITE)


def _rate(outcomes: bytes) -> float | None:
    hits, misses = outcomes.count(_HIT), outcomes.count(_MISS)
    return hits / (hits + misses) if hits + misses else None


def _rates(outcomes: bytes) -> tuple[float | None, ...]:
    return tuple([_rate(outcomes[at : at + WINDOW]) for at in range(0, len(outcomes), WINDOW)])


def _recovered(rates: Sequence[float | None], steady: Sequence[float | None]) -> int | None:
    below = [
        rate is not None and wanted is not None and rate < wanted - RECOVERED for rate, wanted in zip(rates, steady, strict=True)
    ]
    if not any(below):
        return 0
    return None if below[-1] else WINDOW * max(window + 1 for window, low in enumerate(below) if low)


def expected_loads(shares: Iterable[float], requests: int) -> float:
    """The extra loads within so many requests when the keys with these shares of all requests move without migration and nothing
    is evicted: each such key is loaded once, if it is asked for at all. The sum of 1 - (1 - p)^n.

    :param shares: of the keys that move, each the probability that a request is for that key

    >>> expected_loads([0.5, 0.25], 1), expected_loads([0.5, 0.25], 2)
    (0.75, 1.1875)
    """
    return sum(1.0 if share >= 1 else -expm1(requests * log1p(-share)) for share in shares)


def expected_zipf_loads(keys: int, requests: int, exponent: float = 0.99) -> float:
    """`expected_loads` when all keys of a Zipf distribution move; of a random part of them, that part is expected.

    Neighbouring ranks are counted as equals where they differ by less than a thousandth, so any number of keys takes no time.

    >>> round(expected_zipf_loads(100_000, 1_000_000))
    82063
    """
    runs, rank = [], 1
    while rank <= keys:
        count = min(1 + rank // 1000, keys - rank + 1)
        runs.append((count, (rank + (count - 1) / 2) ** -exponent))
        rank += count
    total = sum(count * weight for count, weight in runs)
    return sum(count * expected_loads([weight / total], requests) for count, weight in runs)
