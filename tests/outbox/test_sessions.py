"""What a bound session writes into the outbox, in which transaction, and when that is acknowledged."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
from sqlalchemy import Engine, ForeignKey, create_engine, delete, event, select
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from kvcluster import AsyncClient, Cache, Client
from kvcluster.cache.outbox import Message, Outbox
from kvcluster.cache.repository import Repository
from kvcluster.cache.worker import Worker
from kvcluster.errors import ConfigurationError
from kvcluster.testing.nodes import RunningNode
from tests.aio.loops import LOOPS, Loops
from tests.databases import Database

Sessions = sessionmaker[Session]


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


Base.metadata.tables["users"].c.name.type.length = 50  # type: ignore[attr-defined]


@pytest.fixture
def cache(client: Client, engine: Engine) -> Iterator[Cache]:
    """A cache with an outbox."""
    Base.metadata.create_all(engine)
    cache = Cache("shop", ttl="10m", client=client)
    cache.create_outbox(engine)
    assert cache.outbox is not None
    cache.outbox._delay = 0.01
    yield cache
    assert cache.outbox.flush()


@pytest.fixture
def outbox(cache: Cache) -> Outbox:
    """Its outbox."""
    assert cache.outbox is not None
    return cache.outbox


@pytest.fixture
def sessions(engine: Engine) -> Sessions:
    """The factory of the program's sessions."""
    return sessionmaker(engine)


@pytest.fixture
def users(cache: Cache, sessions: Sessions) -> Repository[User]:
    """Users 1 to 39, all in the cache, whose factory is bound."""
    with sessions.begin() as session:
        session.add_all(User(id=n, name=f"user {n}") for n in range(1, 40))
    cache.bind(sessions)
    users = cache.repository(User, sessions)
    users.get_many(range(1, 40))
    return users


def written(session: Session, outbox: Outbox) -> list[set[bytes]]:
    """The keys in each row that a session sees."""
    rows = session.execute(select(outbox.table.c.payload).order_by(outbox.table.c.id)).scalars()
    return [{*Message.unpack(payload).wires} for payload in rows]


def committed(engine: Engine, outbox: Outbox) -> list[set[bytes]]:
    with Session(engine) as session:
        return written(session, outbox)


class Seen:
    """The rows in the outbox at the moment at which the nodes are told."""

    def __init__(self, cache: Cache, engine: Engine) -> None:
        self.rows: list[list[set[bytes]]] = []
        original = cache.invalidate

        def watched(invalidation: Any) -> None:
            assert cache.outbox is not None
            self.rows.append(committed(engine, cache.outbox))
            original(invalidation)

        cache.invalidate = watched  # type: ignore[method-assign]


def test_one_row_with_all_flushes(
    users: Repository[User], cache: Cache, engine: Engine, sessions: Sessions, outbox: Outbox
) -> None:
    seen = Seen(cache, engine)
    with sessions.begin() as session:
        session.get_one(User, 1).name = "changed"
        session.flush()
        session.delete(session.get_one(User, 2))
        session.flush()
        session.add(User(id=41, name="added"))  # flushed by the commit
    assert seen.rows == [[{b"shop:User:1", b"shop:User:2", b"shop:User:41"}]]
    assert outbox.flush()
    assert committed(engine, outbox) == []
    assert outbox.statistics().written == outbox.statistics().acknowledged == 1


def test_a_rollback_writes_nothing(users: Repository[User], sessions: Sessions, engine: Engine, outbox: Outbox) -> None:
    with sessions() as session:
        session.get_one(User, 1).name = "changed"
        session.flush()
        session.rollback()
        session.commit()
    assert outbox.statistics().written == 0


def test_a_transaction_that_only_reads_writes_nothing(users: Repository[User], sessions: Sessions, outbox: Outbox) -> None:
    with sessions.begin() as session:
        session.get_one(User, 1)
    assert outbox.statistics().written == 0


@pytest.mark.parametrize("end", ["session.commit()", "the context manager"])
def test_a_savepoint_that_is_still_open(
    users: Repository[User], cache: Cache, engine: Engine, sessions: Sessions, outbox: Outbox, end: str
) -> None:
    seen = Seen(cache, engine)
    with sessions() as session, session.begin() if end == "the context manager" else nullcontext():
        session.get_one(User, 1).name = "changed"
        session.begin_nested()
        session.get_one(User, 2).name = "changed"
        if end == "session.commit()":
            session.commit()
    assert seen.rows == [[{b"shop:User:1", b"shop:User:2"}]]


def test_a_session_that_reads_elsewhere(
    users: Repository[User], cache: Cache, engine: Engine, outbox: Outbox, database: Database
) -> None:
    """A replica has the rows, but cannot be written to."""
    replica = database.engine()

    class Routing(Session):
        def get_bind(self, *args: Any, **kwargs: Any) -> Any:
            return engine if self._flushing else replica

    @event.listens_for(replica, "before_cursor_execute")
    def _(connection: object, cursor: object, statement: str, *rest: object) -> None:
        assert statement.startswith("SELECT")

    sessions = sessionmaker(class_=Routing)
    cache.bind(sessions)
    seen = Seen(cache, engine)
    with sessions.begin() as session:
        session.get_one(User, 1).name = "changed"
    assert seen.rows == [[{b"shop:User:1"}]]
    replica.dispose()


