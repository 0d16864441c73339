"""`Repository.save` and `Repository.delete`: a transaction, and what it makes untrue, in one call."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.exc import IntegrityError, UnboundExecutionError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.orm.exc import StaleDataError

from kvcluster import Cache, Client
from kvcluster.cache.repository import Repository
from kvcluster.errors import ConfigurationError, IllegalKey, IllegalValue
from kvcluster.testing.nodes import RunningNode
from tests.cache.shop import Everything, Order, User

Sessions = sessionmaker[Session]


@pytest.fixture(params=["bound", "not bound", "bound later"])
def users(cache: Cache, sessions: Sessions, request: pytest.FixtureRequest) -> Repository[User]:
    """User 1, in the cache, as are 2 and 3, who are not there."""
    with sessions.begin() as session:
        session.add(User(id=1, name="Kim", orders=[Order(id=5)]))
    if request.param == "bound":
        cache.bind(sessions)
    users = cache.repository(User, sessions)
    if request.param == "bound later":
        users.delete(2)
        cache.bind(sessions)
    assert [user and user.name for user in users.get_many([1, 2, 3]).values()] == ["Kim", None, None]
    return users


def test_a_row_is_new_changed_and_deleted(users: Repository[User], client: Client) -> None:
    before = client.statistics().total.deletes
    saved = users.save(User(id=2, name="Lee"))
    assert (saved.id, saved.name, saved.email) == (2, "Lee", None)
    user = users.get(2)
    assert user is not None
    user.name = "Park"
    assert users.save(user).name == "Park"
    assert [each.name for each in users.list([1, 2])] == ["Kim", "Park"]
    assert users.delete(2) is True
    assert users.delete(2) is False
    assert users.get(2) is None
    assert client.statistics().total.deletes == before + 3, "each once"
    assert users.save(User(name="numbered")).id == 2


def test_what_was_not_loaded_stays(users: Repository[User], sessions: Sessions, cache: Cache) -> None:
    user = users.get(1)
    assert user is not None
    user.email = "kim@example.com"
    users.save(user)
    with sessions() as session:
        assert [order.id for order in session.get_one(User, 1).orders] == [5]


def test_a_delete_does_to_its_rows_what_the_mapping_says(users: Repository[User], sessions: Sessions, cache: Cache) -> None:
    orders = cache.repository(Order, sessions)
    assert orders.get(5) is not None
    assert users.delete(1)
    assert orders.get(5) is None


def test_what_the_database_refuses_raises_and_changes_nothing(users: Repository[User], client: Client) -> None:
    users.save(User(id=1, name="Kim", email="a@b"))
    before = client.statistics().total.deletes
    with pytest.raises(IntegrityError):
        users.save(User(id=2, name="Lee", email="a@b"))
    assert users.get(2) is None
    assert client.statistics().total.deletes == before


def test_it_does_not_raise_because_of_the_cache(users: Repository[User], nodes: list[RunningNode]) -> None:
    for node in nodes:
        node.kill()
    assert users.save(User(id=1, name="Lee")).name == "Lee"
    assert users.get(1).name == "Lee"  # type: ignore[union-attr]


def test_listeners_of_the_factory_are_heard(users: Repository[User], sessions: Sessions) -> None:
    heard: list[Any] = []
    event.listen(sessions, "before_commit", heard.append)
    users.save(User(id=1, name="Lee"))
    assert len(heard) == 1


def test_it_writes_where_the_factory_is_configured_to_now(cache: Cache, engine: Engine) -> None:
    sessions = sessionmaker(engine)
    users = cache.repository(User, sessions)
    users.save(User(id=1, name="Kim"))
    sessions.configure(bind=None)
    with pytest.raises(UnboundExecutionError):
        users.save(User(id=1, name="Lee"))
    sessions.configure(bind=engine)
    assert users.save(User(id=1, name="Lee")).name == "Lee"


def test_with_a_version_nothing_of_others_is_undone(cache: Cache, sessions: Sessions, engine: Engine) -> None:
    class Base(DeclarativeBase):
        pass

    class Page(Base):
        __tablename__ = "pages"

        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str]
        version: Mapped[int] = mapped_column()
        __mapper_args__: ClassVar[dict[str, Any]] = {"version_id_col": version}

    Base.metadata.create_all(engine)
    pages = cache.repository(Page, sessions)
    pages.save(Page(id=1, title="first"))
    ours, others = pages.get(1), pages.get(1)
    assert ours is not None
    assert others is not None
    ours.title, others.title = "ours", "others'"
    pages.save(others)
    with pytest.raises(StaleDataError):
        pages.save(ours)
    assert [page.title for page in pages.list([1])] == ["others'"]


def test_columns_that_are_deferred_or_expressions(cache: Cache, sessions: Sessions) -> None:
    import uuid

    everything = cache.repository(Everything, sessions)
    id = uuid.uuid4()
    everything.save(Everything(id=id, text="t", essay="long"))
    row = everything.get(id)
    assert row is not None
    row.text = "u"
    everything.save(row)
    with sessions() as session:
        found = session.get_one(Everything, id)
        assert (found.text, found.essay) == ("u", "long")


def test_what_is_no_row_of_the_repository_is_not_written(users: Repository[User], sessions: Sessions) -> None:
    wrong: Any = Order(id=9)
    with pytest.raises(IllegalValue, match="repository of User saves those, not Order"):
        users.save(wrong)
    for id in ("1", wrong):
        with pytest.raises(IllegalKey, match=r"User\.id must be int"):
            users.delete(id)
    with sessions() as session:
        assert session.get(User, 1) is not None


def test_a_class_that_is_not_mapped_has_no_repository(cache: Cache, sessions: Sessions) -> None:
    with pytest.raises(ConfigurationError, match="must be a class mapped by SQLAlchemy"):
        cache.repository(int, sessions)
