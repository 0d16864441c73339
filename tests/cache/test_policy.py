"""Durations and policies: what is taken, what is refused and by which name, and how far jitter goes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcluster import Cache
from kvcluster.cache.flights import LEAST_TAKEOVER, UNMEASURED_TAKEOVER, LoadTimes
from kvcluster.cache.policy import Policy, seconds
from kvcluster.errors import ConfigurationError


@pytest.mark.parametrize(
    ("duration", "number"),
    [
        (0, 0),
        (90, 90),
        (2.5, 2.5),
        ("250ms", 0.25),
        ("90s", 90),
        ("1.5m", 90),
        ("1h", 3600),
        ("2 d", 172800),
        ("1w", 604800),
        (timedelta(minutes=1, milliseconds=500), 60.5),
    ],
)
def test_durations(duration: Any, number: float) -> None:
    assert seconds(duration) == number
    assert type(seconds(duration)) is float


@pytest.mark.parametrize(
    "duration", ["", "10", "m", "10 minutes", "-1s", "1h30m", "1e3s", -1, -0.5, 1e9, float("nan"), float("inf"), True, None, b"1s"]
)
def test_what_is_no_duration_is_refused_by_the_arguments_name(duration: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^stale must be"):
        seconds(duration, "stale")


def test_negative_timedeltas_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"^ttl must be"):
        seconds(timedelta(seconds=-1), "ttl")


@pytest.mark.parametrize("name", ["ttl", "negative", "lease"])
@pytest.mark.parametrize("value", [0, 0.5, -1, "ten minutes"])
def test_a_cache_names_the_argument_that_cannot_be_used(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"^{name} must be"):
        Cache("shop", **{"ttl": "10m", name: value})


@pytest.mark.parametrize("name", ["ttl", "negative"])
def test_a_loader_names_the_argument_that_cannot_be_used(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{name} must be"):
        Cache("shop", ttl="10m").loader("k", **{name: 0.5})


def test_a_ttl_is_required() -> None:
    with pytest.raises(TypeError, match="ttl"):
        Cache("shop")  # type: ignore[call-arg]


@pytest.mark.parametrize("jitter", [-0.1, 1, 2])
def test_jitter_is_a_share(jitter: float) -> None:
    with pytest.raises(ConfigurationError, match=r"^jitter"):
        Policy(ttl=10, jitter=jitter)


@given(st.floats(1, 1e8), st.floats(0, 0.99))
def test_jitter_only_shortens_and_never_below_memcacheds_resolution(ttl: float, jitter: float) -> None:
    expiry = Policy(ttl, jitter=jitter).expiry()
    assert max(1.0, ttl * (1 - jitter) * 0.999999) <= expiry <= ttl


def test_jitter_spreads() -> None:
    policy = Policy(ttl=1000)
    drawn = [policy.expiry() for _ in range(300)]
    assert 900 <= min(drawn) < 930
    assert 970 < max(drawn) <= 1000


def test_for_ever_is_zero_on_the_wire_but_absence_always_expires() -> None:
    policy = Policy(ttl=None, negative=5)
    assert policy.expiry() == 0
    assert 4.5 <= policy.expiry(absent=True) <= 5


def test_takeover_follows_the_measured_load_time() -> None:
    times, policy = LoadTimes(), Policy(ttl=60)
    assert times.takeover(policy) == UNMEASURED_TAKEOVER
    times.note(0.001)
    assert times.takeover(policy) == LEAST_TAKEOVER
    times = LoadTimes()
    times.note(1.0)
    times.note(2.0)
    assert times.takeover(policy) == pytest.approx(2 * 1.2)
    assert times.takeover(Policy(ttl=60, takeover=0.3)) == 0.3
