"""The fixture that users get for their own tests."""

from __future__ import annotations

import asyncio

import pytest

from kvcluster import Cache, Client
from kvcluster.errors import ConfigurationError
from kvcluster.testing.kvcache import KvCache

pytest_plugins = ["pytester"]

shop = Cache("shop", ttl="10m")
stock = {1: "pen"}


@shop.loader("item:{number}")
def item(number: int) -> str | None:
    return stock.get(number)


@item.bulk
def _(numbers: list[int]) -> dict[int, str]:
    return {number: stock[number] for number in numbers if number in stock}


@pytest.mark.parametrize("_run", ["first", "second"])
def test_loads_count_from_the_beginning_of_each_test(kvcache: KvCache, _run: str) -> None:
    kvcache.cache(shop)
    assert kvcache.loads(item) == 0
    assert [item(1), item(1)] == ["pen", "pen"]
    assert kvcache.loads(item) == 1
    item.invalidate(1)
    item(1)
    assert kvcache.loads(item) == 2
    assert item.get_many([1, 2, 3]) == {1: "pen", 2: None, 3: None}
    assert kvcache.loads(item) == 3


def test_time_passes_by_the_clock(kvcache: KvCache) -> None:
    kvcache.cache(shop)
    item(1)
    kvcache.clock.advance(500)
    item(1)
    assert kvcache.loads(item) == 1
    kvcache.clock.advance(200)
    item(1)
    assert kvcache.loads(item) == 2
    kvcache.client.set("key", "value", expire=10)
    kvcache.clock.advance(9)
    assert kvcache.client.get("key") == "value"
    kvcache.clock.advance(2)
    assert kvcache.client.get("key") is None


def test_a_loader_that_is_declared_in_the_test_counts_too(kvcache: KvCache) -> None:
    local = kvcache.cache(Cache("local", ttl=60))

    @local.loader("double:{number}")
    def double(number: int) -> int:
        return 2 * number

    assert [double(2), double(2), double(3)] == [4, 4, 6]
    assert kvcache.loads(double) == 2


def test_a_cache_is_given_back_as_it_was() -> None:
    unconnected, connected = Cache("one", ttl=60), Cache("two", ttl=60)
    with Client.from_url("memory://before") as before:
        connected.connect(before)
        with KvCache("a test") as kvcache:
            kvcache.cache(unconnected)
            kvcache.cache(connected)
            assert unconnected.client is connected.client is kvcache.client
        assert connected.client is before
        with pytest.raises(ConfigurationError, match="not connected"):
            _ = unconnected.client


def test_other_clients_find_the_node_and_see_the_prefix(kvcache: KvCache) -> None:
    kvcache.client.set("key", "value")
    with Client.from_url(kvcache.url) as other:
        assert other.get("key") is None
        assert other.get(kvcache.prefix + "key") == "value"


def test_each_test_and_each_worker_has_its_own() -> None:
    with KvCache("test_a", "gw0") as first, KvCache("test_a", "gw1") as second, KvCache("test_b", "gw0") as third:
        assert len({first.prefix, second.prefix, third.prefix}) == len({first.url, second.url, third.url}) == 3
    with KvCache("test_a", "gw0") as first:
        first.client.set("key", "value")
    with KvCache("test_a", "gw0") as again:
        assert again.prefix == first.prefix
        assert again.client.get("key") is None


def test_survives_a_new_event_loop(kvcache: KvCache) -> None:
    kvcache.cache(shop)

    async def ask() -> str | None:
        return await asyncio.to_thread(item, 1)

    assert [asyncio.run(ask()), asyncio.run(ask())] == ["pen", "pen"]
    assert kvcache.loads(item) == 1


def test_as_users_write_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import kvcluster

        shop = kvcluster.Cache("shop", ttl="10m")

        @shop.loader("user:{id}")
        def user(id: int) -> str:
            return f"user {id}"

        def test_it(kvcache):
            kvcache.cache(shop)
            assert [user(1), user(1)] == ["user 1", "user 1"]
            assert kvcache.loads(user) == 1

        def test_again(kvcache):
            kvcache.cache(shop)
            assert kvcache.loads(user) == 0
            user(1)
            assert kvcache.loads(user) == 1
    """)
    result = pytester.runpytest_subprocess("-n2", "-W", "error")
    result.assert_outcomes(passed=2)