def test_savepoints_write_once_at_the_end(
    users: Repository[User], cache: Cache, engine: Engine, sessions: Sessions, outbox: Outbox
) -> None:
    seen = Seen(cache, engine)
    with sessions.begin() as session:
        with session.begin_nested():
            session.get_one(User, 1).name = "changed"
        assert written(session, outbox) == []
        session.get_one(User, 2).name = "changed"
    assert seen.rows == [[{b"shop:User:1", b"shop:User:2"}]]


def test_a_savepoint_before_any_change_ends_with_its_transaction(
    users: Repository[User], cache: Cache, engine: Engine, sessions: Sessions
) -> None:
    """Python's sqlite3 alone would commit it by its release, and no row of the outbox with it."""
    true = users.get(1)
    assert true is not None
    with sessions() as session:
        with session.begin_nested():
            session.get_one(User, 1).name = "changed"
        with engine.connect() as other:
            assert other.scalar(select(User.name).where(User.id == 1)) == true.name
        session.rollback()
    with sessions() as session:
        assert session.get_one(User, 1).name == true.name
    seen = Seen(cache, engine)
    with sessions.begin() as session, session.begin_nested():
        session.get_one(User, 1).name = "changed"
    assert seen.rows == [[{b"shop:User:1"}]]


def test_what_another_listener_changes_in_the_last_moment(
    users: Repository[User], cache: Cache, engine: Engine, sessions: Sessions, outbox: Outbox
) -> None:
    seen = Seen(cache, engine)

    @event.listens_for(sessions, "before_commit")
    def _(session: Session) -> None:
        session.get_one(User, 2).name = "by a listener"

    with sessions.begin() as session:
        session.get_one(User, 1).name = "changed"
    assert seen.rows == [[{b"shop:User:1", b"shop:User:2"}]]


def test_a_commit_that_fails_acknowledges_nothing(
    users: Repository[User], sessions: Sessions, engine: Engine, outbox: Outbox
) -> None:
    with sessions() as session:
        session.execute(User.__table__.insert(), {"id": 50, "name": "there"})  # type: ignore[attr-defined]
        session.add(User(id=50, name="there already"))
        with pytest.raises(IntegrityError):
            session.commit()
        session.rollback()
        assert session.get(User, 50) is None
        session.get_one(User, 1).name = "changed"

        @event.listens_for(session, "before_commit")
        def _(session: Session) -> None:
            raise RuntimeError("a listener")

        with pytest.raises(RuntimeError, match="a listener"):
            session.commit()
    assert outbox.flush()
    assert committed(engine, outbox) == []
    assert outbox.statistics().acknowledged == 0


def test_without_its_table_nothing_is_committed(
    users: Repository[User], sessions: Sessions, engine: Engine, outbox: Outbox
) -> None:
    outbox.table.drop(engine)
    with pytest.raises(DBAPIError, match=outbox.table.name), sessions.begin() as session:
        session.get_one(User, 1).name = "changed"
    with sessions() as session:
        assert session.get_one(User, 1).name == "user 1"


def test_a_node_that_is_down_stays_in_the_outbox(
    users: Repository[User],
    sessions: Sessions,
    engine: Engine,
    outbox: Outbox,
    nodes: list[RunningNode],
    client: Client,
    caplog: pytest.LogCaptureFixture,
) -> None:
    wires = {client.planner.address(users.wire(id)): id for id in range(1, 40)}
    down, up = (next(id for address, id in wires.items() if (address == nodes[0].address) == is_down) for is_down in (True, False))
    with caplog.at_level(logging.CRITICAL, "kvcluster"):
        nodes[0].pause()
        try:
            for id in (down, up):
                with sessions.begin() as session:
                    session.get_one(User, id).name = "changed"
            assert outbox.flush()
            assert committed(engine, outbox) == [{users.wire(down)}]
            with Client([node.address for node in nodes], timeout=0.5) as other:
                worker = Worker(other, engine, outbox, age=0)
                assert worker.drain().rows == 1
        finally:
            nodes[0].resume()
        with Client([node.address for node in nodes], timeout=5) as other:
            assert Worker(other, engine, outbox, age=0).drain().rows == 0
            names = Cache("shop", ttl="10m", client=other).repository(User, sessions).list([down, up])
    assert [user.name for user in names] == ["changed", "changed"]


