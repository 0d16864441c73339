"""The database that the cache's tests read through to."""

from __future__ import annotations

import datetime
import decimal
import enum
import uuid
from pathlib import Path
from typing import Any, ClassVar

from sqlalchemy import JSON, Engine, ForeignKey, LargeBinary, Numeric, String, create_engine, event
from sqlalchemy.orm import DeclarativeBase, Mapped, column_property, mapped_column, relationship


class Base(DeclarativeBase):
    type_annotation_map: ClassVar[dict[Any, Any]] = {str: String(200)}  # MariaDB wants a length


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class User(Base):
    __tablename__ = "user"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    email: Mapped[str | None] = mapped_column(unique=True)
    orders: Mapped[list[Order]] = relationship(cascade="all, delete-orphan")


class Order(Base):
    __tablename__ = "order"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int | None] = mapped_column(ForeignKey("user.id"))


class Everything(Base):
    """A column of each type."""

    __tablename__ = "everything"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    moment: Mapped[datetime.datetime | None]
    day: Mapped[datetime.date | None]
    time: Mapped[datetime.time | None]
    span: Mapped[datetime.timedelta | None]
    price: Mapped[decimal.Decimal | None] = mapped_column(Numeric(12, 4))
    other: Mapped[uuid.UUID | None]
    colour: Mapped[Colour | None]
    picture: Mapped[bytes | None] = mapped_column(LargeBinary)
    flag: Mapped[bool | None]
    ratio: Mapped[float | None]
    number: Mapped[int | None]
    text: Mapped[str | None]
    document: Mapped[Any] = mapped_column("document_", JSON, nullable=True)
    essay: Mapped[str | None] = mapped_column(deferred=True)


Everything.shout = column_property(Everything.__table__.c.text + "!")  # type: ignore[attr-defined]


class Country(Base):
    __tablename__ = "country"

    code: Mapped[str] = mapped_column("iso", primary_key=True)
    name: Mapped[str]


def engine_of(path: Path, **options: Any) -> Engine:
    """A SQLite file in WAL mode: readers never wait for a writer, and see the snapshot that they began with."""
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 30}, **options)

    @event.listens_for(engine, "connect")
    def _(connection: Any, record: object) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=OFF")

    return engine


class Selects:
    """The SELECT statements that an engine was sent."""

    def __init__(self, engine: Engine) -> None:
        self.statements: list[str] = []
        event.listen(engine, "before_cursor_execute", self._note)

    def _note(self, connection: object, cursor: object, statement: str, *rest: object) -> None:
        if statement.startswith("SELECT"):
            self.statements.append(statement)

    def __len__(self) -> int:
        return len(self.statements)
