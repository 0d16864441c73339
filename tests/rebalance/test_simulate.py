"""The simulation against what must hold of it: the closed form, exact counts, a naive LRU, and a migration that nobody notices."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcluster.errors import ConfigurationError
from kvcluster.placement import moved, placement
from kvcluster.rebalance.caches import BATCH, Cluster, Copier, Lru, rooms
from kvcluster.rebalance.simulate import SCHEMES, WINDOW, expected_loads, expected_zipf_loads, simulate
from kvcluster.rebalance.workload import DELETE, GET, OPS, SET, Workload, read_trace, zipf, zipf_shares
from kvcluster.topology import Node, Topology

FIVE = Topology([f"node{number}" for number in range(5)])
FOUR = Topology(FIVE.nodes[:4])


def moving(scheme: str, before: Topology, after: Topology, names: list[bytes]) -> set[int]:
    """The numbers of the keys whose machine changes."""
    old, new = (placement(scheme, side.nodes).owners(names) for side in (before, after))
    return {number for number, (a, b) in enumerate(zip(old, new, strict=True)) if a.address != b.address}


@pytest.mark.slow
def test_a_million_requests() -> None:
    """The published table: what is not migrated agrees with the closed form, and a live migration costs nothing."""
    costs = {cost.scheme: cost for cost in simulate(zipf(), FOUR, FIVE)}
    shares, names = zipf_shares(100_000, 0.99), zipf(requests=1).names
    for scheme in ("modulo", "ketama", "slots"):
        cost = costs[scheme]
        moving_shares = [shares[number] for number in moving(scheme, FOUR, FIVE, names)]
        loads = [expected_loads(moving_shares, window * WINDOW) for window in range(101)]
        assert cost.extra_loads == pytest.approx(loads[-1], rel=0.01)
        assert cost.rates == pytest.approx([1 - (loads[at + 1] - loads[at]) / WINDOW for at in range(100)], abs=0.01)
        assert cost.first == pytest.approx(1 - expected_loads(moving_shares, 1_000) / 1_000, abs=0.02)
    assert costs["modulo"].recovered is None
    assert costs["slots"].recovered is not None
    assert costs["slots"].recovered > 900_000
    live = costs["slots+live"]
    assert (live.first, live.lowest, live.recovered, live.extra_loads, live.finished) == (1.0, 1.0, 0, 0, True)
    assert live.moved == costs["slots"].moved


def test_loads_of_a_zipf_load_by_the_thousand() -> None:
    for keys in (1, 500, 30_000):
        for requests in (1, 1_000, 1_000_000):
            exact = expected_loads(zipf_shares(keys, 1.1), requests)
            assert expected_zipf_loads(keys, requests, 1.1) == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("scheme", ["modulo", "ketama", "slots", "libmemcached-consistent"])
@pytest.mark.parametrize(("before", "after"), [(FOUR, FIVE), (FIVE, FOUR)], ids=["grow", "shrink"])
def test_with_ample_memory_each_moved_key_that_is_asked_for_is_loaded_once(scheme: str, before: Topology, after: Topology) -> None:
    workload = zipf(keys=2_000, requests=5_000)
    at = 1_000
    gone = moving(scheme, before, after, workload.names)
    (cost,) = simulate(workload, before, after, [scheme], at=at)
    assert cost.moved == len(gone)
    assert cost.moved_share == pytest.approx(moved(placement(scheme, before.nodes), placement(scheme, after.nodes)), abs=0.03)
    assert cost.extra_loads == len(gone & {*workload.keys[workload.start + at :]})
    assert cost.before == 1.0


def test_a_machine_replaced_under_its_id_costs_what_losing_it_does() -> None:
    workload = zipf(keys=5_000, requests=20_000)
    *kept, last = FIVE.nodes
    (lost,) = simulate(workload, FIVE, FOUR, ["slots"])
    (same,) = simulate(workload, FIVE, Topology([*kept, Node("machine", id=last.id)]), ["slots"])
    (new,) = simulate(workload, FIVE, Topology([*kept, Node("machine")]), ["slots"])
    assert (same.moved, same.extra_loads, same.rates) == (lost.moved, lost.extra_loads, lost.rates)
    assert new.moved > same.moved


def test_the_least_that_is_known_of_expected_loads() -> None:
    shares = zipf_shares(1_000, 1.1)
    assert sum(shares) == pytest.approx(1)
    assert expected_loads(shares, 1) == pytest.approx(1)
    assert expected_loads(shares, 700) == pytest.approx(sum(1 - (1 - share) ** 700 for share in shares))
    assert expected_loads([1.0], 5) == 1


# The memory of one node.


class NaiveLru:
    """The same as a list of pairs, least recently used first."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.items: list[tuple[int, int]] = []

    def get(self, key: int) -> int:
        found = [item for item in self.items if item[0] == key]
        self.items = [item for item in self.items if item[0] != key] + found
        return found[0][1] if found else 0

    def put(self, key: int, size: int) -> None:
        self.discard(key)
        if size <= self.limit:
            self.items.append((key, size))
        while sum(size for _, size in self.items) > self.limit:
            del self.items[0]

    def discard(self, key: int) -> None:
        self.items = [item for item in self.items if item[0] != key]


