"""Types for the tests of typed values, in a module that other processes can import."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import uuid
from typing import Generic, Literal, NamedTuple, NotRequired, TypedDict, TypeVar

import msgspec
import pydantic

T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Right(enum.Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: int
    y: float = 0.0


class Draft(TypedDict):
    title: str
    tags: NotRequired[set[str]]


class Line(msgspec.Struct, frozen=True):
    sku: str
    price: decimal.Decimal


class Cat(msgspec.Struct, tag=True):
    lives: int


class Dog(msgspec.Struct, tag=True):
    name: str


class Address(pydantic.BaseModel):
    street: str = pydantic.Field(alias="Street")
    since: datetime.date | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Order:
    id: uuid.UUID
    placed: datetime.datetime
    lines: tuple[Line, ...]
    colours: dict[Colour, int]
    address: Address | None = None
    status: Literal["new", "paid"] = "new"


@dataclasses.dataclass
class Tree:
    value: int | str | None
    children: list[Tree] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Page(Generic[T]):
    items: list[T]
    total: int


class Plainly:
    """A class of whose structure nothing is known."""


def order() -> Order | None: ...


def page() -> Page[Point]: ...


def tree() -> dict[tuple[int, str], frozenset[Level] | Tree]: ...
