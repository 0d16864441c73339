"""Readers, both twins: every input whole, byte by byte, and with more behind it."""

from __future__ import annotations

import tracemalloc
from types import ModuleType
from typing import Any

import pytest

from kvcluster.protocol._pure import BUFFER_SIZE, MAX_DATA, MAX_LINE, Malformed
from kvcluster.protocol.requests import Commands, Fetch
from tests.protocol.twins import TWINS, commands, cut, feed, fetch, receive, twin

WHOLE = 1 << 30


@pytest.fixture(scope="module", params=TWINS)
def hot(request: pytest.FixtureRequest) -> ModuleType:
    return twin(request.param)


@pytest.fixture(params=[WHOLE, 1, 7], ids=["whole", "byte by byte", "by seven"])
def size(request: pytest.FixtureRequest) -> int:
    return request.param


def read_fetch(
    hot: ModuleType, stream: bytes, size: int, wires: tuple[bytes, ...] = (b"a", b"b", b"c"), tokens: bool = False
) -> Fetch:
    """Read a stream that ends where the reply does, alone and with more behind it."""
    request = fetch(wires, tokens=tokens)
    reader = hot.Reader()
    assert feed(reader, request, cut(stream, [size])) == b""
    assert not reader.excess
    with_more = fetch(wires, tokens=tokens)
    left = feed(reader, with_more, cut(stream + b"more", [size]))
    assert reader.excess is (size > 1 and left != b"more")
    assert with_more.values == request.values
    return request


def read_commands(hot: ModuleType, stream: bytes, size: int, count: int = 1) -> list[Any]:
    """As `read_fetch`, for replies to meta commands."""
    request = commands(count)
    reader = hot.Reader()
    assert feed(reader, request, cut(stream, [size])) == b""
    assert not reader.excess
    with_more = commands(count)
    left = feed(reader, with_more, cut(stream + b"more", [size]))
    assert reader.excess is (size > 1 and left != b"more")
    assert list(map(repr, with_more.replies)) == list(map(repr, request.replies))
    return request.replies


# -- classic reads


def test_nothing_found(hot: ModuleType, size: int) -> None:
    request = read_fetch(hot, b"END\r\n", size)
    assert (request.values, request.found, request.doubtful, request.refusal) == ({}, 0, None, None)


def test_values_of_each_kind(hot: ModuleType, size: int) -> None:
    stream = b"VALUE a 0 3\r\nxyz\r\nVALUE b 2 2\r\n-7\r\nVALUE c 16 5\r\n\xea\xb9\x80\r\n\r\nEND\r\n"
    request = read_fetch(hot, stream, size)
    assert request.values == {"A": b"xyz", "B": -7, "C": "김\r\n"}
    assert request.found == 3


def test_what_was_not_found_is_left_out(hot: ModuleType, size: int) -> None:
    assert read_fetch(hot, b"VALUE b 0 1\r\nx\r\nEND\r\n", size).values == {"B": b"x"}


def test_a_key_asked_twice_is_answered_twice(hot: ModuleType, size: int) -> None:
    request = read_fetch(hot, b"VALUE a 0 1\r\nx\r\nVALUE a 0 1\r\nx\r\nEND\r\n", size, wires=(b"a", b"a"))
    assert (request.values, request.found) == ({"A": b"x"}, 2)


def test_with_cas_numbers(hot: ModuleType, size: int) -> None:
    stream = b"VALUE a 2 1 18446744073709551615\r\n7\r\nVALUE c 0 1 1\r\nx\r\nEND\r\n"
    assert read_fetch(hot, stream, size, tokens=True).values == {"A": (7, b"18446744073709551615"), "C": (b"x", b"1")}


def test_data_may_look_like_protocol(hot: ModuleType, size: int) -> None:
    data = b"END\r\nVALUE b 0 1\r\n"
    assert read_fetch(hot, b"VALUE a 0 %d\r\n%b\r\nEND\r\n" % (len(data), data), size).values == {"A": data}


def test_other_flags_go_to_the_codec(hot: ModuleType, size: int) -> None:
    assert read_fetch(hot, b"VALUE a 64 3\r\n\x92\x01\xc0\r\nEND\r\n", size).values == {"A": [1, None]}


def test_an_empty_value_without_flags_is_doubtful(hot: ModuleType, size: int) -> None:
    stream = b"VALUE a 0 0\r\n\r\nVALUE b 16 0\r\n\r\nVALUE c 0 0\r\n\r\nEND\r\n"
    request = read_fetch(hot, stream, size)
    assert (request.values, request.found, request.doubtful) == ({"B": ""}, 1, [0, 2])


