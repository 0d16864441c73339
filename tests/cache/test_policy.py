"""Durations and policies: what is taken, what is refused and by which name, and how far jitter goes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcluster import Cache
from kvcluster.cache.flights import FIRST_POLL, LAST_POLL, LEAST_POLL, LEAST_TAKEOVER, UNMEASURED_TAKEOVER, LoadTimes
from kvcluster.cache.policy import Policy, seconds
from kvcluster.errors import ConfigurationError
from kvcluster.placement import placement
from kvcluster.planner import Planner
from kvcluster.topology import Node


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


def test_polls_are_most_frequent_when_loads_usually_end() -> None:
    times = LoadTimes()
    assert times.pause(0.2, LAST_POLL) == LAST_POLL, "nothing was measured"
    times.note(0.2)
    pauses = {waited: times.pause(waited, LAST_POLL) for waited in (0.0, 0.15, 0.18, 0.195, 0.2, 0.205, 0.22, 0.25, 0.3)}
    assert [*pauses.values()] == pytest.approx([0.005, 0.005, 0.0025, 0.001, 0.001, 0.001, 0.0025, 0.005, 0.005])
    assert times.pause(0.0, FIRST_POLL) == FIRST_POLL
    times.at_least(1.0)
    assert times.pause(0.2, LAST_POLL) == LEAST_POLL, "a load that was given up is not how long they usually take"


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


# -- options


def test_a_loader_says_otherwise_and_inherits_the_rest() -> None:
    cache = Cache("shop", ttl="10m", stale_while_revalidate="1h", jitter=0.5)
    ours = cache.loader("a", ttl=60, stale_if_error=timedelta(days=1))(lambda: 1).policy
    assert (ours.ttl, ours.stale_while_revalidate, ours.stale_if_error, ours.stale, ours.jitter) == (60, 3600, 86400, 86400, 0.5)
    theirs = cache.loader("b", ttl=None, stale_while_revalidate=0)(lambda: 1).policy
    assert (theirs.ttl, theirs.stale, theirs.jitter) == (None, 0, 0.5)


def test_the_lease_outlives_the_hard_timeout() -> None:
    policy = Policy(ttl=60)
    assert policy.lease_time == 30
    assert policy.but({"hard_timeout": "90s"}).lease_time == 92
    assert policy.but({"hard_timeout": "90s"}).but({"hard_timeout": 5}).lease_time == 7
    assert policy.but({"hard_timeout": "90s", "lease": 100}).lease_time == 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stale_while_revalidate": 0.5}, "stale_while_revalidate must be 0"),
        ({"stale_if_error": -1}, "stale_if_error must be from 0"),
        ({"soft_timeout": 0}, "soft_timeout must be more than 0"),
        ({"soft_timeout": 5, "hard_timeout": 1}, "soft_timeout must not be longer than hard_timeout"),
        ({"xfetch": -1}, "xfetch must be a number"),
        ({"xfetch": "1"}, "xfetch must be a number"),
        ({"jitter": True}, "jitter must be a share"),
        ({"version": "2"}, "version must be a whole number"),
        ({"version": 2, "versions": (1,)}, "versions must hold the version in use"),
        ({"versions": 2}, "versions must be several"),
        ({"ttl": "20y"}, "ttl must be a number of seconds"),
        ({"ttl": "5000d"}, r"ttl must be over, with its stale time, by 2147483647"),
        ({"negative": "5000d"}, r"negative must be over"),
        ({"stale_if_error": "5000d"}, r"ttl must be over"),
        ({"l1": -1}, "l1 must be from 0"),
    ],
)
def test_what_cannot_be_used_is_refused_where_it_is_declared(options: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{message}"):
        Cache("shop", ttl="10m").loader("k", **options)


def test_an_option_that_there_is_not_is_named() -> None:
    with pytest.raises(TypeError, match="no option 'stale_while_revalidating': the options are"):
        Cache("shop", ttl="10m").loader("k", stale_while_revalidating=5)  # type: ignore[call-arg]
    with pytest.raises(ConfigurationError, match=r"^l1_size must be"):
        Cache("shop", ttl="10m", l1_size=0)


def test_a_version_that_is_given_drops_the_others_that_were_named() -> None:
    policy = Policy(ttl=60).but({"version": 2, "versions": (2, 1, None)})
    assert policy.prefixes == ("v2:", "v1:", "")
    assert policy.but({"version": 3}).prefixes == ("v3:",)
    assert Policy(ttl=60).prefixes == ("",)


# -- ages


@given(st.integers(0, 100), st.integers(0, 100), st.integers(-1, 300))
def test_a_value_is_servable_for_as_long_as_the_policy_says(revalidate: int, error: int, ttl: int) -> None:
    policy = Policy(ttl=100, stale_while_revalidate=revalidate, stale_if_error=error)
    stale_for = policy.stale - ttl
    fresh = ttl < 0 or stale_for < 0
    assert policy.servable(ttl) == (fresh or stale_for < revalidate)
    assert policy.spare(ttl) == (error > 0 and (ttl < 0 or stale_for < error))


def test_the_node_keeps_a_value_for_its_stale_time_too() -> None:
    policy = Policy(ttl=100, jitter=0, negative=10, stale_while_revalidate=30, stale_if_error=50)
    assert (policy.expiry(), policy.expiry(absent=True)) == (150, 60)
    assert Policy(ttl=None, stale_if_error=50).expiry() == 0


def test_who_reads_a_stale_value_is_to_refresh_it_and_nobody_before() -> None:
    policy = Policy(ttl=100, stale_if_error=50)
    assert {policy.early(None), policy.early(0.3)} == {51}, "a node compares by 'less than'"
    assert Policy(ttl=100).early(1000.0) == 0
    assert Policy(ttl=100, xfetch=1.0).early(None) == 0, "nothing is known of the load time"


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_xfetch_draws_are_exponential_with_the_load_time_as_their_mean(beta: float) -> None:
    """Algorithm 1 of the paper: a reader refreshes where less than delta * beta * -log(random) is left."""
    policy = Policy(ttl=1000, xfetch=beta)
    draws = [max(0, policy.early(20.0) - 1) for _ in range(6000)]
    mean = 20.0 * beta
    assert sum(draws) / len(draws) == pytest.approx(mean, rel=0.1)
    assert sum(draw > mean for draw in draws) / len(draws) == pytest.approx(0.368, abs=0.05)


def test_fast_loads_are_refreshed_early_at_times() -> None:
    policy = Policy(ttl=1000, xfetch=1.0)
    early = [policy.early(0.05) > 0 for _ in range(4000)]
    assert 0.02 < sum(early) / len(early) < 0.09, "rounded by chance, to 0.05 on the average"


@pytest.mark.parametrize(
    "policy",
    [
        Policy(600),
        Policy(600, jitter=0, stale_if_error=50),
        Policy(1, jitter=0.9),
        Policy(None),
        Policy(None, stale_if_error=50),
        Policy(29 * 86400, stale_while_revalidate=2 * 86400),
        Policy(60 * 86400, negative=86400),
    ],
)
@pytest.mark.parametrize("absent", [[False] * 300, [True] * 300, [False, True, False] * 100])
def test_ttls_of_several_are_those_of_each(policy: Policy, absent: list[bool]) -> None:
    told = Planner(placement("slots", [Node("a:1")]), clock=lambda: 1.7e9).ttl
    several = policy.expiries(absent, told)
    for kind in set(absent):
        ttls = [ttl for ttl, each in zip(several, absent, strict=True) if each is kind]
        drawn = [told(policy.expiry(kind)) for _ in range(3000)]
        lowest, highest = min(drawn), max(drawn)
        slack = (highest - lowest) // 50 + 1
        assert lowest - slack <= min(ttls) <= max(ttls) <= highest + slack
        assert max(ttls) - min(ttls) >= (highest - lowest) // 2
    assert len(several) == len(absent)
