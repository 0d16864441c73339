"""A dump is read whole, whatever it is cut into and whoever wrote it, or not at all."""

from __future__ import annotations

import errno
import io
import tempfile
import threading
import time
import tracemalloc
from typing import Any
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcluster import Client
from kvcluster.errors import BadReply, NodeTimeout, NodeUnreachable, ResizeStopped
from kvcluster.protocol.requests import BinaryKey
from kvcluster.rebalance.dump import DumpUnavailable, NodeBusy, decoded, details, dump, parsed
from kvcluster.testing.plugin import NodeFactory
from kvcluster.testing.proxy import FaultProxy
from kvcluster.topology import Node
from tests.rebalance.scripted import Scripted

# As the servers write them: lines end in \n, the dump in END\r\n.
FIRST = b"key=a exp=1795332673 la=1795332623 cas=3 fetch=no cls=1 size=74"
SECOND = b"key=sp%20ace%2F%FF exp=-1 la=5 cas=4 fetch=yes cls=2 size=99"
FORMATS = {
    "1.6.18": FIRST + b"\n" + SECOND + b"\nEND\r\n",
    "1.6.24": FIRST + b" flags=7 \n" + SECOND + b" flags=0 \nEND\r\n",
    "1.6.43": b"OK\r\n" + FIRST + b" flags=7 \n" + SECOND + b" flags=0 \nEND\r\n",
}
REFUSALS = [b"ERROR\r\n", b"ERROR metadump not allowed\r\n", b"BADCLASS invalid class id\r\n", b"CLIENT_ERROR x\r\n"]
BUSY = b"BUSY currently processing crawler request\r\n"
LOCKED = b"ERROR locked try again later\r\n"


def taken(address: str, **options: Any) -> list[tuple[bytes, tuple[int, int]]]:
    """All lines of a dump: of each the key, and when it was last used and how large it is."""
    with dump(Node(address), **options) as listing:
        lines = [line for block in listing.blocks() for line in block]
    return [*zip([wire for wire, _ in lines], details([rest for _, rest in lines]), strict=True)]


def no_wait(seconds: float) -> None:
    """A sleep that takes no time."""


@pytest.mark.parametrize("version", FORMATS)
@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_each_servers_lines_are_understood_whatever_they_are_cut_into(version: str, piece: int) -> None:
    text = FORMATS[version]
    with Scripted([text[at : at + piece] for at in range(0, len(text), piece)]) as node:
        assert taken(node.address) == [(b"a", (1795332623, 74)), (b"sp ace/\xff", (5, 99))]
        assert node.asked == [b"lru_crawler metadump hash\r\n"]


def test_a_line_without_the_details_is_said_to_be_none_of_a_dump() -> None:
    with pytest.raises(ValueError, match="exp=-1 cas=4"):
        details([b"exp=-1 la=5 cas=4 size=99", b"exp=-1 cas=4 size=99"])


def test_a_key_that_travels_in_base64_is_known_as_one() -> None:
    keys = [type(wire) for wire, _ in parsed(FORMATS["1.6.18"])]
    assert keys == [bytes, BinaryKey]


@given(st.lists(st.binary(min_size=1, max_size=20)))
def test_keys_come_back_as_they_were_encoded(keys: list[bytes]) -> None:
    assert decoded([quote_from_bytes(key, safe="").encode() for key in keys]) == keys


def test_an_empty_node_has_an_empty_dump() -> None:
    for text in (b"END\r\n", b"OK\r\nEND\r\n"):
        with Scripted([text]) as node:
            assert taken(node.address) == []


def test_a_node_that_is_busy_is_asked_again() -> None:
    with Scripted([BUSY], [LOCKED], [FORMATS["1.6.18"]]) as node:
        assert len(taken(node.address, sleep=no_wait)) == 2
        assert len(node.asked) == 3


def test_a_node_that_stays_busy_is_an_error_that_says_so() -> None:
    now = iter(range(1000))
    with Scripted([BUSY]) as node, pytest.raises(NodeBusy, match="BUSY") as raised:
        taken(node.address, patience=5, clock=lambda: next(now), sleep=no_wait)
    assert raised.value.node == node.address


@pytest.mark.parametrize("line", REFUSALS)
def test_a_node_that_cannot_dump_is_told_from_one_that_will_not_now(line: bytes) -> None:
    with Scripted([line]) as node, pytest.raises(DumpUnavailable):
        taken(node.address)


