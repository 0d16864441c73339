"""Stale values, timeouts and faults of loaders, by threads on real nodes: who is served what, and how often is loaded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from kvcluster import Cache, Client
from kvcluster.cache import background, drive
from kvcluster.cache.background import Workers
from kvcluster.cache.envelope import sealed
from kvcluster.cache.flights import LOADING
from kvcluster.errors import IllegalValue, LoaderTimeout
from kvcluster.testing.nodes import RunningNode
from tests.cache.patience import until
from tests.cache.shop import User
from tests.client.cluster import ask

SPAN: ContextVar[str] = ContextVar("span", default="none")


class Gated:
    """A loader that waits until it is let go, except for the loads that are let through at once."""

    def __init__(self, free: int = 0) -> None:
        self.go = threading.Event()
        self.free = free
        self.loads: list[Any] = []
        self.value = "new"

    def __call__(self, id: int) -> str:
        self.loads.append(id)
        if len(self.loads) > self.free:
            assert self.go.wait(30)
        return self.value


@pytest.fixture
def gated() -> Iterator[Gated]:
    """A loader that is let go at the latest when the test ends."""
    gated = Gated()
    yield gated
    gated.go.set()


def aged(client: Client, key: str, left: int, value: str = "old") -> None:
    """Let there be a value that its node keeps for so many seconds more."""
    assert client.set(f"shop:{key}", value, expire=left)


def in_threads(count: int, call: Callable[[], Any]) -> list[Any]:
    """The results, or errors, of as many calls at the same time."""

    def one(_: int) -> Any:
        gate.wait(30)
        try:
            return call()
        except Exception as error:
            return error

    gate = threading.Barrier(count)
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def counts(cache: Cache) -> Any:
    return cache.client.statistics().namespaces["shop"]


# -- stale while revalidate


def test_all_are_served_the_stale_value_while_one_refreshes_it(cache: Cache, client: Client, gated: Gated) -> None:
    load = cache.loader("row:{id}", ttl=60, stale_while_revalidate=60, takeover=60)(gated)
    aged(client, "row:1", 50)
    assert in_threads(16, lambda: load(1)) == ["old"] * 16
    assert load(1) == "old"
    assert until(lambda: gated.loads == [1])
    gated.go.set()
    assert until(lambda: load(1) == "new")
    assert gated.loads == [1]
    assert until(lambda: counts(cache).refreshes == 1)  # the node has the value before its answer is counted
    seen = counts(cache)
    assert (seen.sets, seen.refreshes, seen.misses, seen.takeovers) == (1, 1, 0, 0)
    assert seen.stale >= 17


def test_a_refresh_has_the_context_of_the_reader_and_none_of_its_loads(cache: Cache, client: Client) -> None:
    seen: list[tuple[str, int]] = []
    inner = cache.loader("inner", ttl=60, stale_while_revalidate=60)(lambda: seen.append((SPAN.get(), len(LOADING.get()))))
    outer = cache.loader("outer")(lambda: [inner(), len(LOADING.get())])
    aged(client, "inner", 50)
    token = SPAN.set("of the request")
    assert outer() == ["old", 1]
    SPAN.reset(token)
    assert until(lambda: seen == [("of the request", 1)]), "its own key is all that it must not wait for"


def test_a_value_softly_invalidated_is_stale_and_a_hard_one_gone(cache: Cache, client: Client, gated: Gated) -> None:
    gated.free, gated.value = 1, "old"
    load = cache.loader("row:{id}", stale_while_revalidate=60, takeover=60)(gated)
    assert load(1) == "old"
    gated.value = "new"
    load.invalidate(1, soft=True)
    assert load(1) == "old"
    gated.go.set()
    assert until(lambda: load(1) == "new")
    assert gated.loads == [1, 1]
    gated.value = "newer"
    load.invalidate(1)
    assert load(1) == "newer"


def test_a_soft_invalidation_is_a_hard_one_where_nothing_stale_is_served(cache: Cache) -> None:
    version = ["old"]
    load = cache.loader("row:{n}")(lambda n: version[0])
    assert load(1) == "old"
    version[0] = "new"
    load.invalidate(1, soft=True)
    assert load(1) == "new"


def test_a_load_under_way_is_not_stored_after_a_soft_invalidation(cache: Cache, client: Client) -> None:
    loads: list[int] = []

    @cache.loader("row:{id}", stale_while_revalidate=60)
    def load(id: int) -> int:
        loads.append(id)
        if len(loads) == 1:
            load.invalidate(id, soft=True)
        return len(loads)

    assert [load(1), load(1), load(1)] == [1, 2, 2]


def test_an_early_refresh_by_a_winner_that_died_is_taken_over(cache: Cache, client: Client, gated: Gated) -> None:
    load = cache.loader("row:{id}", ttl=60, stale_while_revalidate=60, takeover=0.2)(gated)
    gated.go.set()
    aged(client, "row:1", 50)
    address = client.planner.address(b"shop:row:1")
    assert b" W" in ask(address, b"mg shop:row:1 v c t R61\r\n"), "somebody wins, and never comes back"
    assert load(1) == "old"
    assert gated.loads == []
    assert until(lambda: load(1) == "new")
    assert gated.loads == [1]
    assert counts(cache).takeovers == 1


def test_a_refresh_that_fails_is_tried_again_after_takeover(cache: Cache, client: Client, caplog: Any) -> None:
    failures = [LookupError("no database")] * 2
    loads: list[float] = []

    @cache.loader("row:{id}", ttl=60, stale_while_revalidate=60, takeover=0.2)
    def load(id: int) -> str:
        loads.append(time.monotonic())
        if failures:
            raise failures.pop()
        return "new"

    aged(client, "row:1", 50)
    assert until(lambda: load(1) == "new")
    assert len(loads) == 3
    assert min(later - earlier for earlier, later in pairwise(loads)) >= 0.2
    assert caplog.text.count("a refresh by the loader of shop:row:{id} failed") == 1


def test_many_stale_values_are_refreshed_by_one_bulk_load(cache: Cache, client: Client) -> None:
    asked: list[list[int]] = []
    load = cache.loader("row:{n}", ttl=60, stale_while_revalidate=60)(lambda n: f"one {n}")

    @load.bulk
    def _(ids: list[int]) -> dict[int, str]:
        asked.append(sorted(ids))
        return {id: f"new {id}" for id in ids}

    for id in range(20):
        aged(client, f"row:{id}", 50 if id % 2 else 100)
    assert load.get_many(range(20)) == dict.fromkeys(range(20), "old")
    assert until(lambda: load.get_many(range(20)) == {id: f"new {id}" if id % 2 else "old" for id in range(20)})
    assert asked == [[*range(1, 20, 2)]]
    assert counts(cache).refreshes == 10


# -- stale if error


def test_a_loader_that_fails_serves_the_stale_value_and_else_its_own_error(cache: Cache, client: Client) -> None:
    failing = [True]

    @cache.loader("row:{id}", ttl=60, stale_if_error=60)
    def load(id: int) -> str:
        if failing[0]:
            raise LookupError("no database")
        return "new"

    aged(client, "row:1", 50)
    assert in_threads(8, lambda: load(1)) == ["old"] * 8
    assert all(isinstance(result, LookupError) for result in in_threads(8, lambda: load(2)))
    assert load.get_many([1]) == {1: "old"}
    with pytest.raises(LookupError):
        load.get_many([1, 2])
    failing[0] = False
    assert load.get_many([1, 2]) == {1: "new", 2: "new"}
    assert load(1) == "new"


def test_a_result_of_the_wrong_type_is_an_error_of_the_loader(cache: Cache, client: Client) -> None:
    results: list[Any] = [7, "right"]

    @cache.loader("row:{id}", ttl=60, stale_if_error=60)
    def load(id: int) -> str:
        result: str = results.pop(0) if id == 1 else 7  # type: ignore[assignment]
        return result

    with pytest.raises(IllegalValue, match=r"a int cannot be stored as the result of .*load \(str\)"):
        load(1)
    assert load(1) == "right", "nobody waited for a lease"
    aged(client, "row:2", 50)
    assert load(2) == "old"


def test_while_the_database_is_down_rows_are_served_stale(cache: Cache, client: Client, sessions: sessionmaker[Session]) -> None:
    down = [False]
    with sessions.begin() as session:
        session.add_all(User(id=id, name=f"user {id}") for id in (1, 2))

    @event.listens_for(sessions.kw["bind"], "before_cursor_execute")
    def _(*rest: object) -> None:
        if down[0]:
            raise OperationalError("SELECT", {}, ConnectionError("the database is down"))

    users = cache.repository(User, sessions, ttl=60, stale_if_error=60)
    assert users.get(1).name == "user 1"  # type: ignore[union-attr]
    users.invalidate(1, soft=True)
    down[0] = True
    assert users.get(1).name == "user 1"  # type: ignore[union-attr]
    assert [user.name for user in users.list([1])] == ["user 1"]
    with pytest.raises(OperationalError, match="the database is down"):
        users.get(2)
    down[0] = False
    assert [user.name for user in users.list([1, 2])] == ["user 1", "user 2"]
    assert counts(cache).stale == 2


# -- timeouts


def test_a_loader_that_hangs_strands_nobody(cache: Cache, client: Client, gated: Gated) -> None:
    load = cache.loader("row:{id}", hard_timeout=0.5)(gated)
    results = in_threads(16, lambda: load(1))
    assert all(isinstance(result, LoaderTimeout) for result in results)
    assert len(gated.loads) <= 2, "one for those who asked in time, one for a late thread"
    gated.go.set()
    assert until(lambda: counts(cache).unstored == len(gated.loads)), "what came late was dropped"
    gated.value = "newer"
    assert load(1) == "newer"
    assert counts(cache).timeouts >= 1


def test_after_the_soft_timeout_the_stale_value_is_served_and_the_load_fills(cache: Cache, client: Client, gated: Gated) -> None:
    load = cache.loader("row:{id}", ttl=60, stale_if_error=60, soft_timeout=0.2, takeover=60)(gated)
    aged(client, "row:1", 50)
    aged(client, "row:2", 50)
    assert in_threads(8, lambda: load(1)) == ["old"] * 8
    assert gated.loads == [1]
    assert load.get_many([1, 2]) == {1: "old", 2: "old"}
    gated.go.set()
    assert until(lambda: load.get_many([1, 2]) == {1: "new", 2: "new"})
    assert sorted(gated.loads) == [1, 2]


def test_many_that_hang_time_out_too(cache: Cache, gated: Gated) -> None:
    load = cache.loader("row:{id}", hard_timeout=0.3)(gated)
    with pytest.raises(LoaderTimeout):
        load.get_many([1, 2, 3])
    gated.go.set()
    assert load.get_many([1, 2, 3]) == dict.fromkeys([1, 2, 3], "new")


def test_when_all_threads_hang_callers_time_out_all_the_same(cache: Cache, gated: Gated, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers(2)
    monkeypatch.setattr(drive, "WORKERS", workers)
    load = cache.loader("row:{id}", hard_timeout=0.5)(gated)
    ids = iter(range(6))
    assert all(isinstance(result, LoaderTimeout) for result in in_threads(6, lambda: load(next(ids))))
    assert len(gated.loads) == 2
    gated.go.set()
    assert until(lambda: not workers._work)
    assert len(gated.loads) == 2, "those that nobody waited for any more did not begin"


def test_a_loader_with_a_timeout_may_call_another_one(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drive, "WORKERS", Workers(1))
    inner = cache.loader("inner:{n}", hard_timeout=20)(lambda n: n)
    outer = cache.loader("outer:{n}", hard_timeout=20)(lambda n: [inner(n)])
    assert in_threads(4, lambda: outer(7)) == [[7]] * 4


def test_a_loader_runs_in_the_callers_thread_unless_it_has_a_timeout(cache: Cache) -> None:
    where: list[str] = []
    plain = cache.loader("plain")(lambda: where.append(threading.current_thread().name))
    timed = cache.loader("timed", hard_timeout=20)(lambda: where.append(threading.current_thread().name + SPAN.get()))
    token = SPAN.set(" in a span")
    plain(), timed()
    SPAN.reset(token)
    assert where == [threading.current_thread().name, "kvcluster-loads in a span"]


def test_an_error_in_another_thread_is_the_callers(cache: Cache) -> None:
    @cache.loader("row", hard_timeout=20)
    def load() -> str:
        raise LookupError("no database")

    with pytest.raises(LookupError, match="no database"):
        load()
    with pytest.raises(LookupError, match="no database"):
        load.refresh()


# -- threads


def test_threads_are_bounded_and_refreshes_refused_where_awaited_work_waits() -> None:
    workers, go, done = Workers(2), threading.Event(), []
    assert [workers.begin(lambda: go.wait(30), awaited) for awaited in (True, False)] == [True, True]
    assert until(lambda: not workers._work)
    assert not workers.begin(lambda: done.append("refresh"), awaited=False)
    assert workers.begin(lambda: done.append("load"), awaited=True)
    assert workers._threads == 2
    go.set()
    assert until(lambda: done == ["load"])
    assert until(lambda: workers._idle == 2)
    assert workers.begin(lambda: done.append("refresh"), awaited=False)
    assert until(lambda: done == ["load", "refresh"])


def test_a_thread_outlives_what_its_work_raises_and_ends_when_idle(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(background, "_IDLE", 0.05)
    workers = Workers(1)

    def fail() -> None:
        raise SystemExit

    assert workers.begin(fail, awaited=True)
    done: list[bool] = []
    assert workers.begin(lambda: done.append(workers.inside), awaited=True)
    assert until(lambda: done == [True])
    assert not workers.inside
    assert "a load in the background failed" in caplog.text
    assert until(lambda: workers._threads == 0)


# -- versions


def test_only_an_explicit_version_enters_the_key_and_an_invalidation_deletes_all_named(cache: Cache, client: Client) -> None:
    old = cache.loader("row:{n}")(lambda n: "old")
    new = cache.loader("row:{n}", version=2, versions=(2, 1, None))(lambda n: "new")
    client.set("shop:v1:row:1", "older")
    assert [old(1), new(1), new.key(1)] == ["old", "new", "v2:row:1"]
    assert client.get_many(["shop:row:1", "shop:v1:row:1", "shop:v2:row:1"]).keys() == {
        "shop:row:1",
        "shop:v1:row:1",
        "shop:v2:row:1",
    }
    new.invalidate(1)
    assert client.get_many(["shop:row:1", "shop:v1:row:1", "shop:v2:row:1"]) == {}


def test_a_commit_deletes_rows_in_all_versions(cache: Cache, client: Client, sessions: sessionmaker[Session]) -> None:
    cache.bind(sessions)
    with sessions.begin() as session:
        session.add(User(id=1, name="old"))
    users = cache.repository(User, sessions, version=2, versions=(2, 1))
    client.set("shop:v1:User:1", "old")
    assert users.get(1).name == "old"  # type: ignore[union-attr]
    assert client.get("shop:v1:User:1") == "old"
    with sessions.begin() as session:
        session.get_one(User, 1).name = "new"
    assert client.get("shop:v1:User:1") is None
    assert users.get(1).name == "new"  # type: ignore[union-attr]


# -- stamps on real nodes


def test_a_tag_outdates_what_depends_on_it_and_nothing_else(cache: Cache, nodes: list[RunningNode]) -> None:
    loads: list[int] = []
    load = cache.loader("row:{n}")(lambda n: loads.append(n) or len(loads))
    load.stamps_of = lambda arguments: (f"tag:{arguments['n'] % 2}", "tag:all")
    assert load.list(range(8)) == [load(id) for id in range(8)]
    assert sorted(loads) == [*range(8)]
    cache.invalidate_tag("1")
    values = load.get_many(range(8))
    assert sorted(loads[8:]) == [1, 3, 5, 7]
    assert [load(id) for id in range(8)] == [*values.values()]
    cache.invalidate_tag("all")
    assert len({load(id) for id in range(8)} | set(values.values())) == 16


def test_a_stamp_that_was_evicted_outdates_what_depended_on_it(cache: Cache, client: Client) -> None:
    loads: list[int] = []
    load = cache.loader("row:{n}")(lambda n: loads.append(n) or len(loads))
    load.stamps_of = lambda arguments: ("tag:all",)
    assert [load(1), load(1)] == [1, 1]
    for node in client.topology.nodes:
        assert ask(node.address, b"md shop:__stamp:tag:all\r\n") == b"HD\r\n", "created at every node"
    assert [load(1), load(1)] == [2, 2]


def test_changes_that_no_session_told_of_outdate_all_rows_of_their_table(cache: Cache, sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        session.add_all(User(id=id, name="old") for id in (1, 2))
    users = cache.repository(User, sessions)
    assert [user.name for user in users.list([1, 2])] == ["old"] * 2
    with sessions.begin() as session:
        session.execute(User.__table__.update().values(name="new"))  # type: ignore[attr-defined]
    assert users.get(1).name == "old"  # type: ignore[union-attr]
    cache.invalidate_table(User)
    assert users.get(1).name == "new"  # type: ignore[union-attr]
    assert [user.name for user in users.list([1, 2])] == ["new"] * 2


def test_one_load_per_key_after_a_stamp_was_renewed(cache: Cache) -> None:
    loads: list[int] = []

    def slow(id: int) -> int:
        loads.append(id)
        time.sleep(0.05)
        return len(loads)

    load = cache.loader("row:{id}")(slow)
    load.stamps_of = lambda arguments: ("tag:all",)
    load.list(range(4))
    cache.invalidate_tag("all")
    others = in_threads(8, lambda: load.list(range(4)))
    assert len(loads) == 8, "the cold ones and one more each"
    assert others == [others[0]] * 8


# -- explanations on real nodes


def test_an_explanation_changes_nothing(cache: Cache, client: Client, gated: Gated) -> None:
    gated.go.set()
    load = cache.loader("row:{id}", ttl=60, stale_while_revalidate=60, jitter=0)(gated)
    assert load.explain(1).origin == "absent"
    assert load.explain(1).origin == "absent"
    address = client.planner.address(b"shop:row:1")
    assert ask(address, b"mg shop:row:1\r\n") == b"EN\r\n"
    aged(client, "row:1", 50)
    assert (load.explain(1).origin, load.explain(1).origin) == ("stale", "stale")
    load.invalidate(1, soft=True)
    for _ in range(2):
        explanation = load.explain(1)
        assert (explanation.origin, explanation.refreshing) == ("stale", False)
    assert gated.loads == []
    assert load(1) == "old"
    assert until(lambda: load(1) == "new"), "its refill token is still there for a reader"
    explanation = load.explain(1)
    assert explanation.origin == "fresh"
    assert explanation.ttl is not None
    assert 55 <= explanation.ttl <= 60
    assert explanation.node == address
    assert counts(cache).misses == 0, "an explanation is not counted as a read"


def test_it_says_which_shape_a_value_was_stored_with(cache: Cache, client: Client) -> None:
    @cache.loader("row:{id}")
    def load(id: int) -> list[int]:
        return [id]

    assert load(1) == [1]
    assert load.explain(1).same_shape is True
    client.set("shop:row:2", sealed(b"\x91\x07", fingerprint=b"else"), flags=256 | 64)
    assert load.explain(2).same_shape is False
    assert load(2) == [7]