@given(
    st.integers(1, 30),
    st.lists(st.tuples(st.sampled_from(["get", "put", "discard"]), st.integers(0, 6), st.integers(1, 12))),
)
def test_lru(limit: int, steps: list[tuple[str, int, int]]) -> None:
    real, naive = Lru(limit), NaiveLru(limit)
    for step, key, size in steps:
        if step == "get":
            assert real.get(key) == naive.get(key)
        elif step == "put":
            real.put(key, size)
            naive.put(key, size)
        else:
            real.discard(key)
            naive.discard(key)
        assert [*real.items.items()] == naive.items
        assert real.used == sum(real.items.values())


# A live migration.

REQUESTS = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from([GET, GET, SET, DELETE]), st.integers(1, 5)), min_size=2, max_size=60
)


@given(REQUESTS, st.integers(0, 59), st.sampled_from([(FOUR, FIVE), (FIVE, FOUR)]), st.floats(1, 1e5))
@settings(deadline=None)
def test_with_ample_memory_nobody_notices_a_live_migration(
    requests: list[tuple[int, int, int]], at: int, resize: tuple[Topology, Topology], rate: float
) -> None:
    workload = Workload(
        names=[b"key%d" % number for number in range(10)],
        keys=[key for key, _, _ in requests],
        sizes=[size for _, _, size in requests],
        ops=[op for _, op, _ in requests],
        times=[float(number) for number in range(len(requests))],
    )
    (cost,) = simulate(workload, *resize, ["slots+live"], at=min(at, len(requests) - 1), rate=rate)
    assert cost.extra_loads == 0
    assert cost.recovered == 0


@given(REQUESTS, st.lists(st.integers(0, 2), min_size=10, max_size=10), st.lists(st.integers(0, 2), min_size=10, max_size=10))
def test_a_migration_never_brings_back_what_was_set_or_deleted(
    requests: list[tuple[int, int, int]], sources: list[int], owners: list[int]
) -> None:
    held = dict.fromkeys(range(10), 7)
    cluster = Cluster([Lru(inf) for _ in range(3)], owners, sources)
    for key, size in held.items():
        cluster.caches[sources[key]].put(key, size)
    copier = Copier(cluster, rate=BATCH / 20, now=0.0)  # a batch every 20 seconds: one at the beginning, the end in the middle
    for now, (key, op, size) in enumerate(requests):
        copier.work(now)
        if op == GET:
            assert cluster.get(key, size) == (key in held)
            held.setdefault(key, size)
        elif op == SET:
            cluster.set(key, size)
            held[key] = size
        else:
            cluster.delete(key)
            held.pop(key, None)
    copier.work(1e9)
    assert copier.finished
    assert cluster.sources is cluster.owners
    for at, cache in enumerate(cluster.caches):
        assert dict(cache.items) == {key: size for key, size in held.items() if owners[key] == at}


def test_the_copier_takes_the_hottest_first_and_keeps_to_its_rate() -> None:
    keys = 10 * BATCH
    cluster = Cluster([Lru(inf), Lru(inf)], owners=[1] * keys, sources=[0] * keys)
    for key in range(keys):
        cluster.caches[0].put(key, 10)
    copier = Copier(cluster, rate=BATCH, now=100.0)
    copier.work(99.9)
    assert copier.copied == 0
    copier.work(102.5)  # batches at 100, 101 and 102
    assert [*cluster.caches[1].items] == [*range(keys - 1, keys - 1 - 3 * BATCH, -1)]


def test_the_copier_skips_what_requests_brought_or_took() -> None:
    cluster = Cluster([Lru(inf), Lru(inf)], owners=[1] * 4, sources=[0] * 4)
    for key in range(4):
        cluster.caches[0].put(key, 10)
    copier = Copier(cluster, rate=1, now=0.0)
    assert cluster.get(0, 99)
    cluster.set(1, 20)
    cluster.delete(2)
    assert dict(cluster.caches[0].items) == {0: 10, 3: 10}
    copier.work(0.0)
    assert copier.copied == 1
    assert dict(cluster.caches[1].items) == {0: 10, 1: 20, 3: 10}


