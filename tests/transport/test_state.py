"""What a client remembers of a node that failed: the deletes it owes it, and that it must not be asked before it has them."""

from __future__ import annotations

import logging
from functools import partial

import pytest

from kvcluster.errors import BadReply, NodeDown, NodeTimeout, NodeUnreachable, PoolTimeout
from kvcluster.protocol import requests
from kvcluster.protocol.requests import Commands, Deletes
from kvcluster.testing.clock import Clock
from kvcluster.transport import state as state_module
from kvcluster.transport.state import NodeState

REFUSED = NodeUnreachable("n", "refused")
LATE = NodeTimeout("n", "late")


def deletes(*wires: bytes) -> Deletes:
    return Deletes(b"".join(map(requests.meta_delete, wires)), len(wires), deletes=wires)


def nothing() -> Commands:
    return Commands(b"", 0)


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


@pytest.fixture
def state(clock: Clock) -> NodeState:
    return NodeState("n", clock)


def owed(state: NodeState) -> list[bytes]:
    batch = state.missed_batch()
    return list(batch[0].deletes) if batch else []


def test_a_failure_makes_it_unready_and_an_answer_ready(state: NodeState, clock: Clock) -> None:
    assert state.ready
    for error in (LATE, REFUSED, BadReply("n", "junk")):
        state.failed(error, nothing(), "")
        assert not state.ready
        clock.advance(100)
        state.admit()
        state.answered()
        assert state.ready


def test_a_busy_pool_is_not_the_nodes_fault(state: NodeState) -> None:
    for _ in range(5):
        state.failed(PoolTimeout("n", "busy"), nothing(), "")
    assert state.ready
    state.admit()


def test_a_down_node_lets_one_probe_through(state: NodeState, clock: Clock) -> None:
    state.failed(REFUSED, nothing(), "")
    with pytest.raises(NodeDown, match=r"n: is down, next probe in [01]\.\d s"):
        state.admit()
    clock.advance(2)
    state.admit()
    with pytest.raises(NodeDown):
        state.admit()


def test_a_suspect_node_lets_everybody_through(state: NodeState) -> None:
    state.failed(LATE, nothing(), "")
    assert not state.ready
    for _ in range(3):
        state.admit()


def test_missed_deletes_are_owed_until_replayed(state: NodeState) -> None:
    state.failed(PoolTimeout("n", "busy"), deletes(b"a", b"b"), "")
    state.failed(LATE, deletes(b"c"), "")
    assert not state.ready
    assert state.missed_deletes == 3
    state.answered()
    assert not state.ready  # an answer alone does not make up for them
    batch = state.missed_batch()
    assert batch is not None
    assert batch[0].payload == b"md a O%b\r\nmd b O%b\r\nmd c O%b\r\n" % ((batch[0].opaque,) * 3)
    state.replayed([b"a", b"b"], batch[1])
    assert owed(state) == [b"c"]
    state.replayed([b"c"], batch[1])
    state.answered()
    assert state.ready


def test_a_delete_that_fails_again_during_its_replay_stays_owed(state: NodeState) -> None:
    state.failed(LATE, deletes(b"a", b"b"), "")
    batch = state.missed_batch()
    assert batch is not None
    state.failed(LATE, deletes(b"a"), "")
    state.replayed(batch[0].deletes, batch[1])
    assert owed(state) == [b"a"]


def test_many_are_replayed_in_batches(state: NodeState) -> None:
    wires = [b"%d" % number for number in range(1000)]
    state.failed(LATE, deletes(*wires), "")
    replayed = []
    while batch := state.missed_batch():
        assert batch[0].count <= 100
        replayed += batch[0].deletes
        state.replayed(batch[0].deletes, batch[1])
    assert replayed == wires


class TestOverflow:
    @pytest.fixture(autouse=True)
    def few(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(state_module, "MAX_MISSED_DELETES", 10)

    def test_the_limit_itself_is_no_overflow(self, state: NodeState) -> None:
        state.failed(LATE, deletes(*[b"%d" % number for number in range(10)]), "")
        assert state.missed_deletes == 10
        state.admit()

    def test_the_node_is_left_alone_for_good(self, state: NodeState, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.ERROR, "kvcluster"):
            state.failed(PoolTimeout("n", "busy"), deletes(*[b"%d" % number for number in range(11)]), "")
            assert not state.ready
            state.answered()  # by a call that was under way
            assert not state.ready
            state.failed(PoolTimeout("n", "busy"), deletes(b"more"), "")
        assert len(caplog.records) == 1
        assert "more than 10 deletes did not reach it" in caplog.text
        clock.advance(1e6)
        with pytest.raises(NodeDown, match="left alone for good"):
            state.admit()

    def test_nothing_more_is_remembered(self, state: NodeState) -> None:
        for number in range(1000):
            state.failed(REFUSED, deletes(b"%d" % number), "")
        assert state.missed_deletes == 0


def test_only_changes_are_logged(state: NodeState, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "kvcluster"):
        for _ in range(5):
            state.failed(REFUSED, nothing(), "")
        clock.advance(5)
        state.admit()
        state.failed(REFUSED, nothing(), "")
        state.answered()
        state.answered()
    assert [record.getMessage().split(":")[0][:26] for record in caplog.records] == [
        "node n is down (n",
        "node n is up again and ser",
    ]
    assert "next probe in" in caplog.records[0].getMessage()


def test_repr_shows_the_state(state: NodeState) -> None:
    assert repr(state) == "<n up, 0 missed deletes>"
    state.failed(REFUSED, deletes(b"a"), "")
    assert repr(state) == "<n down, 1 missed deletes>"


def test_undecodable_values_are_warned_of_once_in_a_while(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    warn = partial(state_module.warn_undecodable, "n", failure=(b"k", ValueError("private")), clock=clock)
    for namespace in ("a namespace", "a namespace", "another", "a namespace"):
        warn(namespace=namespace)
    assert len(caplog.records) == 2
    clock.advance(state_module.WARN_SECONDS)
    warn(namespace="a namespace")
    assert len(caplog.records) == 3
    assert "private" not in caplog.text
