"""Whatever a caller passes as key and value, a real node gives it back, and the connection stays in step."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pymemcache.client.base import Client as PlainClient

from kvcluster import Client
from kvcluster.protocol.requests import BinaryKey, wire_key
from kvcluster.testing.nodes import RunningNode, start_node


@pytest.fixture(scope="module")
def node() -> Iterator[RunningNode]:
    running = start_node()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def client(node: RunningNode) -> Iterator[Client]:
    """A client that must have got through the whole module on one connection and without one error."""
    admin = PlainClient(node.address, timeout=5)
    before = admin.stats()[b"total_connections"]
    with Client([node.address], prefix="shop:", timeout=5, connect_timeout=5, pool_size=1) as client:
        yield client
        total = client.statistics().total
        assert total.hits > 0
        assert (total.errors, total.undecodable) == (0, 0)
        assert admin.stats()[b"total_connections"] == before + 1
    admin.close()


nasty = st.sampled_from(
    [b"\r\n", b"\r\nEND\r\n", b" ", b"\0", b"\x7f", b"END", b" 0 1\r\n", b"\r\nmn\r\n", b"VALUE a 0 1\r\nx\r\n", b"~" + b"0" * 32]
)
key = st.one_of(
    st.text(min_size=1, max_size=300, alphabet=st.characters(exclude_categories=["Cs"])),
    st.binary(min_size=1, max_size=300),
    st.lists(st.one_of(nasty, st.binary(max_size=100)), min_size=1, max_size=5).map(b"".join).filter(bool),
    st.integers(1, 300).map(lambda size: b"k" * size),
    st.integers(1, 300).map(lambda size: b" " * size),
)
value = st.one_of(
    st.binary(max_size=300),
    st.lists(nasty, max_size=5).map(b"".join),
    st.text(max_size=100, alphabet=st.characters(exclude_categories=["Cs"])),
    st.integers(),
    st.lists(st.one_of(st.none(), st.booleans(), st.floats(allow_nan=False), st.text(max_size=5, alphabet="aé\r\n"))),
    st.sampled_from([65_000, 65_500, 66_000, 300_000]).map(lambda size: b"\r\nEND\r\n" * (size // 7)),
)
real = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)


def same(one: object, other: object) -> bool:
    return type(one) is type(other) and one == other


@real
@given(key=key, value=value, other=key)
@example(key=b"k" * 250, value=b"", other=" ")
@example(key=" " * 181, value=b"\r\n", other=" " * 182)
@example(key="k" * 245, value="", other="k" * 246)
def test_one_key(client: Client, key: str | bytes, value: object, other: str | bytes) -> None:
    client.delete_many([key, other])
    assert client.get(key) is None
    assert client.set(key, value)
    assert same(client.get(key), value)
    if wire_key(key) != wire_key(other):
        assert client.get(other) is None
    found, token = client.gets(key)
    assert same(found, value)
    assert client.cas(key, value, token) is True
    assert client.cas(key, value, token) is False
    assert client.touch(key, 100) is True
    assert same(client.gat(key, 100), value)
    assert client.add(key, value) is False
    assert client.replace(key, value) is True
    assert client.delete(key) is True
    assert client.delete(key) is False
    assert client.get(key) is None


@real
@given(
    values=st.dictionaries(key.map(lambda key: key.encode() if isinstance(key, str) else key), value, max_size=12),
    absent=st.sets(key, max_size=3),
)
def test_many_keys(client: Client, values: dict[str | bytes, object], absent: set[str | bytes]) -> None:
    client.delete_many([*values, *absent])
    assert client.get_many([*values, *absent]) == {}
    assert client.set_many(values) == []
    missing = [key for key in absent if (key.encode() if isinstance(key, str) else key) not in values]
    found = client.get_many([*missing, *values])
    assert found.keys() == values.keys()
    assert all(same(found[key], value) for key, value in values.items())
    tokens = client.gets_many(values)
    assert all(same(tokens[key][0], value) and int(tokens[key][1]) > 0 for key, value in values.items())
    assert client.delete_many(values)
    assert client.get_many(values) == {}


@real
@given(key=key, number=st.integers(0, 2**64 - 1), delta=st.integers(0, 2**64 - 1), noreply=st.booleans())
def test_numbers(client: Client, key: str | bytes, number: int, delta: int, noreply: bool) -> None:
    client.set(key, number, noreply=noreply)
    assert client.incr(key, delta) == (number + delta) % 2**64
    assert client.delete(key, noreply=noreply)
    assert client.incr(key, delta) is None


@real
@given(key=key, noise=nasty)
def test_noreply(client: Client, key: str | bytes, noise: bytes) -> None:
    client.delete(key)
    client.set(key, noise, noreply=True)
    client.add(key, b"other", noreply=True)
    client.append(key, noise, noreply=True)
    client.set_many({key: noise, "beside": noise}, noreply=True)
    client.touch(key, 100, noreply=True)
    assert client.get_many([key, "beside"]) == {key: noise, "beside": noise}


def test_plain_and_binary_keys_in_one_call(client: Client) -> None:
    keys = [f"{'key' if i % 3 else 'a key'} {i}" if i % 2 else f"key:{i}" for i in range(60)]
    assert {type(wire_key(key)) for key in keys} == {bytes, BinaryKey}
    assert client.set_many({key: i for i, key in enumerate(keys)}, expire=100) == []
    assert client.get_many(keys) == {key: i for i, key in enumerate(keys)}
