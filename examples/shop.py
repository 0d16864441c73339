"""A small shop: rows, lists and pages that are right after every commit. Runs as it stands: ``pip install 'kvcluster[sql]'``.

python examples/shop.py                                   # with a node in this process
KVCLUSTER_URL=memcached://10.0.0.1,10.0.0.2 python examples/shop.py
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from sqlalchemy import ForeignKey, Select, create_engine, func, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker
from sqlalchemy.pool import StaticPool

from kvcluster import Cache


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Post(Base):
    __tablename__ = "posts"

    id: Mapped[int] = mapped_column(primary_key=True)
    author_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    tag: Mapped[str]
    title: Mapped[str]


engine = create_engine("sqlite://", poolclass=StaticPool)
sessions = sessionmaker(engine)
cache = Cache("shop", ttl="10m")
cache.bind(sessions)  # commits of these sessions invalidate
users = cache.repository(User, sessions)
posts = cache.repository(Post, sessions)


@cache.query("front:{tag}:{n}", watch=[Post], ttl="1m")
def front(tag: str, n: int) -> Select[tuple[Post]]:
    """The newest posts: their ids are cached here, each row once for all lists."""
    return select(Post).where(Post.tag == tag).order_by(Post.id.desc()).limit(n)


@dataclass
class Profile:
    """What a page shows of a user."""

    name: str
    posts: int


@cache.loader("profile:{user_id}", watch={User.id: "user_id", Post.author_id: "user_id"}, stale_if_error="1d")
def profile(user_id: int) -> Profile | None:
    """Loaded once over all processes, and again after a commit that changes the user or any post of theirs."""
    print(f"  (loading the profile of {user_id})")
    with sessions() as session:
        user = session.get(User, user_id)
        if user is None:
            return None
        count = session.scalar(select(func.count()).where(Post.author_id == user_id)) or 0
        return Profile(user.name, count)


def main() -> None:
    """Read, change in several ways, and read again."""
    cache.connect(os.environ.get("KVCLUSTER_URL", "memory://"))
    Base.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add_all([User(id=1, name="Kim"), Post(id=1, author_id=1, tag="news", title="Hello")])
    print(profile(1), profile(1))
    with sessions.begin() as session:
        session.add(Post(id=2, author_id=1, tag="news", title="Again"))
    print(profile(1), [post.title for post in front("news", 10)])
    with sessions.begin() as session:
        session.execute(update(User).where(User.id == 1).values(name="Kim Minji"))
    print(profile(1), users.list([1])[0].name)
    print(profile.explain(1))


if __name__ == "__main__":
    main()
