"""Values come back equal and of exactly their types, or are refused before they are stored."""

from __future__ import annotations

import datetime
import decimal
import enum
import pickle
import sys
import zlib
from collections import Counter, OrderedDict, namedtuple
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from kvcluster import codec
from kvcluster.codec import PickleCodec, StandardCodec, Undecodable
from kvcluster.errors import ConfigurationError, IllegalValue, MissingExtra

text = st.text(alphabet=st.characters(exclude_categories=["Cs"]))
scalar = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), text, st.binary())
hashable = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), text, st.binary())
container = st.recursive(
    scalar, lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(hashable, inner, max_size=5)), max_leaves=20
)
value = st.one_of(st.binary(), text, st.integers(), container)


def exact(one: Any, other: Any) -> bool:
    """Equal, and of the same types throughout; 0.0 is not -0.0."""
    if type(one) is not type(other):
        return False
    if type(one) is list:
        return len(one) == len(other) and all(map(exact, one, other))
    if type(one) is dict:
        return exact(list(one.items()), list(other.items()))
    if type(one) is tuple:
        return all(map(exact, one, other))
    return repr(one) == repr(other)


@given(value=value)
@pytest.mark.parametrize(
    "one",
    [StandardCodec(), PickleCodec(), StandardCodec(zstd_above=0), PickleCodec(zstd_above=10)],
    ids=["standard", "pickle", "standard, zstd", "pickle, zstd"],
)
def test_values_come_back_exactly(one: StandardCodec, value: Any) -> None:
    data, flags = one.encode(value)
    assert type(data) is bytes
    assert 0 <= flags < 2**32
    assert exact(one.decode(data, flags), value)
    assert data or flags  # without either it would look like a lease's placeholder


@pytest.mark.parametrize(
    ("value", "data", "flags"),
    [
        (b"\r\n", b"\r\n", 0),
        (b"", b"", 32),
        ("김", b"\xea\xb9\x80", 16),
        ("", b"", 16),
        (-7, b"-7", 2),
        (True, b"\xc3", 64),
        (None, b"\xc0", 64),
        ([1, "a"], b"\x92\x01\xa1a", 64),
    ],
)
def test_bytes_and_flags(value: Any, data: bytes, flags: int) -> None:
    assert StandardCodec().encode(value) == (data, flags)


class Text(str):
    pass


class Number(int):
    pass


class Level(enum.IntEnum):
    LOW = 1


Pair = namedtuple("Pair", "x y")
loop: list[Any] = []
loop.append(loop)
deep: list[Any] = []
for _ in range(100_000):
    deep = [deep]

REFUSED = {
    "a tuple": (1, 2),
    "a tuple in a list": [(1, 2)],
    "a tuple as a key": {(1, 2): 3},
    "a set": {1, 2},
    "a decimal": decimal.Decimal("1.0"),
    "a datetime": datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC),
    "a date": [datetime.date(2024, 1, 1)],
    "a subclass of str": Text("a"),
    "a subclass of int": [Number(7)],
    "an enum": Level.LOW,
    "a namedtuple": Pair(1, 2),
    "a Counter": Counter("aab"),
    "an OrderedDict": OrderedDict(a=1),
    "a bytearray": bytearray(b"x"),
    "an object": object(),
    "a function": len,
    "an int of 65 bits in a list": [2**64],
    "a negative int of 65 bits in a list": [-(2**63) - 1],
    "a lone surrogate": "\ud800",
    "a lone surrogate in a list": ["\ud800"],
    "a list that holds itself": loop,
    "a list too deep": deep,
}


@pytest.mark.parametrize("value", REFUSED.values(), ids=REFUSED)
def test_what_would_not_come_back_is_refused(value: Any) -> None:
    with pytest.raises(IllegalValue, match="value "):
        StandardCodec().encode(value)


def test_the_refusal_names_the_type_and_the_way_out() -> None:
    with pytest.raises(IllegalValue, match=r"decimal\.Decimal.*PickleCodec"):
        StandardCodec().encode([decimal.Decimal("1.0")])


def test_long_integers_are_stored_while_python_prints_them() -> None:
    assert StandardCodec().decode(*StandardCodec().encode(10**4000)) == 10**4000
    with pytest.raises(IllegalValue, match="value"):
        StandardCodec().encode(10 ** (sys.get_int_max_str_digits() + 1))


