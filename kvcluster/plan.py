"""One command, decided without I/O: which bytes go to which node, and what the replies mean.

A shell, sync or async, exchanges a plan's requests with their nodes, tells the plan which of them failed, and gets the result or
the next plan of the same command:

    while True:
        failures = exchange(plan)          # the requests now hold their replies
        outcome = plan.finish(failures)    # a result, or one more Plan
        if not isinstance(outcome, Plan):
            return outcome

Most commands are one plan. A second one is needed where a reply shows a lease's placeholder, which plain commands must treat as
absent, where a meta get took the refill token of a stale item that it did not want, and gives it back, or where what is written
depends on what is there. `kvcluster.planner` makes the plans.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from kvcluster.errors import CommandRefused, DeleteFailed, IllegalValue, KvclusterError
from kvcluster.protocol import requests
from kvcluster.protocol.hot import Reply
from kvcluster.protocol.requests import Commands, Fetch, Lookups, Request, Stores, is_placeholder

T = TypeVar("T")
Failures: TypeAlias = Mapping[str, KvclusterError]

#: Wire keys and the caller's names for them, by the address of the node that owns them.
Grouped: TypeAlias = "dict[str, tuple[list[bytes], list[Any]]]"


@dataclass(frozen=True, slots=True)
class Invalidation:
    """What is no longer true: ``wires``, keys to delete where they are, and ``stamps``, keys to renew on every node; both as nodes
    store them.

    A stamp is a small random entry that values were stored under. Giving it a new value makes all of those misses at once.
    """

    wires: tuple[bytes, ...] = ()
    stamps: tuple[bytes, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.wires or self.stamps)


class Plan(Generic[T]):
    """What one command sends to each node, by the node's address, and what its replies mean."""

    __slots__ = ("namespace", "requests")

    def __init__(self, namespace: str, requests: Mapping[str, Request]) -> None:
        self.namespace = namespace
        self.requests = requests

    def finish(self, failures: Failures) -> T | Plan[T]:
        """The command's result once every request holds its replies or has a failure, or the plan that comes next."""
        raise NotImplementedError


class Then(Plan[T]):
    """An exchange that changes nothing in what follows from the command; failures in it are of no consequence."""

    __slots__ = ("outcome",)

    def __init__(self, namespace: str, requests: Mapping[str, Request], outcome: T | Plan[T]) -> None:
        super().__init__(namespace, requests)
        self.outcome = outcome

    def finish(self, failures: Failures) -> T | Plan[T]:
        """The outcome."""
        return self.outcome


class Single(Plan[T]):
    """Commands about one key at one node: ``meaning`` reads the replies, ``otherwise`` says what a failure gives."""

    __slots__ = ("address", "meaning", "otherwise")

    def __init__(
        self,
        namespace: str,
        address: str,
        request: Commands,
        meaning: Callable[[Sequence[Reply]], T | Plan[T]],
        otherwise: Callable[[KvclusterError], T],
    ) -> None:
        super().__init__(namespace, {address: request})
        self.address = address
        self.meaning = meaning
        self.otherwise = otherwise

    def finish(self, failures: Failures) -> T | Plan[T]:
        """What the replies mean, or what a failure does."""
        if failures:
            return self.otherwise(failures[self.address])
        request = self.requests[self.address]
        assert isinstance(request, Commands)
        return self.meaning(request.replies)


class StoreOne(Plan["bool | None"]):
    """One value stored at one node."""

    __slots__ = ("address",)

    def __init__(self, namespace: str, address: str, request: Request) -> None:
        super().__init__(namespace, {address: request})
        self.address = address

    def finish(self, failures: Failures) -> bool | Plan[bool | None] | None:
        """True where the value was stored, or where nobody waits for the answer; None where the key it depends on is gone."""
        if failures:
            return False
        request = self.requests[self.address]
        assert isinstance(request, Commands)
        return self.meaning(request.replies) if request.count else True

    def meaning(self, replies: Sequence[Reply]) -> bool | Plan[bool | None] | None:
        """What the node's answer says."""
        return was_stored(self.address, replies[0])


class Add(StoreOne):
    """A value stored if there is none, and a look at what is there.

    A placeholder is removed by its CAS number, and the add repeated. Where the caller did not want an answer (``noreply``), the
    result is True as in pymemcache.
    """

    __slots__ = ("noreply", "wire")

    def __init__(self, namespace: str, address: str, request: Request, wire: bytes, noreply: bool) -> None:
        super().__init__(namespace, address, request)
        self.wire = wire
        self.noreply = noreply

    def meaning(self, replies: Sequence[Reply]) -> bool | Plan[bool | None]:
        """What the node's answer says."""
        stored = bool(was_stored(self.address, replies[0]))
        if not stored and is_placeholder(replies[1]):
            removal = Commands(requests.meta_delete(self.wire, b"C%d" % replies[1].cas), 1)
            before = self.requests[self.address]
            assert isinstance(before, Stores)
            again = Add(
                self.namespace, self.address, Stores(before.payload, 2, probe=1, opaque=before.opaque), self.wire, self.noreply
            )
            return Then(self.namespace, {self.address: removal}, again)
        mending = mend(self.wire, replies[1])
        stored = stored or self.noreply
        return Then(self.namespace, {self.address: Commands(mending, 1)}, stored) if mending else stored