@pytest.mark.parametrize(
    ("flags", "data"), [(2, b"seven"), (2, b""), (2, b"-"), (16, b"\xff"), (1, b"cos\nsystem\n"), (64, b"\xc1"), (8, b"x")]
)
def test_what_cannot_be_decoded_is_counted(hot: ModuleType, size: int, flags: int, data: bytes) -> None:
    request = read_fetch(hot, b"VALUE a %d %d\r\n%b\r\nVALUE b 0 1\r\nx\r\nEND\r\n" % (flags, len(data), data), size)
    assert (request.values, request.found, request.undecodable) == ({"B": b"x"}, 1, 1)
    wire, error = request.failure
    assert wire == b"a"
    assert isinstance(error, ValueError)


@pytest.mark.parametrize(
    "text", ["0", "-0", "007", "9" * 18, "-" + "9" * 18, "9" * 19, str(2**63), str(2**64), "1" * 100, "+5", " 5 ", "1_0"]
)
def test_integers_are_what_python_makes_of_them(hot: ModuleType, text: str) -> None:
    data = text.encode()
    assert read_fetch(hot, b"VALUE a 2 %d\r\n%b\r\nEND\r\n" % (len(data), data), WHOLE).values == {"A": int(text)}


@pytest.mark.parametrize("line", [b"SERVER_ERROR out of memory writing get response", b"CLIENT_ERROR line too long"])
def test_an_error_line_is_a_refusal(hot: ModuleType, size: int, line: bytes) -> None:
    request = read_fetch(hot, b"VALUE a 0 1\r\nx\r\n" + line + b"\r\n", size)
    assert (request.refusal, request.values) == (line, {"A": b"x"})


@pytest.mark.parametrize(
    "stream",
    [
        b"END \r\n",
        b"\r\n",
        b"ERROR\r\n",
        b"HD\r\n",
        b"VALUE\r\n",
        b"VALUE a 0\r\n",
        b"VALUE a 0 \r\n",
        b"VALUE a 0 x\r\n",
        b"VALUE a -1 1\r\nx\r\n",
        b"VALUE a 0 -1\r\nx\r\n",
        b"VALUE a 0 1 \r\nx\r\n",
        b"VALUE  a 0 1\r\nx\r\n",
        b"VALUE a  0 1\r\nx\r\n",
        b"VALUE a\x7f 0 1\r\nx\r\n",
        b"VALUE a 00000000000 1\r\nx\r\n",
        b"VALUE a 0 00000000001\r\nx\r\n",
        b"VALUE " + b"k" * 251 + b" 0 1\r\nx\r\n",
        b"VALUE a 0 1 5\r\nx\r\n",  # a CAS number that was not asked for
        b"VALUE a 0 1\r\nxy\r\n",
        b"VALUE a 0 1\r\nx\n\r\n",
        b"VALUE a 0 %d\r\n" % (MAX_DATA + 1),
        b"VALUE d 0 1\r\nx\r\n",  # a key that was not asked for
        b"VALUE b 0 1\r\nx\r\nVALUE a 0 1\r\nx\r\n",  # out of order
        b"VALUE a 0 1\r\nx\r\nVALUE a 0 1\r\nx\r\n",  # once too often
        b"x" * (MAX_LINE + 2),
        b"VALUE " + b"x" * MAX_LINE,
    ],
)
def test_what_is_no_classic_reply(hot: ModuleType, size: int, stream: bytes) -> None:
    with pytest.raises(Malformed):
        feed(hot.Reader(), fetch([b"a", b"b", b"c"]), cut(stream, [size]))


def test_a_cas_number_must_come_where_it_was_asked_for(hot: ModuleType, size: int) -> None:
    for stream in (b"VALUE a 0 1\r\nx\r\n", b"VALUE a 0 1 x\r\nx\r\n", b"VALUE a 0 1 123456789012345678901\r\nx\r\n"):
        with pytest.raises(Malformed):
            feed(hot.Reader(), fetch([b"a"], tokens=True), cut(stream, [size]))


# -- replies to meta commands


