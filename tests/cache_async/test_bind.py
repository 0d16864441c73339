"""What a commit of an `AsyncSession` invalidates, when, and what it never does: raise because of the cache."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import Session

from kvcluster import AsyncClient, Cache, Client
from kvcluster.cache.aio_repository import AsyncRepository
from kvcluster.cache.retries import Retries
from kvcluster.testing.nodes import RunningNode
from kvcluster.testing.proxy import FaultProxy
from tests.aio.loops import turns, until
from tests.cache.shop import Country, Selects, User
from tests.cache_async.conftest import Run
from tests.client.cluster import ask

Sessions = async_sessionmaker[AsyncSession]


@pytest.fixture
def users(cache: Cache, sessions: Sessions, run: Run) -> AsyncRepository[User]:
    """Users 1 to 9, all in the cache, whose factory is bound."""
    users = cache.repository(User, sessions)

    async def fill() -> None:
        async with sessions.begin() as session:
            session.add_all(User(id=n, name=f"user {n}") for n in range(1, 10))
        await users.get_many(range(1, 21))

    run(fill)
    cache.bind(sessions)
    return users


async def names(users: AsyncRepository[User], *ids: int) -> list[str | None]:
    return [user.name if (user := await users.get(id)) else None for id in ids]


def deletes(client: AsyncClient) -> int:
    return client.statistics().total.deletes


def test_changed_added_and_deleted_rows(users: AsyncRepository[User], sessions: Sessions, client: AsyncClient, run: Run) -> None:
    async def main() -> None:
        async with sessions.begin() as session:
            (await session.get_one(User, 1)).name = "changed"
            await session.delete(await session.get_one(User, 2))
            session.add(User(id=11, name="added"))
        assert await names(users, 1, 2, 11, 3) == ["changed", None, "added", "user 3"]

    run(main)
    assert deletes(client) == 3


def test_savepoints_and_rollbacks(users: AsyncRepository[User], sessions: Sessions, client: AsyncClient, run: Run) -> None:
    async def main() -> None:
        async with sessions() as session:
            (await session.get_one(User, 1)).name = "outer"
            async with session.begin_nested() as inner:
                (await session.get_one(User, 2)).name = "never"
                await inner.rollback()
            async with session.begin_nested():
                (await session.get_one(User, 3)).name = "inner"
            assert deletes(client) == 0
            await session.commit()
            before = deletes(client)
            (await session.get_one(User, 4)).name = "never"
            await session.flush()
            await session.rollback()
            await session.commit()
            assert deletes(client) == before
        assert await names(users, 1, 2, 3, 4) == ["outer", "user 2", "inner", "user 4"]

    run(main)


def test_a_commit_that_the_database_refuses(users: AsyncRepository[User], sessions: Sessions, run: Run) -> None:
    async def main() -> None:
        async with sessions() as session:
            (await session.get_one(User, 1)).email = "same"
            await session.commit()
            (await session.get_one(User, 2)).email = "same"
            with pytest.raises(IntegrityError):
                await session.commit()
            await session.rollback()
            (await session.get_one(User, 3)).name = "after"
            await session.commit()
        assert await names(users, 1, 2, 3) == ["user 1", "user 2", "after"]

    run(main)


def test_the_delete_comes_after_the_commit_is_visible_and_holds_no_connection(
    users: AsyncRepository[User], sessions: Sessions, engine: AsyncEngine, cache: Cache, run: Run
) -> None:
    seen: list[str] = []
    original = cache.invalidate_async

    async def watched(invalidation: Any) -> None:
        async with AsyncSession(engine) as other:
            seen.append((await other.get_one(User, 1)).name)
        await until(lambda: not engine.pool.checkedout())  # type: ignore[attr-defined]
        await original(invalidation)

    cache.invalidate_async = watched  # type: ignore[method-assign]

    async def main() -> None:
        async with sessions.begin() as session:
            (await session.get_one(User, 1)).name = "changed"
        assert await names(users, 1) == ["changed"]

    run(main)
    assert seen == ["changed"]


def test_only_the_bound_factory_is_listened_to(
    users: AsyncRepository[User], engine: AsyncEngine, client: AsyncClient, run: Run
) -> None:
    class Own(AsyncSession):
        pass

    async def main() -> None:
        for factory in (async_sessionmaker(engine), async_sessionmaker(engine, class_=Own), lambda: AsyncSession(engine)):
            async with factory() as session:
                (await session.get_one(User, 1)).name = "changed"
                await session.commit()
        assert await names(users, 1) == ["user 1"]

    run(main)
    assert deletes(client) == 0
    assert AsyncSession.sync_session_class is Session


def test_several_caches_custom_classes_and_scoped_sessions(client: AsyncClient, engine: AsyncEngine, run: Run) -> None:
    class OwnSync(Session):
        pass

    class Own(AsyncSession):
        sync_session_class = OwnSync

    sessions = async_sessionmaker(engine, class_=Own)
    caches = [Cache(name, ttl="10m", client=client) for name in ("one", "two")]
    repositories = [cache.repository(User, sessions) for cache in caches]
    for cache in caches:
        cache.bind(sessions)
    scoped = async_scoped_session(sessions, asyncio.current_task)

    async def main() -> None:
        async with sessions.begin() as session:
            assert isinstance(session, Own)
            assert isinstance(session.sync_session, OwnSync)
            session.add_all([User(id=1, name="old"), Country(code="KR", name="Korea")])
        assert [await names(repository, 1) for repository in repositories] == [["old"]] * 2
        (await scoped.get_one(User, 1)).name = "new"
        await scoped.commit()
        await scoped.remove()
        assert [await names(repository, 1) for repository in repositories] == [["new"]] * 2

    run(main)
    assert deletes(client) == 4
    assert not event.contains(OwnSync, "after_flush", print)


def test_with_a_session_rows_are_read_and_not_stored(
    users: AsyncRepository[User], sessions: Sessions, engine: AsyncEngine, client: AsyncClient, run: Run
) -> None:
    selects = Selects(engine.sync_engine)

    async def main() -> None:
        async with sessions() as session:
            session.add(User(id=30, name="pending"))
            (await session.get_one(User, 1)).name = "pending"
            del selects.statements[:]
            before = client.statistics().total
            assert (await users.get(1, session=session)).name == "pending"  # type: ignore[union-attr]
            found = await users.get_many([30, 1, 31], session=session)
            assert {id: user and user.name for id, user in found.items()} == {30: "pending", 1: "pending", 31: None}
            assert [user.id for user in await users.list([31, 30], session=session)] == [30]
            after = client.statistics().total
            assert replace(after, unstored=before.unstored) == before
            assert after.unstored == before.unstored + 6
            await session.rollback()
        assert len(selects) == 3
        assert await names(users, 1, 30) == ["user 1", None]

    run(main)


def test_many_are_one_select_and_a_small_pool_does_not_deadlock(
    users: AsyncRepository[User], engine: AsyncEngine, client: AsyncClient, run: Run
) -> None:
    selects = Selects(engine.sync_engine)

    async def main() -> None:
        for id in range(1, 21):
            await users.invalidate(id)
        assert [user.id for user in await users.list(range(1, 21))] == [*range(1, 10)]
        assert len(selects) == 1
        for id in range(1, 10):
            await users.invalidate(id)
        await asyncio.gather(*[users.get(id) for id in range(1, 10) for _ in range(8)])
        assert len(selects) == 1 + 9

    run(main)


# -- commit() never raises because of the cache


def test_nodes_that_are_gone(
    users: AsyncRepository[User], sessions: Sessions, nodes: list[RunningNode], run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        for node in nodes:
            node.kill()
        with caplog.at_level(logging.INFO, "kvcluster"):
            for n in range(1, 6):
                async with sessions.begin() as session:
                    (await session.get_one(User, n)).name = "changed"
            assert await names(users, 1, 2, 3) == ["changed"] * 3
            for node in nodes:
                node.restart()
            await until(lambda: "have succeeded" in caplog.text)
        await turns(2)

    run(main)
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1, "once, not for every commit"
    assert "repeated until they succeed" in errors[0].message


def test_a_cache_that_is_not_connected_or_not_for_asyncio(sessions: Sessions, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    unconnected = Cache("unconnected", ttl="1m")
    other = Cache("other", ttl="1m", client=Client("127.0.0.1:1"))
    for cache in (unconnected, other):
        cache.repository(User, sessions)
        cache.bind(sessions)

    async def main() -> None:
        async with sessions.begin() as session:
            session.add(User(id=1, name="Kim"))

    with caplog.at_level(logging.ERROR, "kvcluster"):
        run(main)
    assert "1 entries of cache 'unconnected' were not invalidated" in caplog.text
    assert "call cache.connect(" in caplog.text
    assert "cache 'other' was not connected with an AsyncClient: cache.connect(url) serves both kinds" in caplog.text


@pytest.fixture
def hanging(node: RunningNode, sessions: Sessions, run: Run) -> Any:
    """A cache behind a proxy that swallows requests when told, bound to a database with user 1, who is cached."""
    with FaultProxy(node.address) as proxy:
        client = AsyncClient([proxy.address], timeout=0.1, connect_timeout=0.1)
        run.closing.append(client.close)
        cache = Cache("shop", ttl="10m", client=client)
        cache.bind(sessions)
        users = cache.repository(User, sessions)

        async def fill() -> None:
            async with sessions.begin() as session:
                session.add_all([User(id=1, name="old"), User(id=2, name="old")])
            await settled(client)
            await until_cached()

        async def until_cached() -> None:
            while not (stored(node, 1) and stored(node, 2)):  # a busy machine: ask again
                await users.list([1, 2])

        run(fill)
        yield proxy, client, users


def stored(node: RunningNode, id: int) -> bool:
    return b"old" in ask(node.address, b"mg shop:User:%d v\r\n" % id)


async def settled(client: AsyncClient) -> None:
    """Wait for the task that repeats deletes, if there is one."""
    await until(lambda: len(asyncio.all_tasks()) == 1)


def test_deletes_that_did_not_arrive_are_repeated_by_a_task(hanging: Any, node: RunningNode, sessions: Sessions, run: Run) -> None:
    proxy, client, users = hanging

    async def main() -> None:
        proxy.requests.drop = True
        for id in (1, 2):
            async with sessions.begin() as session:
                (await session.get_one(User, id)).name = "new"
        assert stored(node, 1)
        assert await names(users, 1, 2) == ["new", "new"], "from the database, while the node is left alone"
        proxy.requests.clear()
        await until(lambda: not stored(node, 1) and not stored(node, 2))
        await settled(client)

    run(main)


def test_deletes_are_repeated_also_where_the_commit_was_cancelled(
    hanging: Any, node: RunningNode, sessions: Sessions, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, client, _ = hanging

    async def main() -> None:
        proxy.requests.drop = True
        committing = asyncio.create_task(commit())
        await until(lambda: tried)
        await asyncio.sleep(0.03)  # the delete has left, and the proxy swallowed it
        committing.cancel()
        await asyncio.wait([committing])
        proxy.requests.clear()
        await until(lambda: not stored(node, 1))
        await settled(client)

    tried: list[int] = []

    async def commit() -> None:
        async with sessions() as session:
            (await session.get_one(User, 1)).name = "new"
            monkeypatch.setattr(client, "run", noted)
            await session.commit()

    original = client.run

    def noted(plan: Any) -> Any:
        tried.append(1)
        return original(plan)

    run(main)


def test_a_cancelled_commit_still_invalidates(users: AsyncRepository[User], sessions: Sessions, run: Run) -> None:
    async def commit(name: str) -> None:
        async with sessions() as session:
            (await session.get_one(User, 1)).name = name
            await session.commit()

    async def main() -> None:
        for when in range(0, 60, 3):
            task = asyncio.create_task(commit(f"version {when}"))
            await turns(when)
            task.cancel()
            await asyncio.wait([task])
            async with sessions() as session:
                current = (await session.get_one(User, 1)).name
            assert await names(users, 1) == [current]

    run(main)


def test_a_loop_that_ends_while_deletes_are_owed(
    hanging: Any, node: RunningNode, sessions: Sessions, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """Its task ends with it, and the next loop's first failure starts another."""
    proxy, client, _ = hanging

    async def rename(id: int) -> None:
        proxy.requests.drop = True
        async with sessions.begin() as session:
            (await session.get_one(User, id)).name = "new"

    async def first() -> None:
        try:
            await rename(1)
        finally:
            for close in run.closing:
                await close()

    async def second() -> None:
        await rename(2)
        proxy.requests.clear()
        await until(lambda: not stored(node, 1) and not stored(node, 2))
        await settled(client)

    asyncio.run(first())
    assert stored(node, 1)
    run(second)
    assert caplog.text.count("repeated until they succeed") == 2


def test_a_loop_that_ends_leaves_the_retries_of_another_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def failing() -> bool:
        return True

    async def begin() -> asyncio.Task[None]:
        retries.start_async(client, TimeoutError())
        await asyncio.sleep(0)
        return retries._tasks[id(client)][0]

    client, retries = AsyncClient(["127.0.0.1:1"]), Retries()
    monkeypatch.setattr(client, "replay_deletes", failing)
    with asyncio.Runner() as later:
        with asyncio.Runner() as earlier:
            earlier.run(begin())
            task = later.run(begin())
        assert retries._tasks[id(client)][0] is task
    assert not retries._tasks
