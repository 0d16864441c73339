"""What a commit invalidates, when, and what it never does: raise because of the cache."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from kvcluster import Cache, Client
from kvcluster.cache.repository import Repository
from kvcluster.testing.nodes import RunningNode
from tests.cache.shop import Country, Order, User

Sessions = sessionmaker[Session]


@pytest.fixture
def users(cache: Cache, sessions: Sessions) -> Repository[User]:
    """Users 1 to 9, all in the cache, whose factory is bound."""
    with sessions.begin() as session:
        session.add_all(User(id=n, name=f"user {n}") for n in range(1, 10))
    cache.bind(sessions)
    users = cache.repository(User, sessions)
    users.get_many(range(1, 21))
    return users


def names(users: Repository[User], *ids: int) -> list[str | None]:
    return [user.name if (user := users.get(id)) else None for id in ids]


def deletes(client: Client) -> int:
    return client.statistics().total.deletes


def test_changed_added_and_deleted_rows(users: Repository[User], sessions: Sessions, client: Client) -> None:
    with sessions.begin() as session:
        session.get_one(User, 1).name = "changed"
        session.delete(session.get_one(User, 2))
        session.add(User(id=11, name="added"))
    assert names(users, 1, 2, 11, 3) == ["changed", None, "added", "user 3"]
    assert deletes(client) == 3


def test_an_expired_instance_can_be_deleted_and_changed(users: Repository[User], sessions: Sessions) -> None:
    with sessions() as session:
        one, two = session.get_one(User, 1), session.get_one(User, 2)
        session.commit()
        session.delete(one)
        session.expire(one)
        two.name = "changed"
        session.commit()
    assert names(users, 1, 2) == [None, "changed"]


def test_a_changed_primary_key_invalidates_both(users: Repository[User], sessions: Sessions) -> None:
    with sessions() as session:
        user = session.get_one(User, 1)
        session.commit()
        user.id = 12  # expired, so that its old value is not in the instance
        session.flush()
        user.id = 13
        session.commit()
    assert names(users, 1, 12, 13) == [None, None, "user 1"]


def test_ids_that_the_database_gives(cache: Cache, users: Repository[User], sessions: Sessions) -> None:
    assert names(users, 10) == [None]
    with sessions.begin() as session:
        session.add(User(name="numbered"))
    assert names(users, 10) == ["numbered"]


def test_rows_that_cascades_change_or_delete(cache: Cache, users: Repository[User], sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.get_one(User, 1).orders = [Order(id=1), Order(id=2)]
        session.get_one(User, 2).orders = [Order(id=3)]
    orders = cache.repository(Order, sessions)
    assert [order.user_id for order in orders.list([1, 2, 3])] == [1, 1, 2]
    with sessions.begin() as session:
        user = session.get_one(User, 1)
        user.orders.remove(user.orders[0])  # an orphan
        session.delete(session.get_one(User, 2))
    assert [order and order.user_id for order in orders.get_many([1, 2, 3]).values()] == [None, 1, None]
    with sessions.begin() as session:
        order, user = session.get_one(Order, 2), session.get_one(User, 3)
        user.orders.append(order)  # changes the order's row by its user's attribute
    assert orders.list([2])[0].user_id == 3


def test_merge_and_flushes_before_the_commit(users: Repository[User], sessions: Sessions) -> None:
    with sessions() as session:
        session.merge(User(id=1, name="merged"))
        session.flush()
        session.get_one(User, 2).name = "later"
        session.flush()
        session.expunge_all()
        assert names(users, 1, 2) == ["user 1", "user 2"], "not before the commit"
        session.commit()
    assert names(users, 1, 2) == ["merged", "later"]


def test_a_rollback_invalidates_nothing(users: Repository[User], sessions: Sessions, client: Client) -> None:
    with sessions() as session:
        session.get_one(User, 1).name = "never"
        session.flush()
        session.rollback()
        session.get_one(User, 2).name = "never"
        session.flush()

    def fail_after_a_flush() -> None:
        with sessions.begin() as session:
            session.get_one(User, 3).name = "never"
            session.flush()
            raise LookupError

    with pytest.raises(LookupError):
        fail_after_a_flush()
    assert deletes(client) == 0
    with sessions() as session:
        session.get_one(User, 4).name = "now"
        session.commit()
    assert deletes(client) == 1, "what was rolled back is forgotten"
    assert names(users, 1, 2, 3, 4) == ["user 1", "user 2", "user 3", "now"]


def test_savepoints(users: Repository[User], sessions: Sessions, client: Client) -> None:
    with sessions() as session:
        session.get_one(User, 1).name = "outer"
        with session.begin_nested() as inner:
            session.get_one(User, 2).name = "never"
            inner.rollback()
        with session.begin_nested():
            session.get_one(User, 3).name = "inner"
            with session.begin_nested():
                session.get_one(User, 4).name = "innermost"
        assert deletes(client) == 0, "a released savepoint is no commit"
        session.commit()
    assert names(users, 1, 2, 3, 4) == ["outer", "user 2", "inner", "innermost"]


def test_a_released_savepoint_of_a_transaction_that_is_rolled_back(
    users: Repository[User], sessions: Sessions, client: Client
) -> None:
    with sessions() as session:
        with session.begin_nested():
            session.get_one(User, 1).name = "never"
        session.rollback()
    assert deletes(client) == 0


def test_a_commit_closes_open_savepoints(users: Repository[User], sessions: Sessions) -> None:
    with sessions() as session:
        session.begin_nested()
        session.get_one(User, 1).name = "changed"
        session.commit()
    assert names(users, 1) == ["changed"]


def test_one_session_many_transactions(users: Repository[User], sessions: Sessions, client: Client) -> None:
    with sessions() as session:
        for n in (1, 2):
            session.get_one(User, n).name = "changed"
            session.commit()
            assert deletes(client) == n
        session.commit()
        with session.begin():
            session.get_one(User, 3).name = "changed"
        session.get_one(User, 4)
        session.commit()
    assert deletes(client) == 3, "reading invalidates nothing"
    assert names(users, 1, 2, 3, 4) == ["changed"] * 3 + ["user 4"]


def test_a_prepared_commit(users: Repository[User], sessions: Sessions, client: Client) -> None:
    with sessions() as session:
        session.get_one(User, 1).name = "changed"
        session.get_transaction()._prepare_impl()  # type: ignore[union-attr]  # what prepare() does after SQLite would have refused it
        assert deletes(client) == 0
        session.commit()
    assert names(users, 1) == ["changed"]


def test_a_commit_that_the_database_refuses(users: Repository[User], sessions: Sessions) -> None:
    with sessions() as session:
        session.get_one(User, 1).email = "same"
        session.commit()
        session.get_one(User, 2).email = "same"
        with pytest.raises(IntegrityError):
            session.commit()
        session.rollback()
        session.get_one(User, 3).name = "after"
        session.commit()
    assert names(users, 1, 2, 3) == ["user 1", "user 2", "after"]
    assert users.get(2).email is None  # type: ignore[union-attr]


def test_only_the_bound_factory_is_listened_to(users: Repository[User], engine: Engine, client: Client) -> None:
    with sessionmaker(engine).begin() as session:
        session.get_one(User, 1).name = "changed"
    with Session(engine) as session, session.begin():
        session.get_one(User, 1).name = "again"
    assert deletes(client) == 0
    assert names(users, 1) == ["user 1"]


def test_a_model_without_a_repository_sends_nothing(users: Repository[User], sessions: Sessions, client: Client) -> None:
    with sessions.begin() as session:
        session.add(Country(code="KR", name="Korea"))
    total = client.statistics().total
    assert total.deletes == 0
    assert total.errors == 0


def test_several_caches_on_one_factory(cache: Cache, users: Repository[User], sessions: Sessions, client: Client) -> None:
    other = Cache("other", ttl="1m", client=client)
    others = other.repository(User, sessions)
    other.bind(sessions)
    unbound = Cache("unbound", ttl="1m", client=client).repository(User, sessions)
    twice = cache.repository(User, sessions, ttl=5)
    for repository in (users, others, unbound, twice):
        repository.get(1)
    with sessions.begin() as session:
        session.get_one(User, 1).name = "changed"
    assert [names(repository, 1) for repository in (users, others, twice)] == [["changed"]] * 3
    assert names(unbound, 1) == ["user 1"]
    assert deletes(client) == 2, "two repositories of one cache share their keys"


def test_the_delete_comes_after_the_commit_is_visible(users: Repository[User], sessions: Sessions, engine: Engine) -> None:
    seen: list[str] = []
    with sessions() as session:
        session.get_one(User, 1).name = "changed"
        session.flush()

        @event.listens_for(session, "after_commit")
        def _(session: Session) -> None:
            seen.extend(names(users, 1))  # type: ignore[arg-type]

        session.commit()
    assert seen == ["user 1"], "the transaction has not ended yet"
    assert names(users, 1) == ["changed"]


def test_no_reader_sees_an_older_row_than_the_last_commit_that_returned(users: Repository[User], sessions: Sessions) -> None:
    committed = [0]
    stop = threading.Event()
    wrong: list[tuple[int, int]] = []

    def read() -> int:
        reads = 0
        while not stop.is_set():
            at_least = committed[0]
            name = users.get(1).name if reads % 2 else users.list([1, 2])[0].name  # type: ignore[union-attr]
            found = int(name.removeprefix("user 1") or 0) if name.startswith("user") else int(name)
            if found < at_least:
                wrong.append((found, at_least))
            reads += 1
        return reads

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read) for _ in range(3)]
        try:
            for version in range(1, 151):
                with sessions.begin() as session:
                    session.get_one(User, 1).name = str(version)
                committed[0] = version
        finally:
            stop.set()
    assert all(reader.result() > 10 for reader in readers)
    assert wrong == []


# -- commit() never raises because of the cache


def test_nodes_that_are_gone(
    users: Repository[User], sessions: Sessions, nodes: list[RunningNode], caplog: pytest.LogCaptureFixture
) -> None:
    for node in nodes:
        node.kill()
    with caplog.at_level(logging.ERROR, "kvcluster"):
        for n in range(1, 6):
            with sessions.begin() as session:
                session.get_one(User, n).name = "changed"
    assert names(users, 1, 2, 3) == ["changed"] * 3
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1, "once, not for every commit"
    assert "repeated until they succeed" in errors[0].message


def test_a_cache_that_is_not_connected(sessions: Sessions, caplog: pytest.LogCaptureFixture) -> None:
    cache = Cache("unconnected", ttl="1m")
    cache.repository(User, sessions)
    cache.bind(sessions)
    with caplog.at_level(logging.ERROR, "kvcluster"), sessions.begin() as session:
        session.add(User(id=1, name="Kim"))
    assert "1 entries of cache 'unconnected' were not invalidated" in caplog.text
    assert "cache.connect" in caplog.text


def test_a_session_is_as_usable_after_a_failed_invalidation(
    users: Repository[User], cache: Cache, sessions: Sessions, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*rest: Any) -> None:
        raise RuntimeError("a bug")

    with sessions() as session:
        monkeypatch.setattr(cache, "invalidate", broken)
        session.get_one(User, 1).name = "changed"
        session.commit()
        assert "a bug" in caplog.text
        monkeypatch.undo()
        session.get_one(User, 1).name = "again"
        session.commit()
    assert names(users, 1) == ["again"]


def test_no_connection_is_held_while_keys_are_deleted(
    users: Repository[User], sessions: Sessions, engine: Engine, cache: Cache
) -> None:
    held: list[int] = []
    original: Callable[..., None] = cache.invalidate

    def watched(invalidation: Any) -> None:
        held.append(engine.pool.checkedout())  # type: ignore[attr-defined]
        original(invalidation)

    cache.invalidate = watched  # type: ignore[method-assign]
    with sessions.begin() as session:
        session.get_one(User, 1).name = "changed"
    assert held == [0]
