"""Copying one key, and many: what is sent, what a reply decides, and what real nodes hold afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvcluster.errors import OutcomeUnknown
from kvcluster.planner import expiry
from kvcluster.protocol.hot import Reply
from kvcluster.protocol.requests import BinaryKey, Commands
from kvcluster.rebalance.copy import Batch, confirmed, fill, give_up, read, rearm, reserve, reserved, verdict
from kvcluster.rebalance.lanes import Lane, figures
from kvcluster.rebalance.moves import Work
from kvcluster.rebalance.pipeline import copied
from kvcluster.testing.plugin import NodeFactory
from kvcluster.topology import Node
from tests.client.cluster import ask

NOW = 1.7e9
EPOCH = 5


def reply(status: str, **fields: object) -> Reply:
    made = Reply(status)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def test_what_is_sent() -> None:
    value = reply("VA", value=b"v\r\n", ttl=60, flags=16, cas=3)
    assert reserve(b"a") == b"mg a c N10\r\n"
    assert read(b"a") == b"mg a v t f c u\r\n"
    assert fill(b"a", 5, value, NOW) == b"ms a 3 C5 T60 F16\r\nv\r\n\r\n"
    assert give_up(b"a", 5) == b"md a C5\r\n"
    assert reserve(BinaryKey(b"a b")) == b"mg YSBi c N10 b\r\n"
    assert fill(BinaryKey(b"a b"), 5, value, NOW) == b"ms YSBi 3 C5 T60 F16 b\r\nv\r\n\r\n"


def test_many_reservations_are_the_same_bytes_as_each_of_them() -> None:
    plain = [b"a", b"b", b"\xff"]
    for wires in (plain, [*plain, BinaryKey(b"a b")], [b"x"]):
        request = Batch(wires, EPOCH).reserve()
        probe = b"mg __kvc:epoch v O%b\r\n" % request.opaque
        assert request.payload == b"".join(reserve(wire, b" O" + request.opaque) for wire in wires) + probe


def test_a_key_is_ours_only_where_there_was_nothing() -> None:
    assert reserved(reply("HD", won=True, cas=5))
    assert not reserved(reply("HD", cas=5))
    assert not reserved(reply("HD", cas=5, taken=True))
    assert not reserved(reply("HD", cas=5, won=True, stale=True))


@pytest.mark.parametrize(
    ("there", "outcome"),
    [
        (reply("VA", value=b"x", ttl=60), "stored"),
        (reply("VA", value=b"", ttl=-1), "stored"),
        (reply("EN"), "gone"),
        (reply("VA", value=b"x", ttl=0), "expired"),  # T0 would make it last for ever
        (reply("VA", value=b"x", won=True, stale=True), "stale"),
        (reply("VA", value=b"x", taken=True, stale=True), "stale"),
        (reply("VA", value=b"", taken=True), "filling"),
        (reply("VA", value=b"x", taken=True), "filling"),
        (reply("SERVER_ERROR out of memory"), "gone"),
    ],
)
def test_what_the_source_says_decides(there: Reply, outcome: str) -> None:
    assert verdict(there) == outcome


def test_only_a_refill_token_that_was_taken_is_given_back() -> None:
    assert rearm(b"a", reply("VA", value=b"x", cas=7, won=True, stale=True)) == b"md a I C7\r\n"
    assert rearm(b"a", reply("VA", value=b"x", cas=7, taken=True, stale=True)) is None
    assert rearm(b"a", reply("VA", value=b"x", cas=7)) is None


def test_a_ttl_is_sent_as_memcached_takes_it() -> None:
    assert [expiry(ttl, NOW) for ttl in (-1, 1, 2592000, 2592001)] == [0, 1, 2592000, int(NOW) + 2592001]


def test_what_the_target_says_to_a_store() -> None:
    answers = ("HD", "NF", "EX", "SERVER_ERROR out of memory storing object")
    assert [confirmed(reply(status)) for status in answers] == ["stored", "newer", "newer", "refused"]


# -- on nodes


class Pair:
    """An old and a new owner, and one batch between them, a step at a time."""

    def __init__(self, old: str, new: str) -> None:
        self.old, self.new = old, new
        self.lanes = Lane(Node(old), 5.0), Lane(Node(new), 5.0)
        self.at_new(b"ms __kvc:epoch 1\r\n%d\r\n" % EPOCH)

    def at_old(self, request: bytes) -> bytes:
        return ask(self.old, request)

    def at_new(self, request: bytes) -> bytes:
        return ask(self.new, request)

    def exchange(self, lane: Lane, request: Commands) -> None:
        if request.count:
            lane.send(request)
            lane.receive(request)

    def reserve(self, batch: Batch) -> None:
        self.exchange(self.lanes[1], batch.reserve())

    def read(self, batch: Batch) -> None:
        self.exchange(self.lanes[0], batch.read())

    def fill(self, batch: Batch) -> dict[str, int]:
        stores, rearms = batch.fill(figures(Node(self.new), 5.0).now)  # by its clock, which is a second or two late
        self.exchange(self.lanes[1], stores)
        self.exchange(self.lanes[0], rearms)
        batch.finish()
        return dict(batch.outcomes)

    def copy(self, *wires: bytes) -> dict[str, int]:
        batch = Batch(wires, EPOCH)
        self.reserve(batch)
        self.read(batch)
        return self.fill(batch)

    def close(self) -> None:
        for lane in self.lanes:
            lane.close()


@pytest.fixture(params=["binary", "embedded"])
def pair(request: pytest.FixtureRequest, kv_nodes: NodeFactory) -> Iterator[Pair]:
    old, new = kv_nodes(2, kind=request.param)
    pair = Pair(old.address, new.address)
    yield pair
    pair.close()


def test_values_flags_and_ttls_arrive_as_they_were(pair: Pair) -> None:
    far = figures(Node(pair.old), 5.0).now + 40 * 86400
    pair.at_old(b"ms a 3 T60 F7\r\nx\r\n\r\nms b 1 T0\r\ny\r\nms c 0 T90 F2\r\n\r\nms YSBi 1 b\r\nz\r\n")
    pair.at_old(b"ms far 1 T%d\r\nf\r\n" % far)
    assert pair.copy(b"a", b"b", b"c", BinaryKey(b"a b"), b"far", b"absent") == {"stored": 5, "gone": 1}
    assert pair.at_new(b"mg a v f t\r\n") in (b"VA 3 f7 t60\r\nx\r\n\r\n", b"VA 3 f7 t59\r\nx\r\n\r\n")
    assert pair.at_new(b"mg b v f t\r\n") == b"VA 1 f0 t-1\r\ny\r\n"
    assert pair.at_new(b"mg c v f\r\n") == b"VA 0 f2\r\n\r\n"
    assert pair.at_new(b"mg YSBi v b\r\n") == b"VA 1\r\nz\r\n"
    assert abs(int(pair.at_new(b"mg far t\r\n").split(b"t")[1]) - 40 * 86400) <= 1
    assert pair.at_new(b"mg absent v\r\n") == b"EN\r\n"  # the reservation is gone, too


def test_what_is_there_already_is_newer(pair: Pair) -> None:
    pair.at_old(b"ms a 3\r\nold\r\n")
    pair.at_new(b"ms a 3\r\nnew\r\n")
    assert pair.copy(b"a") == {"newer": 1}
    assert b"new" in pair.at_new(b"mg a v\r\n")


def test_a_delete_after_the_reservation_wins(pair: Pair) -> None:
    pair.at_old(b"ms a 3\r\nold\r\n")
    batch = Batch([b"a"], EPOCH)
    pair.reserve(batch)
    pair.read(batch)
    pair.at_old(b"md a\r\n")
    pair.at_new(b"md a\r\n")
    assert pair.fill(batch) == {"newer": 1}
    assert pair.at_new(b"mg a v\r\n") == b"EN\r\n"


def test_a_set_after_the_reservation_wins(pair: Pair) -> None:
    pair.at_old(b"ms a 3\r\nold\r\n")
    batch = Batch([b"a"], EPOCH)
    pair.reserve(batch)
    pair.read(batch)
    pair.at_old(b"md a\r\n")
    pair.at_new(b"ms a 3\r\nnew\r\n")
    assert pair.fill(batch) == {"newer": 1}
    assert b"new" in pair.at_new(b"mg a v\r\n")


def test_a_delete_before_the_read_leaves_nothing_to_copy(pair: Pair) -> None:
    pair.at_old(b"ms a 3\r\nold\r\n")
    batch = Batch([b"a"], EPOCH)
    pair.reserve(batch)
    pair.at_old(b"md a\r\n")
    pair.read(batch)
    assert pair.fill(batch) == {"gone": 1}
    assert pair.at_new(b"mg a v\r\n") == b"EN\r\n"


def test_a_stale_value_stays_where_it_is_and_its_refill_with_it(pair: Pair) -> None:
    pair.at_old(b"ms a 3\r\nold\r\nmd a I T60\r\n")
    assert pair.copy(b"a") == {"stale": 1}
    assert pair.at_new(b"mg a v\r\n") == b"EN\r\n"
    won = pair.at_old(b"mg a v\r\n").split()
    assert b"W" in won  # the next reader refills it, as if nobody had looked


def test_a_stale_value_of_the_target_keeps_its_refill(pair: Pair) -> None:
    pair.at_old(b"ms a 3\r\nold\r\n")
    pair.at_new(b"ms a 3\r\nnew\r\nmd a I T60\r\n")
    assert pair.copy(b"a") == {"newer": 1}
    answer = pair.at_new(b"mg a v\r\n")
    assert b"new" in answer
    assert b"W" in answer.split()


def test_a_key_that_somebody_fills_is_put_aside(pair: Pair) -> None:
    pair.at_old(b"ms a 3\r\nold\r\n")
    pair.at_new(b"mg a v N30\r\n")
    batch = Batch([b"a"], EPOCH)
    pair.reserve(batch)
    pair.read(batch)
    assert pair.fill(batch) == {}
    assert batch.waiting == [b"a"]


def test_a_placeholder_of_the_source_is_not_copied(pair: Pair) -> None:
    pair.at_old(b"mg a v N30\r\n")
    assert pair.copy(b"a") == {"filling": 1}
    assert pair.at_new(b"mg a v\r\n") == b"EN\r\n"


def test_a_value_that_is_renewed_early_is_not_copied(pair: Pair) -> None:
    pair.at_old(b"ms a 3 T20\r\nold\r\n")
    assert b"W" in pair.at_old(b"mg a v R30\r\n").split()
    assert pair.copy(b"a") == {"filling": 1}
    assert pair.at_new(b"mg a v\r\n") == b"EN\r\n"


def test_a_value_too_large_for_the_target_is_refused_and_leaves_nothing(kv_nodes: NodeFactory) -> None:
    (old,) = kv_nodes(1, kind="binary", arguments=["-I", "2m"])
    (new,) = kv_nodes(1, kind="binary")
    pair = Pair(old.address, new.address)
    try:
        pair.at_old(b"ms a 1500000\r\n" + b"x" * 1_500_000 + b"\r\n")
        assert pair.copy(b"a") == {"refused": 1}
        assert pair.at_new(b"mg a v\r\n") == b"EN\r\n"
    finally:
        pair.close()


@pytest.mark.parametrize("told", [b"md __kvc:epoch\r\n", b"ms __kvc:epoch 1\r\n6\r\n"])
def test_what_was_reserved_in_another_phase_is_not_read(pair: Pair, told: bytes) -> None:
    pair.at_old(b"ms a 3\r\nold\r\n")
    pair.at_new(told)
    batch = Batch([b"a"], EPOCH)
    pair.reserve(batch)
    batch.read()
    assert not batch.current
    with pytest.raises(OutcomeUnknown, match="does not hold epoch 5"):
        list(copied([Work(pair.new, [b"a"], 0)], EPOCH, pair.lanes[0], lambda _: pair.lanes[1], lambda _: NOW))
