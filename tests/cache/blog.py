"""Authors, posts and tags; what is cached of them; and everything that a session can do to them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from sqlalchemy import Column, Engine, ForeignKey, Table, delete, event, insert, select, text, update
from sqlalchemy.exc import DBAPIError, SAWarning
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship
from sqlalchemy.orm.exc import FlushError, StaleDataError

from tests.cache.shop import engine_of

IDS = (1, 2, 3)
KINDS = ("news", "essay")


class Base(DeclarativeBase):
    pass


post_tag = Table(
    "post_tag",
    Base.metadata,
    Column("post_id", ForeignKey("post.id"), primary_key=True),
    Column("tag_id", ForeignKey("tag.id"), primary_key=True),
)


class Author(Base):
    __tablename__ = "author"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    posts: Mapped[list[Post]] = relationship(cascade="all, delete-orphan")


class Post(Base):
    __tablename__ = "post"

    id: Mapped[int] = mapped_column(primary_key=True)
    author_id: Mapped[int | None] = mapped_column("author", ForeignKey("author.id"))
    kind: Mapped[str]
    title: Mapped[str]
    tags: Mapped[list[Tag]] = relationship(secondary=post_tag)


class Tag(Base):
    __tablename__ = "tag"

    id: Mapped[int] = mapped_column(primary_key=True)


def blog_of(path: Path) -> Engine:
    """A database with the tables, and with tags, whose savepoints are real ones: the driver's own way begins no transaction."""
    engine = engine_of(path)
    with_savepoints(engine)
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add_all(Tag(id=id) for id in IDS)
    return engine


