"""Random commands against a dict that knows what they must do."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tests.client.cluster import Cluster

_machines = itertools.count()

keys = st.sampled_from(["a", "b", b"c", "two words", "\r\n", "글", "k" * 300, b"\xff\x00"])
texts = st.text(max_size=20)
numbers = st.integers(0, 2**64 - 1)
values = st.one_of(
    st.binary(max_size=50),
    texts,
    st.integers(),
    numbers,
    st.none(),
    st.booleans(),
    st.lists(st.integers(-5, 5), max_size=3),
    st.dictionaries(texts, st.none() | st.binary(max_size=5) | st.floats(allow_nan=False), max_size=3),
)
modes = st.sampled_from(["set", "add", "replace"])


class Model(RuleBasedStateMachine):
    """One client and the dict it must be equal to."""

    cluster: Cluster

    def __init__(self) -> None:
        super().__init__()
        self.client = self.cluster.client(prefix=f"{next(_machines)}:", timeout=10)
        self.items: dict[Any, Any] = {}
        self.gets = 0
        self.tokens: dict[Any, bytes] = {}  # of values that have not changed since

    def teardown(self) -> None:
        total = self.client.statistics().total
        assert total.hits + total.misses == self.gets
        assert (total.errors, total.undecodable) == (0, 0)
        self.client.close()

    def change(self, key: Any, value: Any) -> None:
        self.items[key] = value
        self.tokens.pop(key, None)

    @rule(key=keys, value=values, mode=modes, noreply=st.booleans())
    def store(self, key: Any, value: Any, mode: str, noreply: bool) -> None:
        stores = mode == "set" or (key in self.items) == (mode == "replace")
        assert getattr(self.client, mode)(key, value, 60, noreply=noreply) is (stores or noreply)
        if stores:
            self.change(key, value)

    @rule(stored=st.dictionaries(keys, values, max_size=6), noreply=st.booleans())
    def set_many(self, stored: dict[Any, Any], noreply: bool) -> None:
        assert self.client.set_many(stored, noreply=noreply) == []
        for key, value in stored.items():
            self.change(key, value)

    @rule(key=keys, more=texts | st.binary(max_size=10), mode=st.sampled_from(["append", "prepend"]))
    def extend(self, key: Any, more: str | bytes, mode: str) -> None:
        value = self.items.get(key)
        if not (isinstance(value, str | bytes) and value and isinstance(more, type(value))):
            if key not in self.items:
                assert getattr(self.client, mode)(key, more) is False
            return
        assert getattr(self.client, mode)(key, more) is True
        self.change(key, value + more if mode == "append" else more + value)

    @rule(key=keys, delta=st.integers(0, 20) | numbers, mode=st.sampled_from(["incr", "decr"]))
    def count(self, key: Any, delta: int, mode: str) -> None:
        number = self.items.get(key)
        if key not in self.items:
            assert getattr(self.client, mode)(key, delta) is None
        elif type(number) is int and 0 <= number < 2**64:
            result = (number + delta) % 2**64 if mode == "incr" else max(0, number - delta)
            assert getattr(self.client, mode)(key, delta) == result
            self.change(key, result)

    @rule(key=keys)
    def take_token(self, key: Any) -> None:
        self.gets += 1
        value, token = self.client.gets(key)
        assert (value, type(value)) == (self.items.get(key), type(self.items.get(key)))
        if key in self.items:
            self.tokens[key] = token
        else:
            assert token is None

    @rule(key=keys, value=values)
    def cas(self, key: Any, value: Any) -> None:
        token = self.tokens.get(key)
        expected = None if key not in self.items else token is not None
        assert self.client.cas(key, value, token or b"18446744073709551615") is expected
        if expected:
            self.change(key, value)

    @rule(key=keys, noreply=st.booleans())
    def delete(self, key: Any, noreply: bool) -> None:
        assert self.client.delete(key, noreply=noreply) is (key in self.items)
        self.items.pop(key, None)
        self.tokens.pop(key, None)

    @rule(gone=st.lists(keys, max_size=4))
    def delete_many(self, gone: list[Any]) -> None:
        assert self.client.delete_many(gone) is True
        for key in gone:
            self.items.pop(key, None)
            self.tokens.pop(key, None)

    @rule(key=keys, noreply=st.booleans())
    def touch(self, key: Any, noreply: bool) -> None:
        assert self.client.touch(key, 60, noreply=noreply) is (key in self.items or noreply)

    @rule(key=keys)
    def gat(self, key: Any) -> None:
        self.gets += 1
        assert self.client.gat(key, 60, default=...) == self.items.get(key, ...)

    @rule(key=keys)
    def get(self, key: Any) -> None:
        self.gets += 1
        value = self.client.get(key, ...)
        assert (value, type(value)) == (self.items.get(key, ...), type(self.items.get(key, ...)))

    @rule(asked=st.lists(keys, max_size=10))
    def get_many(self, asked: list[Any]) -> None:
        self.gets += len(asked)
        assert self.client.get_many(asked) == {key: self.items[key] for key in asked if key in self.items}

    @invariant()
    def no_connection_is_out(self) -> None:
        assert all(len(endpoint._open) == len(endpoint.idle) for endpoint in self.client._endpoints.values())


@pytest.mark.parametrize("examples", [40])
def test_a_client_is_a_dict(cluster: Cluster, examples: int) -> None:
    machine = type("Machine", (Model,), {"cluster": cluster})
    checks = settings(max_examples=examples, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(machine, settings=checks)  # type: ignore[no-untyped-call]
