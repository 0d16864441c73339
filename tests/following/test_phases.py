"""What each command does at a key's old and new owner in each phase, seen at the nodes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvcluster import Client
from kvcluster.cluster import FollowingCluster
from kvcluster.errors import DeleteFailed, IllegalValue
from kvcluster.plan import Invalidation, Plan
from kvcluster.planner import EXPTIME_MAX
from kvcluster.testing.plugin import NodeFactory
from tests.client.cluster import ask
from tests.following.stage import ORDER, Stage

Staged = Callable[..., Stage]


def begin(staged: Staged, phase: Any, old: bytes | None = b"old", new: bytes | None = None) -> tuple[Stage, Any, str, str, str]:
    """A stage in a phase, a client, and a key that moves, with what its owners hold of it."""
    stage: Stage = staged(phase)
    (key,) = stage.moving()
    o, n = stage.owners(key)
    for address, data in ((o, old), (n, new)):
        if data is not None:
            stage.put(address, key, data)
    return stage, stage.client(), key, o, n


@pytest.mark.parametrize(
    ("phase", "found", "left"),
    [
        ("old", "old", (b"old", b"new")),
        ("prepare", "old", (b"old", b"new")),
        ("migrate", "new", (b"old", b"new")),
        ("drain", "new", (b"old", b"new")),
        ("new", "new", (b"old", b"new")),
    ],
)
def test_who_is_read(staged: Staged, phase: str, found: str, left: tuple[bytes, bytes]) -> None:
    stage, client, key, o, n = begin(staged, phase, new=b"new")
    assert client.get(key) == found
    assert client.get_many([key, "absent"]) == {key: found}
    assert client.gets(key)[0] == found
    assert (stage.at(o, key), stage.at(n, key)) == left


def test_a_key_that_stays_is_read_without_a_plan_while_others_migrate(
    tmp_path: Path, kv_nodes: NodeFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path, [node.address for node in kv_nodes(3)], Client.from_topology, "migrate")
    client = stage.client()
    (staying,), (moving,) = stage.staying(), stage.moving()
    for key in (staying, moving):
        stage.put(stage.owners(key)[0], key, b"old")
    plans: list[Plan[Any]] = []
    run = client.run
    monkeypatch.setattr(type(client), "run", lambda self, plan: plans.append(plan) or run(plan))
    assert [client.get(moving) for _ in range(20)] == ["old"] * 20
    assert len(plans) == 20
    assert [client.get(staying) for _ in range(20)] == ["old"] * 20
    assert len(plans) < 30  # some, because a client looks at its source now and then
    stage.close()


@pytest.mark.parametrize("phase", ORDER)
def test_a_read_takes_the_key_along_only_while_it_migrates(staged: Staged, phase: str) -> None:
    stage, client, key, o, n = begin(staged, phase)
    ask(o, b"mg %b T300\r\n" % key.encode())
    found = client.get(key)
    assert found == (None if phase in ("drain", "new") else "old")
    assert stage.at(o, key) == b"old"
    copied = ask(n, b"mg %b v f t\r\n" % key.encode())
    if phase == "migrate":
        assert copied.startswith((b"VA 3 f16 t300\r\n", b"VA 3 f16 t299\r\n"))
    else:
        assert copied == b"EN\r\n"


def test_a_copy_without_expiry_stays_so_and_binary_keys_are_copied(staged: Staged) -> None:
    stage, client, key, _, n = begin(staged, "migrate")
    assert client.get(key) == "old"
    assert ask(n, b"mg %b t\r\n" % key.encode()) == b"HD t-1\r\n"
    odd = next(key for key in stage_keys(stage) if len(set(stage.owners(key))) == 2)
    _o, n = stage.owners(odd)
    other = stage.client()
    assert other.set(odd, {"a": 1}, expire=60)
    assert other.get_many([odd]) == {odd: {"a": 1}}
    assert other.delete(odd)
    assert other.get(odd) is None


@pytest.mark.parametrize("ahead", [0, 3])
def test_an_item_that_lives_as_long_as_memcached_can_count_is_copied(staged: Staged, ahead: int) -> None:
    """Rounding, or a clock that is ahead, may put its end beyond that."""
    stage, client, key, o, n = begin(staged, "migrate")
    stage.put(o, key, b"old", b"F16 T%d" % EXPTIME_MAX)
    client._planner = replace(client._planner, clock=lambda: time.time() + ahead)
    assert client.get(key) == "old"
    ttl = int(ask(n, b"mg %b t\r\n" % key.encode()).split(b"t")[1])
    assert abs(time.time() + ttl - EXPTIME_MAX) < 10


def stage_keys(stage: Stage) -> list[str]:
    return [f"odd key {number}" for number in range(100)]


def test_a_read_that_finds_nothing_leaves_nothing(staged: Staged) -> None:
    _stage, client, key, _o, n = begin(staged, "migrate", old=None)
    assert client.get(key) is None
    assert client.get_many([key]) == {}
    assert ask(n, b"mg %b s\r\n" % key.encode()) == b"EN\r\n", "its reservation"


def test_a_lease_of_another_is_left_to_it(staged: Staged) -> None:
    _stage, client, key, _o, n = begin(staged, "migrate")
    lease = ask(n, b"mg %b c N30\r\n" % key.encode())
    assert client.get(key) == "old"
    assert ask(n, b"mg %b c\r\n" % key.encode()).split()[1] == lease.split()[1], "the placeholder is the same"


def test_a_stale_value_is_not_copied_and_its_refill_is_given_back(staged: Staged) -> None:
    stage, client, key, o, n = begin(staged, "migrate")
    ask(o, b"md %b I T30\r\n" % key.encode())
    assert client.get(key) == "old", "as everywhere, a plain get takes it"
    assert stage.at(n, key) is None
    assert b" W" in ask(o, b"mg %b v\r\n" % key.encode()), "the refill is there for whoever wants it"


@pytest.mark.parametrize(
    ("phase", "left"),
    [
        ("old", (b"set", None)),
        ("prepare", (b"set", None)),
        ("migrate", (None, b"set")),
        ("drain", (None, b"set")),
        ("new", (b"old", b"set")),
    ],
)
def test_what_a_set_leaves(staged: Staged, phase: str, left: tuple[bytes | None, bytes | None]) -> None:
    before = None if phase == "old" else b"new"
    stage, client, key, o, n = begin(staged, phase, new=before)
    assert client.set(key, "set", 60) is True
    assert (stage.at(o, key), stage.at(n, key)) == left
    other, *_ = stage.staying()
    stage.put(o, key, b"old")
    assert client.set_many({key: "set", other: "too"}, 60) == []
    assert (stage.at(o, key), stage.at(n, key)) == left
    assert client.get_many([key, other]) == {key: "set", other: "too"}


@pytest.mark.parametrize("phase", ORDER)
@pytest.mark.parametrize("command", ["delete", "delete_many", "invalidate"])
def test_what_a_delete_leaves(staged: Staged, phase: str, command: str) -> None:
    stage, client, key, o, n = begin(staged, phase, new=b"new")
    other = stage.staying()[0]
    client.set(other, 1)
    if command == "delete":
        assert client.delete(key) is True
        assert client.delete(key) is False
        client.delete(other)
    elif command == "delete_many":
        client.delete_many([key, other])
    else:
        client.run(client.planner.invalidate(Invalidation((key.encode(), other.encode()))))
    left = {"old": (None, b"new"), "new": (b"old", None)}.get(phase, (None, None))
    assert (stage.at(o, key), stage.at(n, key)) == left
    assert client.get(other) is None


@pytest.mark.parametrize("phase", ORDER)
def test_a_stamp_has_one_value_on_all_nodes(staged: Staged, phase: str) -> None:
    stage, client, key, _o, _n = begin(staged, phase, new=b"new")
    client.run(client.planner.invalidate(Invalidation((key.encode(),), (b"__stamp:table:t",))))
    members = {"old": stage.addresses[:-1]}.get(phase, stage.addresses)
    values = {stage.at(address, "__stamp:table:t") for address in members}
    assert len(values) == 1
    assert values != {None}
    assert client.get(key) is None


@pytest.mark.parametrize("phase", ORDER[1:4])
def test_touch_goes_to_both(staged: Staged, phase: str) -> None:
    _stage, client, key, o, n = begin(staged, phase, new=b"new")
    assert client.touch(key, 50) is True
    for address in (o, n):
        assert ask(address, b"mg %b t\r\n" % key.encode()) in (b"HD t50\r\n", b"HD t49\r\n")
    ask(n, b"md %b\r\n" % key.encode())
    assert client.touch(key, 40) is True, "one is enough"
    assert client.touch("absent" + key, 40) is False


CHANGES: dict[str, tuple[Callable[[Any, str], object], object, bytes]] = {
    "incr": (lambda client, key: client.incr(key, 2), 9, b"9"),
    "decr": (lambda client, key: client.decr(key, 2), 5, b"5"),
    "append": (lambda client, key: client.append(key, "0"), True, b"70"),
    "prepend": (lambda client, key: client.prepend(key, "0"), True, b"07"),
    "replace": (lambda client, key: client.replace(key, "x"), True, b"x"),
    "add": (lambda client, key: client.add(key, "x"), False, b"7"),
}


@pytest.mark.parametrize("phase", ORDER[:3])
@pytest.mark.parametrize("name", list(CHANGES))
def test_a_change_finds_what_the_old_owner_has(staged: Staged, phase: str, name: str) -> None:
    stage, client, key, o, n = begin(staged, phase, old=b"7")
    change, result, data = CHANGES[name]
    assert change(client, key) == result
    assert (stage.at(o, key), stage.at(n, key)) == ((None, data) if phase == "migrate" else (data, None))


@pytest.mark.parametrize("name", list(CHANGES))
def test_a_change_while_another_copies_the_key(staged: Staged, name: str) -> None:
    stage, client, key, o, n = begin(staged, "migrate", old=b"7")
    lease = ask(n, b"mg %b c N10\r\n" % key.encode()).split()[1][1:]
    change, result, data = CHANGES[name]
    assert change(client, key) == result
    assert ask(n, b"ms %b 1 C%b\r\n7\r\n" % (key.encode(), lease)) in (b"EX\r\n", b"NF\r\n"), "the other's copy comes too late"
    assert (stage.at(o, key), stage.at(n, key)) == (None, data)


@pytest.mark.parametrize("phase", ORDER[1:4])
def test_add_to_what_is_nowhere(staged: Staged, phase: str) -> None:
    stage, client, key, o, n = begin(staged, phase, old=None)
    assert client.add(key, "x") is True
    assert client.add(key, "y") is False
    assert client.get(key) == "x"
    assert stage.at(o if phase == "prepare" else n, key) == b"x"


@pytest.mark.parametrize("phase", ORDER)
def test_a_cas_token_is_good_at_one_node_for_one_epoch(staged: Staged, phase: str) -> None:
    stage, client, key, _o, _n = begin(staged, phase, new=None if phase in ("old", "prepare", "migrate") else b"new")
    _, token = client.gets(key)
    assert client.cas(key, "mine", token) is True
    assert client.cas(key, "again", token) is False
    _, token = client.gets(key)
    client.set(key, "another's")
    assert client.cas(key, "late", token) is False
    _, token = client.gets(key)
    if phase != "new":
        stage.advance()
        assert client.cas(key, "in another epoch", token) is False
    other = stage.staying()[0]
    client.set(other, 1)
    _, token = client.gets(other)
    assert client.cas(key, "of another node", token) in (False, None)
    with pytest.raises(IllegalValue, match="cas must be what gets of this client returned"):
        client.cas(key, "x", 5)


def test_a_delete_that_one_owner_cannot_be_told(staged: Staged, kv_nodes: Any) -> None:
    nodes = kv_nodes(3)
    stage: Stage = staged("migrate", [node.address for node in nodes])
    (key,) = stage.moving()
    o, n = stage.owners(key)
    client = stage.client(timeout=0.2, connect_timeout=0.2)
    client.set(key, 1)
    stage.put(o, key, b"old")
    next(node for node in nodes if node.address == n).kill()
    with pytest.raises(DeleteFailed) as failed:
        client.delete(key)
    assert (failed.value.keys, set(failed.value.causes)) == ((key,), {n})
    assert stage.at(o, key) is None, "the old owner was told all the same"
    next(node for node in nodes if node.address == o).kill()
    assert client.set(key, 2) is False
    with pytest.raises(DeleteFailed) as failed:
        client.delete_many([key, "other"])
    assert set(failed.value.causes) >= {o, n}
    assert client.get(key) is None
    assert client.set_many({key: 1}) == [key]


def test_everything_is_dropped_at_old_owners_first(staged: Staged, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that is old and new is flushed again: a read may have copied to it what an old owner had."""
    stage = staged("migrate")
    client = stage.client()
    told: list[str] = []
    monkeypatch.setattr(FollowingCluster, "_administer", lambda _, node, action: told.append(node.address) is None)
    assert client.flush_all()
    document = stage.document
    assert told == [node.address for node in (*document.previous, *document.nodes)]
