"""The public interface as a user writes it. Only type-checked, by `test_api`; never run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, assert_type

from sqlalchemy import Select, create_engine, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from kvcluster import AsyncClient, Cache, Client


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "user"

    id: Mapped[int] = mapped_column(primary_key=True)


cache = Cache("shop", ttl="10m")
cache.connect()
cache.connect("memcached://c1,c2")
cache.connect(Client("c1:11211"))
cache.connect(AsyncClient(["c1:11211", ("c2", 11211)]))
cache.connect(42)  # type: ignore[arg-type]


# -- functions


@cache.loader("profile:{user_id}:{lang}", ttl="10m", negative=30)
def profile(user_id: int, lang: str = "ko") -> str | None:
    return None


@profile.bulk
def _(user_ids: Sequence[int], lang: str = "ko") -> Mapping[int, str]:
    return {}


assert_type(profile(42), str | None)
assert_type(profile(user_id=42, lang="en"), str | None)
assert_type(profile.uncached(42), str | None)
assert_type(profile.refresh(42, "en"), str | None)
assert_type(profile.get_many([1, 2]), dict[Any, str | None])
profile.list([1, 2], lang="en")
profile.invalidate(42)
assert_type(profile.key(42), str)
assert_type(profile.loads, int)
profile("42")  # type: ignore[arg-type]
profile()  # type: ignore[call-arg]
profile.invalidate(id=42)  # type: ignore[call-overload]


# -- coroutine functions


@cache.loader("profile:{user_id}:{lang}")
async def profile_async(user_id: int, lang: str = "ko") -> str | None:
    return None


@profile_async.bulk
async def _many(user_ids: Sequence[int], lang: str = "ko") -> Mapping[int, str]:
    return {}


async def functions() -> None:
    assert_type(await profile_async(42), str | None)
    assert_type(await profile_async.uncached(42, lang="en"), str | None)
    assert_type(await profile_async.refresh(42), str | None)
    assert_type(await profile_async.get_many([1, 2]), dict[Any, str | None])
    await profile_async.list([1, 2])
    await profile_async.invalidate(42)
    await profile_async("42")  # type: ignore[arg-type]
    await profile_async.invalidate(id=42)  # type: ignore[call-overload]


# -- rows


class OwnSession(Session):
    pass


class OwnAsyncSession(AsyncSession):
    pass


engine, async_engine = create_engine("sqlite://"), create_async_engine("sqlite+aiosqlite://")
sessions, own_sessions = sessionmaker(engine), sessionmaker(engine, class_=OwnSession)
async_sessions, own_async_sessions = async_sessionmaker(async_engine), async_sessionmaker(async_engine, class_=OwnAsyncSession)

users = cache.repository(User, sessions, ttl="10m")
assert_type(users.get(42), User | None)
assert_type(users.get_many([1, 2]), dict[Any, User | None])
assert_type(users.list([1, 2]), list[User])
assert_type(users.refresh(42), User | None)
assert_type(users.get(42, session=Session(engine)), User | None)
assert_type(cache.repository(User, own_sessions).get(42), User | None)
assert_type(users.save(User()), User)
assert_type(users.delete(42), bool)


@cache.query("front:{tag}:{n}", watch=[User], repository=users, ttl="30s")
def front(tag: str, n: int) -> Select[Any]:
    return select(User).limit(n)


assert_type(front("news", 3), list[User])
front("news")  # type: ignore[call-arg]
cache.loader("name:{id}", watch={User.id: "id"}, tags=["user:{id}"])
cache.loader("all", watch=[User])
cache.invalidate_table(User)
cache.invalidate_tag("user:42")

async_users = cache.repository(User, async_sessions, ttl=None)


async def rows() -> None:
    assert_type(await async_users.get(42), User | None)
    assert_type(await async_users.get_many([1, 2]), dict[Any, User | None])
    assert_type(await async_users.list([1, 2]), list[User])
    assert_type(await async_users.get(42, session=AsyncSession(async_engine)), User | None)
    assert_type(await cache.repository(User, own_async_sessions).get(42), User | None)
    await async_users.get(42, session=Session(engine))  # type: ignore[arg-type]


cache.create_outbox(engine)
cache.use_outbox("shop_outbox")


async def outbox() -> None:
    await cache.create_outbox(async_engine, "shop_outbox")


cache.create_outbox(sessions)  # type: ignore[call-overload]
cache.repository(User, engine)  # type: ignore[call-overload]
for factory in (sessions, own_sessions):
    cache.bind(factory)
for async_factory in (async_sessions, own_async_sessions):
    cache.bind(async_factory)
