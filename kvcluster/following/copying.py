"""Reads that take a key along to its new owner, as the migrator does: reserve its place there, read the old owner, then store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from kvcluster import phases
from kvcluster.phases import Seen
from kvcluster.plan import Failures, Grouped, Plan, Then, mend
from kvcluster.planner import Planner, expiry
from kvcluster.protocol import requests
from kvcluster.protocol.hot import Reply
from kvcluster.protocol.requests import Commands, Lookups, Request, is_placeholder
from kvcluster.stats.counters import Counters

if TYPE_CHECKING:
    from kvcluster.following.planner import FollowingPlanner

RESERVATION: Final = 10  # seconds that a place at the new owner is kept while the old one is asked


def seen(reply: Reply) -> Seen:
    """What a meta get of ``v f c`` saw, as the rules of copying take it."""
    value = reply.value is not None and not is_placeholder(reply)
    return Seen(value, reply.won, reply.taken, reply.stale, reply.cas)


class _Reserving(Lookups):
    """Reads at the new owners that reserve the place of what moves; what they miss is counted where it is asked for last."""

    __slots__ = ("moving",)

    moving: set[bytes]

    def settle(self, counters: Counters) -> None:
        """Count what was found, and what is asked nowhere else."""
        super().settle(counters)
        counters.misses -= sum(
            wire in self.moving and not seen(reply).value for wire, reply in zip(self.wires, self.replies, strict=True)
        )

    def fail(self, counters: Counters) -> None:
        """Count the keys that are asked for nowhere else as misses."""
        counters.misses += sum(wire not in self.moving for wire in self.wires)


class ReadNew(Plan[dict[Any, Any]]):
    """The first step of a read in the phase ``migrate``: ask the new owners, for a lease on what moves."""

    __slots__ = ("planner", "tokens", "values")

    def __init__(self, planner: FollowingPlanner, groups: Grouped, moving: set[bytes], tokens: bool) -> None:
        self.planner = planner
        self.tokens = tokens
        self.values: dict[Any, Any] = {}
        token = requests.opaque()
        plain = b"v f t c O" + token
        lease = plain + b" N%d" % RESERVATION
        asking: dict[str, Request] = {}
        for address, (wires, names) in groups.items():
            payload = b"".join([requests.meta_get(wire, lease if wire in moving else plain) for wire in wires])
            request = _Reserving(payload, wires, names, planner.codec.decode, self.values, tokens, token)
            request.moving = moving
            asking[address] = request
        super().__init__(planner.namespace, asking)

    def finish(self, failures: Failures) -> dict[Any, Any] | Plan[dict[Any, Any]]:
        """The values, or a read at the old owners of what moves and is not there."""
        mending: dict[str, list[bytes]] = {}
        places: dict[bytes, tuple[str, int]] = {}
        missing: Grouped = {}
        for address, request in self.requests.items():
            assert isinstance(request, _Reserving)
            failed = address in failures
            for at, (wire, name) in enumerate(zip(request.wires, request.names, strict=True)):
                reply = None if failed else request.replies[at]
                if reply is not None and (command := mend(wire, reply)):
                    mending.setdefault(address, []).append(command)
                if wire not in request.moving or (reply is not None and seen(reply).value):
                    continue
                if reply is not None and phases.reserved(seen(reply)) == "read":
                    places[wire] = (address, reply.cas)
                wires, names = missing.setdefault(self.planner.at("O").address(wire), ([], []))
                wires.append(wire)
                names.append(name)
        following: dict[Any, Any] | Plan[dict[Any, Any]] = self.values
        if missing:
            following = _ReadOld(self.planner, missing, places, self.values, self.tokens)
        return Then(self.namespace, as_requests(mending), following) if mending else following


class _ReadOld(Plan[dict[Any, Any]]):
    """The second step: ask the old owners, and copy what they have to the places that were reserved."""

    __slots__ = ("places", "planner", "tokens", "values")

    def __init__(
        self,
        planner: FollowingPlanner,
        groups: Grouped,
        places: Mapping[bytes, tuple[str, int]],
        values: dict[Any, Any],
        tokens: bool,
    ) -> None:
        reading = planner.look_up(groups, values, tokens=False)
        super().__init__(planner.namespace, reading.requests)
        self.planner = planner
        self.places = places
        self.values = values
        self.tokens = tokens

    def finish(self, failures: Failures) -> dict[Any, Any] | Plan[dict[Any, Any]]:
        """The values, after what was reserved is filled or given back."""
        writes: dict[str, list[bytes]] = {}
        names: list[Any] = []
        for address, request in self.requests.items():
            assert isinstance(request, Lookups)
            for at, wire in enumerate(request.wires):
                reply = None if address in failures else request.replies[at]
                if reply is not None and (command := mend(wire, reply)):
                    writes.setdefault(address, []).append(command)
                if reply is not None and seen(reply).value:
                    names.append(request.names[at])
                if wire in self.places:
                    owner, cas = self.places[wire]
                    writes.setdefault(owner, []).append(copy_command(self.planner, wire, cas, reply))
        following: dict[Any, Any] | Plan[dict[Any, Any]] = self.values
        if self.tokens and names:  # a CAS number belongs to one node
            for name in names:
                self.values.pop(name, None)
            planner = self.planner
            following = planner.look_up(planner.at("N").group(names), self.values, tokens=True)
        return Then(self.namespace, as_requests(writes), following) if writes else following


class TakeAlong(Plan["set[bytes]"]):
    """Copies of what old owners have to places at new ones that are leased already; what is nowhere keeps its lease."""

    __slots__ = ("leases", "planner")

    def __init__(self, planner: FollowingPlanner, leases: Mapping[bytes, int]) -> None:
        token = requests.opaque()
        groups = planner.at("O").group_wires(list(leases))
        asking: dict[str, Request] = {
            address: Commands(b"".join([requests.meta_get(wire, b"v f t c O" + token) for wire in wires]), len(wires), opaque=token)
            for address, wires in groups.items()
        }
        super().__init__(planner.namespace, asking)
        self.planner = planner
        self.leases = leases

    def finish(self, failures: Failures) -> set[bytes] | Plan[set[bytes]]:
        """The keys that are at their new owners now."""
        writes: dict[str, list[bytes]] = {}
        found: set[bytes] = set()
        for address, wires in self.planner.at("O").group_wires(list(self.leases)).items():
            request = self.requests[address]
            if address in failures:
                continue
            assert isinstance(request, Commands)
            for wire, reply in zip(wires, request.replies, strict=True):
                if command := mend(wire, reply):
                    writes.setdefault(address, []).append(command)
                if phases.copied(seen(reply)) == "store":
                    found.add(wire)
                    copy = copy_command(self.planner, wire, self.leases[wire], reply)
                    writes.setdefault(self.planner.address(wire), []).append(copy)
        return Then(self.planner.namespace, as_requests(writes), found) if writes else found


def copy_command(planner: Planner, wire: bytes, cas: int, reply: Reply | None) -> bytes:
    """What is sent to the new owner after the old one has answered: the value, or that its place is given back.

    :param cas: the number of the place that was reserved
    :param reply: the old owner's, to a meta get of ``v f t c``; None where it did not answer
    """
    if reply is None or phases.copied(seen(reply)) != "store":
        return requests.meta_delete(wire, b"C%d" % cas)
    assert reply.value is not None
    expire = expiry(max(1, reply.ttl) if reply.ttl >= 0 else -1, planner.clock())
    return requests.meta_set(wire, reply.value, b"C%d T%d F%d" % (cas, expire, reply.flags))


def as_requests(commands: Mapping[str, Sequence[bytes]]) -> dict[str, Request]:
    return {address: Commands(b"".join(lines), len(lines)) for address, lines in commands.items()}
