"""The rules of reading through, without I/O: what goes over the wire, byte for byte, and what follows from each answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from kvcluster.cache.flights import LOADING, Outcome
from kvcluster.cache.flows import Join, Load, Loaders, Sleep, read_many, read_one, refresh_one
from kvcluster.cache.policy import Policy
from kvcluster.errors import CallerError, IllegalValue
from tests.cache.hand import Hand, source

KEY = b"s:k"
ASK = b"mg s:k v f c t N30\r\n"
WON = b"VA 0 f0 c7 W\r\n\r\n"
LOST = b"VA 0 f0 c7 Z\r\n\r\n"
VALUE = b"VA 5 f16 c8\r\nvalue\r\n"
FILL = b"ms s:k 5 C7 T100 F16\r\nvalue\r\n"
GIVE_BACK = b"md s:k C7\r\n"


def value() -> str:
    return "value"


def failing() -> str:
    raise LookupError("no database")


def counted(hand: Hand) -> tuple[int, int]:
    return hand.counters.hits, hand.counters.misses


# -- one key


def test_a_hit_is_one_exchange() -> None:
    hand = Hand(read_one(source()[0], KEY, failing))
    assert hand.wire == ASK
    hand.receives(VALUE)
    assert hand.result == "value"
    assert counted(hand) == (1, 0)


def test_none_is_a_value() -> None:
    hand = Hand(read_one(source()[0], KEY, failing)).receives(b"VA 1 f64 c8\r\n\xc0\r\n")
    assert hand.ended
    assert hand.result is None
    assert hand.error is None
    assert counted(hand) == (1, 0)


def test_the_winner_loads_and_stores_against_its_lease() -> None:
    its, clock = source()
    hand = Hand(read_one(its, KEY, value)).receives(WON)
    clock.advance(5)
    began = clock()
    assert isinstance(hand.need, Load)
    hand.loads()
    assert hand.wire == FILL
    assert hand.opened_before() == 1000.0 < began
    hand.receives(b"HD\r\n")
    assert hand.result == "value"
    assert counted(hand) == (0, 1)
    assert hand.counters.sets == 1
    assert hand.counters.unstored == 0


@pytest.mark.parametrize("refusal", [b"EX\r\n", b"NF\r\n", b"NS\r\n", b"SERVER_ERROR out of memory storing object\r\n", None])
def test_a_fill_that_is_not_stored_is_counted_and_the_value_returned(refusal: bytes | None) -> None:
    hand = Hand(read_one(source()[0], KEY, value)).receives(WON).loads().receives(refusal)
    assert hand.result == "value"
    assert hand.counters.unstored == 1
    assert hand.counters.sets == 0


def test_absence_is_stored_for_the_negative_ttl() -> None:
    its, _ = source(policy=Policy(ttl=100, jitter=0, negative=9))
    hand = Hand(read_one(its, KEY, lambda: None)).receives(WON).loads()
    assert hand.wire == b"ms s:k 1 C7 T9 F64\r\n\xc0\r\n"


def test_no_expiry_and_a_long_one() -> None:
    for ttl, told in ((None, b"T0"), (40 * 86400, b"T%d" % (5000 + 40 * 86400))):
        its, _ = source(policy=Policy(ttl=ttl, jitter=0), clock=lambda: 5000)
        hand = Hand(read_one(its, KEY, value)).receives(WON).loads()
        assert told in hand.wire.split()


def test_the_loser_polls_until_the_value_is_there() -> None:
    its, clock = source()
    hand = Hand(read_one(its, KEY, failing)).receives(LOST)
    for _ in range(3):
        assert isinstance(hand.need, Sleep)
        assert hand.need.seconds <= 0.010
        clock.advance(hand.need.seconds)
        hand.sleeps()
        assert hand.wire == ASK
        hand.receives(LOST)
    hand.sleeps().receives(VALUE)
    assert hand.result == "value"
    assert counted(hand) == (0, 1), "one question by the caller, whatever it takes to answer it"


def test_the_loser_becomes_the_winner_when_the_lease_is_given_back() -> None:
    hand = Hand(read_one(source()[0], KEY, value)).receives(LOST).sleeps().receives(b"VA 0 f0 c9 W\r\n\r\n").loads()
    assert hand.wire == b"ms s:k 5 C9 T100 F16\r\nvalue\r\n"
    assert hand.receives(b"HD\r\n").result == "value"


def test_a_winner_that_is_silent_too_long_is_taken_over() -> None:
    its, clock = source()
    hand = Hand(read_one(its, KEY, value)).receives(LOST)
    clock.advance(0.6)
    hand.sleeps().receives(LOST)
    clock.advance(0.3)
    hand.sleeps().receives(LOST)
    assert isinstance(hand.need, Sleep), "0.9 s is not longer than takeover"
    clock.advance(0.2)
    hand.sleeps().receives(LOST)
    assert hand.wire == b"md s:k I C7 T30\r\n"
    hand.receives(b"HD\r\n").sleeps()
    assert hand.wire == ASK
    hand.receives(b"VA 0 f0 c8 W X\r\n\r\n").loads()
    assert hand.wire == b"ms s:k 5 C8 T100 F16\r\nvalue\r\n"


def test_who_comes_second_to_take_over_waits_for_the_new_winner() -> None:
    its, clock = source()
    hand = Hand(read_one(its, KEY, value)).receives(LOST)
    clock.advance(1.1)
    hand.sleeps().receives(LOST).receives(b"EX\r\n").sleeps().receives(b"VA 0 f0 c9 X Z\r\n\r\n")
    assert isinstance(hand.need, Sleep)
    clock.advance(0.9)
    hand.sleeps().receives(b"VA 0 f0 c9 X Z\r\n\r\n")
    assert isinstance(hand.need, Sleep), "the new winner has the whole time"
    clock.advance(0.2)
    hand.sleeps().receives(b"VA 0 f0 c9 X Z\r\n\r\n")
    assert hand.wire == b"md s:k I C9 T30\r\n"


def test_a_stale_item_that_another_refreshes_is_waited_for() -> None:
    hand = Hand(read_one(source()[0], KEY, failing)).receives(b"VA 5 f16 c9 X Z\r\nstale\r\n")
    assert isinstance(hand.need, Sleep)
    assert hand.sleeps().receives(VALUE).result == "value"


def test_a_stale_item_that_we_are_to_refresh_is_loaded() -> None:
    hand = Hand(read_one(source()[0], KEY, value)).receives(b"VA 5 f16 c9 W X\r\nstale\r\n").loads()
    assert hand.wire.startswith(b"ms s:k 5 C9 ")


@pytest.mark.parametrize("answer", [None, b"SERVER_ERROR out of memory\r\n", b"EN\r\n"])
def test_a_node_that_gives_no_lease_is_a_miss_that_is_not_stored(answer: bytes | None) -> None:
    hand = Hand(read_one(source()[0], KEY, value)).receives(answer).loads()
    assert hand.result == "value"
    assert counted(hand) == (0, 1)


def test_a_node_that_goes_while_we_wait() -> None:
    hand = Hand(read_one(source()[0], KEY, value)).receives(LOST).sleeps().receives(None).loads()
    assert hand.result == "value"
    assert counted(hand) == (0, 1)


def test_an_undecodable_value_is_replaced_by_cas() -> None:
    hand = Hand(read_one(source()[0], KEY, value)).receives(b"VA 3 f1 c9\r\nxxx\r\n").loads()
    assert hand.wire == b"ms s:k 5 C9 T100 F16\r\nvalue\r\n"
    assert hand.receives(b"HD\r\n").result == "value"
    assert counted(hand) == (0, 1)
    assert hand.counters.undecodable == 1


@pytest.mark.parametrize("answer", [b"VA 3 f1 c9\r\nxxx\r\n", None])
def test_only_a_lease_is_given_back(answer: bytes | None) -> None:
    hand = Hand(read_one(source()[0], KEY, failing)).receives(answer).loads()
    assert isinstance(hand.error, LookupError)


@pytest.mark.parametrize("reply", [b"HD\r\n", b"NF\r\n", b"EX\r\n", None])
def test_a_loader_that_raises_gives_its_lease_back(reply: bytes | None) -> None:
    hand = Hand(read_one(source()[0], KEY, failing)).receives(WON).loads()
    assert hand.wire == GIVE_BACK
    assert isinstance(hand.receives(reply).error, LookupError)


def test_a_keyboard_interrupt_gives_the_lease_back_too() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    hand = Hand(read_one(source()[0], KEY, interrupted)).receives(WON).loads()
    assert hand.wire == GIVE_BACK
    assert isinstance(hand.receives(b"HD\r\n").error, KeyboardInterrupt)


@pytest.mark.parametrize("loaded", [(1, 2), "x" * 2000])
def test_a_result_that_cannot_be_stored_gives_the_lease_back(loaded: object) -> None:
    its, _ = source(item_size_max=1000)
    hand = Hand(read_one(its, KEY, lambda: loaded)).receives(WON).loads()
    assert hand.wire == GIVE_BACK
    assert isinstance(hand.receives(b"HD\r\n").error, IllegalValue)


@pytest.mark.parametrize("steps", ["asking", "waiting", "loading", "filling", "giving back"])
def test_a_flow_that_is_dropped_frees_its_followers_and_sends_nothing_more(steps: str) -> None:
    its, _ = source()
    hand = Hand(read_one(its, KEY, failing if steps == "giving back" else value))
    if steps != "asking":
        hand.receives(LOST if steps == "waiting" else WON)
        follower = Hand(read_one(its, KEY, value)).receives(LOST)
        if steps in ("filling", "giving back"):
            hand.loads()
        hand.flow.close()
        assert follower.joins().wire == ASK, "nobody's outcome, so it asks again"
    hand.flow.close()
    assert its.flights.join(KEY)[1], "no flight is left behind"


# -- callers in one process


def test_followers_take_the_leaders_stored_value_and_send_nothing() -> None:
    its, clock = source()
    leader = Hand(read_one(its, KEY, value)).receives(WON)
    clock.advance(1)
    followers = [Hand(read_one(its, KEY, failing)).receives(LOST) for _ in range(3)]
    assert all(isinstance(follower.need, Join) for follower in followers)
    clock.advance(1)
    leader.loads().receives(b"HD\r\n")
    assert [follower.joins().result for follower in followers] == ["value"] * 3


def test_every_follower_has_an_object_of_its_own() -> None:
    its, _ = source()
    leader = Hand(read_one(its, KEY, lambda: [1])).receives(WON)
    followers = [Hand(read_one(its, KEY, failing)).receives(LOST) for _ in range(2)]
    leader.loads().receives(b"HD\r\n")
    results = [leader.result, *(follower.joins().result for follower in followers)]
    assert results == [[1]] * 3
    assert len(set(map(id, results))) == 3


@pytest.mark.parametrize("stored", [b"EX\r\n", None])
def test_a_value_that_was_not_stored_is_only_for_those_who_asked_before_its_load(stored: bytes | None) -> None:
    its, clock = source()
    early = Hand(read_one(its, KEY, value))
    clock.advance(1)
    leader = Hand(read_one(its, KEY, value)).receives(WON)
    early.receives(LOST)
    clock.advance(1)
    late = Hand(read_one(its, KEY, value)).receives(LOST)
    leader.loads().receives(stored)
    assert early.joins().result == "value"
    assert late.joins().wire == ASK, "an invalidation may have completed before it asked, and after the load began"


def test_an_error_is_only_for_those_who_asked_before_its_load() -> None:
    its, clock = source()
    early = Hand(read_one(its, KEY, value))
    leader = Hand(read_one(its, KEY, failing)).receives(WON)
    early.receives(LOST)
    clock.advance(1)
    late = Hand(read_one(its, KEY, value)).receives(LOST)
    leader.loads().receives(b"HD\r\n")
    assert early.joins().error is leader.error
    assert late.joins().receives(WON).loads().receives(b"HD\r\n").result == "value"


def test_of_a_node_that_is_down_one_caller_loads_for_all() -> None:
    its, clock = source()
    callers = [Hand(read_one(its, KEY, value)) for _ in range(4)]
    clock.advance(0.25)
    for caller in callers:
        caller.receives(None)
    leader, *followers = callers
    assert isinstance(leader.need, Load)
    assert all(isinstance(follower.need, Join) for follower in followers)
    assert leader.loads().result == "value"
    assert [follower.joins().result for follower in followers] == ["value"] * 3


def test_a_poller_passes_on_what_another_process_has_stored() -> None:
    its, clock = source()
    poller = Hand(read_one(its, KEY, failing)).receives(LOST)
    clock.advance(1)
    follower = Hand(read_one(its, KEY, failing)).receives(LOST)
    assert isinstance(follower.need, Join)
    clock.advance(0.002)
    poller.sleeps()
    late = Hand(read_one(its, KEY, failing))
    clock.advance(0.001)
    later = Hand(read_one(its, KEY, failing))
    poller.receives(VALUE)
    assert follower.joins().result == "value"
    assert late.receives(VALUE).result == later.receives(VALUE).result == "value"


def test_who_asked_after_the_poll_does_not_take_what_it_found() -> None:
    its, clock = source()
    poller = Hand(read_one(its, KEY, failing)).receives(LOST).sleeps()
    clock.advance(0.001)
    later = Hand(read_one(its, KEY, failing)).receives(LOST)
    poller.receives(VALUE)
    assert later.joins().wire == ASK


def test_an_invalidation_forgets_the_flight() -> None:
    its, clock = source()
    before = Hand(read_one(its, KEY, value)).receives(WON)
    its.flights.forget(KEY)
    clock.advance(1)
    after = Hand(read_one(its, KEY, lambda: "newer")).receives(b"VA 0 f0 c9 W\r\n\r\n")
    follower = Hand(read_one(its, KEY, failing)).receives(b"VA 0 f0 c9 Z\r\n\r\n")
    before.loads().receives(b"EX\r\n")
    after.loads().receives(b"HD\r\n")
    assert follower.joins().result == "newer"
    assert its.flights.join(KEY)[1]


def test_a_loader_that_asks_for_its_own_key_raises() -> None:
    its, _ = source()
    outer = Hand(read_one(its, KEY, value)).receives(WON)
    assert isinstance(outer.need, Load)
    token = LOADING.set(outer.need.keys)
    try:
        inner = Hand(read_one(its, KEY, value)).receives(LOST)
    finally:
        LOADING.reset(token)
    assert isinstance(inner.error, CallerError)
    assert "very key" in str(inner.error)


def test_outcomes_are_not_shared_over_keys() -> None:
    its, _ = source()
    one, other = Hand(read_one(its, b"s:a", value)).receives(LOST), Hand(read_one(its, b"s:b", value)).receives(LOST)
    assert isinstance(one.need, Sleep)
    assert isinstance(other.need, Sleep)


def test_an_outcome_says_what_it_holds() -> None:
    its, clock = source()
    flight = its.flights.lead(KEY)
    follower = Hand(read_one(its, KEY, failing)).receives(LOST)
    its.flights.land(KEY, flight, Outcome(b"12", 2, None, clock()))
    assert follower.joins().result == 12


# -- refresh


def test_a_refresh_loads_whatever_is_there_and_replaces_it_by_cas() -> None:
    hand = Hand(refresh_one(source()[0], KEY, value))
    assert hand.wire == ASK
    hand.receives(b"VA 3 f16 c9\r\nold\r\n").loads()
    assert hand.wire == b"ms s:k 5 C9 T100 F16\r\nvalue\r\n"
    assert hand.receives(b"HD\r\n").result == "value"
    assert counted(hand) == (0, 0), "nobody asked for what was there"


def test_a_refresh_of_what_another_loads_stores_against_its_lease() -> None:
    hand = Hand(refresh_one(source()[0], KEY, value)).receives(LOST).loads()
    assert hand.wire == FILL


def test_a_refresh_that_fails_leaves_what_was_there() -> None:
    its, _ = source()
    hand = Hand(refresh_one(its, KEY, failing)).receives(VALUE).loads()
    assert isinstance(hand.error, LookupError)
    assert its.flights.join(KEY)[1], "no flight is left behind"


def test_a_refresh_leads_those_who_come_while_it_loads() -> None:
    its, _ = source()
    hand = Hand(refresh_one(its, KEY, value)).receives(WON)
    follower = Hand(read_one(its, KEY, failing)).receives(LOST)
    hand.loads().receives(b"HD\r\n")
    assert follower.joins().result == "value"


# -- many keys


def by_name(names: Sequence[str]) -> Mapping[str, str]:
    return {name: name.upper() for name in names}


def wires(*names: str) -> dict[bytes, str]:
    return {b"s:" + name.encode(): name for name in names}


def ask(*names: str) -> bytes:
    return b"".join(b"mg s:%b v f c t N30\r\n" % name.encode() for name in names)


def test_many_hits_are_one_exchange() -> None:
    hand = Hand(read_many(source()[0], wires("a", "b"), Loaders(by_name)))
    assert hand.wire == ask("a", "b")
    hand.receives(b"VA 1 f16 c1\r\nA\r\nVA 1 f16 c2\r\nB\r\n")
    assert hand.result == {"a": "A", "b": "B"}
    assert counted(hand) == (2, 0)


def test_what_was_won_is_loaded_at_once_and_stored_at_once() -> None:
    calls: list[Any] = []

    def load(names: Sequence[str]) -> Mapping[str, str]:
        calls.append(names)
        return by_name(names)

    hand = Hand(read_many(source()[0], wires("a", "b", "c"), Loaders(load)))
    hand.receives(b"VA 0 f0 c1 W\r\n\r\nVA 1 f16 c2\r\nB\r\nVA 0 f0 c3 W\r\n\r\n").loads()
    assert calls == [["a", "c"]]
    assert hand.wire == b"ms s:a 1 C1 T100 F16\r\nA\r\nms s:c 1 C3 T100 F16\r\nC\r\n"
    assert hand.opened_before() == 1000.0
    assert hand.receives(b"HD\r\nEX\r\n").result == {"a": "A", "b": "B", "c": "C"}
    assert counted(hand) == (1, 2)
    assert (hand.counters.sets, hand.counters.unstored) == (1, 1)


def test_what_the_loader_does_not_know_is_cached_as_none() -> None:
    its, _ = source(policy=Policy(ttl=100, jitter=0, negative=9))
    hand = Hand(read_many(its, wires("a", "b"), Loaders(lambda names: {"a": "A"})))
    hand.receives(b"VA 0 f0 c1 W\r\n\r\nVA 0 f0 c2 W\r\n\r\n").loads()
    assert hand.wire == b"ms s:a 1 C1 T100 F16\r\nA\r\nms s:b 1 C2 T9 F64\r\n\xc0\r\n"
    assert hand.receives(b"HD\r\nHD\r\n").result == {"a": "A", "b": None}


def test_what_was_won_is_stored_before_what_was_lost_is_waited_for() -> None:
    hand = Hand(read_many(source()[0], wires("a", "b"), Loaders(by_name))).receives(b"VA 0 f0 c1 W\r\n\r\nVA 0 f0 c2 Z\r\n\r\n")
    hand.loads().receives(b"HD\r\n")
    assert isinstance(hand.need, Sleep)
    hand.sleeps()
    assert hand.wire == ask("b")
    hand.receives(b"VA 0 f0 c2 Z\r\n\r\n").sleeps().receives(b"VA 1 f16 c9\r\nB\r\n")
    assert hand.result == {"a": "A", "b": "B"}
    assert counted(hand) == (0, 2)


def test_a_dead_winner_of_many_is_taken_over() -> None:
    its, clock = source()
    lost = b"VA 0 f0 c2 Z\r\n\r\n"
    hand = Hand(read_many(its, wires("b"), Loaders(by_name))).receives(lost)
    clock.advance(1.1)
    hand.sleeps().receives(lost)
    assert hand.wire == b"md s:b I C2 T30\r\n"
    hand.receives(b"HD\r\n").sleeps().receives(b"VA 0 f0 c3 W X\r\n\r\n").loads()
    assert hand.wire == b"ms s:b 1 C3 T100 F16\r\nB\r\n"
    assert hand.receives(b"HD\r\n").result == {"b": "B"}


def test_a_new_winner_of_many_has_the_whole_time() -> None:
    its, clock = source()
    hand = Hand(read_many(its, wires("b"), Loaders(by_name))).receives(b"VA 0 f0 c2 Z\r\n\r\n")
    clock.advance(1.1)
    hand.sleeps().receives(b"VA 0 f0 c5 Z\r\n\r\n")
    assert isinstance(hand.need, Sleep)
    clock.advance(1.1)
    hand.sleeps().receives(b"VA 0 f0 c5 Z\r\n\r\n")
    assert hand.wire == b"md s:b I C5 T30\r\n"


def test_a_node_that_is_down_costs_its_keys_a_load_and_the_others_nothing() -> None:
    its, _ = source(nodes=2)
    names = [str(n) for n in range(40)]
    hand = Hand(read_many(its, wires(*names), Loaders(by_name)))
    (first, second) = hand.sends.values()
    hand.receives(None, b"VA 1 f16 c1\r\nV\r\n" * second.count(b"mg ")).loads()
    assert hand.ended, "there is no lease to store against"
    assert sum(value == "V" for value in hand.result.values()) == second.count(b"mg ")
    assert first.count(b"mg ") > 0
    assert hand.result.keys() == set(names)


@pytest.mark.parametrize("load", [lambda names: failing(), lambda names: None])
def test_a_load_of_many_that_fails_gives_all_its_leases_back(load: Callable[..., Any]) -> None:
    hand = Hand(read_many(source()[0], wires("a", "b", "c"), Loaders(load)))
    hand.receives(b"VA 0 f0 c1 W\r\n\r\nVA 3 f1 c2\r\nxxx\r\nVA 0 f0 c3 W\r\n\r\n").loads()
    assert hand.wire == b"md s:a C1\r\nmd s:c C3\r\n"
    assert isinstance(hand.receives(b"HD\r\nHD\r\n").error, LookupError | AttributeError)


def test_a_flow_of_many_can_be_dropped_anywhere() -> None:
    won = b"VA 0 f0 c1 W\r\n\r\n"
    for steps in range(3):
        hand = Hand(read_many(source()[0], wires("a"), Loaders(by_name)))
        if steps > 0:
            hand.receives(won)
        if steps > 1:
            hand.loads()
        hand.flow.close()


def test_a_follower_of_a_leader_that_hangs_asks_again_and_leads_the_others() -> None:
    its, clock = source()
    leader = Hand(read_one(its, KEY, value)).receives(WON)
    followers = [Hand(read_one(its, KEY, lambda: "newer")).receives(LOST) for _ in range(2)]
    assert [follower.need.seconds for follower in followers] == [1.0, 1.0]
    clock.advance(1)
    first, second = [follower.joins_in_vain().receives(LOST) for follower in followers]
    assert isinstance(first.need, Sleep)
    assert isinstance(second.need, Join)
    clock.advance(1.1)
    first.sleeps().receives(LOST).receives(b"HD\r\n").sleeps().receives(b"VA 0 f0 c8 W X\r\n\r\n").loads().receives(b"HD\r\n")
    assert (first.result, second.joins().result) == ("newer", "newer")
    assert leader.loads().receives(b"EX\r\n").result == "value"


def test_a_load_of_many_that_asks_for_its_own_key_raises_and_keeps_no_other() -> None:
    its, _ = source()
    outer = Hand(read_many(its, wires("a"), Loaders(by_name))).receives(b"VA 0 f0 c1 W\r\n\r\n")
    token = LOADING.set(outer.need.keys)
    try:
        inner = Hand(read_many(its, wires("a", "b"), Loaders(by_name))).receives(b"VA 0 f0 c1 Z\r\n\r\nVA 0 f0 c2 W\r\n\r\n")
    finally:
        LOADING.reset(token)
    assert inner.wire == b"md s:b C2\r\n"
    assert isinstance(inner.receives(b"HD\r\n").error, CallerError)


def test_one_value_that_cannot_be_stored_costs_the_others_nothing() -> None:
    hand = Hand(read_many(source()[0], wires("a", "b"), Loaders(lambda names: {"a": (1,), "b": "B"})))
    hand.receives(b"VA 0 f0 c1 W\r\n\r\nVA 0 f0 c2 W\r\n\r\n").loads()
    assert hand.wire == b"ms s:b 1 C2 T100 F16\r\nB\r\n"
    hand.receives(b"HD\r\n")
    assert hand.wire == b"md s:a C1\r\n"
    assert isinstance(hand.receives(b"HD\r\n").error, IllegalValue)
    assert "'a'" in str(hand.error)


def test_one_by_one_each_value_is_stored_at_once_and_a_failure_gives_back_what_is_left() -> None:
    hand = Hand(read_many(source()[0], wires("a", "b", "c"), Loaders(None, lambda name: {"a": "A"}[name])))
    hand.receives(b"VA 0 f0 c1 W\r\n\r\nVA 0 f0 c2 W\r\n\r\nVA 0 f0 c3 W\r\n\r\n").loads_each(b"HD\r\n", b"HD\r\n", b"")
    assert hand.each == [b"ms s:a 1 C1 T100 F16\r\nA\r\n", b"md s:b C2\r\n"]
    assert hand.wire == b"md s:c C3\r\n"
    assert isinstance(hand.receives(b"HD\r\n").error, KeyError)


def test_who_waits_for_many_is_patient_while_any_arrives() -> None:
    its, clock = source()
    hand = Hand(read_many(its, wires("a", "b"), Loaders(by_name))).receives(b"VA 0 f0 c1 Z\r\n\r\nVA 0 f0 c2 Z\r\n\r\n")
    clock.advance(0.9)
    hand.sleeps().receives(b"VA 1 f16 c3\r\nA\r\nVA 0 f0 c2 Z\r\n\r\n")
    clock.advance(0.9)
    hand.sleeps().receives(b"VA 0 f0 c2 Z\r\n\r\n")
    assert isinstance(hand.need, Sleep)
    clock.advance(0.2)
    hand.sleeps().receives(b"VA 0 f0 c2 Z\r\n\r\n")
    assert hand.wire == b"md s:b I C2 T30\r\n"
