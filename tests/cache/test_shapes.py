"""Typed values: exactly what the annotation says comes back, or nothing is stored."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import functools
import os
import pickle
import subprocess
import sys
import typing
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NewType, TypedDict
from zoneinfo import ZoneInfo

import msgspec
import pydantic
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kvcluster.cache.repository import RowCodec
from kvcluster.cache.shapes import UNTYPED, Shape, codec_of, difference, shape_of
from kvcluster.codec import BYTES, INTEGER, MSGPACK, TEXT, ZSTD, PickleCodec, StandardCodec, Undecodable
from kvcluster.errors import ConfigurationError, IllegalValue
from tests.cache import shapes as kinds
from tests.cache.shapes import Address, Cat, Colour, Dog, Draft, Level, Line, Order, Page, Plainly, Point, Right, Tree

if typing.TYPE_CHECKING:
    from decimal import Decimal as OnlyForCheckers

BASE = StandardCodec()
KST = datetime.timezone(datetime.timedelta(hours=9))
ORDER = Order(
    id=uuid.UUID(int=7),
    placed=datetime.datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=datetime.UTC),
    lines=(Line("a", decimal.Decimal("1.20")), Line("b", decimal.Decimal("1E+3"))),
    colours={},
    address=Address(Street="Main", since=datetime.date(2020, 1, 1)),
)


def returned(annotation: Any, value: Any, base: Any = BASE) -> Any:
    """What comes back of a value, with all it is made of compared."""
    codec = codec_of(annotation, base)
    copy = codec.decode(*codec.encode(value))
    assert repr(copy) == repr(value)
    assert type(copy) is type(value)
    return copy


# Values of random types. A strategy gives an annotation and a strategy of its values.

Case = tuple[Any, st.SearchStrategy[Any]]

INTEGERS = st.integers(-(1 << 63), (1 << 64) - 1)
TEXTS = st.text(max_size=5)
NAIVE = st.datetimes().map(lambda moment: moment.replace(fold=0))
MOMENTS = NAIVE | NAIVE.map(lambda moment: moment.replace(tzinfo=datetime.UTC))
DECIMALS = st.decimals(allow_nan=False)
LINES = st.builds(Line, TEXTS, DECIMALS)
HASHABLE: list[Case] = [
    (int, INTEGERS),
    (str, TEXTS),
    (bytes, st.binary(max_size=5)),
    (bool, st.booleans()),
    (decimal.Decimal, DECIMALS),
    (uuid.UUID, st.uuids()),
    (datetime.date, st.dates()),
    (datetime.datetime, MOMENTS),
    (
        datetime.time,
        st.times().map(lambda time: time.replace(fold=0)) | st.times().map(lambda time: time.replace(fold=0, tzinfo=KST)),
    ),
    (datetime.timedelta, st.timedeltas()),
    (Level, st.sampled_from(Level)),
    (Point, st.builds(Point, INTEGERS, st.floats(allow_nan=False))),
    (Line, LINES),
    (Literal["a", 1, None], st.sampled_from(["a", 1, None])),
    (NewType("UserId", int), INTEGERS),
]
TREES = st.recursive(
    st.builds(Tree, st.none() | INTEGERS | TEXTS),
    lambda inner: st.builds(Tree, INTEGERS, st.lists(inner, max_size=2)),
    max_leaves=4,
)
ADDRESSES = st.builds(lambda street, since: Address(Street=street, since=since), TEXTS, st.none() | st.dates())
ORDERS = st.builds(
    Order,
    st.uuids(),
    MOMENTS,
    st.lists(LINES, max_size=2).map(tuple),
    st.dictionaries(st.sampled_from(Colour), INTEGERS),
    st.none() | ADDRESSES,
    st.sampled_from(["new", "paid"]),
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | INTEGERS | st.floats() | TEXTS | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS | INTEGERS, inner, max_size=3),
    max_leaves=5,
)
WHOLE: list[Case] = [
    *HASHABLE,
    (float, st.floats()),
    (None, st.none()),
    (Right, st.sampled_from([Right.READ, Right.WRITE, Right.READ | Right.WRITE])),
    (Draft, st.fixed_dictionaries({"title": TEXTS}, optional={"tags": st.sets(TEXTS, max_size=3)})),
    (Tree, TREES),
    (Order, ORDERS),
    (Address, ADDRESSES),
    (Cat | Dog, st.builds(Cat, INTEGERS) | st.builds(Dog, TEXTS)),
    (Any, ANYTHING),
    (dict, st.dictionaries(TEXTS, ANYTHING, max_size=3)),
    (Page[Line], st.builds(Page, st.lists(LINES, max_size=2), INTEGERS)),
    (int | str | None, st.none() | INTEGERS | TEXTS),
]


def contained(inner: st.SearchStrategy[Case]) -> st.SearchStrategy[Case]:
    def wrapped(case: Case, key: Case) -> st.SearchStrategy[Case]:
        kind, values = case
        keyed, keys = key
        few = st.lists(values, max_size=3)
        return st.sampled_from(
            [
                (list[kind], few),
                (tuple[kind, ...], few.map(tuple)),
                (tuple[kind, keyed], st.tuples(values, keys)),
                (dict[keyed, kind], st.dictionaries(keys, values, max_size=3)),
                (set[keyed], st.sets(keys, max_size=3)),
                (frozenset[keyed], st.frozensets(keys, max_size=3)),
                (typing.Optional[kind], st.none() | values),  # noqa: UP045  # `None | kind` is no type where kind is None
                (Page[kind], st.builds(Page, few, INTEGERS)),
                (Sequence[kind], few),
                (Mapping[keyed, kind], st.dictionaries(keys, values, max_size=3)),
            ]
        )

    return st.tuples(inner, st.sampled_from(HASHABLE)).flatmap(lambda pair: wrapped(*pair))


CASES = st.recursive(st.sampled_from(WHOLE), contained, max_leaves=3)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_random_values_of_random_types_come_back_exactly(data: st.DataObject) -> None:
    annotation, values = data.draw(CASES)
    value = data.draw(values)
    codec = codec_of(annotation, BASE)
    encoded, flags = codec.encode(value)
    copy = codec.decode(encoded, flags)
    assert difference(value, copy) is None
    assert repr(sorted(copy, key=repr) if isinstance(copy, (set, frozenset)) else copy) == repr(
        sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value
    ) or "{" in repr(value), "sets inside have no order to compare by their repr"
    assert codec.encode(copy)[1] == flags


@settings(max_examples=200, deadline=None)
@given(st.data(), st.binary(max_size=40), st.integers(0, 1023))
def test_corrupted_bytes_are_undecodable_or_some_value_and_nothing_else(data: st.DataObject, noise: bytes, flags: int) -> None:
    annotation, values = data.draw(st.sampled_from([case for case in WHOLE if case[0] is not Any]))
    codec = codec_of(annotation, BASE)
    encoded, stored = codec.encode(data.draw(values))
    cut = data.draw(st.integers(0, len(encoded)))
    for garbled, kind in ((noise, stored), (encoded[:cut] + noise, stored), (noise + encoded[cut:], stored), (encoded, flags)):
        try:
            codec.decode(garbled, kind)
        except Undecodable:
            continue


@pytest.mark.parametrize("data", [b"", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\x91" * 100_000, b"\xa1\xff", b"\xc1"])
@pytest.mark.parametrize("annotation", [dict, list[int], Order, Address, Tree, Page[Any]])
def test_hostile_bytes_are_undecodable(annotation: Any, data: bytes) -> None:
    with pytest.raises(Undecodable):
        codec_of(annotation, BASE).decode(data, MSGPACK)


@dataclasses.dataclass
class Touchy:
    value: int

    def __post_init__(self) -> None:
        if self.value == 13:
            raise RuntimeError("bad luck")


def test_a_models_own_error_is_undecodable_too() -> None:
    codec = codec_of(Touchy, BASE)
    assert codec.decode(*codec.encode(Touchy(1))) == Touchy(1)
    with pytest.raises(Undecodable, match="bad luck"):
        codec.decode(msgspec.msgpack.encode({"value": 13}), MSGPACK)


# The form


@pytest.mark.parametrize(
    ("annotation", "value", "data", "flags"),
    [
        (str, "서울", "서울".encode(), TEXT),
        (int, 1 << 70, b"%d" % (1 << 70), INTEGER),
        (bytes, b"\x00", b"\x00", BYTES),
        (str | None, "x", b"x", TEXT),
        (list[str] | str, "x", b"x", TEXT),
        (str | None, None, b"\xc0", MSGPACK),
        (bool, True, b"\xc3", MSGPACK),
        (Point, Point(1, 2.0), msgspec.msgpack.encode([1, 2.0]), MSGPACK),
        (Any, "x", b"x", TEXT),
    ],
)
def test_the_form_on_the_node(annotation: Any, value: Any, data: bytes, flags: int) -> None:
    codec = codec_of(annotation, BASE)
    assert codec.encode(value) == (data, flags)
    assert returned(annotation, value) == value


@pytest.mark.parametrize("annotation", [str, int, bytes, str | None, Any, object, None, int | bytes])
def test_plain_values_need_no_fingerprint(annotation: Any) -> None:
    assert Shape(annotation).fingerprint == UNTYPED


def test_compression_is_the_base_codecs() -> None:
    codec = codec_of(list[Line], StandardCodec(zstd_above=100))
    lines = [Line("sku", decimal.Decimal(number)) for number in range(200)]
    data, flags = codec.encode(lines)
    assert flags == MSGPACK | ZSTD
    assert codec.decode(data, flags) == lines
    with pytest.raises(Undecodable):
        codec.decode(data[:-5], flags)


def test_a_pickle_is_no_typed_value() -> None:
    pickled = pickle.dumps(ORDER)
    for base in (StandardCodec(), PickleCodec()):
        with pytest.raises(Undecodable):
            codec_of(Order, base).decode(pickled, 1)
    assert returned(Order, ORDER, PickleCodec()) == ORDER
    assert PickleCodec().decode(*codec_of(Any, PickleCodec()).encode(ORDER)) == ORDER


def test_a_plain_value_of_another_type_is_undecodable() -> None:
    for annotation, value in ((str, 5), (int, "5"), (uuid.UUID, str(uuid.UUID(int=1))), (Colour, "red"), (Literal["a"], "a")):
        with pytest.raises(Undecodable):
            codec_of(annotation, BASE).decode(*BASE.encode(value))


# What cannot be stored


class Child(Line, frozen=True):
    pass


@pytest.mark.parametrize(
    ("annotation", "value", "reason"),
    [
        (int, "1", "a str cannot be stored as int: Expected `int`, got `str`"),
        (int, True, "a bool cannot be stored as int"),
        (str, None, "a NoneType cannot be stored as str"),
        (str, Colour.RED, "a Colour cannot be stored as str"),
        (float, 1, "would come back as float instead of int"),
        (list[int], (1, 2), "would come back as list instead of tuple"),
        (list[int], [1, True], "Expected `int`, got `bool`"),
        (int | float, Level.LOW, "would come back as int instead of Level"),
        (list[str], ["a", 1], r"Expected `str`, got `int` - at `\$\[1\]`"),
        (Line, Child("a", decimal.Decimal(1)), "would come back as Line instead of Child"),
        (Page[Any], Page([(1, 2)], 2), r"value\.items\[0\] would come back as list instead of tuple"),
        (dict[str, Any], {"a": {"b": {1}}}, r"value\['a'\]\['b'\] would come back as list instead of set"),
        (dict[Any, int], {Colour.RED: 1}, " key <Colour.RED: 'red'> would come back as str"),
        (Draft, {"title": "a", "other": 1}, "parts added or missing"),
        (dict[str, int], {"a": 1 << 64}, "2\\*\\*64"),
        (Order, dataclasses.replace(ORDER, status="void"), "void"),
        (Order, dataclasses.replace(ORDER, placed=ORDER.placed.astimezone(KST)), r"\.placed would come back as another datetime"),
        (datetime.datetime, datetime.datetime(2024, 1, 1, tzinfo=ZoneInfo("Europe/London")), "another datetime"),
        (datetime.datetime, datetime.datetime(2024, 1, 1, fold=1), "another datetime"),  # noqa: DTZ001
        (list[Any], [Plainly()], "a Plainly has no form of its own"),
        (set[float], {1.5, 2}, r"value\[\d\] would come back as float instead of int"),
        (Any, Plainly(), "Encoding objects"),
        (Address, Address.model_construct(street=5), "street"),
        (str, "\ud800", "surrogates not allowed"),
    ],
)
def test_what_would_not_come_back_is_not_stored(annotation: Any, value: Any, reason: str) -> None:
    with pytest.raises(IllegalValue, match=reason):
        codec_of(annotation, BASE).encode(value)


def test_a_value_that_holds_itself_is_not_stored() -> None:
    tree = Tree(1)
    tree.children.append(tree)
    with pytest.raises(IllegalValue):
        codec_of(Tree, BASE).encode(tree)


@dataclasses.dataclass
class Counted:
    number: int

    def __post_init__(self) -> None:
        self.number += 1


def test_a_value_that_changes_as_it_is_made_is_not_stored() -> None:
    with pytest.raises(IllegalValue, match=r"value\.number would come back as another int"):
        codec_of(Counted, BASE).encode(Counted(1))


class Secret(pydantic.BaseModel):
    password: pydantic.SecretStr


class Noted(pydantic.BaseModel):
    name: str
    _note: str = pydantic.PrivateAttr("")


def test_what_a_model_keeps_to_itself_is_not_lost_silently() -> None:
    with pytest.raises(IllegalValue):
        codec_of(Secret, BASE).encode(Secret(password="hunter2"))  # type: ignore[arg-type]
    noted = Noted(name="a")
    assert returned(Noted, noted) == noted
    noted._note = "b"
    with pytest.raises(IllegalValue, match="__pydantic_private__"):
        codec_of(Noted, BASE).encode(noted)


def test_zones_of_one_offset_are_their_offset() -> None:
    moment = datetime.datetime(2024, 1, 1, tzinfo=ZoneInfo("UTC"))
    codec = codec_of(datetime.datetime, BASE)
    assert codec.decode(*codec.encode(moment)).isoformat() == moment.isoformat()


# What cannot be declared


class Mixed(enum.Enum):
    ONE = 1
    TWO = "two"


@dataclasses.dataclass
class Holder:
    thing: list[Plainly]


@dataclasses.dataclass
class Left:
    x: int


@pytest.mark.parametrize(
    ("annotation", "named"),
    [
        (Plainly, r"tests\.cache\.shapes\.Plainly is not a type"),
        (list[Plainly] | None, "Plainly"),
        (Holder, "Plainly"),
        (Left | Tree, "more than one dataclass"),
        (Line | Tree, "more than one dict-like"),
        (Mixed, "Mixed"),
        (dict[Mixed, int], "Mixed"),
        (str | datetime.date, "more than one str-like"),
        (list[int] | set[int], "more than one array-like"),
        (Callable[[], int], "Callable"),
        (Iterable[int], "Iterable"),
        (type[int], "type"),
        (complex, "complex"),
        (typing.Never, "Never"),
        ("Nowhere", "Nowhere"),
        (Literal[Colour.RED], "Literal"),
    ],
)
def test_what_cannot_be_rebuilt_is_refused_at_declaration(annotation: Any, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        codec_of(annotation, BASE)


def test_names_that_cannot_be_resolved() -> None:
    class Local:
        pass

    def local() -> Local: ...
    def checkers() -> OnlyForCheckers: ...

    for function in (local, checkers):
        with pytest.raises(ConfigurationError, match=f"{function.__name__} cannot be resolved.*top level"):
            shape_of(function)


# Functions


def named(session: OnlyForCheckers) -> Order | None: ...


async def awaited() -> list[Point]: ...


def unsaid(): ...  # type: ignore[no-untyped-def]


def anything() -> Any: ...


class Callable_:  # noqa: N801
    def __call__(self) -> Point: ...  # type: ignore[empty-body]

    def method(self) -> Point: ...  # type: ignore[empty-body]


@functools.wraps(awaited)
def wrapper(*args: Any) -> Any: ...


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (awaited, "list[Point(x: int, y: float)]"),
        (wrapper, "list[Point(x: int, y: float)]"),
        (functools.partial(awaited), "list[Point(x: int, y: float)]"),
        (Callable_(), "Point(x: int, y: float)"),
        (Callable_().method, "Point(x: int, y: float)"),
        (unsaid, None),
        (anything, None),
        (lambda: 1, None),
        (len, None),
    ],
)
def test_the_shape_of_a_function(function: Any, text: str | None) -> None:
    assert shape_of(function).text == text


def test_only_the_return_annotation_must_resolve() -> None:
    codec = codec_of(named, BASE)
    assert codec.decode(*codec.encode(ORDER)) == ORDER
    assert codec.decode(*codec.encode(None)) is None
    assert repr(codec).startswith("<TypedCodec None | Order(id: UUID, placed: datetime, lines: tuple[Line(")
    with pytest.raises(IllegalValue, match=r"a dict cannot be stored as the result of named \(.*Order \| None\): Object missing"):
        codec.encode({})


def test_an_unannotated_function_has_what_the_base_codec_has() -> None:
    codec = codec_of(unsaid, BASE)
    assert codec.encode([1, {"a": None}]) == BASE.encode([1, {"a": None}])
    with pytest.raises(IllegalValue):
        codec.encode((1, 2))


def test_pydantic_is_not_imported_for_what_names_none_of_its_models() -> None:
    script = (
        "import sys, dataclasses, kvcluster.cache.shapes as s\n"
        "@dataclasses.dataclass\nclass A:\n    x: int\n"
        "s.codec_of(A, None).shape.pack(A(1))\nassert 'pydantic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


# Versions


@dataclasses.dataclass
class Older:
    id: int
    name: str
    nick: str = ""


@dataclasses.dataclass
class Newer:
    id: int
    nick: str
    tags: list[str] = dataclasses.field(default_factory=list)
    name: str = "?"


class OlderStruct(msgspec.Struct):
    id: int
    name: str


class NewerStruct(msgspec.Struct):
    id: int
    born: datetime.date | None = None


class OlderModel(pydantic.BaseModel):
    id: int
    name: str


class NewerModel(pydantic.BaseModel):
    id: int
    born: datetime.date | None = None


class OlderDict(TypedDict):
    id: int
    name: str


class NewerDict(TypedDict):
    id: int


class Required(msgspec.Struct):
    id: int
    must: str


class OlderTuple(NamedTuple):
    a: int
    b: int


class NewerTuple(NamedTuple):
    a: int
    c: int
    b: int = 0


@settings(deadline=None)
@given(INTEGERS, TEXTS, TEXTS)
def test_two_versions_of_a_shape_read_each_other(id: int, name: str, nick: str) -> None:
    older, newer = codec_of(Older | None, BASE), codec_of(Newer | None, BASE)
    assert newer.decode(*older.encode(Older(id, name, nick))) == Newer(id, nick, [], name)
    assert older.decode(*newer.encode(Newer(id, nick, ["a"], name))) == Older(id, name, nick)
    assert newer.shape.reads(older.fingerprint)
    assert older.fingerprint != newer.fingerprint
    assert newer.decode(*older.encode(None)) is None


def test_fields_added_and_removed() -> None:
    def read(newer: Any, older: Any, value: Any) -> Any:
        return codec_of(newer, BASE).decode(*codec_of(older, BASE).encode(value))

    assert read(NewerStruct, OlderStruct, OlderStruct(1, "a")) == NewerStruct(1)
    assert read(NewerModel, OlderModel, OlderModel(id=1, name="a")) == NewerModel(id=1)
    assert read(NewerDict, OlderDict, {"id": 1, "name": "a"}) == {"id": 1}
    for newer, older, value in (
        (Required, NewerStruct, NewerStruct(1)),
        (OlderModel, NewerModel, NewerModel(id=1)),
        (OlderDict, NewerDict, {"id": 1}),
        (Older, str, "plain"),
        (Order, Tree, Tree(1)),
    ):
        with pytest.raises(Undecodable):
            read(newer, older, value)


def test_values_whose_fields_have_only_an_order_are_read_by_their_own_shape_only() -> None:
    older, newer = Shape(list[OlderTuple]), Shape(list[NewerTuple])
    assert newer.unpack(older.pack([OlderTuple(1, 2)])) == [NewerTuple(1, c=2)], "which is wrong, so it must not be tried"
    assert not newer.reads(older.fingerprint)
    assert newer.reads(newer.fingerprint)
    assert not newer.reads(UNTYPED)
    assert not Shape(Any).reads(newer.fingerprint), "an untyped reader would make a tuple a list"
    assert Shape(Any).reads(UNTYPED)
    assert Shape(Older).reads(UNTYPED), "values from before the annotation"


# Fingerprints


class Ring(NamedTuple):
    next: list[Ring]


FINGERPRINTED = [kinds.order, kinds.page, kinds.tree, Draft, Cat | Dog, Ring, Right, set[uuid.UUID], Secret]


def fingerprints() -> str:
    return " ".join(shape_of(each).fingerprint.hex() for each in FINGERPRINTED)


@pytest.mark.parametrize("seed", ["0", "1", "12345"])
def test_a_fingerprint_is_the_same_in_every_process(seed: str) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
    script = "from tests.cache.test_shapes import fingerprints; print(fingerprints())"
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, env=environment, cwd=root, timeout=60
    )
    assert result.stdout.strip() == fingerprints()


def test_a_fingerprint_is_of_this_structure() -> None:
    assert Shape(Line).text == "Line(sku: str, price: Decimal)"
    assert Shape(Line).fingerprint.hex() == "542cdb0f", "what was stored by a release before is known by it"
    assert Shape(Cat | None | Dog).fingerprint == Shape(None | Dog | Cat).fingerprint
    different = [
        Older,
        Newer,
        OlderStruct,
        list[Older],
        tuple[Older, ...],
        Page[int],
        Page[str],
        Colour,
        Level,
        Tree,
        Order,
        Address,
    ]
    assert len({Shape(each).fingerprint for each in different}) == len(different)


# Differences


@settings(deadline=None)
@given(ANYTHING, ANYTHING)
def test_a_difference_is_found_where_the_representations_differ(one: Any, other: Any) -> None:
    assert difference(one, other) is None or repr(one) != repr(other)
    assert (difference(one, other) is None) == (repr(one).replace("-0.0", "0.0") == repr(other).replace("-0.0", "0.0"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (decimal.Decimal("1.0"), decimal.Decimal("1.00")),
        (1, True),
        (1.0, 1),
        ({1: 2, 3: 4}, {3: 4, 1: 2}),
        ({(1, 2)}, {(1, 3)}),
        (Page([Line("a", decimal.Decimal(1))], 1), Page([Line("a", decimal.Decimal("1.0"))], 1)),
        (datetime.time(1, tzinfo=ZoneInfo("Asia/Seoul")), datetime.time(1)),
        (ORDER.placed, ORDER.placed.astimezone(KST)),
        (ORDER.placed, ORDER.placed.replace(tzinfo=None)),
        (Plainly(), Plainly()),
    ],
)
def test_what_is_equal_or_looks_alike_is_told_apart(one: Any, other: Any) -> None:
    assert difference(one, other)
    assert difference([one], [other])
    assert difference(one, one) is None


# Rows


ZONES = st.sampled_from([KST, ZoneInfo("Asia/Seoul"), ZoneInfo("Europe/London"), datetime.UTC])


@settings(deadline=None)
@given(NAIVE, ZONES)
def test_a_rows_moment_keeps_its_zone(naive: datetime.datetime, zone: datetime.tzinfo) -> None:
    assume(1950 < naive.year < 9999)
    moment = naive.replace(tzinfo=datetime.UTC).astimezone(zone)
    codec = RowCodec({"id": int, "at": datetime.datetime | None})
    for at in (moment, moment.replace(tzinfo=None, fold=0), None):
        row = codec.decode(*codec.encode({"id": 1, "at": at}))
        assert row is not None
        assert difference(at, row["at"]) is None
    data, flags = codec.encode({"id": 1, "at": moment.astimezone(ZoneInfo("Asia/Seoul"))})
    with pytest.raises(Undecodable):
        codec.decode(data.replace(b"Asia/Seoul", b"Asia/Sejul"), flags)


def test_a_row_in_a_zone_that_has_no_name_is_not_stored() -> None:
    class Zone(datetime.tzinfo):
        def utcoffset(self, moment: datetime.datetime | None) -> datetime.timedelta | None:
            return None if moment is None else datetime.timedelta(hours=moment.month)

    codec = RowCodec({"at": datetime.datetime})
    with pytest.raises(IllegalValue, match="zone"):
        codec.encode({"at": datetime.datetime(2024, 1, 1, tzinfo=Zone())})


def test_object_inside_a_type_is_refused_where_it_is_declared() -> None:
    assert Shape(object).text is None
    with pytest.raises(ConfigurationError, match="say Any"):
        Shape(dict[str, object])
