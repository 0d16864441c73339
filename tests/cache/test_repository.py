"""Cached rows: what is stored, what comes back, and what the database is asked."""

from __future__ import annotations

import datetime
import decimal
import enum
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, Enum, ForeignKey, inspect, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.orm.exc import DetachedInstanceError

from kvcluster import Cache, Client
from kvcluster.cache.repository import RowCodec
from kvcluster.codec import MSGPACK, Undecodable
from kvcluster.errors import ConfigurationError, IllegalKey, IllegalValue
from tests.cache.shop import Base, Colour, Country, Everything, Selects, User, engine_of

Sessions = sessionmaker[Session]


class Tuples(enum.Enum):
    A = (1, 2)
    B = 1.5


@pytest.fixture
def people(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add_all(User(id=n, name=f"user {n}") for n in range(1, 101))


FULL = {
    "moment": datetime.datetime(2024, 1, 2, 3, 4, 5, 678901),  # noqa: DTZ001
    "day": datetime.date(2024, 1, 2),
    "time": datetime.time(3, 4, 5, 678901),
    "span": datetime.timedelta(days=-3, microseconds=1),
    "price": decimal.Decimal("12345678.9000"),
    "other": uuid.UUID(int=7),
    "colour": Colour.BLUE,
    "picture": b"\x00\xff",
    "flag": True,
    "ratio": 0.1,
    "number": -(1 << 62),
    "text": "서울\x00",
    "document": {"a": [1, 2.5, None, {"b": "c"}], "d": True},
}


@pytest.mark.parametrize("full", [True, False])
def test_every_type_comes_back_from_the_cache_as_from_the_database(
    cache: Cache, sessions: Sessions, engine: Engine, full: bool
) -> None:
    id, selects = uuid.UUID(int=1), Selects(engine)
    with sessions.begin() as session:
        session.add(Everything(id=id, **(FULL if full else {})))
    repository = cache.repository(Everything, sessions)
    loaded = repository.get(id)
    cached = repository.get(id)
    assert len(selects) == 1
    with sessions() as session:
        stored = session.get_one(Everything, id)
        for name in ("id", *FULL):
            expected = getattr(stored, name)
            for found in (loaded, cached):
                value = getattr(found, name)
                assert (type(value), value, str(value)) == (type(expected), expected, str(expected)), name
    assert not full or str(cached.price) == "12345678.9000", "with its scale"  # type: ignore[union-attr]


def test_instances_are_detached_and_their_own(cache: Cache, sessions: Sessions, people: None) -> None:
    users = cache.repository(User, sessions)
    for user in (users.get(1), users.get(1), users.get_many([1])[1], users.list([1])[0], users.refresh(1)):
        assert isinstance(user, User)
        state = inspect(user)
        assert state.detached
        assert not state.modified
        assert state.identity == (1,)
        with pytest.raises(DetachedInstanceError):
            _ = user.orders
    assert users.get(1) is not users.get(1)


def test_what_is_not_a_plain_column_raises_instead_of_being_stale(cache: Cache, sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add(Everything(id=uuid.UUID(int=1), text="a", essay="long"))
    repository = cache.repository(Everything, sessions)
    for _ in range(2):
        found: Any = repository.get(uuid.UUID(int=1))
        for name in ("essay", "shout"):
            with pytest.raises(DetachedInstanceError):
                getattr(found, name)


def test_a_cached_instance_can_join_a_session_again(cache: Cache, sessions: Sessions, people: None) -> None:
    users = cache.repository(User, sessions)
    users.get(1)
    with sessions.begin() as session:
        user = users.get(1)
        session.add(user)
        assert user is not None
        assert user.orders == []
        user.name = "changed"
    with sessions() as session:
        assert session.get_one(User, 1).name == "changed"
        merged = session.merge(users.get(2), load=False)
        assert merged is not None
        assert merged.name == "user 2"


def test_many_are_one_select_and_hits_are_none(
    cache: Cache, sessions: Sessions, engine: Engine, people: None, client: Client
) -> None:
    users, selects = cache.repository(User, sessions), Selects(engine)
    users.get(3)
    assert len(selects) == 1
    found = users.get_many([5, 3, 1, 5, 999])
    assert len(selects) == 2
    assert " IN (" in selects.statements[1]
    assert {id: user and user.name for id, user in found.items()} == {5: "user 5", 3: "user 3", 1: "user 1", 999: None}
    assert [*found] == [5, 3, 1, 999]
    assert [user.id for user in users.list([5, 3, 999, 1, 5])] == [5, 3, 1, 5]
    assert users.get(999) is None
    assert users.get_many([]) == {}
    assert users.list(iter([])) == []
    assert len(selects) == 2
    counts = client.statistics().namespaces["shop"]
    assert (counts.hits, counts.misses) == (1 + 4 + 1, 1 + 3)


def test_an_absent_row_is_cached_and_its_insert_is_seen(cache: Cache, sessions: Sessions, engine: Engine) -> None:
    users, selects = cache.repository(User, sessions), Selects(engine)
    cache.bind(sessions)
    assert [users.get(1), users.get(1)] == [None, None]
    assert len(selects) == 1
    with sessions.begin() as session:
        session.add(User(id=1, name="Kim"))
    user = users.get(1)
    assert user is not None
    assert user.name == "Kim"


def test_a_session_of_the_callers_reads_past_the_cache_and_stores_nothing(cache: Cache, sessions: Sessions, people: None) -> None:
    users = cache.repository(User, sessions)
    with sessions() as session:
        session.get_one(User, 1).name = "mine"
        assert users.get(1, session=session).name == "mine"  # type: ignore[union-attr]
        assert [user.name for user in users.list([2, 1, 999], session=session)] == ["user 2", "mine"]
        assert users.get_many([1, 999], session=session)[999] is None
        assert users.get_many([], session=session) == {}
        assert users.get(1).name == "user 1"  # type: ignore[union-attr]


def test_a_load_sees_what_was_committed_after_an_open_session_began(cache: Cache, sessions: Sessions, people: None) -> None:
    """The snapshot rule: what an older transaction sees must not be stored under a newer lease."""
    users = cache.repository(User, sessions)
    with sessions() as old:
        old.connection().exec_driver_sql("BEGIN")
        assert old.get_one(User, 1).name == "user 1"
        with sessions.begin() as session:
            session.execute(update(User).where(User.id == 1).values(name="new"))
        assert users.get(1, session=old).name == "user 1"  # type: ignore[union-attr]
        assert users.get(1).name == "new"  # type: ignore[union-attr]
        assert users.get(1, session=old).name == "user 1"  # type: ignore[union-attr]
    assert users.get(1).name == "new"  # type: ignore[union-attr]


def test_a_small_pool_does_not_deadlock(cache: Cache, tmp_path: Path) -> None:
    engine = engine_of(tmp_path / "small.db", pool_size=2, max_overflow=0, pool_timeout=5)
    Base.metadata.create_all(engine)
    sessions = sessionmaker(engine)
    users = cache.repository(User, sessions)
    cache.bind(sessions)
    with sessions.begin() as session:
        session.add_all(User(id=n, name=f"user {n}") for n in range(1, 41))
    gate = threading.Barrier(20)

    def request(n: int) -> None:
        gate.wait(10)
        for turn in range(5):
            page = [(n + step + turn) % 40 + 1 for step in range(10)]
            assert [user.id for user in users.list(page)] == page
            users.get(page[0])
            if n % 5 == 0:
                with sessions.begin() as session:
                    session.get_one(User, page[0]).name = f"{n} {turn}"

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(request, range(20)))
    engine.dispose()


def test_twenty_callers_of_one_row_are_one_select(cache: Cache, sessions: Sessions, engine: Engine, people: None) -> None:
    users, selects, gate = cache.repository(User, sessions), Selects(engine), threading.Barrier(20)

    def request(_: int) -> str:
        gate.wait(10)
        return users.get(1).name  # type: ignore[union-attr]

    with ThreadPoolExecutor(20) as pool:
        assert set(pool.map(request, range(20))) == {"user 1"}
    assert len(selects) == 1


def test_the_keys_name_and_the_columns_name_need_not_be_the_attributes(cache: Cache, sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add(Country(code="KR", name="Korea"))
    countries = cache.repository(Country, sessions)
    for _ in range(2):
        assert countries.get("KR").name == "Korea"  # type: ignore[union-attr]


def test_a_string_does_not_spoil_the_key_of_the_number(cache: Cache, sessions: Sessions, people: None) -> None:
    """SQLite finds the row of "1" too, under another id than was asked for."""
    users: Any = cache.repository(User, sessions)
    with pytest.raises(IllegalKey, match="must be int, not str"):
        users.get("1")
    assert users.get(1).name == "user 1"


def test_primary_keys_that_cannot_be_keys_raise(cache: Cache, sessions: Sessions) -> None:
    users: Any = cache.repository(User, sessions)
    for id in (None, 1.0, True, (1,)):
        with pytest.raises(IllegalKey, match="id must be"):
            users.get(id)


# -- declaration


def test_models_that_cannot_be_cached_are_refused_at_declaration(cache: Cache, sessions: Sessions) -> None:
    class Root(DeclarativeBase):
        pass

    class Pair(Root):
        __tablename__ = "pair"
        a: Mapped[int] = mapped_column(primary_key=True)
        b: Mapped[int] = mapped_column(primary_key=True)

    class Animal(Root):
        __tablename__ = "animal"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        __mapper_args__ = {"polymorphic_on": "kind"}  # noqa: RUF012

    class Dog(Animal):
        __mapper_args__ = {"polymorphic_identity": "dog"}  # noqa: RUF012

    class Thing(Root):
        __tablename__ = "thing"
        id: Mapped[int] = mapped_column(primary_key=True)

    class SpecialThing(Thing):
        __tablename__ = "special_thing"
        id: Mapped[int] = mapped_column(ForeignKey("thing.id"), primary_key=True)

    class Odd(Root):
        __tablename__ = "odd"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[Any] = mapped_column(Enum("a", "b"))
        odd: Mapped[Any] = mapped_column(Enum(Tuples))

    for model, message in (
        (Pair, "Pair must have a primary key of one column, not 2"),
        (Animal, "Animal is part of an inheritance"),
        (Dog, "Dog is part of an inheritance"),
        (SpecialThing, "SpecialThing is part of an inheritance"),
        (Odd, "column odd cannot be cached"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            cache.repository(model, sessions)


def test_two_models_of_one_name_would_share_keys(cache: Cache, sessions: Sessions) -> None:
    class Root(DeclarativeBase):
        pass

    namesake = type(
        "User", (Root,), {"__tablename__": "u", "id": mapped_column(primary_key=True), "__annotations__": {"id": Mapped[int]}}
    )
    cache.repository(User, sessions)
    cache.repository(User, sessions, ttl=5)
    with pytest.raises(ConfigurationError, match="another model of the name User"):
        cache.repository(namesake, sessions)


# -- the codec

CODEC = RowCodec({"id": int, "price": decimal.Decimal | None, "day": datetime.date | None, "ratio": float | None, "document": Any})


@given(
    st.fixed_dictionaries(
        {
            "id": st.integers(-(1 << 63), (1 << 64) - 1),
            "price": st.none() | st.decimals(allow_nan=False, allow_infinity=False),
            "day": st.none() | st.dates(),
            "ratio": st.none() | st.floats(),
            "document": st.recursive(
                st.none() | st.booleans() | st.text() | st.integers(-(1 << 63), (1 << 63) - 1),
                lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
                max_leaves=8,
            ),
        }
    )
)
def test_rows_come_back_exactly(row: dict[str, Any]) -> None:
    data, flags = CODEC.encode(row)
    assert flags == MSGPACK
    assert repr(CODEC.decode(data, flags)) == repr(row)


def test_absence_is_a_row_of_its_own() -> None:
    data, flags = CODEC.encode(None)
    assert CODEC.decode(data, flags) is None
    assert data


ROW = {"id": 1, "price": None, "day": None, "ratio": None, "document": None}


@pytest.mark.parametrize(
    "change",
    [
        {"document": (1, 2)},
        {"document": {1, 2}},
        {"document": object()},
        {"ratio": 1},
        {"id": True},
        {"id": 1 << 64},
        {"price": 1.5},
        {"day": datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC)},
        {"document": decimal.Decimal(1)},
        {"document": {1: (2,)}},
    ],
)
def test_a_value_that_would_come_back_as_another_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(IllegalValue, match="cannot be stored as a row"):
        CODEC.encode({**ROW, **change})


def test_rows_of_other_releases() -> None:
    older = RowCodec({"id": int, "name": str | None})
    newer = RowCodec({"id": int, "name": str | None, "age": int | None})
    assert older.decode(*newer.encode({"id": 1, "name": "Kim", "age": 5})) == {"id": 1, "name": "Kim"}
    with pytest.raises(Undecodable, match="age"):
        newer.decode(*older.encode({"id": 1, "name": "Kim"}))
    with pytest.raises(Undecodable):
        older.decode(b"x", 16)
    with pytest.raises(Undecodable):
        older.decode(b"\xff\xff", MSGPACK)


@pytest.mark.parametrize("many", [False, True])
def test_an_undecodable_row_is_logged(
    cache: Cache,
    client: Client,
    sessions: Sessions,
    people: None,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    many: bool,
) -> None:
    monkeypatch.setattr("kvcluster.transport.state._warned", {})
    users = cache.repository(User, sessions)
    client.set("shop:User:1", "not a row")
    assert users.get_many([1])[1] if many else users.get(1)
    (record,) = caplog.records
    assert "cannot be decoded" in record.getMessage()
    assert "User" not in record.getMessage()


def test_an_undecodable_row_is_a_counted_miss_and_replaced(cache: Cache, client: Client, sessions: Sessions, people: None) -> None:
    users = cache.repository(User, sessions)
    client.set("shop:User:1", "not a row")
    assert users.get(1).name == "user 1"  # type: ignore[union-attr]
    assert users.get(1).name == "user 1"  # type: ignore[union-attr]
    counts = client.statistics().namespaces["shop"]
    assert (counts.undecodable, counts.misses, counts.hits, counts.sets) == (1, 1, 1, 1)


def test_a_page_of_instances_is_cheap(cache: Cache, sessions: Sessions, people: None) -> None:
    """No timing: what is counted is that no attribute is set one by one, and nothing expires."""
    users = cache.repository(User, sessions)
    for user in (*users.list(range(1, 21)), *users.list(range(1, 21))):
        assert not inspect(user).expired_attributes
        assert user.__dict__.keys() - {"_sa_instance_state"} == {"id", "name", "email"}
