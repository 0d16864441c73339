"""What the contract suite cannot ask of a real server: the passing of time, the memory limit, many threads."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kvcluster.embedded
from kvcluster.embedded import EmbeddedNode, Session
from kvcluster.errors import ConfigurationError

START = 1_700_000_000


class Clock:
    """A clock that stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now = START + 0.75

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def session(clock: Clock) -> Session:
    return EmbeddedNode(clock=clock).session()


@pytest.mark.parametrize(
    "store",
    [b"set a 0 10 1\r\n1\r\n", b"ms a 1 T10\r\n1\r\n", b"set a 0 %d 1\r\n1\r\n" % (START + 10), b"mg a N10\r\n", b"ma a N10\r\n"],
)
def test_an_item_lives_for_its_ttl(store: bytes, session: Session, clock: Clock) -> None:
    session.receive(store)
    clock.now = START + 9.9
    assert session.receive(b"mg a t\r\n").startswith(b"HD t1")
    clock.now = START + 10
    assert session.receive(b"mg a t\r\n") == b"EN\r\n"


def test_touch_prolongs_and_append_keeps_the_ttl(session: Session, clock: Clock) -> None:
    session.receive(b"set a 0 10 1\r\n1\r\nset b 0 10 1\r\n1\r\nincr b 99\r\nappend b 0 0 1\r\n0\r\n")
    clock.now += 5
    assert session.receive(b"touch a 10\r\nmg b t\r\n") == b"TOUCHED\r\nHD t5\r\n"
    clock.now += 5
    assert session.receive(b"mg a t\r\nmg b\r\n") == b"HD t5\r\nEN\r\n"


def test_a_lease_that_nobody_fills_is_won_anew(session: Session, clock: Clock) -> None:
    assert session.receive(b"mg a N30\r\nmg a N30\r\n") == b"HD W\r\nHD Z\r\n"
    clock.now += 30
    assert session.receive(b"mg a N30\r\n") == b"HD W\r\n"


def test_a_stale_value_lives_for_the_ttl_of_its_invalidation(session: Session, clock: Clock) -> None:
    session.receive(b"set a 0 0 1\r\n1\r\nmd a I T30\r\n")
    clock.now += 29
    assert session.receive(b"mg a\r\n") == b"HD X W\r\n"
    clock.now += 1
    assert session.receive(b"mg a\r\n") == b"EN\r\n"


def test_renewal_is_won_once_near_the_end(session: Session, clock: Clock) -> None:
    session.receive(b"set a 0 100 1\r\n1\r\n")
    assert session.receive(b"mg a R30\r\n") == b"HD\r\n"
    clock.now += 71
    assert session.receive(b"mg a R30\r\nmg a R30\r\n") == b"HD W\r\nHD Z\r\n"


def test_last_access_is_told(session: Session, clock: Clock) -> None:
    session.receive(b"set a 0 0 1\r\n1\r\n")
    clock.now += 7
    assert session.receive(b"mg a l u\r\nmg a l\r\nmg a l\r\n") == b"HD l7\r\nHD l7\r\nHD l0\r\n"


def test_a_delayed_flush_takes_what_is_there_when_it_comes(session: Session, clock: Clock) -> None:
    session.receive(b"set a 0 0 1\r\n1\r\nflush_all 10\r\n")
    clock.now += 5
    assert session.receive(b"set b 0 0 1\r\n1\r\nget a\r\n") == b"STORED\r\nVALUE a 0 1\r\n1\r\nEND\r\n"
    clock.now += 5
    assert session.receive(b"get a b\r\nset c 0 0 1\r\n1\r\nget c\r\n") == b"END\r\nSTORED\r\nVALUE c 0 1\r\n1\r\nEND\r\n"


SIZE = 61  # bytes of an item with one letter of key and of value
USES = [
    b"get a",
    b"mg a",
    b"mg a t h l",
    b"touch a 0",
    b"gat 0 a",
    b"incr a 1",
    b"ma a",
    b"add a 0 0 1\r\n1",
    b"append a 0 0 0\r\n",
]


@pytest.mark.parametrize("use", USES)
def test_the_least_recently_used_go_when_memory_is_short(use: bytes) -> None:
    session = EmbeddedNode(memory_limit=4 * SIZE - 1).session()
    session.receive(b"".join(b"set %b 0 0 1\r\n1\r\n" % key for key in (b"a", b"b", b"c")))
    session.receive(use + b"\r\nmg b u\r\nmd b C0\r\nset d 0 0 1\r\n1\r\n")
    assert session.receive(b"mg a k\r\nmg b k\r\nmg c k\r\nmg d k\r\n") == b"HD ka\r\nEN kb\r\nHD kc\r\nHD kd\r\n"
    assert b"STAT evictions 1\r\nSTAT reclaimed 0\r\n" in session.receive(b"stats\r\n")


