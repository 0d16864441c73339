"""What loaders declare that they hang on, what a statement says of its rows, and that no more is forgotten than must be."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Computed,
    Engine,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    TypeDecorator,
    bindparam,
    delete,
    event,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, mapped_column, sessionmaker
from sqlalchemy.sql.dml import UpdateBase

from kvcluster import Cache, Client
from kvcluster.cache.changes import MOST_ROWS, Unknown, rows_of_statement, written_tables
from kvcluster.cache.dependants import dependants, in_order, referred
from kvcluster.cache.keys import Template
from kvcluster.cache.repository import Repository
from kvcluster.cache.tables import ColumnName
from kvcluster.cache.watch import Names, Registry, Watch, Watched, coerced, watch_of
from kvcluster.errors import ConfigurationError, DeleteFailed, IllegalKey
from kvcluster.testing.nodes import RunningNode
from tests.cache.blog import Author, Post, Tag, blog_of, emptied, fresh, post_tag
from tests.cache.shop import Colour, Everything, engine_of

Sessions = sessionmaker[Session]


def watching(function: Callable[..., Any], key: str, watched: Watched, tags: list[str] | None = None) -> Watch:
    return watch_of(Template(key, function), watched, tags or [])


def by_author(author: int) -> None: ...


def by_author_and_page(author: int, n: int) -> None: ...


# -- declarations


def test_the_stamps_of_a_value() -> None:
    assert watching(by_author, "a:{author}", {Author.id: "author"}).stamps_of({"author": 7}) == ("table:author",)
    watch = watching(by_author_and_page, "a:{author}:{n}", [{Post.author_id: "author"}, Author], ["page:{n}", "all"])
    assert watch.stamps_of({"author": 7, "n": 1}) == (
        "table:post",
        "watch:post:author=7",
        "table:author",
        "rows:author",
        "tag:page:1",
        "tag:all",
    )
    assert not watching(by_author, "a:{author}", [])


def test_stamps_with_a_percent_sign() -> None:
    watch = watching(by_author_and_page, "a:{author}:{n}", [], ["100%", "%s:{n}%", "{n}:{author}"])
    assert watch.stamps_of({"author": "a%d", "n": 1}) == ("tag:100%", "tag:%s:1%", "tag:1:a%d")


def test_what_a_changed_row_invalidates() -> None:
    registry = Registry()
    registry.add("key", watching(by_author, "a:{author}", {Post.author_id: "author"}))
    registry.add("page", watching(by_author_and_page, "p:{author}:{n}", {Post.author_id: "author"}))
    registry.add("all", watching(by_author, "x:{author}", [Post]))
    assert registry.columns("post") == {"author"}
    names = registry.invalidated("post", [{"author": 1}, {"author": "2"}, {"author": None}])
    assert list(names.keys) == ["a:1", "a:2"]
    assert list(names.stamps) == ["watch:post:author=1", "rows:post", "watch:post:author=2"]
    whole = ["table:post", "rows:post"]
    assert list(registry.invalidated("post", None).stamps) == whole
    for too_little in ({}, {"author": "nobody"}, {"author": 1.5}):
        names = registry.invalidated("post", [too_little])
        assert sorted(names.stamps) == sorted(whole), "not less than everything"
        assert not names.keys
    assert not registry.invalidated("unwatched", None)


def test_a_loader_that_is_declared_again_replaces_itself() -> None:
    registry = Registry()
    registry.add("one", watching(by_author, "a:{author}", [Post]))
    registry.add("one", watching(by_author, "a:{author}", [Author]))
    assert "author" in registry
    assert "post" not in registry


WRONG: list[tuple[Any, Any, str]] = [
    ({Author.posts: "author"}, [], "is not mapped to a column"),
    ({Post.title + "x": "author"}, [], "is not mapped to a column"),
    ({"author": "author"}, [], "is not mapped to a column"),
    ({Author.id: "nobody"}, [], "names 'nobody', which is not an argument in the key"),
    ({Author.name: "author"}, [], "'author', which is int, is equal to author.name, which is str"),
    ({Post.id: "author", Post.author_id: "author"}, [], "two columns of post for 'author'"),
    ([Author.id], [], "a mapped class, a Table or a Django model is wanted"),
    ("author", [], "must be a mapping of columns to arguments, or a list"),
    (Author, [], "must be a mapping of columns to arguments, or a list"),
    ([], "author", "tags must be several templates"),
    ([], ["{nobody}"], "names 'nobody', which is not an argument in the key"),
    ([], ["{author!r}"], "must be the bare name of an argument"),
    ([], ["{author"], "tag '{author'"),
]


@pytest.mark.parametrize(("watched", "tags", "message"), WRONG, ids=range(len(WRONG)))
def test_declarations_that_cannot_be(cache: Cache, watched: Any, tags: Any, message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        cache.loader("a:{author}", watch=watched, tags=tags)(by_author)
    assert message in str(raised.value)


def test_types_that_meet() -> None:
    def load(colour: Colour, day: datetime.date, id: uuid.UUID, name: str | None, any: "No.such.type") -> None: ...  # type: ignore  # noqa: F821, UP037

    columns = {Everything.text: "colour", Everything.day: "day", Everything.id: "id"}
    assert watching(load, "{colour}:{day}:{id}:{name}:{any}", columns)

    def moment(day: datetime.datetime) -> None: ...

    with pytest.raises(ConfigurationError, match="day"):
        watching(moment, "m:{day}", {Everything.day: "day"})


def test_an_argument_of_another_type_than_its_column_is_refused(cache: Cache) -> None:
    load = cache.loader("a:{author}", watch={Author.id: "author"})(by_author)
    for wrong in ("7", True, 7.0):
        with pytest.raises(IllegalKey, match="author must be int"):
            load(wrong)  # type: ignore[arg-type]
        with pytest.raises(IllegalKey, match="author must be int"):
            load.get_many([wrong])
    assert load(7) is None


def test_values_as_their_columns_have_them() -> None:
    id = uuid.uuid4()
    assert coerced(str(id), uuid.UUID) == id
    assert coerced("2024-02-29", datetime.date) == datetime.date(2024, 2, 29)
    for value, kind in (("x", int), (1.5, int), (datetime.datetime(2024, 1, 1), datetime.date), (b"x", str), ("1", float)):  # noqa: DTZ001
        with pytest.raises(ValueError):  # noqa: PT011
            coerced(value, kind)
    assert str(ColumnName("post", "id")) == "post.id"


# -- statements

AUTHOR = frozenset({"author"})
EXACT: list[tuple[UpdateBase, list[dict[str, Any]], set[str], list[dict[str, Any]]]] = [
    (update(Post).where(Post.id == 1), [], {"id"}, [{"id": 1}, {"id": 1}]),
    (update(Post).where(Post.id == 1, Post.title.like("a%")), [], {"id"}, [{"id": 1}, {"id": 1}]),
    (update(Post).where((Post.id == 1) & (Post.kind == "x")), [], {"id"}, [{"id": 1}, {"id": 1}]),
    (update(Post).where(Post.author_id == 1).values(author_id=2), [], {"author"}, [{"author": 1}, {"author": 2}]),
    (update(Post).where(Post.id == bindparam("k")), [{"k": 1}, {"k": 2}], {"id"}, [{"id": 1}] * 2 + [{"id": 2}] * 2),
    (delete(Post).where(Post.id.in_([1, 2])), [], {"id"}, [{"id": 1}, {"id": 2}]),
    (delete(Post).where(Post.author_id == 3), [], {"author"}, [{"author": 3}]),
    (insert(Post).values(id=1, author_id=2), [], {"id", "author"}, [{"id": 1, "author": 2}]),
    (insert(Post).values([{"id": 1}, {"id": 2}]), [], {"id"}, [{"id": 1}, {"id": 2}]),
    (insert(Post), [{"id": 1}, {"id": 2}], {"id", "author"}, [{"id": 1, "author": None}, {"id": 2, "author": None}]),
    (insert(post_tag), [{"post_id": 1, "tag_id": 2}], {"post_id"}, [{"post_id": 1}]),
    (update(Post), [], set(), [{}, {}]),
]
UNKNOWN: list[tuple[UpdateBase, set[str]]] = [
    (update(Post).where((Post.id == 1) | (Post.id == 2)), {"id"}),
    (update(Post).where(Post.id > 1), {"id"}),
    (update(Post).where(Post.id != 1), {"id"}),
    (update(Post).where(Post.id.not_in([1])), {"id"}),
    (update(Post).where(Post.id == Post.author_id), {"id"}),
    (update(Post).where(Post.id == 1), {"id", "author"}),
    (update(Post).where(Author.id == 1), {"id"}),
    (update(Post).where(Post.id == 1).values(id=Post.id + 1), {"id"}),
    (update(Post).where(Post.kind == "x"), {"kind"}),
    (delete(Post).where(Post.id.in_(range(MOST_ROWS + 1))), {"id"}),
    (delete(Post), {"id"}),
    (insert(Post).values(author_id=2), {"id"}),
    (insert(Post).prefix_with("OR REPLACE").values(id=1), {"id"}),
    (insert(Post).from_select(["id"], text("SELECT 1").columns(Post.id)), {"id"}),
]


@pytest.mark.parametrize(("statement", "parameters", "columns", "rows"), EXACT, ids=[str(each[0]) for each in EXACT])
def test_statements_that_say_which_rows(statement: UpdateBase, parameters: Any, columns: set[str], rows: Any) -> None:
    assert rows_of_statement(statement, parameters, columns) == rows


@pytest.mark.parametrize(("statement", "columns"), UNKNOWN, ids=[str(each[0]) for each in UNKNOWN])
def test_statements_that_do_not(statement: UpdateBase, columns: set[str]) -> None:
    with pytest.raises((Unknown, LookupError)):
        rows_of_statement(statement, [], columns)


# -- sessions


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = blog_of(tmp_path / "blog.db")
    with Session(engine) as session:
        emptied(session)
    yield engine
    engine.dispose()


@pytest.fixture
def authors(cache: Cache, sessions: Sessions, engine: Engine) -> Repository[Author]:
    """Authors 1 and 2, both in the cache, whose factory is bound."""
    cache.bind(sessions)
    authors = cache.repository(Author, sessions)
    assert len(authors.list([1, 2])) == 2
    return authors


def deletes(client: Client) -> int:
    return client.statistics().total.deletes


def test_a_rolled_back_savepoint_drops_its_own_keys_only(authors: Repository[Author], sessions: Sessions, client: Client) -> None:
    with sessions() as session:
        session.get_one(Author, 1).name = "outer"
        session.flush()
        with session.begin_nested() as inner:
            session.get_one(Author, 2).name = "never"
            with session.begin_nested():
                session.add(Author(id=3, name="never"))
            inner.rollback()
        session.commit()
    assert deletes(client) == 1
    assert authors.get(1).name == "outer"  # type: ignore[union-attr]


def test_statements_with_keys_cost_only_those(
    authors: Repository[Author], sessions: Sessions, engine: Engine, client: Client
) -> None:
    loads = authors.loads
    with sessions.begin() as session:
        session.execute(update(Author).where(Author.id == 1).values(name="new"))
    assert authors.list([1, 2])[0].name == "new"
    assert authors.loads == loads + 1
    with sessions.begin() as session:
        session.execute(update(Author).where(Author.name != "").values(name="all"))
    assert [author.name for author in authors.list([1, 2])] == ["all", "all"]
    assert deletes(client) == 1, "and the table's stamp"


def test_the_database_is_asked_only_for_what_somebody_watches(
    cache: Cache, authors: Repository[Author], sessions: Sessions, engine: Engine
) -> None:
    asked: list[str] = []

    @event.listens_for(engine, "before_cursor_execute")
    def _(connection: object, cursor: object, statement: str, *rest: object) -> None:
        asked.append(statement.split()[0])

    with sessions() as session:
        post = session.get_one(Post, 1)
        post.title = fresh()
        session.commit()
    assert asked.count("SELECT") == 1
    cache.loader("titles:{author}", watch={Post.author_id: "author"})(by_author)
    asked.clear()
    with sessions() as session:
        session.add_all(Post(id=n, author_id=1, kind="x", title="t") for n in range(10, 90))
        session.commit()
        for post in session.query(Post).all():
            post.title = fresh()
        asked.clear()
        session.commit()
    assert asked.count("SELECT") == 1, "one for all rows that are flushed together"


def test_tags(cache: Cache, authors: Repository[Author], engine: Engine, sessions: Sessions) -> None:
    loads: list[int] = []

    @cache.loader("page:{author}:{n}", tags=["author:{author}", "pages"])
    def page(author: int, n: int) -> int:
        loads.append(n)
        return len(loads)

    first = [page(1, 1), page(1, 2), page(2, 1)]
    assert [page(1, 1), page(1, 2), page(2, 1)] == first
    cache.invalidate_tag("author:1")
    assert [page(1, 1), page(1, 2)] != first[:2]
    assert page(2, 1) == first[2]
    cache.invalidate_tag("pages")
    assert page(2, 1) != first[2]


def test_what_the_database_deletes_by_itself(cache: Cache, engine: Engine, sessions: Sessions) -> None:
    metadata = MetaData()
    parent = Table("parent", metadata, Column("id", Integer, primary_key=True))
    child = Table(
        "child", metadata, Column("id", Integer, primary_key=True), Column("p", ForeignKey(parent.c.id, ondelete="CASCADE"))
    )
    metadata.create_all(engine)
    event.listen(engine, "connect", lambda connection, record: connection.execute("PRAGMA foreign_keys=ON"))
    engine.dispose()
    cache.bind(sessions)

    @cache.loader("children:{id}", watch={child.c.id: "id"})
    def children(id: int) -> int:
        with sessions() as session:
            return session.query(child).filter(child.c.id == id).count()

    with sessions.begin() as session:
        session.execute(insert(parent), [{"id": 1}])
        session.execute(insert(child), [{"id": 5, "p": 1}])
    assert children(5) == 1
    with sessions.begin() as session:
        session.execute(delete(parent).where(parent.c.id == 1))
    assert children(5) == 0


# -- cache.flush


def test_flush_raises_until_the_nodes_were_told(
    cache: Cache, authors: Repository[Author], sessions: Sessions, nodes: list[RunningNode]
) -> None:
    with sessions() as session:
        cache.flush(session)
        session.get_one(Author, 1).name = "new"
        session.commit()
        cache.flush(session)
        for node in nodes:
            node.kill()
        session.get_one(Author, 1).name = "newer"
        session.commit()
        for _ in range(2):
            with pytest.raises(DeleteFailed):
                cache.flush(session)
    with Session(sessions.kw["bind"]) as other, pytest.raises(ConfigurationError, match="not bound to the factory of this session"):
        cache.flush(other)


def test_a_stale_instance_does_not_hide_where_its_row_was(cache: Cache, engine: Engine, sessions: Sessions) -> None:
    """A session changes a row that another transaction has moved since the session read it."""
    cache.bind(sessions)

    @cache.loader("titles:{author}", watch={Post.author_id: "author"})
    def titles(author: int) -> list[str]:
        with sessions() as session:
            return [post.title for post in session.query(Post).filter(Post.author_id == author)]

    with sessions(expire_on_commit=False) as session:
        post = session.get_one(Post, 1)
        session.commit()
        with sessions.begin() as other:
            other.get_one(Post, 1).author_id = 2
        assert titles(1) == []
        assert len(titles(2)) == 1
        post.title = "new"  # it remembers the first author
        session.commit()
    assert titles(2) == ["new"]


def test_a_tag_row_has_no_watchers(authors: Repository[Author], sessions: Sessions, client: Client) -> None:
    with sessions.begin() as session:
        session.add(Tag(id=99))
    assert deletes(client) == 0


def returning(session: Session) -> None:
    statement = update(Author).where(Author.id == 1).values(name="new").returning(Author)
    session.scalars(select(Author).from_statement(statement)).all()


def through_a_tables_alias(session: Session) -> None:
    table: Any = Author.__table__
    alias = table.alias("a")
    session.execute(update(alias).where(alias.c.id == 1).values(name="new"))


def through_a_classes_alias(session: Session) -> None:
    alias = aliased(Author)
    session.execute(update(alias).where(alias.id == 1).values(name="new"), execution_options={"synchronize_session": False})


def in_bulk(session: Session) -> None:
    session.execute(update(Author), [{"id": 1, "name": "new"}])


def after_a_flush_that_was_refused(session: Session) -> None:
    def refuse(*_: object) -> None:
        raise ZeroDivisionError

    event.listen(session, "before_flush", refuse)
    session.add(tag := Tag(id=99))
    with pytest.raises(ZeroDivisionError):
        session.flush()
    session.expunge(tag)
    in_bulk(session)
    event.remove(session, "before_flush", refuse)


def before_a_flush(session: Session) -> None:
    event.listen(session, "before_flush", lambda *_: in_bulk(session), once=True)
    session.add(Tag(id=99))


def before_a_flush_by_mappings(session: Session) -> None:
    rows: Any = [{"id": 1, "name": "new"}]
    event.listen(session, "before_flush", lambda *_: session.bulk_update_mappings(Author, rows), once=True)
    session.add(Tag(id=99))


def within_a_flush(session: Session) -> None:
    def changed(*_: object) -> None:
        in_bulk(session)

    event.listen(Tag, "after_insert", changed)
    session.add(Tag(id=99))
    session.flush()
    event.remove(Tag, "after_insert", changed)


@pytest.mark.parametrize(
    "change",
    [
        returning, through_a_tables_alias, through_a_classes_alias, after_a_flush_that_was_refused, before_a_flush,
        before_a_flush_by_mappings, within_a_flush,
    ],
)  # fmt: skip
def test_statements_in_disguise(authors: Repository[Author], sessions: Sessions, change: Callable[[Session], None]) -> None:
    assert authors.list([1])[0].name != "new"
    with sessions.begin() as session:
        change(session)
    assert authors.list([1])[0].name == "new"


def test_tables_that_a_statement_changes() -> None:
    several = update(Author).where(Author.id == Post.author_id).values({Author.name: "new", Post.title: "new"})
    assert {table.fullname for table in written_tables(several)} == {"author", "post"}
    both: Any = Author.__table__.join(Post.__table__)
    assert {table.fullname for table in written_tables(update(both).values({Author.name: "new"}))} == {"author", "post"}
    assert [table.fullname for table in written_tables(delete(Author).where(Author.id == Post.author_id))] == ["author"]


class Odd(DeclarativeBase):
    """What is declared in less common ways."""


class Region(Odd):
    __tablename__ = "region"

    code: Mapped[str] = mapped_column(primary_key=True)


class Town(Odd):
    __tablename__ = "town"

    id: Mapped[int] = mapped_column(primary_key=True)
    region: Mapped[str] = mapped_column(ForeignKey("region.code", ondelete="CASCADE", onupdate="CASCADE"))
    kind: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "town"}  # noqa: RUF012


class Port(Town):
    __tablename__ = "port"

    port_id: Mapped[int] = mapped_column(ForeignKey("town.id"), primary_key=True)
    depth: Mapped[int]
    __mapper_args__ = {"polymorphic_identity": "port"}  # noqa: RUF012


Table("log", Odd.metadata, Column("id", Integer, primary_key=True), Column("x", ForeignKey("gone.id", ondelete="CASCADE")))


@pytest.fixture
def odd(cache: Cache, tmp_path: Path) -> Iterator[Sessions]:
    """A bound factory for a database that follows its foreign keys."""
    engine = engine_of(tmp_path / "odd.db")
    event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA foreign_keys=ON"))
    Odd.metadata.create_all(engine, [table for name, table in Odd.metadata.tables.items() if name != "log"])
    sessions = sessionmaker(engine)
    cache.bind(sessions)
    with sessions.begin() as session:
        session.add(Region(code="x"))
        session.flush()
        session.add(Port(id=1, region="x", depth=1))
    yield sessions
    engine.dispose()


def renamed_by_instance(session: Session) -> None:
    session.get_one(Region, "x").code = "y"


def renamed_by_statement(session: Session) -> None:
    session.execute(update(Region).values(code="y"))


@pytest.mark.parametrize("rename", [renamed_by_instance, renamed_by_statement])
def test_what_the_database_changes_by_itself(cache: Cache, odd: Sessions, rename: Callable[[Session], None]) -> None:
    @cache.loader("region:{town}", watch={Town.id: "town"})
    def region(town: int) -> str:
        with odd() as session:
            return session.get_one(Town, town).region

    assert region(1) == "x"
    with odd.begin() as session:
        rename(session)
    assert region(1) == "y"


def test_only_what_others_refer_to_is_handed_on(cache: Cache, odd: Sessions, client: Client) -> None:
    assert referred(Region.metadata.tables["region"]) == {"code"}
    assert not referred(Town.metadata.tables["town"]) - {"id"}


def test_a_flush_does_not_raise_because_of_what_the_cache_cannot_know(cache: Cache, odd: Sessions) -> None:
    """A primary key under another name, and a foreign key that refers to what is not declared."""

    @cache.loader("ports:{depth}", watch={Port.depth: "depth"})
    def ports(depth: int) -> list[int]:
        with odd() as session:
            return [port.id for port in session.query(Port).filter(Port.depth == depth)]

    assert (ports(1), ports(2)) == ([1], [])
    with odd.begin() as session:
        session.get_one(Port, 1).depth = 2
    assert (ports(1), ports(2)) == ([], [1])
    with odd.begin() as session:
        session.delete(session.get_one(Port, 1))
    assert (ports(1), ports(2)) == ([], [])


def test_many_choices_are_not_multiplied() -> None:
    statement = update(Post).where(Post.id.in_(range(100_000)), Post.author_id.in_(range(100_000))).values(title="new")
    with pytest.raises(Unknown):
        rows_of_statement(statement, [{}], {"id", "author"})


def test_rows_are_locked_in_one_order() -> None:
    author, post, tags = Author.metadata.tables["author"], Post.metadata.tables["post"], post_tag
    assert in_order([tags, post, author]) == in_order([post, author, tags]) == [author, post, tags]
    assert in_order([Odd.metadata.tables["log"], Odd.metadata.tables["town"]])


def test_dependants_of_many_tables_that_refer_to_each_other() -> None:
    metadata = MetaData()
    for i in range(40):
        keys: list[Column[Any]] = [Column(f"f{j}", ForeignKey(f"t{j}.id", ondelete="CASCADE")) for j in range(i)]
        Table(f"t{i}", metadata, Column("id", Integer, primary_key=True), *keys)
    assert len(dependants(metadata.tables["t0"])) == 39


class Lower(TypeDecorator[str]):
    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: object) -> str | None:
        return value and value.lower()


class Mail(Odd):
    __tablename__ = "mail"

    id: Mapped[int] = mapped_column(primary_key=True)
    address: Mapped[str] = mapped_column(Lower)
    editor: Mapped[int] = mapped_column(default=1, onupdate=2)
    size: Mapped[int | None] = mapped_column(Computed("length(address)"))


def test_values_that_the_program_does_not_give(cache: Cache, odd: Sessions) -> None:
    """A type makes something else of them; an UPDATE writes columns that it does not name."""

    def counted(column: Any) -> Any:
        def count(value) -> int:  # type: ignore[no-untyped-def]
            with odd() as session:
                return session.query(Mail).filter(column == value).count()

        return cache.loader(column.key + ":{value}", watch={column: "value"})(count)

    address, editor, size = map(counted, (Mail.address, Mail.editor, Mail.size))

    def all_counts() -> list[int]:
        return [address("b"), address("bb"), editor(1), editor(2), size(1), size(2)]

    assert all_counts() == [0, 0, 0, 0, 0, 0]
    with odd.begin() as session:
        session.add(Mail(id=1, address="B"))
    assert all_counts() == [1, 0, 1, 0, 1, 0]
    with odd.begin() as session:
        session.get_one(Mail, 1).address = "BB"
    assert all_counts() == [0, 1, 0, 1, 0, 1]
    with odd.begin() as session:
        session.add(Mail(id=2, address="x"))
    assert all_counts() == [0, 1, 1, 1, 1, 1]
    with odd.begin() as session:
        session.execute(update(Mail).where(Mail.editor == 1, Mail.size == 1).values(address="B"))
    assert all_counts() == [1, 1, 0, 2, 1, 1]


def test_a_stamp_that_cannot_be_a_key_hides_no_other(client: Client) -> None:
    planner = replace(client.planner, strict_keys=True)
    names = Names(keys={"a": None}, stamps={"tag:" + "x" * 300: None, "tag:b": None})
    assert len(names.invalidation(planner).stamps) == len(names.invalidation(planner).wires) == 1


def test_an_iterator_is_as_good_as_a_list(cache: Cache, authors: Repository[Author], sessions: Sessions) -> None:
    cache.query("authors:{n}", watch=(model for model in [Author]))(lambda n: select(Author).limit(n))
    assert "rows:author" in cache.watches.invalidated("author", [{"id": 1}]).stamps
