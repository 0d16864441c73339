"""Whatever an `AsyncSession` does, right after its commit each cached reader says what the database says. Queries and writes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, Select, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session

from kvcluster import AsyncClient, Cache
from kvcluster.cache.aio_repository import AsyncRepository
from kvcluster.cache.query import AsyncQuery
from kvcluster.errors import ConfigurationError, DeleteFailed
from kvcluster.testing.nodes import RunningNode
from tests.aio.loops import until
from tests.cache.blog import (
    IDS,
    KINDS,
    READS,
    STEPS,
    WATCHES,
    Author,
    Post,
    blog_of,
    emptied,
    fresh,
    oracle,
    rows,
    take,
    with_savepoints,
)
from tests.cache_async.conftest import Run

Sessions = async_sessionmaker[AsyncSession]


@pytest.fixture
def oracle_engine(tmp_path: Path) -> Engine:
    engine = blog_of(tmp_path / "shop.db")
    with Session(engine) as session:
        emptied(session)
    return engine


@pytest.fixture
def engine(tmp_path: Path, oracle_engine: Engine, run: Run) -> AsyncEngine:
    """The same database, for asyncio."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}", connect_args={"timeout": 30})
    with_savepoints(engine.sync_engine)
    run.closing.append(engine.dispose)
    return engine


def readers_of(cache: Cache, sessions: Sessions) -> dict[str, Any]:
    """A loader for each read of one argument, and one of several."""

    async def read(name: str, *arguments: Any) -> list[list[Any]]:
        async with sessions() as session:
            return await session.run_sync(rows, name, arguments)

    async def author(author: int) -> list[list[Any]]:
        return await read("author", author)

    async def titles(author: int) -> list[list[Any]]:
        return await read("titles", author)

    async def page(author: int, n: int) -> list[list[Any]]:
        return await read("page", author, n)

    async def front(n: int) -> list[list[Any]]:
        return await read("front", n)

    async def tags(post: int) -> list[list[Any]]:
        return await read("tags", post)

    templates = {author: "{author}", titles: "{author}", page: "{author}:{n}", front: "{n}", tags: "{post}"}
    watches: dict[str, Any] = {**WATCHES, "author": {Author.id: "author"}}
    return {
        function.__name__: cache.loader(f"{function.__name__}:{template}", watch=watches[function.__name__])(function)
        for function, template in templates.items()
    }


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")
@pytest.mark.parametrize("seed", range(6))
def test_any_order_of_anything(cache: Cache, sessions: Sessions, oracle_engine: Engine, run: Run, seed: int) -> None:
    chance = random.Random(seed)
    cache.bind(sessions)
    readers, posts = readers_of(cache, sessions), cache.repository(Post, sessions)

    async def main() -> None:
        async with sessions() as session:
            with Session(oracle_engine) as other:
                for _ in range(60):
                    step = (chance.choice(STEPS), chance.choice(IDS), chance.choice(IDS), chance.choice(KINDS))
                    await session.run_sync(take, step)
                    if session.in_transaction():
                        continue
                    other.rollback()
                    truth = oracle(other)
                    for name, reader in readers.items():
                        for arguments in READS[name][1]:
                            assert await reader(*arguments) == truth[name, arguments], (step[0].__name__, name)
                    for id, post in (await posts.get_many(IDS)).items():
                        assert (post and (post.author_id, post.kind, post.title)) == truth["row", id], step[0].__name__

    run(main)
    oracle_engine.dispose()


@pytest.fixture
def posts(cache: Cache, sessions: Sessions) -> AsyncRepository[Post]:
    return cache.repository(Post, sessions)


def test_a_query(cache: Cache, client: AsyncClient, sessions: Sessions, posts: AsyncRepository[Post], run: Run) -> None:
    cache.bind(sessions)

    @cache.query("of:{kind}:{n}", watch=[Post], repository=posts)
    def of_kind(kind: str, n: int) -> Select[Any]:
        return select(Post).where(Post.kind == kind).order_by(Post.id).limit(n)

    assert isinstance(of_kind, AsyncQuery)

    async def main() -> None:
        assert [post.id for post in await of_kind("news", 9)] == [1]
        async with sessions.begin() as session:
            session.add_all(Post(id=n, author_id=1, kind="news", title=fresh()) for n in range(10, 20))
        assert [post.id for post in await of_kind("news", 3)] == [1, 10, 11]
        gets = client.statistics().total
        assert [post.id for post in await of_kind("news", 3)] == [1, 10, 11]
        assert client.statistics().total.misses == gets.misses
        assert client.statistics().total.hits == gets.hits + 4
        await posts.delete(10)
        assert await of_kind.ids("news", 3) == [1, 11, 12]
        await of_kind.invalidate("news", 3)
        assert [post.id for post in await of_kind.refresh("news", 3)] == [1, 11, 12]

    run(main)


@pytest.mark.parametrize("bound", [False, True])
def test_write_through(
    cache: Cache, client: AsyncClient, sessions: Sessions, posts: AsyncRepository[Post], run: Run, bound: bool
) -> None:
    if bound:
        cache.bind(sessions)

    async def main() -> None:
        assert await posts.get(2) is None
        before = client.statistics().total.deletes
        saved = await posts.save(Post(id=2, author_id=1, kind="news", title="saved"))
        assert saved.title == "saved"
        post = await posts.get(2)
        assert post is not None
        post.title = "changed"
        await posts.save(post)
        assert [post.title for post in await posts.list([2])] == ["changed"]
        assert await posts.delete(2)
        assert not await posts.delete(2)
        assert await posts.get(2) is None
        assert client.statistics().total.deletes == before + 3, "each once"

    run(main)


def test_flush_and_tables_and_tags(
    cache: Cache,
    sessions: Sessions,
    posts: AsyncRepository[Post],
    nodes: list[RunningNode],
    run: Run,
    caplog: pytest.LogCaptureFixture,
) -> None:
    loads: list[int] = []

    @cache.loader("count", tags=["counts"], watch=[Author])
    async def count() -> int:
        loads.append(1)
        return len(loads)

    async def main() -> None:
        assert [await count(), await count()] == [1, 1]
        await cache.invalidate_tag_async("counts")
        assert [await count(), await count()] == [2, 2]
        await cache.invalidate_table_async(Author)
        assert [await count(), await count()] == [3, 3]
        async with sessions() as session:
            with pytest.raises(ConfigurationError, match="not bound"):
                await cache.flush_async(session)
        cache.bind(sessions)
        async with sessions() as session:
            (await session.get_one(Post, 1)).title = "new"
            await session.commit()
            await cache.flush_async(session)
            for node in nodes:
                node.kill()
            (await session.get_one(Post, 1)).title = "newer"
            await session.commit()
            with pytest.raises(DeleteFailed):
                await cache.flush_async(session)
            for node in nodes:
                node.restart()
            await until(lambda: "have succeeded" in caplog.text)
            await cache.flush_async(session)

    run(main)