def test_pickle_is_not_read_unless_asked_for() -> None:
    data = pickle.dumps({1, 2})
    for flags in (codec.PICKLE, codec.PICKLE | 4, codec.PICKLE | 8):
        with pytest.raises((Undecodable, ValueError, zlib.error)):
            StandardCodec().decode(data, flags)
    with pytest.raises(Undecodable, match=r"PickleCodec\(\)"):
        StandardCodec().decode(data, codec.PICKLE)
    assert PickleCodec().decode(data, codec.PICKLE) == {1, 2}


def test_pickle_keeps_what_msgpack_would_not() -> None:
    pickled = PickleCodec()
    for value in [(1, 2), {1, 2}, decimal.Decimal("1.0"), Pair(1, 2), Number(7), Text("a")]:
        assert exact(pickled.decode(*pickled.encode(value)), value)
    assert [pickled.encode(value)[1] for value in (b"x", "x", 7)] == [0, 16, 2]


@given(data=st.binary(), flags=st.integers(0, 2**32 - 1).filter(lambda flags: not flags & codec.PICKLE))
def test_garbage_is_a_value_or_an_error_of_its_own_kind(data: bytes, flags: int) -> None:
    try:
        StandardCodec().decode(data, flags)
    except Exception as error:
        assert isinstance(error, (ValueError, zlib.error, zstandard.ZstdError))  # noqa: PT017


# -- compression


def test_zstd_above_a_size_and_where_it_helps() -> None:
    packing = StandardCodec(zstd_above=100)
    data, flags = packing.encode("x" * 10_000)
    assert flags == codec.TEXT | codec.ZSTD
    assert len(data) < 100
    assert StandardCodec().decode(data, flags) == "x" * 10_000
    assert packing.encode("x" * 100) == (b"x" * 100, codec.TEXT)
    noise = zlib.compress(bytes(range(256)))
    assert packing.encode(noise) == (noise, codec.BYTES)


def test_a_zstd_bomb_is_refused() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(codec.MAX_DECOMPRESSED + 1))
    assert len(bomb) < 10_000
    with pytest.raises(Undecodable, match="larger than"):
        StandardCodec().decode(bomb, codec.ZSTD)
    fits = zstandard.ZstdCompressor().compress(bytes(codec.MAX_DECOMPRESSED))
    assert len(StandardCodec().decode(fits, codec.ZSTD)) == codec.MAX_DECOMPRESSED


def test_a_zstd_bomb_that_hides_its_size_is_refused() -> None:
    packer = zstandard.ZstdCompressor().compressobj()
    bomb = packer.compress(bytes(codec.MAX_DECOMPRESSED + 1)) + packer.flush()
    with pytest.raises(Undecodable, match="does not say its size"):
        StandardCodec().decode(bomb, codec.ZSTD)


def test_a_zlib_bomb_is_refused() -> None:
    bomb = zlib.compress(bytes(codec.MAX_DECOMPRESSED + 1))
    with pytest.raises(Undecodable, match="larger than"):
        StandardCodec().decode(bomb, codec.ZLIB)
    fits = zlib.compress(bytes(codec.MAX_DECOMPRESSED))
    assert len(StandardCodec().decode(fits, codec.ZLIB)) == codec.MAX_DECOMPRESSED


@pytest.mark.parametrize("flags", [codec.ZLIB, codec.ZSTD])
def test_cut_compressed_values_are_refused(flags: int) -> None:
    data = zlib.compress(b"x" * 1000) if flags == codec.ZLIB else zstandard.ZstdCompressor().compress(b"x" * 1000)
    for end in range(len(data)):
        with pytest.raises((Undecodable, zlib.error, zstandard.ZstdError)):
            StandardCodec().decode(data[:end], flags)


def test_a_threshold_below_zero_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="zstd_above"):
        StandardCodec(zstd_above=-1)


def test_without_zstandard_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingExtra, match=r"pip install 'kvcluster\[zstd\]'"):
        StandardCodec(zstd_above=1)
    with pytest.raises(MissingExtra):
        StandardCodec().decode(b"", codec.ZSTD)
