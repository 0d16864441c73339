"""One connection without a network: any mix of requests, any chunks of replies, and replies end up where they belong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcluster.embedded import EmbeddedNode
from kvcluster.errors import BadReply, NodeTimeout, NodeUnreachable
from kvcluster.placement import placement
from kvcluster.planner import Planner
from kvcluster.protocol import requests
from kvcluster.protocol.requests import NOOP, Fetch, Stores
from kvcluster.topology import Node
from kvcluster.transport.aio import MISSING, WRITE_HIGH_WATER, AsyncConnection
from tests.aio.doubles import Wire
from tests.aio.loops import turns

PLANNER = Planner(placement("slots", [Node("a:1")]), namespace="ours")


def connect(timeout: float = 10.0) -> tuple[AsyncConnection, Wire]:
    connection = AsyncConnection("a:1", timeout, asyncio.get_running_loop(), lambda _: None)
    return connection, Wire(connection)


def stored_values() -> EmbeddedNode:
    """A node where each key from k0 to k9 has its own name as its value, but for k0 and k5."""
    node = EmbeddedNode()
    for number in range(10):
        if number % 5:
            node.session().receive(b"ms k%d 2 F16\r\nk%d\r\n" % (number, number))
    return node


def expected(key: str) -> object:
    return MISSING if key in ("k0", "k5") else key


def get(connection: AsyncConnection, key: str) -> Callable[[], None]:
    future = connection.submit_get(key.encode(), PLANNER)

    def check() -> None:
        assert future.result() == expected(key)

    return check


def get_many(connection: AsyncConnection, key: str) -> Callable[[], None]:
    keys = [key, "k1", "k0"]
    wires = [name.encode() for name in keys]
    fetch = Fetch(wires, keys, PLANNER.codec.decode, {})
    future = connection.submit(fetch, "many")

    def check() -> None:
        assert future.result() is None
        assert fetch.values == {name: name for name in keys if expected(name) is not MISSING}

    return check


def set_other(connection: AsyncConnection, key: str) -> Callable[[], None]:
    stores = Stores(requests.meta_set(b"other", key.encode(), b"c") + requests.meta_get(b"other", b"v"), 2)
    future = connection.submit(stores, "stores")

    def check() -> None:
        assert future.result() is None
        assert stores.replies[1].value == key.encode()

    return check


def quiet(connection: AsyncConnection, key: str) -> Callable[[], None]:
    # answered with a line that nobody asked for, before the no-op's
    payload = requests.meta_set(b"absent", b"x", b"MR q") + requests.meta_get(key.encode(), b"v q") + NOOP
    future = connection.submit(Stores(payload, 0, owed=1), "quiet")

    def check() -> None:
        assert future.result() is None

    return check


STEPS = st.tuples(st.sampled_from([get, get, get, get_many, set_other, quiet]), st.sampled_from([f"k{n}" for n in range(10)]))


@given(st.lists(st.lists(STEPS, max_size=8), max_size=5), st.integers(1, 40), st.data())
def test_replies_belong_to_their_requests(steps: list[list[Any]], chunk: int, data: st.DataObject) -> None:
    async def main() -> None:
        session = stored_values().session()
        connection, wire = connect()
        checks, cancelled, sent = [], [], 0
        for turn in steps:
            for step, key in turn:
                checks.append(step(connection, key))
                if data.draw(st.integers(0, 4)) == 0:
                    future = connection.submit_get(key.encode(), PLANNER)
                    future.cancel()
                    cancelled.append(future)
            await turns(2)
            if data.draw(st.booleans()):
                wire.feed(session.receive(b"".join(wire.written[sent:])), chunk)
                sent = len(wire.written)
        wire.feed(session.receive(b"".join(wire.written[sent:])), chunk)
        for check in checks:
            check()
        assert connection.failure is None
        assert all(future.cancelled() for future in cancelled)
        counted = list(connection.counters.values())
        assert sum(counters.bytes_written for counters in counted) == len(b"".join(wire.written))
        assert sum(counters.bytes_read for counters in counted) == wire.fed
        connection.close()

    asyncio.run(main())


PIPELINE = [get, quiet, set_other, get_many, quiet, quiet, get]


def replies_to_the_pipeline() -> bytes:
    async def main() -> bytes:
        connection, wire = connect()
        for step in PIPELINE:
            step(connection, "k3")
        await turns(2)
        replies = stored_values().session().receive(b"".join(wire.written))
        connection.close()
        return replies

    return asyncio.run(main())


def test_a_connection_that_ends_at_any_byte_crosses_nothing() -> None:
    whole = replies_to_the_pipeline()

    async def answered_by(cut: int) -> int:
        connection, wire = connect()
        checks = [step(connection, "k3") for step in PIPELINE]
        await turns(2)
        wire.feed(whole[:cut])
        connection.connection_lost(None)
        assert isinstance(connection.failure, NodeUnreachable)
        assert wire.aborted
        outcomes = [passes(check) for check in checks]
        assert outcomes == sorted(outcomes, reverse=True)  # what was answered, and then what was not
        return sum(outcomes)

    answered = [asyncio.run(answered_by(cut)) for cut in range(len(whole))]
    assert answered == sorted(answered)
    assert set(answered) == {0, 2, 3, 5, 6}


def passes(check: Callable[[], None]) -> bool:
    try:
        check()
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize(
    "piece", [b"?", b"VALUE x 0 1\r\nx\r\n", b"HD\r\n", b"\r\n", b"END\r\nEND\r\n", b"VALUE k1 0 99999999999\r\n"]
)
def test_what_is_no_reply_ends_the_connection(piece: bytes) -> None:
    async def main() -> None:
        connection, wire = connect()
        first, second = connection.submit_get(b"k1", PLANNER), connection.submit_get(b"k2", PLANNER)
        await turns(2)
        wire.feed(piece + b"x" * 3000, 7)
        assert isinstance(connection.failure, BadReply)
        assert wire.aborted
        # an END was the answer to both; what came after it was not
        answer = MISSING if piece.startswith(b"END") else connection
        assert (first.result(), second.result()) == (answer, answer)
        assert await connection.submit_get(b"k1", PLANNER) is connection

    asyncio.run(main())


def test_bytes_that_nobody_asked_for_end_the_connection() -> None:
    async def main() -> None:
        connection, wire = connect()
        wire.feed(b"E")
        assert isinstance(connection.failure, BadReply)
        assert wire.aborted

    asyncio.run(main())


def test_what_is_written_ahead_is_bounded() -> None:
    async def main() -> None:
        connection, wire = connect()
        value = b"v" * 100_000
        for number in range(50):
            connection.submit(Stores(requests.meta_set(b"k%d" % number, value, b"T0"), 1), "")
        wire.full_at = WRITE_HIGH_WATER
        await turns(2)
        assert WRITE_HIGH_WATER < len(b"".join(wire.written)) < 2 * WRITE_HIGH_WATER + len(value)
        while len(wire.written) < 30 and b"k49" not in wire.written[-1]:
            before = len(b"".join(wire.written))
            connection.resume_writing()
            assert len(b"".join(wire.written)) - before < WRITE_HIGH_WATER + len(value) + 100
        assert b"".join(wire.written).count(b"ms k") == 50
        connection.close()

    asyncio.run(main())


def test_a_node_that_takes_what_it_is_sent_is_not_late() -> None:
    async def main() -> None:
        connection, wire = connect(timeout=0.05)
        wire.backlog = 1000
        call = connection.submit(Stores(requests.meta_set(b"k", b"v" * 2000, b"T0"), 1), "")
        ends = asyncio.get_running_loop().time() + 0.25
        while asyncio.get_running_loop().time() < ends:
            await asyncio.sleep(0.01)
            wire.backlog -= 1
        assert connection.failure is None
        assert isinstance(await call, NodeTimeout)

    asyncio.run(main())
