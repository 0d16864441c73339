"""What becomes of plans whose answers tell of other epochs, without I/O."""

from __future__ import annotations

from typing import Any

import pytest

from kvcluster.errors import DeleteFailed, NodeTimeout, OutcomeUnknown, SourceUnavailable
from kvcluster.following.planner import FollowingPlanner, following_planner
from kvcluster.following.plans import Refetch, Sent, Watched
from kvcluster.placement import placement
from kvcluster.plan import Plan
from kvcluster.planner import Planner
from kvcluster.protocol.hot import Reply
from kvcluster.protocol.requests import Commands
from kvcluster.topology import Document, Node

NODE = Node("a:1")


def planner(epoch: int = 7) -> FollowingPlanner:
    return following_planner(Document((NODE,), epoch), Planner(placement("slots", [NODE])))


def answer(plan: Plan[Any], *statuses: str, epoch: int | None = 7) -> Any:
    """Finish a plan whose only node answers so, and then with its epoch."""
    (request,) = plan.requests.values()
    assert isinstance(request, Commands)
    told = Reply("EN" if epoch is None else "VA")
    told.value = None if epoch is None else b"%d" % epoch
    request.replies[:] = [*map(Reply, statuses), told]
    for reply in request.replies[:-1]:
        reply.opaque = request.opaque
    assert not request.misplaced
    return plan.finish({})


def test_a_change_that_may_have_been_done_is_not_repeated() -> None:
    """Its node did not answer; that the topology has changed since is no reason to do it again."""
    change = answer(planner().count(b"I", "k", 1, False))
    assert isinstance(change, Watched)
    assert change.finish({NODE.address: NodeTimeout(NODE.address, "no answer")}) is None


def test_a_change_whose_epoch_could_not_be_confirmed_is_repeated() -> None:
    confirming = planner().count(b"I", "k", 1, False)
    refetch = answer(confirming, epoch=8)
    assert isinstance(refetch, Refetch)
    assert refetch.late
    again = refetch.resume(planner(8))
    assert isinstance(again, Watched)
    assert again.planner.epoch == 8


def test_a_set_is_repeated_for_the_topology_of_the_day() -> None:
    refetch = answer(planner().store(b"S", "k", 1, 0, None, False), "HD", epoch=8)
    assert isinstance(refetch, Refetch)
    assert isinstance(refetch.resume(planner(8)), Watched)


def test_a_node_that_lost_its_epoch_is_told_and_the_result_stands() -> None:
    refetch = answer(planner().delete_many(["k"]), "HD", epoch=None)
    assert isinstance(refetch, Refetch)
    assert refetch.urgent
    assert not refetch.late
    telling = refetch.resume(planner())
    assert isinstance(telling, Plan)
    (request,) = telling.requests.values()
    assert request.payload == b"mg __kvc:epoch v c\r\n"


@pytest.mark.parametrize("epoch", [None, 6])
def test_an_epoch_that_the_source_does_not_confirm_is_told_to_nobody(epoch: int | None) -> None:
    """A node that has lost its epoch may be in a cluster that has another one by now."""
    trouble = SourceUnavailable("topology.toml: cannot be read")
    removal = answer(planner().delete_many(["k"]), "HD", epoch=epoch)
    with pytest.raises(DeleteFailed):
        removal.resume(planner(), trouble)
    assert answer(planner().store(b"S", "k", 1, 0, None, False), "HD", epoch=epoch).resume(planner(), trouble) is False
    sent = Sent("", NODE.address, Commands(b"mg k v\r\n", 1))
    assert answer(planner().overhear(sent), "HD", epoch=epoch).resume(planner(), trouble) is trouble
    change = answer(answer(planner().count(b"I", "k", 1, False), epoch=epoch), "NF", epoch=epoch)
    with pytest.raises(OutcomeUnknown):
        change.resume(planner(), trouble)


def test_what_goes_over_the_wire() -> None:
    (request,) = planner().delete_many(["k"]).requests.values()
    assert request.payload.startswith(b"md k O")
    assert request.payload.endswith(b"\r\nmg __kvc:epoch v\r\n")
    (request,) = planner().get_many(["k"]).requests.values()
    assert request.payload == b"get k __kvc:epoch\r\n"