@pytest.mark.parametrize("line", [BUSY, LOCKED, *REFUSALS])
def test_a_refusal_is_judged_whole_however_it_is_cut(line: bytes) -> None:
    for cut in (1, 2, 5, len(line) - 1):
        with Scripted([line[:cut], line[cut:]]) as node, pytest.raises(NodeBusy if line in (BUSY, LOCKED) else DumpUnavailable):
            taken(node.address, patience=0.0, silence=5.0)


def test_who_waits_for_a_silent_node_can_be_interrupted() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    began = time.monotonic()
    with Scripted([b""]) as node, pytest.raises(KeyboardInterrupt):
        taken(node.address, silence=60.0, waiting=interrupt)
    assert time.monotonic() - began < 30


def test_a_full_disk_is_no_fault_of_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def __init__(self, max_size: int) -> None:
            super().__init__()

        def write(self, piece: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", Full)
    with Scripted([FORMATS["1.6.18"]]) as node, pytest.raises(ResizeStopped, match=r"No space left .* TMPDIR"):
        taken(node.address)


def test_a_reply_that_is_no_dump_is_an_error() -> None:
    with Scripted([b"HTTP/1.1 400 Bad Request\r\n\r\n"]) as node, pytest.raises(BadReply, match="HTTP"):
        taken(node.address)


def test_a_node_that_dies_in_the_middle_gives_no_dump() -> None:
    with Scripted([FORMATS["1.6.43"][:60]], hold=False) as node, pytest.raises(NodeUnreachable, match="middle of its dump"):
        taken(node.address)


def test_a_line_that_only_looks_like_the_end_is_not_the_end() -> None:
    text = b"key=END exp=-1 la=1 cas=1 fetch=no cls=1 size=1 flags=END\nkey=b exp=-1 la=1 cas=1 fetch=no cls=1 size=1\nEND\r\n"
    cut = text.index(b"END\n") + 3
    with Scripted([text[:cut], text[cut:]]) as node:
        assert [wire for wire, _ in taken(node.address)] == [b"END", b"b"]


def test_a_node_that_falls_silent_is_an_error() -> None:
    with Scripted([FORMATS["1.6.43"][:60]]) as node, pytest.raises(NodeTimeout, match="silent"):
        taken(node.address, silence=0.05)


def test_what_exceeds_the_bound_goes_to_a_file_and_comes_back(kv_nodes: NodeFactory) -> None:
    (node,) = kv_nodes(1)
    fill(node.address, 3000)
    assert taken(node.address, memory=1000) == taken(node.address)


@pytest.mark.parametrize("kind", ["binary", "embedded"])
def test_every_key_of_a_node_is_in_its_dump(kv_nodes: NodeFactory, kind: Any) -> None:
    (node,) = kv_nodes(1, kind=kind)
    fill(node.address, 3000)
    assert {wire for wire, _ in taken(node.address)} == {b"user:%d" % number for number in range(3000)}


def test_the_dump_is_drained_however_slowly_it_is_used(kv_nodes: NodeFactory) -> None:
    (upstream,) = kv_nodes(1)
    fill(upstream.address, 20_000)
    with FaultProxy(upstream.address) as proxy:
        released = threading.Event()
        waits = 0

        def waiting() -> None:
            nonlocal waits
            waits += 1
            if waits == 1:  # whoever waits for the dump is busy with something else until all of it has passed
                deadline = time.monotonic() + 30
                while proxy.replies.passed < 60 * 20_000 and time.monotonic() < deadline:
                    time.sleep(0.01)
                released.set()

        proxy.replies.delay = 0.001
        with dump(Node(proxy.address), waiting=waiting) as listing:
            assert released.is_set()
            assert proxy.replies.passed == listing.size


def test_a_dump_costs_what_its_lines_do(kv_nodes: NodeFactory) -> None:
    (node,) = kv_nodes(1)
    fill(node.address, 20_000)
    tracemalloc.start()
    try:
        with dump(Node(node.address)) as listing:
            held, _ = tracemalloc.get_traced_memory()
            count = sum(len(lines) for lines in listing.blocks())
    finally:
        tracemalloc.stop()
    assert count == 20_000
    assert held < 1.2 * listing.size + (2 << 20)
    with dump(Node(node.address), memory=1) as listing:
        assert listing.size > 1 << 20
        tracemalloc.start()
        for _ in listing.blocks():
            pass
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 6 << 20


def fill(address: str, count: int) -> None:
    """Store ``count`` keys."""
    client = Client([address], timeout=5.0)
    client.set_many({f"user:{number}": b"x" for number in range(count)})
    client.close()