@pytest.mark.parametrize(
    ("stream", "shown"),
    [
        (b"HD\r\n", "Reply(HD ttl=-1)"),
        (b"HD \r\n", "Reply(HD ttl=-1)"),
        (b"EN\r\n", "Reply(EN ttl=-1)"),
        (b"NF\r\n", "Reply(NF ttl=-1)"),
        (b"NS\r\n", "Reply(NS ttl=-1)"),
        (b"EX\r\n", "Reply(EX ttl=-1)"),
        (b"MN\r\n", "Reply(MN ttl=-1)"),
        (b"VA 3\r\nxyz\r\n", "Reply(VA value=b'xyz' ttl=-1)"),
        (b"VA 0 \r\n\r\n", "Reply(VA value=b'' ttl=-1)"),
        (b"VA 4 f16 c7 t59 s4 W\r\n\r\n\r\n\r\n", "Reply(VA value=b'\\r\\n\\r\\n' flags=16 cas=7 ttl=59 size=4 won=True)"),
        (b"HD c18446744073709551615 t-1 X Z\r\n", "Reply(HD cas=18446744073709551615 ttl=-1 taken=True stale=True)"),
        (b"HD kfoo Oabc b \r\n", "Reply(HD ttl=-1)"),
        (b"HD f1 f2\r\n", "Reply(HD flags=2 ttl=-1)"),
        (b"SERVER_ERROR out of memory storing object\r\n", "Reply(SERVER_ERROR out of memory storing object ttl=-1)"),
        (b"CLIENT_ERROR bad \xff \r \n format\r\n", "Reply(CLIENT_ERROR bad \xff \r \n format ttl=-1)"),
    ],
)
def test_replies(hot: ModuleType, size: int, stream: bytes, shown: str) -> None:
    (reply,) = read_commands(hot, stream, size)
    assert repr(reply) == shown


def test_several_replies(hot: ModuleType, size: int) -> None:
    replies = read_commands(hot, b"HD\r\nVA 1 f2\r\n7\r\nSERVER_ERROR x\r\nMN\r\n", size, count=4)
    assert [reply.status for reply in replies] == ["HD", "VA", "SERVER_ERROR x", "MN"]
    assert (replies[1].value, replies[1].flags) == (b"7", 2)


def test_no_reply_is_due(hot: ModuleType) -> None:
    reader = hot.Reader()
    reader.begin(commands(0))
    assert reader.received(0)


@pytest.mark.parametrize(
    "stream",
    [
        b"\r\n",
        b"H\r\n",
        b"hd\r\n",
        b"HDx\r\n",
        b"HD  \r\n",
        b"HD  f1\r\n",
        b"HD f1  \r\n",
        b"HD f\r\n",
        b"HD f-\r\n",
        b"HD fx\r\n",
        b"HD c123456789012345678901\r\n",
        b"HD W\x7f\r\n",
        b"HD W\rX\r\n",
        b"VA\r\n",
        b"VA \r\n",
        b"VA x\r\n",
        b"VA 1x\r\nx\r\n",
        b"VA -1\r\n",
        b"VA 1\r\nxy\r\n",
        b"VA 1 tx\r\nx\r\n",
        b"VA 12345678901\r\n",
        b"VA %d\r\n" % (MAX_DATA + 1),
        b"ERROR\r\n",
        b"END\r\n",
        b"STORED\r\n",
        b"HD " + b"x" * MAX_LINE,
    ],
)
def test_what_is_no_meta_reply(hot: ModuleType, size: int, stream: bytes) -> None:
    with pytest.raises(Malformed):
        feed(hot.Reader(), commands(1), cut(stream, [size]))


def test_a_line_may_have_its_full_length(hot: ModuleType, size: int) -> None:
    line = b"SERVER_ERROR ".ljust(MAX_LINE, b"x")
    (reply,) = read_commands(hot, line + b"\r\n", size)
    assert reply.status == line.decode()
    with pytest.raises(Malformed):
        feed(hot.Reader(), commands(1), cut(line + b"x\r\n", [size]))


# -- what is kept between pieces


def test_nothing_is_done_before_the_last_byte(hot: ModuleType) -> None:
    stream = b"VALUE a 0 3\r\nxyz\r\nEND\r\n"
    for end in range(len(stream)):
        assert feed(hot.Reader(), fetch([b"a"]), [stream[:end]]) is None


def test_what_arrived_early_is_read_by_the_next_request(hot: ModuleType) -> None:
    reader = hot.Reader()
    feed(reader, commands(1), [b"HD\r\nVA 1\r\nx\r\nNF\r\nEN"])
    assert reader.excess
    second = commands(2)
    reader.begin(second)
    assert reader.received(0)
    assert [reply.status for reply in second.replies] == ["VA", "NF"]
    assert reader.excess
    third = commands(1)
    assert feed(reader, third, [b"\r\n"]) == b""
    assert third.replies[0].status == "EN"
    assert not reader.excess