def test_a_session_on_a_connection_leaves_its_row_to_the_worker(
    users: Repository[User], cache: Cache, engine: Engine, sessions: Sessions, outbox: Outbox, client: Client
) -> None:
    """The connection's owner commits, later or never."""
    with engine.connect() as connection:
        with connection.begin(), sessions(bind=connection) as session:
            session.get_one(User, 1).name = "changed"
            session.commit()
            assert users.get(2) is not None
        assert outbox.flush()
        assert committed(engine, outbox) == [{b"shop:User:1"}]
    assert Worker(client, engine, outbox, age=0).drain().rows == 0
    assert users.list([1])[0].name == "changed"


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_session_over_two_databases_writes_into_both(
    users: Repository[User], cache: Cache, engine: Engine, outbox: Outbox, tmp_path: Any
) -> None:
    class Elsewhere(DeclarativeBase):
        pass

    class City(Elsewhere):
        __tablename__ = "city"

        id: Mapped[int] = mapped_column(primary_key=True)

    other = create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    Elsewhere.metadata.create_all(other)
    with other.begin() as connection:
        outbox.create(connection)
    sessions = sessionmaker(binds={Base: engine, Elsewhere: other})
    cache.repository(City, sessions)
    cache.bind(sessions)
    seen, seen_there = Seen(cache, engine), Seen(cache, other)
    with sessions.begin() as session:
        session.get_one(User, 1).name = "changed"
        session.add(City(id=1))
    assert seen.rows == seen_there.rows == [[{b"shop:User:1", b"shop:City:1"}]]
    assert outbox.flush()
    assert committed(engine, outbox) == committed(other, outbox) == []
    other.dispose()


def test_a_cache_that_is_not_connected(engine: Engine, sessions: Sessions, caplog: pytest.LogCaptureFixture) -> None:
    cache = Cache("shop", ttl="10m")
    Base.metadata.create_all(engine)
    cache.create_outbox(engine)
    cache.bind(sessions)
    cache.repository(User, sessions)
    with caplog.at_level(logging.ERROR, "kvcluster"), sessions.begin() as session:
        session.add(User(id=1, name="Kim"))
    assert "1 entries of cache 'shop' were not invalidated" in caplog.text


def test_what_cannot_be_an_outbox_is_not_used() -> None:
    cache = Cache("shop", ttl="10m")
    engine = create_engine("sqlite://")
    with pytest.raises(ConfigurationError, match="in memory"):
        cache.create_outbox(engine)
    assert cache.outbox is None
    engine.dispose()


# -- sessions that are awaited


@pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
@pytest.mark.parametrize("kind", list(LOOPS))
def test_an_async_session(kind: str, database: Database, nodes: list[RunningNode]) -> None:
    async def main() -> None:
        engine = create_async_engine(database.async_url)
        sessions = async_sessionmaker(engine)
        async with AsyncClient([node.address for node in nodes], timeout=5) as client:
            cache = Cache("shop", ttl="10m", client=client)
            await cache.create_outbox(engine)
            outbox = cache.outbox
            assert outbox is not None
            async with engine.begin() as connection:
                await connection.run_sync(Base.metadata.create_all)
            cache.bind(sessions)
            users = cache.repository(User, sessions)
            async with sessions.begin() as session:
                session.add_all(User(id=n, name=f"user {n}") for n in range(1, 4))
            await users.get_many([1, 2, 3])

            async def rows() -> list[set[bytes]]:
                async with AsyncSession(engine) as session:
                    return await session.run_sync(lambda session: written(session, outbox))

            assert await rows() == [{b"shop:User:1", b"shop:User:2", b"shop:User:3"}]
            await outbox.flush_async()
            assert await rows() == []
            async with sessions.begin() as session:
                (await session.get_one(User, 1)).name = "changed"
                await session.flush()
                (await session.get_one(User, 2)).name = "changed"
            assert await rows() == [{b"shop:User:1", b"shop:User:2"}]
            assert [user.name for user in await users.list([1, 2, 3])] == ["changed", "changed", "user 3"]
            async with sessions() as session:
                (await session.get_one(User, 3)).name = "changed"
                await session.flush()
                await session.rollback()
            await outbox.flush_async()
            assert await rows() == []
            assert (outbox.statistics().written, outbox.statistics().acknowledged) == (2, 2)
        await engine.dispose()

    Loops(kind)(main)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_loops_that_have_ended_are_forgotten(database: Database) -> None:
    async def main() -> None:
        engine = create_async_engine(database.async_url)
        outbox.done(engine.sync_engine, [1])
        await engine.dispose()

    outbox = Outbox(delay=30)
    for _ in range(3):
        asyncio.run(main())
    assert not outbox._tasks
    assert not outbox._async_rows
    assert outbox.statistics().left == 3


class Region(Base):
    __tablename__ = "region"

    id: Mapped[int] = mapped_column(primary_key=True)


class Town(Base):
    __tablename__ = "town"

    id: Mapped[int] = mapped_column(primary_key=True)
    region: Mapped[int] = mapped_column(ForeignKey("region.id", ondelete="CASCADE"))


@pytest.mark.parametrize("by_statement", [True, False])
def test_what_only_the_database_deletes_is_written_too(
    cache: Cache, sessions: Sessions, engine: Engine, outbox: Outbox, by_statement: bool
) -> None:
    with sessions.begin() as session:
        session.add(Region(id=1))
    cache.bind(sessions)
    cache.repository(Town, sessions)
    seen = Seen(cache, engine)
    with sessions.begin() as session:
        if by_statement:
            session.execute(delete(Region))
        else:
            session.delete(session.get_one(Region, 1))
    assert len(seen.rows[-1]) == 1, "a row of stamps"