def test_the_copier_leaves_the_order_of_use_at_its_source() -> None:
    cluster = Cluster([Lru(inf), Lru(inf)], owners=[1, 0, 1], sources=[0, 0, 0])
    for key in (2, 1, 0):
        cluster.caches[0].put(key, 10)
    copier = Copier(cluster, rate=1, now=0.0)
    copier.work(0.0)
    assert [*cluster.caches[0].items] == [2, 1, 0]


def test_a_full_destination_gets_its_share_and_no_more() -> None:
    # Node 1 owned 0 to 99, and 25 keys of node 0 join them: a fifth of what it then owns.
    owners, sources = [1] * 125, [1] * 100 + [0] * 25
    cluster = Cluster([Lru(1_000), Lru(1_000)], owners, sources)
    for key in range(125):
        cluster.caches[sources[key]].put(key, 10)
    assert cluster.caches[1].used == 1_000
    assert rooms(cluster) == [0.0, 200.0]
    copier = Copier(cluster, rate=1e9, now=0.0)
    copier.work(1.0)
    assert copier.copied == 20
    assert copier.finished
    assert {*cluster.caches[1].items} == {*range(20, 100), *range(105, 125)}  # of both, what was used last
    assert not cluster.caches[0].items


def test_a_migration_under_tight_memory_is_better_than_none() -> None:
    workload = zipf(keys=10_000, requests=50_000)
    bare, live = simulate(workload, FOUR, FIVE, ["slots", "slots+live"], memory=100_000, at=10_000)
    assert bare.before is not None
    assert live.first is not None
    assert 0.5 < bare.before < 0.95
    assert live.first > bare.before - 0.03
    assert live.extra_loads < bare.extra_loads < 0  # a node more holds more


def test_a_workload_that_ends_first_says_so() -> None:
    (cost,) = simulate(zipf(keys=1_000, requests=1_000), FOUR, FIVE, ["slots+live"], rate=100)
    assert (cost.finished, cost.copied) == (False, BATCH)


# What is reported.


def test_windows_and_progress() -> None:
    workload = zipf(keys=1_000, requests=45_000)
    seen: list[tuple[int, int]] = []
    (cost,) = simulate(workload, FOUR, FIVE, ["slots"], at=25_000, progress=lambda done, total: seen.append((done, total)))
    assert (len(cost.rates_before), len(cost.rates)) == (2, 2)
    assert cost.lowest == min(rate for rate in cost.rates if rate is not None)
    assert seen == sorted(seen)
    assert seen[-1] == (2_000 + 45_000 + 20_000, 2_000 + 45_000 + 20_000)


def test_the_order_of_schemes_is_the_callers() -> None:
    wanted = ["slots+live", "modulo", "ketama+live", "slots"]
    costs = simulate(zipf(keys=100, requests=100), FOUR, FIVE, wanted)
    assert [cost.scheme for cost in costs] == wanted
    assert [cost.copied is None for cost in costs] == [False, True, False, True]


def test_a_workload_without_gets_has_no_rates() -> None:
    workload = Workload([b"a"], keys=[0, 0], sizes=[5, 5], ops=[SET, DELETE], times=[0.0, 1.0])
    (cost,) = simulate(workload, FOUR, FIVE, ["slots"])
    assert (cost.before, cost.first, cost.lowest, cost.rates, cost.extra_loads) == (None, None, None, (None,), 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"after": FOUR}, "the nodes after the resize are those before it"),
        ({"after": Topology(FIVE.nodes, slots=64)}, "slots cannot change with a resize, from 16384 to 64"),
        ({"schemes": ["best"]}, "placement 'best' is unknown"),
        ({"schemes": ["slots+dead"]}, r"placement 'slots\+dead' is unknown"),
        ({"schemes": []}, "schemes must name at least one"),
        ({"at": 100}, "at must be from 0 to 99"),
        ({"at": -1}, "at must be from 0 to 99"),
        ({"memory": 0}, "memory must be above 0"),
        ({"rate": 0.0}, "rate must be above 0"),
        ({"rate": inf}, "rate must be a number of keys a second"),
    ],
)
def test_arguments_that_cannot_be_used(changes: dict[str, object], message: str) -> None:
    arguments = {"workload": zipf(keys=10, requests=100), "before": FOUR, "after": FIVE, "schemes": SCHEMES} | changes
    with pytest.raises(ConfigurationError, match=message):
        simulate(**arguments)  # type: ignore[arg-type]