def test_memory_taken_back_from_what_expired_is_no_eviction(clock: Clock) -> None:
    session = EmbeddedNode(memory_limit=SIZE, clock=clock).session()
    session.receive(b"set a 0 5 1\r\n1\r\n")
    clock.now += 5
    session.receive(b"set b 0 0 1\r\n1\r\n")
    assert b"STAT evictions 0\r\nSTAT reclaimed 1\r\n" in session.receive(b"stats\r\n")


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(b"abcdefgh"), st.integers(0, 300)), max_size=60))
def test_memory_never_exceeds_its_limit(stores: list[tuple[int, int]]) -> None:
    limit = 1000
    session = EmbeddedNode(memory_limit=limit).session()
    for key, length in stores:
        assert session.receive(b"set %c 0 0 %d\r\n%b\r\n" % (key, length, b"x" * length)) == b"STORED\r\n"
        assert session.receive(b"mg %c s\r\n" % key) == b"HD s%d\r\n" % length  # the newest item is never the one to go
        figures = dict(line.split()[1:] for line in session.receive(b"stats\r\n").splitlines()[:-1])
        sizes = [int(line.rpartition(b"size=")[2]) for line in session.receive(b"lru_crawler metadump all\r\n").splitlines()[:-1]]
        assert sum(sizes) == int(figures[b"bytes"]) <= limit
        assert len(sizes) == int(figures[b"curr_items"])


def test_an_item_beyond_the_memory_limit_is_refused() -> None:
    session = EmbeddedNode(memory_limit=100).session()
    assert session.receive(b"set a 0 0 1\r\n1\r\nset a 0 0 100\r\n" + b"x" * 100 + b"\r\n") == (
        b"STORED\r\nSERVER_ERROR out of memory storing object\r\n"
    )
    assert session.receive(b"get a\r\n") == b"END\r\n"


@pytest.mark.parametrize("limit", [0, -1])
def test_a_memory_limit_must_be_positive(limit: int) -> None:
    with pytest.raises(ConfigurationError, match="memory_limit"):
        EmbeddedNode(memory_limit=limit)


def test_sessions_share_items_and_close_apart() -> None:
    node = EmbeddedNode()
    one, other = node.session(), node.session()
    assert repr(node) == "<EmbeddedNode 0 items, 0 of 67108864 bytes, 2 sessions>"
    one.receive(b"set a 0 0 1\r\n1\r\nset b 0 0 5\r\n12")
    one.close()
    one.close()
    assert one.closed
    assert one.receive(b"345\r\n") == b""
    assert other.receive(b"get a b\r\n") == b"VALUE a 0 1\r\n1\r\nEND\r\n"
    assert repr(node) == "<EmbeddedNode 1 items, 61 of 67108864 bytes, 1 sessions>"


def test_threads_lose_no_increment() -> None:
    threads, each = 8, 500
    start, reading, overlaps = threading.Barrier(threads), threading.Lock(), []

    def clock() -> float:
        # The clock is read in the middle of a command: let another thread run there, and see that it does not get there too.
        if not reading.acquire(blocking=False):
            overlaps.append(threading.get_ident())
            return START
        os.sched_yield()
        reading.release()
        return START

    node = EmbeddedNode(clock=clock)
    node.session().receive(b"set n 0 0 1\r\n0\r\n")

    def count() -> None:
        session = node.session()
        start.wait()
        for _ in range(each):
            session.receive(b"ma n\r\n")

    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(count) for _ in range(threads)]:
            done.result()
    assert node.session().receive(b"mg n v\r\n") == b"VA 4\r\n4000\r\n"
    assert not overlaps


def test_a_name_is_one_node_in_the_process() -> None:
    kvcluster.embedded.node("test-registry").session().receive(b"set a 0 0 1\r\n1\r\n")
    assert kvcluster.embedded.node("test-registry").session().receive(b"mg a v\r\n") == b"VA 1\r\n1\r\n"
    assert kvcluster.embedded.node("another").session().receive(b"mg a v\r\n") == b"EN\r\n"
    assert kvcluster.embedded.node() is kvcluster.embedded.node("default")