def test_a_buffer_that_nobody_looked_into_loses_nothing(hot: ModuleType) -> None:
    reader = hot.Reader()
    replies = b"HD\r\n" * (BUFFER_SIZE // 4)
    feed(reader, commands(1), [replies])
    second = commands(3 * len(replies) // 4 - 1)
    reader.begin(second)
    for _ in range(2):
        rest = replies
        while rest:
            done, rest = receive(reader, rest)
    assert done
    assert not reader.excess


LINE = len(b"VALUE a 0 65000\r\n")
EDGE = BUFFER_SIZE - LINE - 2  # the largest value that fits into the buffer with its line


@pytest.mark.parametrize("length", [EDGE - 1, EDGE, EDGE + 1, EDGE + 2, EDGE + 3, BUFFER_SIZE, BUFFER_SIZE + 1, 200_000, 5 << 20])
@pytest.mark.parametrize("step", [WHOLE, BUFFER_SIZE, 4096, 65_521])
def test_values_around_and_above_the_size_of_the_buffer(hot: ModuleType, length: int, step: int) -> None:
    data = bytes(range(251)) * (length // 251 + 1)
    stream = b"".join(
        b"VALUE %b 0 %d\r\n%b\r\n" % (key, size, data[:size]) for key, size in ((b"a", 9), (b"b", length), (b"c", length))
    )
    request = fetch([b"a", b"b", b"c"])
    assert feed(hot.Reader(), request, cut(stream + b"END\r\n", [step])) == b""
    assert request.values == {"A": data[:9], "B": data[:length], "C": data[:length]}

    answers = commands(3)
    stream = b"VA 1\r\nx\r\nVA %d c7\r\n%b\r\nHD\r\n" % (length, data[:length])
    assert feed(hot.Reader(), answers, cut(stream, [step])) == b""
    assert (answers.replies[1].value, answers.replies[1].cas, answers.replies[2].status) == (data[:length], 7, "HD")


@pytest.mark.parametrize("flags", [0, 2, 16, 64, 99])
def test_large_values_of_each_kind(hot: ModuleType, flags: int) -> None:
    request = fetch([b"a", b"b"])
    feed(hot.Reader(), request, cut(b"VALUE a %d 100000\r\n%b\r\nVALUE b 0 1\r\nx\r\nEND\r\n" % (flags, b"x" * 100_000), [30_000]))
    assert request.values == {"B": b"x"} | ({0: {"A": b"x" * 100_000}, 16: {"A": "x" * 100_000}, 99: {}}.get(flags, {}))
    assert request.undecodable == (flags in (2, 64, 99))


@pytest.mark.parametrize("end", [b"x\n", b"\rx", b"xx"])
def test_a_large_value_must_end_where_it_should(hot: ModuleType, end: bytes) -> None:
    with pytest.raises(Malformed):
        feed(hot.Reader(), fetch([b"a"]), cut(b"VALUE a 0 100000\r\n%b%b" % (b"x" * 100_000, end), [30_000]))


def test_a_large_value_must_be_asked_for(hot: ModuleType) -> None:
    with pytest.raises(Malformed):
        feed(hot.Reader(), fetch([b"a"]), cut(b"VALUE b 0 100000\r\n%b\r\n" % (b"x" * 100_000), [30_000]))


# -- memory


@pytest.mark.parametrize("request_", [fetch([b"a"]), commands(1)], ids=["fetch", "commands"])
def test_a_garbage_length_commits_no_memory(hot: ModuleType, request_: Fetch | Commands) -> None:
    line = b"VALUE a 0 %d\r\n" if not isinstance(request_, Commands) else b"VA %d\r\n"
    reader = hot.Reader()
    tracemalloc.start()
    try:
        assert feed(reader, request_, [line % MAX_DATA, b"x" * 1000]) is None
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_an_idle_reader_costs_next_to_nothing(hot: ModuleType) -> None:
    requests_ = [fetch([b"a"]) for _ in range(100)]
    readers = [hot.Reader() for _ in requests_]
    tracemalloc.start()
    try:
        for reader, request in zip(readers, requests_, strict=True):
            feed(reader, request, [b"END\r\n"])
        assert tracemalloc.get_traced_memory()[0] < 1000 * len(readers)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("length", [10, 100_000, 3 << 20])
def test_a_view_that_is_kept_changes_no_value(hot: ModuleType, length: int) -> None:
    stream = b"VALUE a 0 %d\r\n%b\r\nEND\r\n" % (length, b"x" * length)
    request = fetch([b"a"])
    reader = hot.Reader()
    reader.begin(request)
    views = []
    while stream:
        view = reader.buffer()
        count = min(len(view), len(stream))
        view[:count] = stream[:count]
        views.append(view)
        done, stream = reader.received(count), stream[count:]
    assert done
    del reader
    for view in views:
        view[:] = bytes(len(view))
    assert request.values == {"A": b"x" * length}


@pytest.mark.parametrize("name", TWINS)
def test_views_are_plain_writable_bytes(name: str) -> None:
    reader = twin(name).Reader()
    reader.begin(commands(1))
    view = reader.buffer()
    assert (view.format, view.itemsize, view.ndim, view.readonly, view.contiguous) == ("B", 1, 1, False, True)
    assert view.nbytes == BUFFER_SIZE
