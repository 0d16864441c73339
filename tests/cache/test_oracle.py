"""Whatever a session does, in whatever order: right after every commit each cached reader says what the database says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from kvcluster import Cache
from tests.cache.blog import IDS, READS, WATCHES, Post, Step, blog_of, emptied, oracle, rows, steps, take


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = blog_of(tmp_path / "blog.db")
    yield engine
    engine.dispose()


def readers_of(cache: Cache, sessions: sessionmaker[Session]) -> dict[str, Any]:
    """A loader for each read, with what it watches."""

    def read(name: str, *arguments: Any) -> list[list[Any]]:
        with sessions() as session:
            return rows(session, name, arguments)

    def author(id: int) -> list[list[Any]]:
        return read("author", id)

    def titles(author: int) -> list[list[Any]]:
        return read("titles", author)

    def page(author: int, n: int) -> list[list[Any]]:
        return read("page", author, n)

    def of_kind(author: int, kind: str, n: int) -> list[list[Any]]:
        return read("of_kind", author, kind, n)

    def both(author: int) -> list[list[Any]]:
        return read("both", author)

    def front(n: int) -> list[list[Any]]:
        return read("front", n)

    def tags(post: int) -> list[list[Any]]:
        return read("tags", post)

    functions: list[Callable[..., Any]] = [author, titles, page, of_kind, both, front, tags]
    templates = ["{id}", "{author}", "{author}:{n}", "{author}:{kind}:{n}", "{author}", "{n}", "{post}"]
    return {
        function.__name__: cache.loader(f"{function.__name__}:{template}", watch=WATCHES[function.__name__])(function)
        for function, template in zip(functions, templates, strict=True)
    }


def said(readers: dict[str, Any], posts: Any) -> dict[Any, Any]:
    """What the cached readers say."""
    found: dict[Any, Any] = {(name, a): readers[name](*a) for name, (_, asked) in READS.items() for a in asked}
    for id, post in posts.get_many(IDS).items():
        found["row", id] = post and (post.author_id, post.kind, post.title)
    return found


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")
@given(taken=steps)
def test_any_order_of_anything(cache: Cache, engine: Engine, sessions: sessionmaker[Session], taken: list[Step]) -> None:
    if not cache.loaders:
        cache.bind(sessions)
        cache.repository(Post, sessions, ttl="1h")
        readers_of(cache, sessions)
    readers: dict[str, Any] = {loader.__name__: loader for loader in cache.loaders}
    (posts,) = cache.repositories[Post]
    with Session(engine) as other:
        emptied(other)
    cache.client.flush_all()
    with sessions() as session, Session(engine) as other:
        for step in [*taken, (lambda session, *rest: session.commit(), 1, 1, "news")]:
            take(session, step)
            if not session.in_transaction():  # committed or rolled back
                other.rollback()
                assert said(readers, posts) == oracle(other), step[0].__name__


def test_the_oracle_finds_what_is_not_invalidated(cache: Cache, engine: Engine, sessions: sessionmaker[Session]) -> None:
    readers, posts = readers_of(cache, sessions), cache.repository(Post, sessions)
    with Session(engine) as other:
        emptied(other)
        assert said(readers, posts) == oracle(other)
        other.get_one(Post, 1).title = "changed behind the cache's back"
        other.commit()
        assert said(readers, posts) != oracle(other)
        cache.invalidate_table(Post)
        assert said(readers, posts) == oracle(other), "what text() and other programs need"
