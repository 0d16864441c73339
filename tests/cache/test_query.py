"""`Cache.query`: ids that are cached, rows from a repository, two exchanges warm, right after every commit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from sqlalchemy import Engine, Select, func, select
from sqlalchemy.orm import Session, sessionmaker

from kvcluster import Cache, Client
from kvcluster.cache.query import Query
from kvcluster.errors import ConfigurationError, IllegalKey
from tests.cache.blog import Author, Post, Step, Tag, blog_of, emptied, fresh, steps, take
from tests.cache.shop import Selects

Sessions = sessionmaker[Session]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = blog_of(tmp_path / "blog.db")
    with Session(engine) as session:
        emptied(session)
    yield engine
    engine.dispose()


def front_of(cache: Cache) -> Query[..., Post]:
    @cache.query("front:{tag}:{n}", watch=[Post, Post.tags.property.secondary], ttl="30s")
    def front(tag: int, n: int) -> Select[Any]:
        return select(Post).where(Post.tags.any(Tag.id == tag)).order_by(Post.title.desc()).limit(n)

    return front


def all_of(cache: Cache) -> Query[..., Post]:
    @cache.query("of:{kind}:{n}", watch=[Post])
    def of_kind(kind: str, n: int) -> Select[Any]:
        return select(Post).where(Post.kind == kind).order_by(Post.title).limit(n)

    return of_kind


class Exchanges:
    """How many a client made: each waits once for one or for several nodes."""

    def __init__(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        for name in ("exchange", "run"):
            monkeypatch.setattr(client, name, self._counting(getattr(client, name)))

    def _counting(self, call: Any) -> Any:
        def counting(*args: Any) -> Any:
            self.count += 1
            return call(*args)

        return counting


def test_warm_it_costs_two_exchanges_and_no_statement(
    cache: Cache, client: Client, engine: Engine, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.repository(Post, sessions)
    cache.bind(sessions)
    of_kind = all_of(cache)
    with sessions.begin() as session:
        session.add_all(Post(id=id, author_id=1, kind="news", title=f"{id}") for id in range(10, 60))
    expected = [post.id for post in of_kind("news", 20)]
    assert len(expected) == 20
    exchanges, selects = Exchanges(client, monkeypatch), Selects(engine)
    assert [post.id for post in of_kind("news", 20)] == expected
    assert exchanges.count == 2
    assert len(selects) == 0


def test_a_changed_row_costs_the_ids_and_that_row(cache: Cache, engine: Engine, sessions: Sessions) -> None:
    posts = cache.repository(Post, sessions)
    cache.bind(sessions)
    of_kind = all_of(cache)
    with sessions.begin() as session:
        session.add_all(Post(id=id, author_id=1, kind="news", title=f"{id}") for id in range(10, 60))
    of_kind("news", 9)
    loads, selects = posts.loads, Selects(engine)
    with sessions.begin() as session:
        session.get_one(Post, 10).title = "9"
    selects.statements.clear()
    assert [post.title for post in of_kind("news", 9)] == [str(n) for n in range(11, 20)]
    assert len(selects) == 2, "the ids, and the one row that came in; those that stayed are cached"
    assert posts.loads == loads + 1


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")
@given(taken=steps)
def test_it_is_right_after_every_commit(cache: Cache, engine: Engine, sessions: Sessions, taken: list[Step]) -> None:
    if not cache.loaders:
        cache.bind(sessions)
        cache.repository(Post, sessions)
    front, of_kind = front_of(cache), all_of(cache)
    with Session(engine) as other:
        emptied(other)
    cache.client.flush_all()
    calls: list[tuple[Any, tuple[Any, ...]]] = [
        *((front, (tag, 2)) for tag in (1, 2, 3)),
        (of_kind, ("news", 9)),
        (of_kind, ("essay", 1)),
    ]
    with sessions() as session, Session(engine) as other:
        for step in [*taken, (lambda session, *rest: session.commit(), 1, 1, "news")]:
            take(session, step)
            if not session.in_transaction():
                other.rollback()
                for query, arguments in calls:
                    statement = _STATEMENTS[query._ids.__name__](*arguments)
                    wanted = [(post.id, post.title, post.author_id) for post in other.scalars(statement)]
                    assert [(post.id, post.title, post.author_id) for post in query(*arguments)] == wanted, step[0].__name__


_STATEMENTS = {
    "front": lambda tag, n: select(Post).where(Post.tags.any(Tag.id == tag)).order_by(Post.title.desc()).limit(n),
    "of_kind": lambda kind, n: select(Post).where(Post.kind == kind).order_by(Post.title).limit(n),
}


def test_ids_refresh_and_invalidate(cache: Cache, engine: Engine, sessions: Sessions) -> None:
    cache.repository(Post, sessions)
    of_kind = all_of(cache)
    assert of_kind.ids("news", 3) == [1]
    with Session(engine) as behind, behind.begin():
        behind.add(Post(id=2, author_id=1, kind="news", title=fresh()))
    assert of_kind.ids("news", 3) == [1]
    assert [post.id for post in of_kind.refresh("news", 3)] == [1, 2]
    with Session(engine) as behind, behind.begin():
        behind.delete(behind.get_one(Post, 1))
    assert of_kind.ids("news", 3) == [1, 2]
    of_kind.invalidate("news", 3)
    assert of_kind.ids("news", 3) == [2]
    assert "of:{kind}:{n}" in repr(of_kind)
    with pytest.raises(IllegalKey):
        of_kind(1.5, 3)


def test_which_repository(cache: Cache, engine: Engine, sessions: Sessions) -> None:
    with pytest.raises(ConfigurationError, match=r"none of .* has one: declare cache.repository"):
        all_of(cache)
    posts, authors = cache.repository(Post, sessions), cache.repository(Author, sessions)

    def pages(author: int) -> Select[Any]:
        return select(Post).join(Author, Author.id == Post.author_id).where(Author.id == author)

    with pytest.raises(ConfigurationError, match="more than one"):
        cache.query("pages:{author}", watch=[Post, Author])(pages)
    query = cache.query("pages:{author}", watch=[Post, Author], repository=posts)(pages)
    assert [post.id for post in query(1)] == [1]
    wrong = cache.query("pages:{author}", watch=[Post, Author], repository=authors)(pages)
    with pytest.raises(ConfigurationError, match="a Select of Author"):
        wrong(2)
    no_select: Any = cache.query("number:{author}", watch=[Post])(lambda author: select(func.count()))
    with pytest.raises(ConfigurationError, match="a Select of Post"):
        no_select(1)
