"""What a command does at which owner of a key while the cluster is resized. Pure rules: the planner, the copying of keys and the
state model of the tests all follow them from here.

During a resize a key has an old owner, O, and a new one, N. Where both are one node, or no resize is under way, a command has one
step. Else its steps are done in order, each after the node has answered the one before. The table below says it.

*Change* is every command whose effect depends on what is there: add, replace, append, prepend, cas, incr, decr. A *promoted* key
is copied to N first, so that they find it.

Why this order: a delete at O and then at N leaves no gap, because a lease on N that was taken before N's delete is ended by it, and
one taken later reads O after O's delete. A set that left the old value at O would bring it back once N evicts the new one. Clients
are at most one phase apart, because the next phase begins when all nodes know of this one, and each answer tells the phase.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple, TypeAlias

from kvcluster.topology import Phase

Command: TypeAlias = Literal["read", "set", "delete", "touch", "change"]
Action: TypeAlias = Literal["get", "lease", "set", "delete", "touch", "promote", "change"]
Side: TypeAlias = Literal["O", "N"]


class Step(NamedTuple):
    """One action at one owner. ``lease`` reads the value, and where there is none reserves its place."""

    action: Action
    side: Side


_TABLE: Final[Mapping[Phase, Mapping[Command, str]]] = {
    "old": {"read": "get O", "set": "set O", "delete": "delete O", "touch": "touch O", "change": "change O"},
    "prepare": {
        "read": "get O",
        "set": "set O, delete N",
        "delete": "delete O, delete N",
        "touch": "touch O, touch N",
        "change": "change O, delete N",
    },
    "migrate": {
        "read": "lease N, get O",
        "set": "delete O, set N",
        "delete": "delete O, delete N",
        "touch": "touch O, touch N",
        "change": "promote N, delete O, change N",
    },
    "drain": {
        "read": "get N",
        "set": "delete O, set N",
        "delete": "delete O, delete N",
        "touch": "touch O, touch N",
        "change": "delete O, change N",
    },
    "new": {"read": "get N", "set": "set N", "delete": "delete N", "touch": "touch N", "change": "change N"},
}


def _steps(text: str) -> tuple[Step, ...]:
    return tuple([Step(*step.split()) for step in text.split(", ")])  # type: ignore[arg-type]


STEPS: Final[Mapping[Phase, Mapping[Command, tuple[Step, ...]]]] = {
    phase: {command: _steps(text) for command, text in row.items()} for phase, row in _TABLE.items()
}


def steps(phase: Phase, command: Command) -> tuple[Step, ...]:
    """What a command does, in this order, for a key whose old and new owners differ.

    >>> steps("migrate", "set")
    (Step(action='delete', side='O'), Step(action='set', side='N'))
    """
    return STEPS[phase][command]


def reader(phase: Phase) -> Side:
    """The owner that a read asks first, and where what was loaded is stored."""
    return STEPS[phase]["read"][0].side


def after(phase: Phase) -> Phase:
    """The phase that follows.

    >>> after("prepare"), after("new")
    ('migrate', 'old')
    """
    order: tuple[Phase, ...] = ("old", "prepare", "migrate", "drain", "new", "old")
    return order[order.index(phase) + 1]


# -- copying one key from O to N: reserve its place at N, then read O


class Seen(NamedTuple):
    """What a meta get with a lease saw of one key.

    ``value``: there is one, however old. ``won``: the caller is to refill it, and ``cas`` names its place. ``taken``: somebody else
    is. ``stale``: it was marked so.
    """

    value: bool = False
    won: bool = False
    taken: bool = False
    stale: bool = False
    cas: int = 0


Reserved: TypeAlias = Literal["read", "skip", "rearm"]
Copied: TypeAlias = Literal["store", "give back"]


def reserved(at_new: Seen) -> Reserved:
    """What a copy does after it asked N for a lease.

    ``read`` O, because the place is reserved; ``skip`` a key that N has in a newer version, or that somebody else fills; ``rearm``
    a stale value of N's own, whose refill this caller has won without wanting it, and skip it.
    """
    if not at_new.won:
        return "skip"
    return "rearm" if at_new.value or at_new.stale else "read"


def copied(at_old: Seen) -> Copied:
    """What a copy does with its place at N after it read O: ``store`` what is there, or ``give back``.

    A placeholder and a stale value are not copied: whoever refills them at O could not be told apart from one who is too late.
    """
    return "store" if at_old.value and not (at_old.stale or at_old.taken or at_old.won) else "give back"


# -- epochs: what an answer says by the epoch that its node has

Verdict: TypeAlias = Literal["good", "reload", "restarted", "lagging", "behind"]


def verdict(mine: int, theirs: int | None) -> Verdict:
    """What a client makes of the epoch that came after an answer.

    ``good``: they agree. ``reload``: the topology has changed. ``restarted``: the node has no epoch, so it is empty. ``lagging``:
    the node is about to be told of the present epoch; the phases allow for that, and the client tells it too. ``behind``: it
    missed more, so it was cut off, and holds what others have deleted since: of no use until it is flushed.

    >>> verdict(7, 7), verdict(7, 8), verdict(7, None), verdict(7, 6), verdict(7, 5)
    ('good', 'reload', 'restarted', 'lagging', 'behind')
    """
    if theirs is None:
        return "restarted"
    if theirs >= mine:
        return "good" if theirs == mine else "reload"
    return "lagging" if theirs == mine - 1 else "behind"
