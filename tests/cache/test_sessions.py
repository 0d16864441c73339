"""Loaders and repositories that are called with an open session; factories of sessions; deletes that were interrupted."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from kvcluster import Cache, Client
from kvcluster.cache.flights import LoadTimes
from kvcluster.cache.repository import Repository
from kvcluster.cache.retries import Retries
from kvcluster.errors import ConfigurationError, IllegalKey
from kvcluster.testing.nodes import RunningNode
from tests.cache.patience import until
from tests.cache.shop import Colour, User

Sessions = sessionmaker[Session]


@pytest.fixture
def people(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add(User(id=1, name="Kim"))


def unstored(client: Client) -> int:
    return client.statistics().namespaces["shop"].unstored


@pytest.mark.parametrize("with_bulk", [False, True])
def test_what_an_open_session_sees_is_not_stored(
    cache: Cache, client: Client, sessions: Sessions, people: None, with_bulk: bool
) -> None:
    def name_of(id: int, session: Session | None) -> str | None:
        if session is not None:
            return user.name if (user := session.get(User, id)) else None
        with sessions() as own:
            return name_of(id, own)

    @cache.loader("name:{id}")
    def name(id: int, *, session: Session | None = None) -> str | None:
        return name_of(id, session)

    if with_bulk:

        @name.bulk
        def _(ids: Sequence[int], *, session: Session | None = None) -> Mapping[int, str | None]:
            return {id: name_of(id, session) for id in ids if id == 1}

    with sessions() as session:
        session.get_one(User, 1).name = "never committed"
        session.flush()
        assert name(1, session=session) == "never committed"
        assert name.refresh(1, session=session) == "never committed"
        assert name.get_many([1, 2], session=session) == {1: "never committed", 2: None}
        assert unstored(client) == 4
        session.rollback()
    assert client.statistics().total.sets == 0
    assert name(1, session=None) == name(1) == "Kim"
    assert name.get_many([1], session=None) == {1: "Kim"}
    assert name.loads == 1


def test_a_repository_counts_what_it_reads_past_the_cache(cache: Cache, client: Client, sessions: Sessions, people: None) -> None:
    users = cache.repository(User, sessions)
    with sessions() as session:
        assert users.get(1, session=session) is not None
        users.get_many([1, 2], session=session)
    assert unstored(client) == 3


def test_an_identifier_of_another_type_raises(cache: Cache, sessions: Sessions, people: None) -> None:
    users = cache.repository(User, sessions)
    for id in ("1", True, 1.0):
        with pytest.raises(IllegalKey, match=r"User\.id must be int"):
            users.get(id)


def test_a_scoped_session_is_its_sessionmaker_and_other_callables_are_refused(
    cache: Cache, sessions: Sessions, people: None
) -> None:
    users = cache.repository(User, scoped_session(sessions))  # type: ignore[call-overload]
    assert isinstance(users, Repository)
    cache.bind(scoped_session(sessions))  # type: ignore[arg-type]
    assert users.get(1).name == "Kim"
    with sessions.begin() as session:
        session.get_one(User, 1).name = "Lee"
    assert users.get(1).name == "Lee"
    anything: Any = lambda: sessions()  # noqa: E731
    for declare in (lambda: cache.repository(User, anything), lambda: cache.bind(anything)):
        with pytest.raises(ConfigurationError, match="session_factory"):
            declare()


def test_templates_of_one_shape_are_refused(cache: Cache, sessions: Sessions) -> None:
    def by_id(id: int) -> str:
        return "by id"

    def by_name(name: str) -> str:
        return "by name"

    cache.loader("user:{id}")(by_id)
    again = cache.loader("user:{id}")(by_id)
    assert cache.loaders == [again]
    with pytest.raises(ConfigurationError, match=r"(?s)'user:\{id\}'.*by_id.*'user:\{name\}'.*by_name"):
        cache.loader("user:{name}")(by_name)
    cache.loader("User:{id}:name")(by_id)
    cache.repository(User, sessions)
    with pytest.raises(ConfigurationError, match=r"User:\{name\}.*repository of User"):
        cache.loader("User:{name}")(by_name)
    other = Cache("other", ttl=60)
    other.loader("User:{name}")(by_name)
    with pytest.raises(ConfigurationError, match=r"User:\{name\}.*repository of User"):
        other.repository(User, sessions)


class TimeLimit(Exception):
    """What a task queue's signal handler raises."""


