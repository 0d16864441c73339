"""The two readers are one: whatever arrives, and however it is cut, both understand the same or refuse it at the same byte."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kvcluster.protocol._pure import Malformed
from kvcluster.protocol.requests import Commands, Fetch
from tests.protocol.twins import commands, cut, fetch, needs_native, seen, twin

KEYS = [b"a", b"b", b"key:3", b"\xff\x80", b"k" * 250]

number = st.integers(-(10**20), 10**20).map(lambda n: b"%d" % n)
flags_and_data = st.one_of(
    st.tuples(st.just(0), st.binary(max_size=40)),
    st.tuples(st.just(2), st.one_of(number, st.binary(max_size=5))),
    st.tuples(
        st.just(16), st.one_of(st.text(max_size=20).map(lambda text: text.encode("utf-8", "replace")), st.binary(max_size=5))
    ),
    st.tuples(st.sampled_from([1, 4, 8, 18, 32, 64, 128, 2**32 - 1, 9999999999]), st.binary(max_size=20)),
    st.tuples(st.sampled_from([0, 2, 16, 64]), st.sampled_from([65_500, 65_520, 66_000, 140_000]).map(lambda size: b"7" * size)),
)
error_line = st.sampled_from([b"SERVER_ERROR out of memory\r\n", b"CLIENT_ERROR bad\r\n", b"ERROR\r\n"])
cas_number = st.integers(0, 2**64 - 1)


@st.composite
def classic(draw: st.DrawFn) -> tuple[Any, bytes]:
    """A read, and a valid reply to it."""
    tokens = draw(st.booleans())
    asked = draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=6))
    reply = b""
    for key in asked:
        if draw(st.booleans()):
            flags, data = draw(flags_and_data)
            cas = b" %d" % draw(cas_number) if tokens else b""
            reply += b"VALUE %b %d %d%b\r\n%b\r\n" % (key, flags, len(data), cas, data)
    end = draw(st.one_of(st.just(b"END\r\n"), error_line))
    return (lambda: fetch(asked, tokens=tokens)), reply + end


return_flag = st.one_of(
    st.sampled_from([b"W", b"X", b"Z", b"b", b"kkey", b"Oopaque", b"h1"]),
    st.tuples(st.sampled_from([b"f", b"c", b"t", b"s"]), number).map(b"".join),
)
rest = st.lists(return_flag, max_size=5).map(lambda flags: b"".join(b" " + flag for flag in flags))


@st.composite
def meta(draw: st.DrawFn) -> tuple[Any, bytes]:
    """Meta commands, and valid replies to them."""
    count = draw(st.integers(1, 5))
    reply = b""
    for _ in range(count):
        if draw(st.booleans()):
            _, data = draw(flags_and_data)
            reply += b"VA %d%b\r\n%b\r\n" % (len(data), draw(rest), data)
        else:
            status = draw(st.sampled_from([b"HD", b"EN", b"NF", b"NS", b"EX", b"MN"]))
            reply += draw(st.one_of(st.just(status + draw(rest) + b"\r\n"), error_line))
    return (lambda: commands(count)), reply


words = (
    b"VALUE |VALUE a 0 |VALUE b 16 |END|VA |HD|EN|SERVER_ERROR|CLIENT_ERROR |ERROR|\r\n|\r|\n| |  |a|b|key:3|0|1|2|16|c1|f|t-1|W|-"
)
scrap = st.one_of(st.sampled_from([*words.split(b"|"), b"1073741825", b"x" * 2040, b"x" * 2049]), st.binary(max_size=4))
garbage = st.tuples(
    st.sampled_from([lambda: fetch(KEYS), lambda: fetch(KEYS, tokens=True), lambda: commands(2)]),
    st.lists(scrap, max_size=12).map(b"".join),
)


@st.composite
def corrupted(draw: st.DrawFn) -> tuple[Any, bytes]:
    """A valid reply that was cut, or had some of its bytes replaced, left out, put in or repeated."""
    request, reply = draw(st.one_of(classic(), meta()))
    at = draw(st.integers(0, len(reply)))
    to = draw(st.one_of(st.just(at), st.integers(at, min(len(reply), at + 30)), st.just(len(reply))))
    return request, reply[:at] + draw(st.one_of(scrap, st.just(reply[:to]))) + reply[to:]


def step(reader: Any, piece: bytes) -> object:
    view = reader.buffer()
    view[: len(piece)] = piece
    del view  # as a socket does, which keeps no reference
    try:
        return reader.received(len(piece))
    except Malformed:
        return Malformed


@needs_native
@settings(max_examples=400, deadline=None)
@given(
    case=st.one_of(classic(), meta(), corrupted(), garbage),
    sizes=st.lists(st.one_of(st.integers(1, 9), st.integers(1, 70_000)), min_size=1, max_size=6),
)
def test_twins_read_the_same(case: tuple[Any, bytes], sizes: list[int]) -> None:
    make, stream = case
    readers = [twin("_pure").Reader(), twin("_native").Reader()]
    requests: list[Fetch | Commands] = [make(), make()]
    if len(stream) > 1000:
        sizes = [max(size, 100) for size in sizes]
    for reader, request in zip(readers, requests, strict=True):
        reader.begin(request)
    for piece in cut(stream + b"HD\r\n", sizes):
        while piece:
            room = min(len(reader.buffer()) for reader in readers)
            results = [step(reader, piece[:room]) for reader in readers]
            piece = piece[room:]
            assert results[0] is results[1]
            assert seen(requests[0]) == seen(requests[1])
            if results[0] is not False:
                assert results[0] is Malformed or readers[0].excess is readers[1].excess
                return
