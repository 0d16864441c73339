"""Stale values, stamps and timeouts, without I/O: what goes over the wire, byte for byte, and what follows from each answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from kvcluster.cache.envelope import sealed
from kvcluster.cache.explain import explain
from kvcluster.cache.flows import Detach, Join, Load, Loaders, Sleep, read_many, read_one
from kvcluster.cache.policy import Policy
from kvcluster.errors import LoaderTimeout
from tests.cache.hand import Hand, source

KEY = b"s:k"
ASK = b"mg s:k v f c t N30 R31\r\n"
NEW = b"ms s:k 3 C7 T130 F16\r\nnew\r\n"
REVALIDATE = Policy(ttl=100, jitter=0, takeover=1.0, stale_while_revalidate=30)
IF_ERROR = Policy(ttl=100, jitter=0, takeover=1.0, stale_if_error=30)


def answer(flags: bytes, ttl: int, value: bytes = b"old", cas: int = 7) -> bytes:
    """What a node says of a value; flags are W, X and Z."""
    return b"VA %d f16 c%d t%d%b\r\n%b\r\n" % (len(value), cas, ttl, b"".join(b" %c" % flag for flag in flags), value)


def new() -> str:
    return "new"


def failing() -> str:
    raise LookupError("no database")


# -- stale while revalidate


@pytest.mark.parametrize(("ttl", "stale"), [(130, 0), (31, 0), (30, 1), (1, 1)])
def test_the_winner_is_served_at_once_and_refreshes_beside(ttl: int, stale: int) -> None:
    hand = Hand(read_one(source(policy=REVALIDATE)[0], KEY, new))
    assert hand.wire == ASK
    hand.receives(answer(b"W", ttl))
    assert isinstance(hand.need, Detach)
    assert not hand.need.awaited
    hand.detaches()
    assert hand.result == "old"
    assert (hand.counters.hits, hand.counters.misses, hand.counters.stale) == (1, 0, stale)
    refresh = hand.beside.loads()
    assert refresh.wire == NEW
    refresh.receives(b"HD\r\n")
    assert refresh.ended
    assert (refresh.counters.sets, refresh.counters.refreshes) == (1, 1)


def test_others_are_served_while_somebody_refreshes() -> None:
    hand = Hand(read_one(source(policy=REVALIDATE)[0], KEY, failing)).receives(answer(b"Z", 5))
    assert hand.result == "old"
    assert (hand.counters.hits, hand.counters.stale) == (1, 1)


def test_a_refresh_that_is_refused_leaves_its_mark() -> None:
    hand = Hand(read_one(source(policy=REVALIDATE)[0], KEY, new)).receives(answer(b"W", 5)).detaches(begun=False)
    assert hand.result == "old"


def test_a_refresh_that_fails_leaves_its_mark_and_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    its, _ = source(policy=REVALIDATE)
    for _ in range(3):
        refresh = Hand(read_one(its, KEY, failing)).receives(answer(b"W", 5)).detaches().beside.loads()
        assert refresh.ended, "nothing is sent: the next one is to begin after takeover"
        assert refresh.error is None
    assert [record.message for record in caplog.records if "LookupError('no database')" in record.message] != []
    assert len(caplog.records) == 1, "once a minute"
    assert its.flights.join(KEY)[1], "no flight is left behind"


def test_a_refresh_by_a_winner_that_died_is_taken_over_by_one_reader() -> None:
    its, clock = source(policy=REVALIDATE)
    for _ in range(3):
        assert Hand(read_one(its, KEY, new)).receives(answer(b"Z", 25)).result == "old"
        clock.advance(0.4)
    hand = Hand(read_one(its, KEY, new)).receives(answer(b"Z", 24))
    assert hand.wire == b"md s:k I C7\r\n" + ASK, "in one exchange; the value keeps its ttl"
    assert Hand(read_one(its, KEY, new)).receives(answer(b"Z", 24)).result == "old", "others leave it to that one"
    hand.receives(b"HD\r\n" + answer(b"XW", 24, cas=8)).detaches()
    assert hand.result == "old"
    assert hand.beside.loads().wire == NEW.replace(b"C7", b"C8")
    assert (hand.counters.takeovers, hand.counters.hits) == (1, 1)


def test_who_comes_second_is_served_too() -> None:
    its, clock = source(policy=REVALIDATE)
    Hand(read_one(its, KEY, new)).receives(answer(b"Z", 25))
    clock.advance(1.1)
    hand = Hand(read_one(its, KEY, new)).receives(answer(b"Z", 24)).receives(b"EX\r\n" + answer(b"XZ", 24, cas=8))
    assert hand.result == "old"
    assert hand.counters.takeovers == 0


def test_another_winner_has_the_whole_time() -> None:
    its, clock = source(policy=REVALIDATE)
    Hand(read_one(its, KEY, new)).receives(answer(b"Z", 25))
    clock.advance(0.9)
    Hand(read_one(its, KEY, new)).receives(answer(b"Z", 25, cas=9))
    clock.advance(0.9)
    assert Hand(read_one(its, KEY, new)).receives(answer(b"Z", 24, cas=9)).ended


def test_early_refreshes_of_a_policy_without_stale_values_are_not_taken_over() -> None:
    """Marked as stale, the value could not be served any more; and when its ttl is over, it is loaded by a lease."""
    its, clock = source(policy=Policy(ttl=100, jitter=0, takeover=1.0, xfetch=1.0))
    for _ in range(3):
        assert Hand(read_one(its, KEY, new)).receives(answer(b"Z", 2)).result == "old"
        clock.advance(2)


@pytest.mark.parametrize("flags", [b"X", b"XW"])
def test_what_was_invalidated_softly_is_served_only_where_the_policy_says_so(flags: bytes) -> None:
    assert Hand(read_one(source(policy=REVALIDATE)[0], KEY, new)).receives(answer(b"XZ", 30)).result == "old"
    hand = Hand(read_one(source()[0], KEY, new)).receives(answer(b"XW", 30)).loads()
    assert hand.receives(b"HD\r\n").result == "new"


# -- stale if error


def test_past_its_ttl_a_value_is_loaded_before_it_is_served() -> None:
    hand = Hand(read_one(source(policy=IF_ERROR)[0], KEY, new))
    assert hand.wire == ASK
    hand.receives(answer(b"W", 30)).loads()
    assert hand.wire == NEW
    assert hand.receives(b"HD\r\n").result == "new"
    assert (hand.counters.hits, hand.counters.misses, hand.counters.stale) == (0, 1, 0)


def test_where_loading_fails_the_stale_value_is_served_and_the_next_reader_tries_again(caplog: pytest.LogCaptureFixture) -> None:
    its, _ = source(policy=IF_ERROR)
    hand = Hand(read_one(its, KEY, failing)).receives(answer(b"W", 30)).loads()
    assert hand.wire == b"md s:k I C7\r\n", "it is kept, and its refill token is given back"
    hand.receives(b"HD\r\n").counts("stale")
    assert hand.result == "old"
    assert "failed, and a stale value is served: LookupError('no database')" in caplog.text


def test_when_stale_if_error_is_over_the_error_is_raised() -> None:
    its, _ = source(policy=Policy(ttl=100, jitter=0, stale_if_error=10, stale_while_revalidate=30))
    hand = Hand(read_one(its, KEY, failing)).receives(answer(b"XW", 0)).loads()
    assert hand.wire == b"md s:k C7\r\n"
    assert isinstance(hand.receives(b"HD\r\n").error, LookupError)


def test_followers_are_served_the_stale_value_too() -> None:
    its, _ = source(policy=IF_ERROR)
    early = Hand(read_one(its, KEY, failing))
    leader = Hand(read_one(its, KEY, failing)).receives(answer(b"W", 30))
    early.receives(answer(b"Z", 30))
    leader.loads().receives(b"HD\r\n").counts("stale")
    assert early.joins().counts("stale").result == "old"


def test_others_wait_for_the_new_value() -> None:
    its, _ = source(policy=IF_ERROR)
    hand = Hand(read_one(its, KEY, failing)).receives(answer(b"Z", 30))
    assert isinstance(hand.need, Sleep)
    assert hand.sleeps().receives(answer(b"", 130, b"new")).result == "new"


def test_a_winner_that_died_while_others_wait_is_taken_over_and_the_value_kept() -> None:
    its, clock = source(policy=IF_ERROR)
    hand = Hand(read_one(its, KEY, failing)).receives(answer(b"Z", 30))
    clock.advance(1.1)
    hand.sleeps().receives(answer(b"Z", 29))
    assert hand.wire == b"md s:k I C7\r\n"
    hand.receives(b"HD\r\n").sleeps().receives(answer(b"XW", 29, cas=8)).loads().receives(b"HD\r\n").counts("stale")
    assert hand.result == "old"


# -- timeouts


TIMED = Policy(ttl=100, jitter=0, takeover=9.0, stale_if_error=30, soft_timeout=0.5, hard_timeout=2, lease=30)


def test_a_load_in_time() -> None:
    its, _ = source(policy=TIMED)
    hand = Hand(read_one(its, KEY, new)).receives(b"VA 0 f0 c7 W\r\n\r\n")
    assert isinstance(hand.need, Detach)
    assert (hand.need.awaited, hand.need.seconds) == (True, 2)
    hand.detaches()
    assert isinstance(hand.need, Join)
    assert hand.need.seconds == 2, "there is no stale value, so the soft timeout is nothing to it"
    hand.beside.loads().receives(b"HD\r\n")
    assert hand.joins().result == "new"


def test_after_the_soft_timeout_a_stale_value_is_served_and_the_load_goes_on() -> None:
    its, clock = source(policy=TIMED)
    hand = Hand(read_one(its, KEY, new)).receives(answer(b"W", 30)).detaches()
    follower = Hand(read_one(its, KEY, new)).receives(answer(b"Z", 30))
    assert [hand.need.seconds, follower.need.seconds] == [0.5, 0.5]
    clock.advance(0.5)
    assert hand.joins_in_vain().counts("timeouts", "stale").result == "old"
    assert follower.joins_in_vain().counts("timeouts", "stale").result == "old"
    later = Hand(read_one(its, KEY, new)).receives(answer(b"Z", 30))
    assert hand.beside.loads().wire == NEW
    hand.beside.receives(b"HD\r\n")
    assert later.joins().result == "new"


def test_after_the_hard_timeout_an_error_and_the_lease_is_given_back() -> None:
    its, clock = source(policy=TIMED)
    hand = Hand(read_one(its, KEY, new)).receives(b"VA 0 f0 c7 W\r\n\r\n").detaches()
    clock.advance(1.5)
    follower = Hand(read_one(its, KEY, new)).receives(b"VA 0 f0 c7 Z\r\n\r\n")
    clock.advance(0.5)
    hand.joins_in_vain()
    assert hand.wire == b"md s:k C7\r\n"
    hand.receives(b"HD\r\n").counts("timeouts")
    assert isinstance(hand.error, LoaderTimeout)
    assert "did not come back within 2 seconds (hard_timeout)" in str(hand.error)
    assert isinstance(follower.joins().error, LoaderTimeout), "it is not left to try the same"
    assert its.flights.join(KEY)[1]
    late = hand.beside.loads()
    assert late.wire == b"ms s:k 3 C7 T130 F16\r\nnew\r\n", "against a lease that is gone"
    assert late.receives(b"NF\r\n").counters.unstored == 1


def test_a_load_that_nobody_waits_for_any_more_does_not_begin() -> None:
    its, clock = source(policy=TIMED)
    hand = Hand(read_one(its, KEY, new)).receives(b"VA 0 f0 c7 W\r\n\r\n")
    queued = hand.need.flow
    hand.queues()
    clock.advance(2)
    hand.joins_in_vain().receives(b"HD\r\n").counts("timeouts")
    assert Hand(queued).ended, "without a load"


def test_who_waits_for_another_process_has_timeouts_too() -> None:
    its, clock = source(policy=TIMED)
    stale = Hand(read_one(its, KEY, new)).receives(answer(b"Z", 30))
    clock.advance(0.6)
    assert stale.sleeps().receives(answer(b"Z", 30)).counts("timeouts", "stale").result == "old"
    cold = Hand(read_one(its, KEY, new)).receives(b"VA 0 f0 c7 Z\r\n\r\n")
    clock.advance(1.9)
    cold.sleeps().receives(b"VA 0 f0 c7 Z\r\n\r\n")
    assert isinstance(cold.need, Sleep)
    assert cold.need.seconds <= 0.1
    clock.advance(0.2)
    assert isinstance(cold.sleeps().receives(b"VA 0 f0 c7 Z\r\n\r\n").counts("timeouts").error, LoaderTimeout)
    assert its.flights.join(KEY)[1]


def test_where_no_thread_is_free_for_it_a_load_runs_where_it_is() -> None:
    hand = Hand(read_one(source(policy=TIMED)[0], KEY, new)).receives(b"VA 0 f0 c7 W\r\n\r\n").detaches(begun=False)
    assert isinstance(hand.need, Load)
    assert hand.loads().receives(b"HD\r\n").result == "new"


# -- stamps

TAG, TABLE = b"s:__stamp:tag:a", b"s:__stamp:table:b"
DEPENDS = (TAG, TABLE)
STAMPED = b"mg s:k v f c t N30\r\nmg s:__stamp:tag:a v\r\nmg s:__stamp:table:b v\r\n"
GIVEN = b"VA 8\r\nAAAAAAAA\r\nVA 8\r\nBBBBBBBB\r\n"
UNDER = b"AAAAAAAABBBBBBBB"
ABSENT = b"VA 8\r\nAAAAAAAA\r\nEN\r\n"


def enveloped(stamps: bytes, value: bytes = b"old", marks: bytes = b"") -> bytes:
    data = sealed(value, [stamps[start : start + 8] for start in range(0, len(stamps), 8)])
    return b"VA %d f272 c7 t50%b\r\n%b\r\n" % (len(data), marks, data)


def stored(hand: Hand) -> tuple[bytes, bytes]:
    """The CAS number and the envelope of what is being stored."""
    match = re.fullmatch(rb"ms s:k \d+ C(\d+) T100 F272\r\n(.*)\r\n", hand.wire, re.DOTALL)
    assert match, hand.wire
    return match[1], match[2]


def test_a_value_under_the_stamps_there_are_is_a_hit() -> None:
    hand = Hand(read_one(source()[0], KEY, failing, DEPENDS))
    assert hand.wire == STAMPED
    hand.receives(enveloped(UNDER) + GIVEN)
    assert hand.result == "old"
    assert (hand.counters.hits, hand.counters.misses) == (1, 0)


def test_a_fill_bears_the_stamps_read_with_its_lease() -> None:
    hand = Hand(read_one(source()[0], KEY, new, DEPENDS)).receives(b"VA 0 f0 c7 W\r\n\r\n" + GIVEN).loads()
    assert stored(hand) == (b"7", sealed(b"new", [b"AAAAAAAA", b"BBBBBBBB"]))


@pytest.mark.parametrize("under", [b"AAAAAAAAXXXXXXXX", b"BBBBBBBBAAAAAAAA", b"AAAAAAAA", b""])
def test_a_value_under_other_stamps_is_deleted_and_asked_for_again(under: bytes) -> None:
    hand = Hand(read_one(source()[0], KEY, new, DEPENDS)).receives(enveloped(under) + GIVEN)
    assert hand.wire == b"md s:k C7\r\n" + STAMPED, "in one exchange"
    hand.receives(b"HD\r\nVA 0 f0 c9 W\r\n\r\n" + GIVEN).loads()
    assert stored(hand) == (b"9", sealed(b"new", [b"AAAAAAAA", b"BBBBBBBB"]))
    assert hand.receives(b"HD\r\n").result == "new"
    assert (hand.counters.hits, hand.counters.misses) == (0, 1)


def test_a_value_that_has_none_is_outdated_for_who_wants_some() -> None:
    hand = Hand(read_one(source()[0], KEY, new, DEPENDS)).receives(b"VA 3 f16 c7 t50\r\nold\r\n" + GIVEN)
    assert hand.wire == b"md s:k C7\r\n" + STAMPED


def test_a_value_that_has_some_is_outdated_for_who_wants_none() -> None:
    hand = Hand(read_one(source()[0], KEY, new)).receives(enveloped(UNDER))
    assert hand.wire == b"md s:k C7\r\nmg s:k v f c t N30\r\n"


def test_an_outdated_value_is_never_a_spare_one() -> None:
    hand = Hand(read_one(source(policy=IF_ERROR)[0], KEY, failing, (TAG,)))
    hand.receives(enveloped(b"XXXXXXXX", marks=b" W") + b"VA 8\r\nAAAAAAAA\r\n")
    hand.receives(b"HD\r\nVA 0 f0 c9 W\r\n\r\nVA 8\r\nAAAAAAAA\r\n").loads().receives(b"HD\r\n")
    assert isinstance(hand.error, LookupError)


@pytest.mark.parametrize("first", [b"VA 0 f0 c7 W\r\n\r\n", enveloped(UNDER)], ids=["cold", "an old value"])
def test_a_stamp_that_is_absent_is_created_before_the_load(first: bytes) -> None:
    hand = Hand(read_one(source()[0], KEY, new, DEPENDS)).receives(first + ABSENT)
    created = re.match(rb"ms s:__stamp:table:b 8 ME T0\r\n(.{8})\r\n", hand.wire, re.DOTALL)
    assert created, hand.wire
    cold = first.startswith(b"VA 0")
    rest = hand.wire[created.end() :]
    assert rest == (STAMPED[STAMPED.index(b"mg s:__") :] if cold else b"md s:k C7\r\n" + STAMPED)
    asked_again = b"" if cold else b"HD\r\nVA 0 f0 c9 W\r\n\r\n"
    hand.receives(b"NS\r\n" + asked_again + b"VA 8\r\nAAAAAAAA\r\nVA 8\r\nOTHEROTH\r\n").loads()
    assert stored(hand) == (b"7" if cold else b"9", sealed(b"new", [b"AAAAAAAA", b"OTHEROTH"])), "somebody was faster"


def test_it_is_created_at_every_node_with_the_same_value() -> None:
    hand = Hand(read_one(source(nodes=3)[0], KEY, new, (TAG,))).receives(b"VA 0 f0 c7 W\r\n\r\nEN\r\n")
    creations = {payload[: payload.index(b"\r\n") + 10] for payload in hand.sends.values()}
    assert len(hand.sends) == 3
    assert len(creations) == 1


def test_a_stamp_that_cannot_be_created_leaves_a_value_that_nobody_takes() -> None:
    hand = Hand(read_one(source()[0], KEY, new, (TAG,))).receives(b"VA 0 f0 c7 W\r\n\r\nEN\r\n")
    hand.receives(b"SERVER_ERROR out of memory storing object\r\nEN\r\n").loads()
    _, one = stored(hand)
    hand = Hand(read_one(source()[0], KEY, new, (TAG,))).receives(b"VA 0 f0 c7 W\r\n\r\nEN\r\n").receives(b"HD\r\nEN\r\n").loads()
    assert one != stored(hand)[1], "its stamp is a random one"


def test_a_request_that_is_sent_again_creates_another_value() -> None:
    """The first one may have arrived, and been deleted since by whoever could not renew it."""
    hand = Hand(read_one(source()[0], KEY, new, (TAG,))).receives(b"VA 0 f0 c7 W\r\n\r\nEN\r\n")
    (request,) = hand.need.requests.values()
    before = request.payload
    request.reset()
    assert request.payload != before
    assert len(request.payload) == len(before)


def test_followers_of_a_stamped_load_take_it_only_if_they_asked_before_it_began() -> None:
    """A stamp that is renewed during the load does not keep the fill from being stored."""
    its, clock = source()
    leader = Hand(read_one(its, KEY, new, (TAG,))).receives(b"VA 0 f0 c7 W\r\n\r\nVA 8\r\nAAAAAAAA\r\n")
    clock.advance(1)
    follower = Hand(read_one(its, KEY, new, (TAG,))).receives(b"VA 0 f0 c7 Z\r\n\r\nVA 8\r\nBBBBBBBB\r\n")
    leader.loads().receives(b"HD\r\n")
    assert follower.joins().wire == b"mg s:k v f c t N30\r\nmg s:__stamp:tag:a v\r\n"


# -- many keys


def by_name(names: Sequence[str]) -> Mapping[str, str]:
    return {name: name.upper() for name in names}


def wires(*names: str) -> dict[bytes, str]:
    return {b"s:" + name.encode(): name for name in names}


def many(policy: Policy, *names: str, load: Any = by_name, **depends: tuple[bytes, ...]) -> Hand:
    its, clock = source(policy=policy)
    wanted = {b"s:" + name.encode(): stamps for name, stamps in depends.items()}
    hand = Hand(read_many(its, wires(*names), Loaders(load), wanted))
    hand.clock = clock  # type: ignore[attr-defined]
    return hand


def test_stale_values_of_many_are_served_and_refreshed_by_one_load() -> None:
    hand = many(REVALIDATE, "a", "b", "c").receives(answer(b"W", 5) + answer(b"W", 5, cas=8) + answer(b"Z", 5, cas=9))
    assert isinstance(hand.need, Detach)
    assert hand.detaches().result == dict.fromkeys("abc", "old")
    refresh = hand.beside.loads()
    assert refresh.wire == b"ms s:a 1 C7 T130 F16\r\nA\r\nms s:b 1 C8 T130 F16\r\nB\r\n"
    assert refresh.receives(b"HD\r\nHD\r\n").counters.refreshes == 2


def test_where_loading_many_fails_all_are_served_stale_or_the_error_is_raised() -> None:
    hand = many(IF_ERROR, "a", "b", load=lambda names: failing())
    hand.receives(answer(b"W", 5) + answer(b"W", 5, cas=8)).loads()
    assert hand.wire == b"md s:a I C7\r\nmd s:b I C8\r\n"
    assert hand.receives(b"HD\r\nHD\r\n").counts("stale", "stale").result == {"a": "old", "b": "old"}
    hand = many(IF_ERROR, "a", "b", load=lambda names: failing()).receives(answer(b"W", 5) + b"VA 0 f0 c8 W\r\n\r\n").loads()
    assert isinstance(hand.receives(b"HD\r\nHD\r\n").error, LookupError)


def test_many_have_the_timeouts_of_one() -> None:
    hand = many(TIMED, "a", "b").receives(answer(b"W", 5) + answer(b"W", 5, cas=8)).detaches()
    assert hand.need.seconds == 0.5
    hand.clock.advance(0.5)  # type: ignore[attr-defined]
    assert hand.joins_in_vain().counts("timeouts", "timeouts", "stale", "stale").result == {"a": "old", "b": "old"}
    assert hand.beside.loads().receives(b"HD\r\nHD\r\n").ended
    hand = many(TIMED, "a").receives(b"VA 0 f0 c8 W\r\n\r\n").detaches()
    hand.clock.advance(2)  # type: ignore[attr-defined]
    hand.joins_in_vain().counts("timeouts")
    assert hand.wire == b"md s:a C8\r\n"
    assert isinstance(hand.receives(b"HD\r\n").error, LoaderTimeout)


def test_who_waits_for_many_of_others_has_timeouts_too() -> None:
    hand = many(TIMED, "a", "b").receives(answer(b"Z", 5) + answer(b"Z", 5, cas=8))
    hand.clock.advance(0.6)  # type: ignore[attr-defined]
    hand.sleeps().receives(answer(b"Z", 5) + answer(b"Z", 5, cas=8)).counts("timeouts", "timeouts", "stale", "stale")
    assert hand.result == {"a": "old", "b": "old"}
    hand = many(TIMED, "a").receives(b"VA 0 f0 c8 Z\r\n\r\n")
    hand.clock.advance(2.1)  # type: ignore[attr-defined]
    assert isinstance(hand.sleeps().receives(b"VA 0 f0 c8 Z\r\n\r\n").counts("timeouts").error, LoaderTimeout)


def test_many_ask_for_each_stamp_once_and_mend_in_one_exchange() -> None:
    hand = many(Policy(ttl=100, jitter=0), "a", "b", "c", a=(TAG,), b=(TAG, TABLE))
    asked = b"mg s:__stamp:tag:a v\r\nmg s:__stamp:table:b v\r\n"
    assert hand.wire.endswith(b"mg s:c v f c t N30\r\n" + asked)
    good = enveloped(b"AAAAAAAA", b"a")
    hand.receives(good + enveloped(b"AAAAAAAAXXXXXXXX") + b"VA 0 f0 c9 W\r\n\r\n" + GIVEN)
    assert hand.wire == b"md s:b C7\r\nmg s:b v f c t N30\r\n" + asked
    hand.receives(b"HD\r\nVA 0 f0 c10 W\r\n\r\n" + GIVEN).loads()
    assert hand.wire.count(b"ms ") == 2, "one load for what was cold and what was outdated, and one exchange to store it"
    assert hand.receives(b"HD\r\nHD\r\n").result == {"a": "a", "b": "B", "c": "C"}


# -- explanations


def explained(reply: bytes, policy: Policy = REVALIDATE, stamps: tuple[bytes, ...] = ()) -> Any:
    hand = Hand(explain(source(policy=policy)[0], KEY, stamps))
    assert hand.wire.startswith(b"mg s:k v f c t\r\n"), "without N or R, which would change something"
    hand.receives(reply)
    if b" W" in reply:
        assert hand.wire == b"md s:k I C7\r\n", "the token that any meta get of a stale item takes is given back"
        hand.receives(b"HD\r\n")
    return hand.result


@pytest.mark.parametrize(
    ("reply", "policy", "origin", "ttl", "text"),
    [
        (b"EN\r\n", REVALIDATE, "absent", None, "s:k on node0:1: absent, so it would be loaded"),
        (
            b"VA 0 f0 c7 t29 Z\r\n\r\n",
            REVALIDATE,
            "loading",
            29,
            "loading, for 29 s more, a call would wait",
        ),
        (answer(b"", 130), REVALIDATE, "fresh", 100, "s:k on node0:1: fresh, for 100 s more"),
        (answer(b"", 20), REVALIDATE, "stale", 20, "a call would have it refreshed"),
        (answer(b"Z", 20), REVALIDATE, "stale", 20, "somebody is refreshing it"),
        (answer(b"XW", 20), REVALIDATE, "stale", 20, "a call would have it refreshed"),
        (answer(b"", 20), IF_ERROR, "expired", 20, "it would be loaded, and the stale value served where that fails"),
        (answer(b"XW", 130), Policy(ttl=100), "expired", 130, "it would be loaded"),
        (b"VA 3 f1 c7 t50\r\nxxx\r\n", REVALIDATE, "unreadable", None, "it would be loaded and replaced"),
        (None, REVALIDATE, "node down", None, "it would be loaded and not stored: node0:1: gone"),
    ],
)
def test_explanations(reply: bytes | None, policy: Policy, origin: str, ttl: float | None, text: str) -> None:
    down = Hand(explain(source(policy=policy)[0], KEY)).receives(None)
    explanation = down.result if reply is None else explained(reply, policy)
    assert (explanation.origin, explanation.ttl) == (origin, ttl)
    assert text in str(explanation)
    assert explanation.key == "s:k"
    assert explanation.node == "node0:1"


def test_an_explanation_names_the_stamps_that_differ() -> None:
    explanation = explained(enveloped(b"AAAAAAAAXXXXXXXX") + GIVEN, stamps=DEPENDS)
    assert explanation.origin == "outdated"
    assert explanation.outdated == ("s:__stamp:table:b",)
    assert "stamps that differ: s:__stamp:table:b" in str(explanation)
    assert explained(enveloped(UNDER) + GIVEN, stamps=DEPENDS).origin == "fresh"
    assert explained(enveloped(UNDER) + ABSENT, stamps=DEPENDS).outdated == ("s:__stamp:table:b",)