# Workloads.


def test_zipf_draws_what_it_says() -> None:
    workload = zipf(keys=50, exponent=0.8, requests=200_000, seed=3, size=10, per_second=500)
    drawn = workload.keys[workload.start :]
    assert len(workload) == len(drawn) == 200_000
    for number, share in enumerate(zipf_shares(50, 0.8)):
        assert sum(key == number for key in drawn) / 200_000 == pytest.approx(share, abs=0.004)
    assert {*workload.keys[: workload.start]} == {*range(50)}
    assert workload.times[-1] == pytest.approx(199_999 / 500)
    assert {*workload.sizes} == {59 + 5 + 10, 59 + 6 + 10}
    assert zipf(50, 0.8, 1_000, 3).keys == zipf(50, 0.8, 1_000, 3).keys != zipf(50, 0.8, 1_000, 4).keys


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("keys", 0),
        ("keys", 10**9),
        ("exponent", -0.1),
        ("exponent", float("nan")),
        ("requests", 0),
        ("size", -1),
        ("per_second", 0.0),
    ],
)
def test_zipf_numbers_that_cannot_be_used(name: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=f"^{name} must be"):
        zipf(**{name: value})  # type: ignore[arg-type]


def test_a_trace(tmp_path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text('op,size,key,time\nset,10,user:1,0\n\nget,20,"ключ, 2",0.5\ndelete,0,user:1,0.5\n', encoding="utf-8-sig")
    workload = read_trace(path)
    names = [b"user:1", "ключ, 2".encode()]
    assert workload.names == names
    assert (workload.keys, [*workload.ops]) == ([0, 1, 0], [OPS["set"], OPS["get"], OPS["delete"]])
    assert [*workload.sizes] == [59 + 6 + 10, 59 + len(names[1]) + 20, 59 + 6]
    assert [*workload.times] == [0.0, 0.5, 0.5]
    assert (len(workload), workload.start) == (3, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the heading has no column time, key, size, op"),
        ("time,key,op\n1,a,get\n", "line 1: the heading has no column size"),
        ("time,key,size,op\n", "has no requests"),
        ("time,key,size,op\n0,a,1,get\n0,a,-1,get\n", "line 3: size must be from 0 to 1073741824 bytes, not -1"),
        ("time,key,size,op\n0,a,99999999999999999999,get\n", "line 2: size must be from 0"),
        ("time,key,size,op\n0,a,1.5,get\n", "line 2: size must be a number, not '1.5'"),
        ("time,key,size,op\nnoon,a,1,get\n", "line 2: time must be a number, not 'noon'"),
        ("time,key,size,op\nnan,a,1,get\n", "line 2: time must be a number of seconds, not 'nan'"),
        ("time,key,size,op\n2,a,1,get\n1,a,1,get\n", "line 3: time goes back from 2 to 1"),
        ("time,key,size,op\n0,,1,get\n", "line 2: key is empty"),
        ("time,key,size,op\n0,a,1,fetch\n", "line 2: op must be get, set, delete, not 'fetch'"),
        ("time,key,size,op\n0,a,1\n", "line 2: 3 fields where 4 are needed"),
    ],
)
def test_a_trace_that_cannot_be_used(tmp_path, text: str, message: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        read_trace(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_trace_that_cannot_be_read(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        read_trace(tmp_path / "absent.csv")
    (tmp_path / "binary.csv").write_bytes(b"time,key,size,op\n0,\xff,1,get\n")
    with pytest.raises(ConfigurationError, match="utf-8"):
        read_trace(tmp_path / "binary.csv")


def test_a_trace_replayed_gives_what_the_same_requests_give(tmp_path) -> None:
    workload = zipf(keys=500, requests=3_000)
    begin = workload.start
    rows = zip(workload.times[begin:], workload.keys[begin:], strict=True)
    path = tmp_path / "trace.csv"
    path.write_text("time,key,size,op\n" + "".join(f"{time},key:{key},100,get\n" for time, key in rows))
    (cost,) = simulate(read_trace(path), FOUR, FIVE, ["slots"], at=1_500)
    gone = moving("slots", FOUR, FIVE, workload.names)
    past, future = {*workload.keys[begin : begin + 1_500]}, {*workload.keys[begin + 1_500 :]}
    assert cost.extra_loads == len(gone & past & future)  # what is new to the trace is no cost of the resize