class ReadMany(Plan[dict[Any, Any]]):
    """Classic reads at several nodes, then meta gets for what they left in doubt and for keys that only those can carry.

    ``look_up`` plans those: called with the keys by node, the values found so far, and ``tokens``.
    """

    __slots__ = ("look_up", "lookups", "tokens", "values")

    def __init__(
        self,
        namespace: str,
        look_up: Callable[[Grouped, dict[Any, Any], bool], LookUp],
        fetches: Mapping[str, Fetch],
        lookups: Grouped,
        values: dict[Any, Any],
        tokens: bool,
    ) -> None:
        super().__init__(namespace, fetches)
        self.look_up = look_up
        self.lookups = lookups
        self.values = values
        self.tokens = tokens

    def finish(self, failures: Failures) -> dict[Any, Any] | Plan[dict[Any, Any]]:
        """The values found, by the caller's names; a node that failed is a miss for each of its keys."""
        for address, fetch in self.requests.items():
            assert isinstance(fetch, Fetch)
            if fetch.doubtful and address not in failures:
                wires, names = self.lookups.setdefault(address, ([], []))
                wires.extend(fetch.wires[at] for at in fetch.doubtful)
                names.extend(fetch.names[at] for at in fetch.doubtful)
        return self.look_up(self.lookups, self.values, self.tokens) if self.lookups else self.values


class LookUp(Plan[dict[Any, Any]]):
    """Meta gets at several nodes that want values only, so what they took or found by the way is put right afterwards."""

    __slots__ = ("drop_placeholders", "values")

    def __init__(
        self, namespace: str, lookups: Mapping[str, Lookups], values: dict[Any, Any], drop_placeholders: bool = False
    ) -> None:
        super().__init__(namespace, lookups)
        self.values = values
        self.drop_placeholders = drop_placeholders

    def finish(self, failures: Failures) -> dict[Any, Any] | Plan[dict[Any, Any]]:
        """The values found, by the caller's names."""
        mending: dict[str, Request] = {}
        for address, request in self.requests.items():
            assert isinstance(request, Lookups)
            if address in failures:
                continue
            commands = [
                command
                for wire, reply in zip(request.wires, request.replies, strict=True)
                if (command := mend(wire, reply, self.drop_placeholders))
            ]
            if commands:
                mending[address] = Commands(b"".join(commands), len(commands))
        return Then(self.namespace, mending, self.values) if mending else self.values


class StoreMany(Plan[list[Any]]):
    """Values stored at several nodes; the result is the caller's keys that were not stored."""

    __slots__ = ("names",)

    def __init__(self, namespace: str, stores: Mapping[str, Request], names: Mapping[str, Sequence[Any]]) -> None:
        super().__init__(namespace, stores)
        self.names = names

    def finish(self, failures: Failures) -> list[Any]:
        """The keys that were not stored."""
        failed: list[Any] = []
        for address, request in self.requests.items():
            assert isinstance(request, Commands)
            names = self.names[address]
            if address in failures:
                failed.extend(names)
            elif request.confirmed < request.count:
                failed.extend(name for name, reply in zip(names, request.replies, strict=True) if reply.status != "HD")
        return failed


class DeleteMany(Plan[dict[Any, bool]]):
    """Deletes at several nodes; the result says for each of the caller's keys whether it was there."""

    __slots__ = ("names",)

    def __init__(self, namespace: str, deletes: Mapping[str, Request], names: Mapping[str, Sequence[Any]]) -> None:
        super().__init__(namespace, deletes)
        self.names = names

    def finish(self, failures: Failures) -> dict[Any, bool]:
        """Whether each key was there.

        :raises DeleteFailed: where a node could not be told; the other nodes were
        """
        found: dict[Any, bool] = {}
        unsure: list[Any] = []
        for address, request in self.requests.items():
            assert isinstance(request, Commands)
            names = self.names[address]
            if address in failures:
                unsure.extend(names)
                continue
            found.update((name, reply.status == "HD") for name, reply in zip(names, request.replies, strict=True))
        if unsure:
            raise DeleteFailed(unsure, failures)
        return found


def mend(wire: bytes, reply: Reply, drop_placeholders: bool = False) -> bytes | None:
    """The command that undoes what a meta get did by the way, if anything.

    A meta get takes the refill token of a stale item, and one with a ttl prolongs the life of a lease's placeholder.
    """
    if drop_placeholders and is_placeholder(reply):
        return requests.meta_delete(wire, b"C%d" % reply.cas)
    if reply.won and reply.stale:
        return requests.meta_delete(wire, b"I C%d" % reply.cas)
    return None


def was_stored(address: str, reply: Reply) -> bool | None:
    """Whether a value was stored; None where the key it depends on is gone.

    :raises IllegalValue: where the node says that it is too large
    """
    if reply.status in ("HD", "NS", "EX"):
        return reply.status == "HD"
    if reply.status == "NF":
        return None
    if "too large" in reply.status:
        raise IllegalValue(f"value is too large for node {address} ({reply.status!r:.100}); its limit is memcached's -I")
    if reply.status.startswith("SERVER_ERROR"):
        return False
    raise CommandRefused(address, reply.status)
