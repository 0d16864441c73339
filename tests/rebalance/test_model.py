"""The protocol of a resize, searched for a stale read in every order of events; and each shortcut, in which the search finds one.

The suite searches small worlds. `make model` adds evictions, restarts, more writes and more readers to
each of them, and takes minutes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest

from tests.rebalance.explorer import BACK, BACK_AND_FORTH, Shortcut, Size, Stale, Way, explore

COMMANDS = ("delete", "set", "soft", "incr", "add", "cas")

SMALL: dict[str, Size] = {
    "a delete, a copy, a read": Size(("delete",)),
    "a delete, two reads": Size(("delete",), reads=2, copies=0),
    "a delete, a read through the cache": Size(("delete",), readers=("through",), copies=0),
    "a delete, an early refresh": Size(("delete",), readers=("through",), copies=0, early=True),
    "a delete, a restart": Size(("delete",), copies=0, restarts=1),
    "a set, an eviction": Size(("set",), copies=0, evictions=1),
    "a soft invalidation, a read through the cache": Size(("soft",), readers=("through",), copies=0),
    "incr, a copy": Size(("incr",), readers=()),
    "incr, a read through the cache": Size(("incr",), readers=("through",), copies=0),
    "add, a copy": Size(("add",), readers=()),
    "add, a read through the cache": Size(("add",), readers=("through",), copies=0),
    "cas, a copy": Size(("cas",), readers=()),
    "cas, a read": Size(("cas",), copies=0),
}


@pytest.mark.parametrize("name", list(SMALL))
def test_no_read_is_stale(name: str) -> None:
    assert explore(SMALL[name]) > 1000


@pytest.mark.parametrize("way", [BACK, BACK_AND_FORTH], ids=" ".join)
@pytest.mark.parametrize("name", list(SMALL))
def test_no_read_is_stale_where_a_resize_is_given_up(name: str, way: Way) -> None:
    assert explore(replace(SMALL[name], way=way)) > 1000


@pytest.mark.large
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("reader", ["plain", "through"])
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "more",
    [
        *({"evictions": 1}, {"restarts": 1}, {"copies": 2}, {"reads": 2, "early": True}, {"writes": 2}),
        *({"evictions": 1, "way": BACK}, {"restarts": 1, "way": BACK}, {"copies": 2, "way": BACK}),
        {"reads": 2, "early": True, "way": BACK},
    ],
    ids=lambda more: ", ".join(more),
)
def test_no_read_is_stale_in_larger_worlds(more: dict[str, Any], command: str, reader: str) -> None:
    assert explore(replace(Size((command,), readers=(reader,)), **more)) > 10_000


FOUND: dict[Shortcut, Size] = {
    "delete new then old": Size(),
    "copy by add": Size(),
    "copy by add, tombstones": Size(evictions=1),
    "copy reads before it reserves": Size(),
    "copy whatever is there": Size(("soft",)),
    "copy without epoch check": Size(("set",), evictions=1),
    "no delete at N in prepare": Size(reads=2, copies=0),
    "no delete at O in drain": Size(),
    "skip prepare": Size(reads=2, copies=0),
    "skip drain": Size(),
    "set leaves O": Size(("set",), copies=0, evictions=1),
    "change leaves O": Size(("incr",), copies=0, evictions=1),
    "change without promotion": Size(("add",), readers=()),
    "plain-add fills": Size(readers=("through",), copies=0),
    "no barrier": Size(),
    "no epoch check": Size(),
    "no sweep": Size(),
    "redone set leaves what it wrote": Size(("set",)),
    "no care for a restarted node": Size(restarts=1),
    "skip prepare on the way back": Size(way=BACK),
}


@pytest.mark.parametrize("shortcut", get_args(Shortcut))
def test_a_shortcut_is_a_stale_read(shortcut: Shortcut) -> None:
    with pytest.raises(Stale) as found:
        explore(FOUND[shortcut], shortcut)
    what, path = found.value.args
    assert any(word in what for word in ("returned", "keeps", "found nothing"))
    assert path[0] == "", path
    assert len(path) > 5, path