def test_a_time_limit_goes_on_to_the_caller_and_the_delete_is_repeated(
    cache: Cache, client: Client, sessions: Sessions, people: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.bind(sessions)
    users = cache.repository(User, sessions)
    assert users.get(1) is not None

    def interrupted(invalidation: Any) -> None:
        for address, group in cache.planner.group_wires(invalidation.wires).items():
            client._endpoints[address].state._miss(group)
        raise TimeLimit

    monkeypatch.setattr(cache, "invalidate", interrupted)
    with sessions() as session:
        session.get_one(User, 1).name = "Lee"
        with pytest.raises(TimeLimit):
            session.commit()
    assert until(lambda: not client.missed_deletes)
    user = users.get(1)
    assert user is not None
    assert user.name == "Lee"


def test_a_time_limit_before_any_node_was_told_does_not_keep_them_from_being_told(
    cache: Cache, sessions: Sessions, people: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.bind(sessions)
    users = cache.repository(User, sessions)
    assert users.get(1) is not None
    original = cache.invalidate

    def interrupted(invalidation: Any) -> None:
        monkeypatch.setattr(cache, "invalidate", original)
        raise TimeLimit

    monkeypatch.setattr(cache, "invalidate", interrupted)
    with sessions() as session:
        session.get_one(User, 1).name = "Lee"
        with pytest.raises(TimeLimit):
            session.commit()
    user = users.get(1)
    assert user is not None
    assert user.name == "Lee"


def test_a_primary_key_of_another_type_than_its_columns_is_taken_as_the_database_takes_it(
    cache: Cache, sessions: Sessions, people: None, caplog: pytest.LogCaptureFixture
) -> None:
    cache.bind(sessions)
    users = cache.repository(User, sessions)
    assert users.get(1) is not None
    assert users.get(7) is None
    with sessions() as session:
        session.add(User(id="7", name="Park"))
        session.get_one(User, 1).name = "Lee"
        session.commit()
    assert [user.name for user in users.list([1, 7])] == ["Lee", "Park"]
    assert caplog.text == ""


def test_a_node_that_is_left_alone_is_not_said_to_have_been_told(
    kv_nodes: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (node,) = kv_nodes(1)
    client = Client([node.address], timeout=5)
    state = client._endpoints[node.address].state
    monkeypatch.setattr("kvcluster.transport.state.MAX_MISSED_DELETES", 3)
    state._miss([b"%d" % n for n in range(5)])
    retries = Retries()
    with caplog.at_level(logging.WARNING, "kvcluster"):
        retries.start(client, TimeLimit())
        assert until(lambda: not retries._running)
    assert "have succeeded" not in caplog.text
    client.close()


def test_a_commit_does_not_raise_where_no_thread_can_be_started_and_the_next_failure_starts_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with Client(["127.0.0.1:1"]) as client:
        monkeypatch.setattr(client, "replay_deletes", lambda: False)
        retries = Retries()
        with monkeypatch.context() as patch:
            patch.setattr("threading.Thread.start", refused)
            retries.start(client, TimeLimit())
        assert "can't start new thread" in caplog.text
        replayed = threading.Event()
        monkeypatch.setattr(client, "replay_deletes", replayed.set)
        retries.start(client, TimeLimit())
        assert replayed.wait(5)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_is_followed_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> bool:
        raise ZeroDivisionError

    with Client(["127.0.0.1:1"]) as client:
        monkeypatch.setattr(client, "replay_deletes", broken)
        retries = Retries()
        retries.start(client, TimeLimit())
        assert until(lambda: not retries._running)


def test_connecting_anew_closes_what_was_made_for_a_url(nodes: list[RunningNode]) -> None:
    cache = Cache("shop", ttl=60)
    cache.connect(f"memcached://{nodes[0].address}?timeout=5")
    client = cache.client
    client.get("a")
    (endpoint,) = client._endpoints.values()
    assert len(endpoint._open) == 1
    cache.connect("memory://")
    assert len(endpoint._open) == 0


def test_a_member_of_an_enum_and_its_value_are_one_key(cache: Cache) -> None:
    loads: list[object] = []

    @cache.loader("colour:{colour}")
    def load(colour: object) -> int:
        loads.append(colour)
        return 1

    assert load.list([Colour.RED, "red"]) == [1, 1]
    assert len(loads) == 1


def test_a_forked_child_does_not_wait_for_locks_of_its_parents_threads(cache: Cache) -> None:
    retries, times = Retries(), LoadTimes()
    locks = [cache._lock, retries._lock, times._lock]
    for lock in locks:
        lock.acquire()
    child = os.fork()
    if child == 0:
        free = [each._lock.acquire(timeout=1) for each in (cache, retries, times)]
        os._exit(0 if all(free) else 1)
    _, status = os.waitpid(child, 0)
    for lock in locks:
        lock.release()
    assert status == 0