def with_savepoints(engine: Engine) -> None:
    """Let transactions of SQLite begin where SQLAlchemy says so."""

    @event.listens_for(engine, "connect")
    def _(connection: Any, record: object) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def _(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN")


#: What is read, from any session: by name, the query and the arguments to ask it with.
READS: dict[str, tuple[Callable[..., Any], list[tuple[Any, ...]]]] = {
    "author": (lambda author: select(Author.name).where(Author.id == author), [(id,) for id in IDS]),
    "titles": (lambda author: select(Post.title).where(Post.author_id == author).order_by(Post.id), [(id,) for id in IDS]),
    "page": (
        lambda author, n: select(Post.title).where(Post.author_id == author).order_by(Post.id).limit(n),
        [*itertools.product(IDS, (1, 9))],
    ),
    "of_kind": (
        lambda author, kind, n: select(Post.id).where(Post.author_id == author, Post.kind == kind).order_by(Post.id).limit(n),
        [(id, kind, 9) for id in IDS for kind in KINDS],
    ),
    "both": (
        lambda author: select(Author.name, Post.title).join(Post, isouter=True).where(Author.id == author).order_by(Post.id),
        [(id,) for id in IDS],
    ),
    "front": (lambda n: select(Post.title).order_by(Post.title).limit(n), [(2,), (9,)]),
    "tags": (
        lambda post: select(post_tag.c.tag_id).where(post_tag.c.post_id == post).order_by(post_tag.c.tag_id),
        [(id,) for id in IDS],
    ),
}

WATCHES: dict[str, Any] = {
    "author": {Author.id: "id"},
    "titles": {Post.author_id: "author"},
    "page": {Post.author_id: "author"},
    "of_kind": {Post.author_id: "author", Post.kind: "kind"},
    "both": {Author.id: "author", Post.author_id: "author"},
    "front": [Post],
    "tags": {post_tag.c.post_id: "post"},
}


def rows(session: Session, name: str, arguments: tuple[Any, ...]) -> list[list[Any]]:
    """What the database says."""
    return [list(row) for row in session.execute(READS[name][0](*arguments))]


def oracle(session: Session) -> dict[Any, Any]:
    """Everything that may be read, as the database has it."""
    said: dict[Any, Any] = {(name, a): rows(session, name, a) for name, (_, asked) in READS.items() for a in asked}
    for id in IDS:
        said["row", id] = session.execute(select(Post.author_id, Post.kind, Post.title).where(Post.id == id)).one_or_none()
    return said


# -- what a session can do

_numbers = itertools.count()


def fresh() -> str:
    """A text that was never written before."""
    return f"t{next(_numbers)}"


def _post(session: Session, id: int) -> Post | None:
    return session.get(Post, id)


def add(session: Session, id: int, other: int, kind: str) -> None:
    session.add(Post(id=id, author_id=other, kind=kind, title=fresh()))


def add_author(session: Session, id: int, other: int, kind: str) -> None:
    session.add(Author(id=id, name=fresh()))


def add_by_text(session: Session, id: int, other: int, kind: str) -> None:
    session.add(Post(id=str(id), author_id=str(other), kind=kind, title=fresh()))


def change(session: Session, id: int, other: int, kind: str) -> None:
    if post := _post(session, id):
        post.title = fresh()


def rename(session: Session, id: int, other: int, kind: str) -> None:
    if author := session.get(Author, id):
        author.name = fresh()


def move(session: Session, id: int, other: int, kind: str) -> None:
    if post := _post(session, id):
        post.author_id, post.kind = other, kind


def move_unread(session: Session, id: int, other: int, kind: str) -> None:
    if post := _post(session, id):
        session.expire(post)
        post.author_id = other


def move_by_expression(session: Session, id: int, other: int, kind: str) -> None:
    if post := _post(session, id):
        post.author_id = select(other).scalar_subquery()


def renumber(session: Session, id: int, other: int, kind: str) -> None:
    if (post := _post(session, id)) and not post.tags:
        post.id = other


def remove(session: Session, id: int, other: int, kind: str) -> None:
    if post := _post(session, id):
        session.delete(post)


def remove_author(session: Session, id: int, other: int, kind: str) -> None:
    if author := session.get(Author, id):
        session.delete(author)


def append(session: Session, id: int, other: int, kind: str) -> None:
    session.flush()  # else the post may be one that the next query's flush deletes
    if (post := _post(session, id)) and (author := session.get(Author, other)):
        author.posts.append(post)


def orphan(session: Session, id: int, other: int, kind: str) -> None:
    if (author := session.get(Author, other)) and author.posts:
        author.posts.pop()


def tag(session: Session, id: int, other: int, kind: str) -> None:
    session.flush()  # else the post may be one that the next query's flush deletes
    if post := _post(session, id):
        found = session.get_one(Tag, other)
        (post.tags.remove if found in post.tags else post.tags.append)(found)


def merge(session: Session, id: int, other: int, kind: str) -> None:
    session.merge(Post(id=id, author_id=other, kind=kind, title=fresh()))


def update_one(session: Session, id: int, other: int, kind: str) -> None:
    session.execute(update(Post).where(Post.id == id, Post.kind == kind).values(title=fresh()))


def update_some(session: Session, id: int, other: int, kind: str) -> None:
    session.execute(update(Post).where(Post.id.in_([id, other])).values(author_id=other))


def update_of_author(session: Session, id: int, other: int, kind: str) -> None:
    session.execute(update(Post).where(Post.author_id == id).values(title=fresh()))


def update_other_columns(session: Session, id: int, other: int, kind: str) -> None:
    session.execute(update(Author).where(Author.name != "").values(name=fresh()))


def update_core(session: Session, id: int, other: int, kind: str) -> None:
    table = Author.__table__
    session.connection().execute(table.update().where(table.c.id == id).values(name=fresh()))


def update_by_key(session: Session, id: int, other: int, kind: str) -> None:
    session.execute(update(Author), [{"id": n, "name": fresh()} for n in {id, other}])


def update_query(session: Session, id: int, other: int, kind: str) -> None:
    session.query(Post).filter_by(kind=kind).update({"author_id": other})


def delete_one(session: Session, id: int, other: int, kind: str) -> None:
    session.execute(delete(Post).where(Post.id == id))


def delete_query(session: Session, id: int, other: int, kind: str) -> None:
    session.query(Post).filter(Post.author_id == other).delete()


def delete_tags(session: Session, id: int, other: int, kind: str) -> None:
    session.execute(post_tag.delete().where(post_tag.c.post_id == id))


def insert_one(session: Session, id: int, other: int, kind: str) -> None:
    session.execute(insert(Post).values(id=id, author_id=other, kind=kind, title=fresh()))


def insert_many(session: Session, id: int, other: int, kind: str) -> None:
    session.execute(insert(Post), [{"id": n, "author_id": other, "kind": kind, "title": fresh()} for n in {id, other}])


def insert_or_replace(session: Session, id: int, other: int, kind: str) -> None:
    session.execute(insert(Post).prefix_with("OR REPLACE").values(id=id, author_id=other, kind=kind, title=fresh()))


def insert_from(session: Session, id: int, other: int, kind: str) -> None:
    there = select(Post.id + 1, Post.author_id, Post.kind, Post.title).where(Post.id == id)
    session.execute(insert(Post).from_select(["id", "author", "kind", "title"], there))


def bulk_update(session: Session, id: int, other: int, kind: str) -> None:
    session.bulk_update_mappings(Post, [{"id": id, "author_id": other}])  # type: ignore[arg-type]


def bulk_insert(session: Session, id: int, other: int, kind: str) -> None:
    session.bulk_insert_mappings(Post, [{"id": id, "author_id": other, "kind": kind, "title": fresh()}])  # type: ignore[arg-type]


def bulk_save(session: Session, id: int, other: int, kind: str) -> None:
    session.bulk_save_objects([Post(id=id, author_id=other, kind=kind, title=fresh())])


def flush(session: Session, id: int, other: int, kind: str) -> None:
    session.flush()


def expire(session: Session, id: int, other: int, kind: str) -> None:
    session.flush()
    session.expire_all()


def savepoint(session: Session, id: int, other: int, kind: str) -> None:
    session.begin_nested()


def release(session: Session, id: int, other: int, kind: str) -> None:
    if nested := session.get_nested_transaction():
        nested.commit()


def roll_back_to(session: Session, id: int, other: int, kind: str) -> None:
    if nested := session.get_nested_transaction():
        nested.rollback()


def roll_back(session: Session, id: int, other: int, kind: str) -> None:
    session.rollback()


def commit(session: Session, id: int, other: int, kind: str) -> None:
    session.commit()


CHANGES = [
    add, add, add_author, add_by_text, change, rename, move, move_unread, move_by_expression, renumber, remove, remove_author,
    append, orphan, tag, merge, update_one, update_some, update_of_author, update_other_columns, update_core, update_by_key,
    update_query, delete_one, delete_query, delete_tags, insert_one, insert_many, insert_or_replace, insert_from, bulk_update,
    bulk_insert, bulk_save,
]  # fmt: skip
STEPS = [*CHANGES, flush, expire, savepoint, savepoint, release, roll_back_to, roll_back, commit, commit, commit]

Step = tuple[Callable[..., None], int, int, str]

steps: st.SearchStrategy[list[Step]] = st.lists(
    st.tuples(st.sampled_from(STEPS), st.sampled_from(IDS), st.sampled_from(IDS), st.sampled_from(KINDS)), min_size=4, max_size=25
)

#: What a database or an ORM may say to changes that do not fit each other.
REFUSALS = (DBAPIError, FlushError, StaleDataError, SAWarning)


def take(session: Session, step: Step) -> None:
    """Do one thing; what does not fit ends the transaction."""
    do, *arguments = step
    try:
        do(session, *arguments)
    except REFUSALS:
        session.rollback()


def emptied(session: Session) -> None:
    """Begin anew, with one post of the first author."""
    for table in ("post_tag", "post", "author"):
        session.execute(text(f"DELETE FROM {table}"))
    session.execute(insert(Author), [{"id": id, "name": fresh()} for id in IDS[:2]])
    session.execute(insert(Post), [{"id": 1, "author_id": 1, "kind": "news", "title": fresh()}])
    session.commit()
