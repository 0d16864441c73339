"""What a resize moves, against the owner of each key before and after."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcluster.cache.stamps import stamp_wire, tag_stamp, unknown_rows, watch_stamp
from kvcluster.errors import ConfigurationError
from kvcluster.placement import placement
from kvcluster.planner import Planner
from kvcluster.rebalance.change import change, pinned
from kvcluster.topology import Node, Topology

KEYS = [b"key:%d" % number for number in range(500)]
members = st.lists(
    st.builds(Node, st.integers(1, 8).map("10.0.0.{}".format), st.integers(1, 3), st.integers(1, 8).map("id{}".format)),
    min_size=1,
    max_size=6,
    unique_by=(lambda node: node.address, lambda node: node.id),
)


def owners(topology: Topology) -> dict[bytes, str]:
    table = placement("slots", topology.nodes, topology.slots)
    return {key: table.owner(key).address for key in KEYS}


@given(members, members)
def test_a_key_moves_where_the_address_of_its_owner_changes(before: list[Node], after: list[Node]) -> None:
    old, new = Topology(before, slots=256), Topology(after, slots=256)
    if set(before) == set(after):
        return
    found = change(old, new)
    was, becomes = owners(old), owners(new)
    for source in old.nodes:
        router = found.router(source.address)
        moved = {wire: router.targets[number] for number, wire, _ in router.moving([(key, b"") for key in KEYS])}
        assert moved == {key: becomes[key] for key in KEYS if was[key] == source.address != becomes[key]}
    assert sum(share for share in found.shares()[1].values()) == pytest.approx(1)
    assert {node.address for node in found.sources} == {source for source, _ in found.moves}
    assert found.moves.total() / 256 == found.share


@given(members, members)
def test_what_a_node_is_rid_of_is_what_it_does_not_own_afterwards(before: list[Node], after: list[Node]) -> None:
    if set(before) == set(after):
        return
    found = change(Topology(before, slots=256), Topology(after, slots=256))
    becomes = owners(found.after)
    held = [*KEYS, b"app:__stamp:table:users", b"__kvc:epoch"]
    for node in found.members:
        leaves = node in found.removed
        stays = {key for key in held if key.startswith(b"__kvc:") or (not leaves and (pinned(key) or becomes[key] == node.address))}
        assert set(found.strangers(node.address, held)) == set(held) - stays


def test_a_machine_that_is_replaced_under_its_id_hands_over_all_it_has() -> None:
    found = change(Topology(["a", "b"]), Topology(["a", Node("c", id="b")]))
    assert found.moves == {("b:11211", "c:11211"): found.moves.total()}
    assert found.share == pytest.approx(found.shares()[0]["b:11211"])
    assert found.gained("c:11211") == 1.0


def test_stamps_and_epochs_do_not_move() -> None:
    found = change(Topology(["a"]), Topology(["b"]))
    lines = [(key, b"rest") for key in (b"__kvc:epoch", b"shop:__stamp:tag:x", b"user:1")]
    assert found.router("a:11211").moving(lines) == [(0, b"user:1", b"rest")]


def test_a_change_that_is_none_or_cannot_be_made_says_so() -> None:
    with pytest.raises(ConfigurationError, match="nothing to move"):
        change(Topology(["a", "b"]), Topology(["b", "a"]))
    with pytest.raises(ConfigurationError, match="slots must stay 16384"):
        change(Topology(["a"]), Topology(["a", "b"], slots=256))
    with pytest.raises(ConfigurationError, match="must be 'slots'"):
        change(Topology(["a"], "modulo"), Topology(["a", "b"], "modulo"))
    with pytest.raises(ConfigurationError, match="of two"):
        change(Topology(["a"]), Topology(["a", "a"]))


@pytest.mark.parametrize("name", [tag_stamp("a"), *unknown_rows("post"), watch_stamp("post", {"id": 1}), tag_stamp("long" * 99)])
@pytest.mark.parametrize("prefix", [b"shop:", b"app/shop:"])
def test_stamps_stay_where_they_are_and_keys_that_look_like_them_move(name: str, prefix: bytes) -> None:
    planner = Planner(placement("slots", [Node("a")]), prefix)
    assert pinned(stamp_wire(planner, name))
    for own in (b"doc:__stamp:1", b"__stamp:1", b"my__stamp:tag:x", b"__kvc:mine", b"__kvc:epochs"):
        assert not pinned(own)
