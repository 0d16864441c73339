"""Cached functions on four real nodes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from kvcluster import Cache, Client
from kvcluster.errors import CallerError, ConfigurationError, DeleteFailed, IllegalKey, IllegalValue, MissingExtra
from kvcluster.testing.nodes import RunningNode
from tests.cache.patience import until
from tests.client.cluster import ask


class Database:
    """Rows, and how often each was loaded."""

    def __init__(self) -> None:
        self.rows: dict[Any, Any] = {n: f"row {n}" for n in range(1000)}
        self.loads: list[Any] = []

    def load(self, id: int) -> str | None:
        self.loads.append(id)
        return self.rows.get(id)


@pytest.fixture
def database() -> Database:
    return Database()


def test_a_function_runs_once_per_key(cache: Cache, database: Database) -> None:
    load = cache.loader("row:{id}")(database.load)
    assert [load(n % 5) for n in range(50)] == [f"row {n % 5}" for n in range(50)]
    assert database.loads == [0, 1, 2, 3, 4]


def test_none_is_cached_for_the_negative_ttl(cache: Cache, nodes: list[RunningNode], database: Database) -> None:
    load = cache.loader("row:{id}", negative=7)(database.load)
    assert [load(5000), load(5000)] == [None, None]
    assert database.loads == [5000]
    answers = [ask(node.address, b"mg shop:row:5000 t\r\n") for node in nodes]
    assert set(answers) <= {b"EN\r\n", b"HD t7\r\n", b"HD t6\r\n"}
    assert answers.count(b"EN\r\n") == 3


@pytest.mark.parametrize("value", [b"", b"x", "", "서울", 0, -(1 << 70), 1.5, True, [], {"a": [1, None]}, None])
def test_values_come_back_exactly(cache: Cache, value: object) -> None:
    calls = []

    @cache.loader("value")
    def load() -> object:
        calls.append(1)
        return value

    assert [load(), load()] == [value, value]
    assert type(load()) is type(value)
    assert len(calls) == 1, "empty values are values too"


def test_a_value_that_would_not_come_back_raises_and_leaves_no_placeholder(cache: Cache, client: Client) -> None:
    values: list[Any] = [(1, 2), [1, 2]]
    load = cache.loader("value")(lambda: values.pop(0))
    with pytest.raises(IllegalValue, match="tuple"):
        load()
    assert load() == [1, 2]


def test_what_is_returned_is_the_callers_own(cache: Cache) -> None:
    load = cache.loader("list")(lambda: [1])
    load().append(2)
    load().append(3)
    assert load() == [1]


def test_invalidate_refresh_uncached_key(cache: Cache, database: Database) -> None:
    load = cache.loader("row:{id}")(database.load)
    assert load(1) == "row 1"
    database.rows[1] = "new"
    assert load(1) == "row 1"
    assert load.uncached(1) == "new"
    assert load(1) == "row 1", "uncached changes nothing"
    load.invalidate(1)
    assert load(1) == "new"
    database.rows[1] = "newer"
    assert load.refresh(1) == "newer"
    assert load(1) == "newer"
    assert load.key(1) == load.key(id=1) == "row:1"
    load.invalidate(999)  # never cached


def test_a_refresh_leaves_nobody_waiting(cache: Cache, client: Client, database: Database) -> None:
    load = cache.loader("row:{id}")(database.load)
    load.refresh(1)
    load.invalidate(1)
    # Another process holds the lease, so a caller here looks for a flight to join.
    other = Cache("shop", ttl="10m", client=client)
    started, go = threading.Event(), threading.Event()

    def slow(id: int) -> str:
        started.set()
        assert go.wait(10)
        return "slow"

    with ThreadPoolExecutor(2) as pool:
        theirs = pool.submit(other.loader("row:{id}")(slow), 1)
        assert started.wait(10)
        ours = pool.submit(load, 1)
        go.set()
        assert theirs.result(10) == ours.result(10) == "slow"


def test_a_load_that_an_invalidation_overtakes_is_not_stored(cache: Cache, client: Client, database: Database) -> None:
    @cache.loader("row:{id}")
    def load(id: int) -> str | None:
        before = database.load(id)
        if len(database.loads) == 1:
            database.rows[id] = "new"
            load.invalidate(id)
        return before

    assert load(1) == "row 1"
    assert [load(1), load(1)] == ["new", "new"]
    assert database.loads == [1, 1]
    assert client.statistics().namespaces["shop"].unstored == 1


def test_a_loader_that_raises_is_asked_again(cache: Cache, database: Database) -> None:
    failures = [LookupError("one"), KeyboardInterrupt(), StopIteration()]

    @cache.loader("row:{id}")
    def load(id: int) -> str | None:
        if failures:
            raise failures.pop(0)
        return database.load(id)

    with pytest.raises(LookupError, match="one"):
        load(1)
    with pytest.raises(KeyboardInterrupt):
        load(1)
    with pytest.raises(RuntimeError, match="StopIteration"):  # as in any generator
        load(1)
    assert load(1) == "row 1"


def test_a_loader_that_asks_for_its_own_key_raises(cache: Cache) -> None:
    @cache.loader("loop:{id}")
    def load(id: int) -> Any:
        return load(id)

    with pytest.raises(CallerError, match="very key"):
        load(1)


def test_a_loader_may_ask_for_other_keys(cache: Cache) -> None:
    @cache.loader("sum:{n}")
    def total(n: int) -> int:
        return n + total(n - 1) if n else 0

    assert total(20) == 210


# -- many


def test_get_many_and_list(cache: Cache, database: Database) -> None:
    load = cache.loader("row:{id}")(database.load)
    load(2)
    assert load.get_many([3, 2, -1, 3]) == {3: "row 3", 2: "row 2", -1: None}
    assert sorted(database.loads) == [-1, 2, 3]
    assert load.list([3, -1, 2, 3]) == ["row 3", "row 2", "row 3"]
    assert load.get_many([]) == {}
    assert load.list(iter([2])) == ["row 2"]
    assert len(database.loads) == 3


def test_arguments_that_only_look_the_same_stay_apart(cache: Cache) -> None:
    load = cache.loader("x:{a}")(lambda a: repr(a))
    assert load.get_many([1, "1"]) == {1: "1", "1": "'1'"}


def test_bulk_is_called_once_with_what_is_missing(cache: Cache) -> None:
    calls: list[tuple[Any, ...]] = []

    @cache.loader("row:{id}:{lang}")
    def load(id: int, lang: str = "ko") -> str:
        return f"{id} {lang}"

    @load.bulk
    def _(ids: Sequence[int], lang: str = "ko") -> Mapping[int, str]:
        calls.append((list(ids), lang))
        return {id: f"{id} {lang}" for id in ids if id != 13}

    assert load(1) == "1 ko"
    assert load.get_many([1, 2, 13]) == {1: "1 ko", 2: "2 ko", 13: None}
    assert load.get_many(range(1, 4), lang="en") == {1: "1 en", 2: "2 en", 3: "3 en"}
    assert load.get_many(range(1, 4), "en") == {1: "1 en", 2: "2 en", 3: "3 en"}
    assert load.list([13, 2]) == ["2 ko"]
    assert [(sorted(ids), lang) for ids, lang in calls] == [([2, 13], "ko"), ([1, 2, 3], "en")]
    assert load(13) is None, "what bulk did not return is cached as absent"


def test_two_callers_of_many_share_the_loads(cache: Cache, database: Database) -> None:
    gate = threading.Barrier(4)

    @cache.loader("row:{id}")
    def load(id: int) -> str | None:
        return database.load(id)

    def read(first: int) -> dict[int, Any]:
        gate.wait(10)
        return load.get_many(range(first, first + 60))

    with ThreadPoolExecutor(4) as pool:
        for first, result in zip((0, 20, 40, 0), pool.map(read, (0, 20, 40, 0)), strict=True):
            assert result == {n: f"row {n}" for n in range(first, first + 60)}
    assert sorted(database.loads) == list(range(100))


def test_no_argument_no_many(cache: Cache) -> None:
    load = cache.loader("front")(lambda: 1)
    for call in (lambda: load.get_many([1]), lambda: load.bulk(lambda ids: {})):
        with pytest.raises(ConfigurationError, match="no arguments"):
            call()


# -- threads


def test_a_cold_key_is_loaded_once_for_all_threads(cache: Cache) -> None:
    loads: list[int] = []
    gate = threading.Barrier(16)
    arrived = threading.Event()

    @cache.loader("hot")
    def load() -> str:
        loads.append(1)
        arrived.wait(0.05)
        return "value"

    def read(_: int) -> str:
        gate.wait(10)
        return load()

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(read, range(16))) == ["value"] * 16
    assert len(loads) == 1


def test_after_an_invalidation_nobody_is_given_what_was_loaded_before_it(cache: Cache) -> None:
    """A caller must not join a flight whose load began before the invalidation that the caller knows of."""
    version = [1]
    loading, go = threading.Event(), threading.Event()

    @cache.loader("version")
    def load() -> int:
        seen = version[0]
        if seen == 1:
            loading.set()
            assert go.wait(10)
        return seen

    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(load)
        assert loading.wait(10)
        version[0] = 2
        load.invalidate()
        assert load() == 2
        go.set()
        assert early.result(10) == 1
    assert load() == 2


# -- fork


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_does_not_wait_for_its_parents_flights(cache: Cache) -> None:
    loading, go = threading.Event(), threading.Event()

    @cache.loader("row:{n}")
    def load(n: int) -> int:
        if n and not loading.is_set():
            loading.set()
            assert go.wait(20)
        return n

    load(0)  # how long loads take is known now, so the child takes over soon
    with ThreadPoolExecutor(1) as pool:
        theirs = pool.submit(load, 1)
        assert loading.wait(10)
        child = os.fork()
        if not child:
            answer = -1
            try:
                answer = load(1)  # lost to the parent's thread, which is not in this process
            finally:
                os._exit(answer)
        try:
            assert until(lambda: os.waitpid(child, os.WNOHANG) == (child, 1 << 8))
        except AssertionError:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise
        finally:
            go.set()
        assert theirs.result(10) == 1


# -- configuration


def test_before_connect_a_call_names_the_line_that_is_missing() -> None:
    cache = Cache("shop", ttl="10m")
    load = cache.loader("row:{n}")(lambda n: n)
    assert load.key(1) == "row:1"
    assert load.uncached(1) == 1
    calls: list[Callable[[], object]] = [
        lambda: load(1),
        lambda: load.get_many([1]),
        lambda: load.invalidate(1),
        lambda: load.refresh(1),
    ]
    for call in calls:
        with pytest.raises(ConfigurationError, match=r"cache\.connect\('memcached://"):
            call()


def test_connect_takes_a_url_a_client_or_the_environment(monkeypatch: pytest.MonkeyPatch, client: Client) -> None:
    cache = Cache("shop", ttl="10m")
    load = cache.loader("row:{n}")(lambda n: n)
    cache.connect("memory://connect")
    assert load(1) == 1
    monkeypatch.setenv("KVCLUSTER_URL", "memory://environment")
    cache.connect()
    assert "environment" in repr(cache)
    cache.connect(client)
    assert cache.client is client
    assert load(1) == 1


def test_namespaces_and_the_clients_prefix_stand_before_the_key(nodes: list[RunningNode]) -> None:
    with Client([node.address for node in nodes], prefix="app:") as client:
        cache = Cache("shop", ttl="10m", client=client)
        assert cache.loader("row:{n}")(lambda n: "x")(1) == "x"
        assert client.get("shop:row:1") == "x"


def test_a_key_argument_that_cannot_be_used_is_named(cache: Cache) -> None:
    load = cache.loader("row:{user_id}")(lambda user_id: 1)
    with pytest.raises(IllegalKey, match="user_id"):
        load(None)
    with pytest.raises(IllegalKey, match="user_id"):
        load.get_many([1, None])


def test_a_loader_looks_like_its_function(cache: Cache) -> None:
    @cache.loader("row:{id}")
    def load(id: int) -> int:
        """Load."""
        return id

    assert load.__name__ == "load"
    assert load.__doc__ == "Load."
    assert repr(load) == "<Loader shop:row:{id}>"


def test_set_nodes_takes_effect_in_the_cache(cache: Cache, client: Client, nodes: list[RunningNode], database: Database) -> None:
    load = cache.loader("row:{id}")(database.load)
    load.get_many(range(100))
    client.set_nodes([node.address for node in nodes[:3]])
    load.get_many(range(100))
    assert 100 < len(database.loads) < 160
    nodes[3].kill()
    assert load.get_many(range(100)) == {n: f"row {n}" for n in range(100)}
    assert client.statistics().total.errors == 0


# -- statistics


def test_statistics_are_exact_per_namespace(client: Client, database: Database) -> None:
    shop, other = Cache("shop", ttl="10m", client=client), Cache("other", ttl="10m", client=client)
    load = shop.loader("row:{id}")(database.load)
    elsewhere = other.loader("row:{id}")(database.load)
    for n in range(10):
        load(n)
    for n in range(10):
        load(n)
    load.get_many(range(5, 25))
    elsewhere(1)
    load.invalidate(1)
    load.refresh(2)
    client.set("plain", 1)
    client.get("plain")
    namespaces = client.statistics().namespaces
    shops = namespaces["shop"]
    assert (shops.hits, shops.misses, shops.sets, shops.deletes) == (10 + 5, 10 + 15, 10 + 15 + 1, 1)
    assert (shops.errors, shops.undecodable, shops.unstored) == (0, 0, 0)
    assert (namespaces["other"].hits, namespaces["other"].misses, namespaces["other"].sets) == (0, 1, 1)
    assert (namespaces[""].hits, namespaces[""].misses, namespaces[""].sets) == (1, 0, 1)
    assert shops.hit_rate == 15 / 40


def test_statistics_count_each_question_once_under_threads(cache: Cache, client: Client) -> None:
    gate = threading.Barrier(8)
    slow, loads = threading.Event(), []

    @cache.loader("row:{n}")
    def load(n: int) -> int:
        slow.wait(0.001)
        loads.append(n)
        return n

    def read(_: int) -> None:
        for n in range(50):
            if not n % 10:
                gate.wait(20)
            assert load(n) == n
        load.get_many(range(40, 60))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))
    counts = client.statistics().namespaces["shop"]
    assert counts.hits + counts.misses == 8 * 70, "polls and repeated questions are not counted"
    assert counts.sets == 60
    assert counts.sets + counts.unstored == len(loads), "a load that a busy machine let be taken over included"


def test_a_node_that_is_down_is_an_error_a_miss_and_nothing_stored(cache: Cache, client: Client, nodes: list[RunningNode]) -> None:
    for node in nodes:
        node.kill()
    load = cache.loader("row:{n}")(lambda n: n)
    assert [load(1), load(1)] == [1, 1]
    counts = client.statistics().namespaces["shop"]
    assert (counts.hits, counts.misses, counts.sets, counts.errors) == (0, 2, 0, 2)
    with pytest.raises(DeleteFailed):
        load.invalidate(1)


def test_a_source_that_has_become_slow_is_not_overtaken_again_and_again(cache: Cache) -> None:
    """Each wait for a winner who may be dead is twice the one before."""
    pause = 0.001
    loads: list[float] = []

    @cache.loader("slow:{n}")
    def load(n: int) -> int:
        loads.append(pause)
        time.sleep(pause)
        return n

    for n in range(20):
        load(n)
    pause = 1.5
    loads.clear()
    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(load, [99] * 16)) == {99}
    assert len(loads) <= 8  # at 0.05 s each there would be 30


def test_a_decorator_without_its_template_is_refused_at_once(cache: Cache) -> None:
    decorator: Any = cache.loader
    with pytest.raises(ConfigurationError, match=r"as in @cache\.loader"):

        @decorator
        def load(n: int) -> int:
            return n


@pytest.mark.parametrize("feature", ["repository", "bind", "query"])
def test_a_missing_extra_is_named(cache: Cache, feature: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvcluster.cache.find_spec", lambda name: None)
    calls: dict[str, Callable[[], object]] = {
        "repository": lambda: cache.repository(int, None),  # type: ignore[call-overload]
        "bind": lambda: cache.bind(None),  # type: ignore[arg-type]
        "query": lambda: cache.query("q", watch=[]),
    }
    with pytest.raises(MissingExtra, match=rf"cache\.{feature} needs .*kvcluster\[sql\]"):
        calls[feature]()
