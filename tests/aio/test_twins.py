"""`Client` and `AsyncClient` are one interface, written by hand twice; this is what holds them equal."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from kvcluster import AsyncClient, Client

# A subscript cannot be awaited, and `with` is `async with`.
ONLY_SYNC = {"__getitem__", "__setitem__", "__contains__", "__delitem__", "__enter__", "__exit__"}
ONLY_ASYNC = {"__aenter__", "__aexit__"}
# What needs no node, and the endpoint that is no caller's business.
NOT_AWAITED = {"from_url", "topology", "planner", "set_nodes", "statistics", "count", "__init__", "__repr__"}


def members(of: type) -> dict[str, Any]:
    """All that a class and its bases of ours define for callers."""
    found: dict[str, Any] = {}
    for base in reversed(of.__mro__):
        if base.__module__.startswith("kvcluster"):
            found |= vars(base)
    own = {name for name in found if name.endswith("__") and inspect.isfunction(found[name])}
    return {name: member for name, member in found.items() if name in own or not name.startswith("_")}


SYNC, ASYNC = members(Client), members(AsyncClient)


def test_both_have_the_same_members() -> None:
    assert SYNC.keys() - ASYNC.keys() == ONLY_SYNC
    assert ASYNC.keys() - SYNC.keys() == ONLY_ASYNC
    assert len(SYNC) > 35


@pytest.mark.parametrize("name", sorted(SYNC.keys() & ASYNC.keys()))
def test_a_member_is_the_same_in_both(name: str) -> None:
    sync, other = SYNC[name], ASYNC[name]
    assert type(sync) is type(other)
    assert sync.__doc__ == other.__doc__
    if inspect.isfunction(sync):
        assert inspect.signature(sync) == inspect.signature(other)
        assert not inspect.iscoroutinefunction(sync)
        assert inspect.iscoroutinefunction(other) is (name not in NOT_AWAITED)


def test_aliases_are_the_same_in_both() -> None:
    def aliases(members: dict[str, Any]) -> set[frozenset[str]]:
        by_member: dict[int, set[str]] = {}
        for name, member in members.items():
            by_member.setdefault(id(member), set()).add(name)
        return {frozenset(names) for names in by_member.values() if len(names) > 1}

    assert aliases(SYNC) == aliases(ASYNC)
    assert frozenset({"get_many", "get_multi"}) in aliases(SYNC)
