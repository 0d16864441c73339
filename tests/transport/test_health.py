"""When a node is left alone and when it is probed, on a clock of the test's own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvcluster.transport.health import FIRST_PROBE, LAST_PROBE, TIMEOUTS_TO_DOWN, Health


def exact() -> Health:
    return Health(spread=lambda: 1.0)


def test_it_takes_two_timeouts_in_a_row() -> None:
    health = exact()
    assert not health.timed_out(0)
    assert health.up
    assert not health.answered()
    assert not health.timed_out(1)
    assert health.timed_out(2)
    assert not health.up


def test_it_takes_one_refusal() -> None:
    health = exact()
    assert health.refused(0)
    assert not health.up


def test_a_node_that_is_up_is_not_probed() -> None:
    assert not exact().claim_probe(1e9)


def test_one_probe_at_a_time_at_growing_intervals() -> None:
    health, now, waited = exact(), 100.0, []
    health.refused(now)
    for _ in range(8):
        wait = health.seconds_to_probe(now)
        waited.append(wait)
        assert not health.claim_probe(now + wait - 0.001)
        now += wait
        assert health.claim_probe(now)
        assert not health.claim_probe(now)
        assert not health.claim_probe(now + 0.5)  # while the probe may be running
        assert not health.refused(now)
    assert waited == [1, 2, 4, 8, 16, 30, 30, 30]
    assert (FIRST_PROBE, LAST_PROBE, TIMEOUTS_TO_DOWN) == (1, 30, 2)


def test_calls_under_way_when_a_node_goes_down_do_not_prolong_its_absence() -> None:
    health = exact()
    for _ in range(16):  # as many threads notice the same failure
        health.timed_out(0.0)
        health.refused(0.0)
    assert health.seconds_to_probe(0.0) == FIRST_PROBE


def test_an_answer_brings_it_back_and_starts_over() -> None:
    health = exact()
    health.refused(0)
    health.claim_probe(1)
    health.timed_out(1)
    assert health.answered()
    assert health.up
    assert not health.answered()
    health.refused(50)
    assert health.seconds_to_probe(50) == FIRST_PROBE


def test_a_probe_that_never_reports_is_followed_by_another() -> None:
    health = exact()
    health.refused(0)
    assert health.claim_probe(1)
    assert health.claim_probe(2)


@given(st.lists(st.sampled_from(["timeout", "refusal", "answer", "claim", "wait"])))
def test_whatever_happens_a_node_is_probed_within_half_a_minute(events: list[str]) -> None:
    health, now = Health(), 0.0
    for event in events:
        was_up = health.up
        if event == "timeout":
            assert health.timed_out(now) == (was_up and not health.up)
        elif event == "refusal":
            assert health.refused(now) == was_up
        elif event == "answer":
            assert health.answered() != was_up
        elif event == "claim":
            assert not (health.claim_probe(now) and was_up)
        else:
            now += 1.0
        assert health.seconds_to_probe(now) <= LAST_PROBE * 1.2
    assert health.up or health.claim_probe(now + LAST_PROBE * 1.2)
