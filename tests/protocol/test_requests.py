"""What is sent, as the literal lines of doc/protocol.txt; and keys, none of which may meet another's."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvcluster.errors import IllegalKey
from kvcluster.placement import Placement, placement
from kvcluster.protocol import requests
from kvcluster.protocol.requests import BinaryKey, unusual_key, wire_key
from kvcluster.stats.counters import Counters
from tests.protocol.twins import TWINS, needs_native, twin


@pytest.fixture(scope="module", params=TWINS)
def hot(request: pytest.FixtureRequest) -> ModuleType:
    return twin(request.param)


# -- encoders


@pytest.mark.parametrize(
    ("sent", "line"),
    [
        (requests.meta_get(b"a", b"v f t c"), b"mg a v f t c\r\n"),
        (requests.meta_get(BinaryKey(b"a b"), b"v"), b"mg YSBi v b\r\n"),
        (requests.meta_set(b"a", b"xyz", b"T60 F16"), b"ms a 3 T60 F16\r\nxyz\r\n"),
        (requests.meta_set(b"a", b"", b"T0 F32"), b"ms a 0 T0 F32\r\n\r\n"),
        (requests.meta_set(b"a", b"1\r\n2", b"T0"), b"ms a 4 T0\r\n1\r\n2\r\n"),
        (requests.meta_set(BinaryKey(b"\r\n"), b"x", b"T0"), b"ms DQo= 1 T0 b\r\nx\r\n"),
        (requests.meta_delete(b"a"), b"md a\r\n"),
        (requests.meta_delete(b"a", b"I C7"), b"md a I C7\r\n"),
        (requests.meta_delete(BinaryKey(b" ")), b"md IA== b\r\n"),
        (requests.meta_arithmetic(b"n", 2, b"I", b"q"), b"ma n MI D2 v q\r\n"),
        (requests.meta_arithmetic(BinaryKey(b"n m"), 2**64 - 1, b"D", b"O7"), b"ma biBt MD D18446744073709551615 v O7 b\r\n"),
        (requests.meta_sets([], [], b"T0"), b""),
        (requests.NOOP, b"mn\r\n"),
    ],
)
def test_encoders_give_these_lines(sent: bytes, line: bytes) -> None:
    assert sent == line


@pytest.mark.parametrize(
    ("wires", "tokens", "line"),
    [
        ((b"a",), False, b"get a\r\n"),
        ([b"a", b"b:1"], False, b"get a b:1\r\n"),
        ([b"a", b"b"], True, b"gets a b\r\n"),
    ],
)
def test_a_read_is_this_line(hot: ModuleType, wires: list[bytes], tokens: bool, line: bytes) -> None:
    fetch = hot.Fetch(wires, range(len(wires)), None, {}, tokens)
    assert fetch.payload == line
    assert list(fetch.wires) == list(wires)
    assert list(fetch.names) == [*range(len(wires))]


def test_a_read_has_as_many_names_as_keys(hot: ModuleType) -> None:
    with pytest.raises(ValueError, match="equally many"):
        hot.Fetch([b"a", b"b"], ["A"], None, {})


def test_what_a_read_counts(hot: ModuleType) -> None:
    fetch, counters = hot.Fetch([b"a", b"b", b"c", b"d"], "abcd", None, {"a": 1, "other": 2}), Counters()
    fetch.found, fetch.doubtful, fetch.undecodable, fetch.refusal = 1, [1], 1, b"SERVER_ERROR"
    fetch.settle(counters)
    assert (counters.hits, counters.misses, counters.undecodable, counters.errors) == (1, 2, 1, 1)
    fetch.fail(counters)
    assert (counters.hits, counters.misses) == (1, 6)
    assert (fetch.found, fetch.doubtful, fetch.undecodable, fetch.refusal, fetch.values) == (0, None, 0, None, {"other": 2})


def test_many_sets_are_the_lines_of_each(hot: ModuleType) -> None:
    wires = [b"a", BinaryKey(b"a b"), b"c"]
    values = [(b"xyz", 16), (b"7", 2), (b"", 2**32 - 1)]
    assert hot.set_lines(wires, values, b"T60 q", requests._key) == (
        b"ms a 3 T60 q F16\r\nxyz\r\nms YSBi 1 T60 q F2 b\r\n7\r\nms c 0 T60 q F4294967295\r\n\r\n"
    )


@pytest.mark.parametrize("size", [9, 10, 99, 100, 1023, 10**6])
def test_lengths_of_any_number_of_digits(hot: ModuleType, size: int) -> None:
    assert hot.set_lines([b"k"], [(bytes(size), 0)], b"T0", requests._key) == b"ms k %d T0 F0\r\n%b\r\n" % (size, bytes(size))


@pytest.mark.parametrize("values", [[], [(b"x", 0)] * 2])
def test_as_many_values_as_keys(hot: ModuleType, values: list[tuple[bytes, int]]) -> None:
    with pytest.raises(ValueError, match=r"equally many|zip"):
        hot.set_lines([b"k"], values, b"T0", requests._key)


def test_fills_are_the_lines_of_each(hot: ModuleType) -> None:
    wires = [b"a", BinaryKey(b"a b"), b"c"]
    values = [(b"xyz", 16), (b"7", 2), (b"", 2**32 - 1)]
    assert hot.fills(wires, values, [7, 2**64 - 1, 1], [60, 0, 2**31 - 1], requests._key) == [
        b"ms a 3 C7 T60 F16\r\nxyz\r\n",
        b"ms YSBi 1 C18446744073709551615 T0 F2 b\r\n7\r\n",
        b"ms c 0 C1 T2147483647 F4294967295\r\n\r\n",
    ]


@pytest.mark.parametrize("short", range(4))
def test_as_many_of_each_as_of_the_others(hot: ModuleType, short: int) -> None:
    columns: list[list[Any]] = [[b"k", b"l"], [(b"x", 0)] * 2, [1, 2], [3, 4]]
    columns[short].pop()
    with pytest.raises(ValueError, match=r"equally many|zip"):
        hot.fills(*columns, requests._key)


@pytest.mark.parametrize("name", TWINS)
def test_leases_are_told_from_everything_else(name: str) -> None:
    hot = twin(name)

    def reply(status: str = "VA", *, value: bytes | None = b"", flags: int = 0, cas: int = 7, won: bool = True) -> Any:
        made = hot.Reply(status)
        made.value, made.flags, made.cas, made.won = value, flags, cas, won
        return made

    assert hot.leases([]) == []
    assert hot.leases([reply(), reply("EN", value=None, cas=2**64 - 1)]) == [7, 2**64 - 1]
    for other in (
        reply(value=b"stale"),
        reply(flags=32),
        reply(won=False),
        reply("SERVER_ERROR out of memory", value=None, won=False),
    ):
        assert hot.leases([reply(), other]) is None


def test_group_keeps_the_order(hot: ModuleType) -> None:
    assert hot.group([b"a", b"b", b"c"], ["A", "B", "C"], [3, 300, 3]) == {3: ([b"a", b"c"], ["A", "C"]), 300: ([b"b"], ["B"])}


@pytest.mark.parametrize("owners", [[], [0, 0]])
def test_group_refuses_unequal_lists(hot: ModuleType, owners: list[int]) -> None:
    with pytest.raises(ValueError, match=r"equally many|zip"):
        hot.group([b"a"], ["A"], owners)


# -- keys

forbidden = st.sampled_from([b" ", b"\0", b"\r\n", b"\t", b"\x7f"])
legal = st.binary(min_size=1, max_size=300).map(lambda raw: raw.translate(bytes.maketrans(bytes(range(0x21)) + b"\x7f", b"_" * 34)))
digested = legal.map(lambda raw: wire_key(raw.ljust(251, b"x")))
imitation = st.builds(
    lambda head, digest: head[:217].ljust(217, b"k") + b"~" + digest.hex().encode(), legal, st.binary(min_size=16, max_size=16)
)
any_key = st.one_of(
    st.text(min_size=1, alphabet=st.characters(exclude_categories=["Cs"])),
    st.binary(min_size=1, max_size=300),
    legal,
    digested,
    imitation,
    st.builds(lambda *parts: b"".join(parts), legal, forbidden, legal),
)


def raw(key: str | bytes) -> bytes:
    return key.encode() if isinstance(key, str) else key


def on_line(wire: bytes) -> bytes:
    """A key as a protocol line carries it."""
    return requests.meta_get(wire, b"v").split(b" ")[1]


@given(key=any_key, prefix=st.sampled_from([b"", b"shop:", b"p" * 150]))
@example(key="x" * 250, prefix=b"")
@example(key="x" * 251, prefix=b"")
@example(key=" " * 186, prefix=b"")
@example(key=" " * 187, prefix=b"")
def test_a_key_never_breaks_out_of_its_line(key: str | bytes, prefix: bytes) -> None:
    wire = wire_key(key, prefix)
    text = on_line(wire)
    assert 1 <= len(text) <= 250
    assert not set(text) & {*range(0x21), 0x7F}
    if type(wire) is BinaryKey or wire == prefix + raw(key):
        assert wire == prefix + raw(key)
    else:
        assert len(wire) == 250


@given(one=any_key, other=any_key)
def test_no_two_keys_share_a_wire_form(one: str | bytes, other: str | bytes) -> None:
    assert (wire_key(one) == wire_key(other)) is (raw(one) == raw(other))


@given(
    key=st.one_of(legal.map(lambda k: k.ljust(251, b"x")), st.builds(bytes.ljust, forbidden, st.integers(187, 400), st.just(b" ")))
)
def test_a_key_that_imitates_a_digest_does_not_meet_it(key: bytes) -> None:
    digest = wire_key(key)
    assert len(digest) == 250
    assert wire_key(digest) != digest


@given(digest=imitation, tail=st.integers(0, 31))
def test_what_only_resembles_a_digest_travels_as_it_is(digest: bytes, tail: int) -> None:
    almost = digest[: 218 + tail] + b"G" + digest[219 + tail :]
    assert wire_key(almost) == almost


@given(text=st.text(min_size=1, alphabet=st.characters(exclude_categories=["Cs"])))
def test_text_and_its_utf8_are_one_key(text: str) -> None:
    assert wire_key(text) == wire_key(text.encode())


@pytest.mark.parametrize("key", ["", b"", None, 7, 1.5, ("a",), bytearray(b"a"), "\ud800", "k" * 300 + "\udfff"])
@pytest.mark.parametrize("strict", [False, True])
def test_what_is_no_key_is_refused(key: object, strict: bool) -> None:
    with pytest.raises(IllegalKey, match="key must"):
        wire_key(key, b"p:", strict)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["a b", "a\r\nset x 0 0 1", b"\0", "\x7f", "k" * 249])
def test_strict_refuses_what_memcached_does(key: str | bytes) -> None:
    with pytest.raises(IllegalKey, match="key must"):
        wire_key(key, b"p:", strict=True)


def unusual(prefix: bytes = b"") -> Callable[[str | bytes], bytes]:
    return lambda key: unusual_key(key, prefix, strict=False)


@given(keys=st.lists(any_key), prefix=st.sampled_from([b"", b"shop:"]))
def test_many_keys_are_each_key(hot: ModuleType, keys: list[str | bytes], prefix: bytes) -> None:
    wires = hot.plain_keys(keys, prefix, unusual(prefix))
    assert wires == [wire_key(key, prefix) for key in keys]
    assert [type(wire) for wire in wires] == [type(wire_key(key, prefix)) for key in keys]


# -- the twins of the encoders


@needs_native
@given(key=st.one_of(any_key, st.text(), st.none(), st.integers()), prefix=st.one_of(st.just(b""), legal, st.binary()))
@example(key="\ud800", prefix=b"")
@example(key=b"k" * 217 + b"~" + b"0" * 32, prefix=b"")
@example(key=b"k" * 216 + b"~" + b"0" * 32, prefix=b"p")
@example(key="k" * 250, prefix=b"")
@example(key="k" * 249, prefix=b"pp")
def test_twins_make_the_same_key(key: object, prefix: bytes) -> None:
    pure, native = twin("_pure"), twin("_native")
    wire = native.plain_key(key, prefix)
    assert wire == pure.plain_key(key, prefix)
    assert type(wire) in (bytes, type(None))
    assert native.plain_keys([key], prefix, repr) == pure.plain_keys([key], prefix, repr)


@needs_native
@given(
    st.lists(
        st.tuples(any_key, st.binary(), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**31 - 1)), max_size=8
    )
)
def test_twins_fill_the_same(lines: list[tuple[str | bytes, bytes, int, int, int]]) -> None:
    wires, values = [wire_key(key) for key, *_ in lines], [(data, flags) for _, data, flags, _, _ in lines]
    leases, ttls = [cas for *_, cas, _ in lines], [ttl for *_, ttl in lines]
    made = twin("_native").fills(wires, values, leases, ttls, requests._key)
    assert made == twin("_pure").fills(wires, values, leases, ttls, requests._key)
    assert made == [
        requests.meta_set(wire, data, b"C%d T%d F%d" % (cas, ttl, flags))
        for wire, (data, flags), cas, ttl in zip(wires, values, leases, ttls, strict=True)
    ]


@needs_native
@given(
    keys=st.lists(any_key, max_size=8), values=st.lists(st.tuples(st.binary(), st.integers(0, 2**32 - 1)), min_size=8, max_size=8)
)
def test_twins_encode_the_same_sets(keys: list[str | bytes], values: list[tuple[bytes, int]]) -> None:
    wires, values = [wire_key(key) for key in keys], values[: len(keys)]
    lines = twin("_native").set_lines(wires, values, b"T7", requests._key)
    assert lines == twin("_pure").set_lines(wires, values, b"T7", requests._key)
    assert lines == b"".join(requests.meta_set(w, data, b"T7 F%d" % flags) for w, (data, flags) in zip(wires, values, strict=True))


@needs_native
@given(owners=st.lists(st.integers(0, 5)))
def test_twins_group_the_same(owners: list[int]) -> None:
    wires = [b"%d" % i for i in range(len(owners))]
    groups = twin("_native").group(wires, list(range(len(owners))), owners)
    assert list(groups.items()) == list(twin("_pure").group(wires, list(range(len(owners))), owners).items())


NODES = [f"node{number}:11211" for number in range(5)]
placements = st.sampled_from(
    [placement("slots", NODES), placement("slots", NODES, 64), placement("slots", NODES[:1]), placement("ketama", NODES)]
)


@needs_native
@given(
    keys=st.lists(st.one_of(any_key, st.sampled_from(["same", b"same"])), max_size=20),
    prefix=st.sampled_from([b"", b"shop:", b"p" * 150, b"p" * 249, b"not legal", b"p" * 300]),
    owners=placements,
    tokens=st.booleans(),
)
@example(keys=["k" * 250], prefix=b"", owners=placement("slots", NODES), tokens=False)
@example(
    keys=[b"k" * 217 + b"~" + b"0" * 32, b"k" * 216 + b"~" + b"0" * 32], prefix=b"", owners=placement("slots", NODES), tokens=False
)
@example(keys=[b"k" * 216 + b"~" + b"0" * 32], prefix=b"p", owners=placement("slots", NODES), tokens=False)
def test_twins_make_the_same_reads(keys: list[str | bytes], prefix: bytes, owners: Placement, tokens: bool) -> None:
    seen = []
    for hot in (twin("_native"), twin("_pure")):
        fetches, others, values = hot.reads(keys, prefix, unusual(prefix), owners, repr, tokens)
        assert values == {}
        assert all(fetch.values is values and fetch.decode is repr and fetch.tokens is tokens for fetch in fetches.values())
        lines = [(address, fetch.payload, list(fetch.wires), list(fetch.names)) for address, fetch in fetches.items()]
        seen.append((lines, list(others.items())))
    assert seen[0] == seen[1]
    for address, _, wires, names in seen[0][0]:
        assert wires == [wire_key(name, prefix) for name in names]
        assert {owners.owner(wire).address for wire in wires} == {address}
    assert sum(len(names) for *_, names in seen[0][0]) + sum(len(pair[1]) for _, pair in seen[0][1]) == len(keys)


class Careless(Placement):
    """A placement that says what it was told to."""

    name = "careless"

    def __init__(self, table: bytes | tuple[int, ...], shift: int) -> None:
        super().__init__(placement("slots", NODES).nodes)
        self.told = table, shift

    def hash_table(self) -> tuple[bytes | tuple[int, ...], int]:
        return self.told

    def index(self, key: bytes) -> int:
        return 7

    def indexes(self, keys: object) -> list[int]:
        return []

    def shares(self) -> list[float]:
        return []


@needs_native
@pytest.mark.parametrize(
    ("table", "shift"), [((), 31), ((5,) * 16, 28), ((-1,) * 16, 28), ((0,), 28), (b"\5" * 16, 28), (b"", 31), (b"\0", 28)]
)
def test_an_owner_that_is_none_is_an_error(table: bytes | tuple[int, ...], shift: int) -> None:
    keys = [f"{number}" for number in range(100)]
    with pytest.raises(IndexError):
        twin("_native").reads(keys, b"", unusual(), Careless(table, shift), None, False)


@needs_native
def test_a_shift_beyond_the_hash_is_an_error() -> None:
    with pytest.raises(ValueError, match="shifted by 32"):
        twin("_native").reads(["k"], b"", unusual(), Careless((0,), 32), None, False)


def test_what_is_no_key_is_refused_among_many(hot: ModuleType) -> None:
    for key in ("", b"", None, 7, "\ud800"):
        with pytest.raises(IllegalKey, match="key must"):
            hot.reads(["fine", key], b"", unusual(), placement("slots", NODES), None, False)
        with pytest.raises(IllegalKey, match="key must"):
            hot.plain_keys(["fine", key], b"", unusual())
