"""The rules of a resize, written out as the table that was checked by model, and what two clients a phase apart may meet."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from kvcluster.phases import STEPS, Seen, after, copied, reader, reserved, steps, verdict
from kvcluster.topology import Phase

TABLE = """
old     | get O          | set O           | delete O           | touch O          | change O
prepare | get O          | set O, delete N | delete O, delete N | touch O, touch N | change O, delete N
migrate | lease N, get O | delete O, set N | delete O, delete N | touch O, touch N | promote N, delete O, change N
drain   | get N          | delete O, set N | delete O, delete N | touch O, touch N | delete O, change N
new     | get N          | set N           | delete N           | touch N          | change N
"""


def test_the_table() -> None:
    rows = [[cell.strip() for cell in line.split("|")] for line in TABLE.strip().splitlines()]
    assert list(STEPS) == [row[0] for row in rows] == [*get_args(Phase)]
    for phase, *cells in rows:
        written = [", ".join(" ".join(step) for step in steps(phase, command)) for command in STEPS[phase]]  # type: ignore[arg-type]
        assert written == cells, phase


@pytest.mark.parametrize("phase", get_args(Phase))
def test_whoever_stores_removes_what_the_next_phase_would_read(phase: Any) -> None:
    """A client in this phase and one in the next, each side that either reads first is written or deleted by both."""
    following = after(phase)
    if phase in ("new", "old"):
        return  # before and after a resize the other side is empty, or is asked by nobody
    for command in ("set", "delete", "change"):
        assert {step.side for step in steps(phase, command)} >= {reader(phase), reader(following)}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("at_new", "does"),
    [
        (Seen(won=True, cas=5), "read"),
        (Seen(taken=True, cas=5), "skip"),
        (Seen(value=True, cas=5), "skip"),
        (Seen(), "skip"),
        (Seen(value=True, won=True, stale=True, cas=5), "rearm"),
        (Seen(value=True, won=True, cas=5), "rearm"),
    ],
)
def test_only_a_place_that_was_empty_is_filled(at_new: Seen, does: str) -> None:
    assert reserved(at_new) == does


@pytest.mark.parametrize(
    ("at_old", "does"),
    [
        (Seen(value=True), "store"),
        (Seen(), "give back"),
        (Seen(taken=True), "give back"),
        (Seen(value=True, stale=True, taken=True), "give back"),
        (Seen(value=True, stale=True, won=True), "give back"),
        (Seen(value=True, won=True), "give back"),
    ],
)
def test_only_a_fresh_value_is_copied(at_old: Seen, does: str) -> None:
    assert copied(at_old) == does


def test_epochs() -> None:
    assert [verdict(7, theirs) for theirs in (None, 1, 5, 6, 7, 8, 20)] == [
        "restarted",
        "behind",
        "behind",
        "lagging",
        "good",
        "reload",
        "reload",
    ]
