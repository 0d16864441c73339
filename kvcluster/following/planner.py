"""`FollowingPlanner`: the plans of a `Planner`, for the owners that the phase names, watched for a newer epoch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

from kvcluster import phases
from kvcluster.errors import DeleteFailed, IllegalValue
from kvcluster.following.copying import RESERVATION, ReadNew, TakeAlong, as_requests, copy_command, seen
from kvcluster.following.plans import Asked, Chain, Removal, Watched
from kvcluster.phases import Side
from kvcluster.placement import placement
from kvcluster.placement.base import Placement
from kvcluster.plan import Grouped, Invalidation, Plan, Then, mend
from kvcluster.planner import STAMP_SIZE, Key, Planner, cas_number
from kvcluster.protocol import requests
from kvcluster.protocol.requests import Commands, Deletes
from kvcluster.topology import Document, Phase

T = TypeVar("T")


def following_planner(document: Document, settings: Planner) -> FollowingPlanner:
    """The planner for a document, with the settings of another one."""
    new = placement(document.placement, document.nodes, document.slots)
    old = placement(document.placement, document.previous, document.slots) if document.previous else None
    first, second = (new, old) if old is None or phases.reader(document.phase) == "N" else (old, new)
    return FollowingPlanner(
        first,
        settings.prefix,
        settings.namespace,
        settings.codec,
        settings.strict_keys,
        settings.item_size_max,
        settings.clock,
        document.epoch,
        document.phase,
        second if document.phase not in ("old", "new") else None,
    )


@dataclass(frozen=True, slots=True)
class FollowingPlanner(Planner):
    """A planner for one epoch.

    ``placement`` says where a key is read and filled; ``other``, during a resize, where else it may be.
    """

    epoch: int = 1
    phase: Phase = "old"
    other: Placement | None = None

    def moved_to(self, base: FollowingPlanner) -> FollowingPlanner:
        """A planner with these settings, for another's topology."""
        return replace(self, placement=base.placement, epoch=base.epoch, phase=base.phase, other=base.other)

    def at(self, side: Side) -> Planner:
        """A planner for the old or the new owners alone."""
        first = self.other is None or side == phases.reader(self.phase)
        found = self.placement if first else self.other
        return Planner(
            cast(Placement, found), self.prefix, self.namespace, self.codec, self.strict_keys, self.item_size_max, self.clock
        )

    def owners(self, wire: bytes) -> set[str]:
        """The addresses of the nodes that a command about a key may have to ask."""
        if self.other is None:
            return {self.address(wire)}
        return {self.address(wire), self.other.nodes[self.other.index(wire)].address}

    @property
    def reads_once(self) -> bool:
        """Whether a read asks one owner only, whatever its key."""
        return self.other is None or len(phases.steps(self.phase, "read")) == 1

    @property
    def members(self) -> list[str]:
        """See `Planner.members`: during a resize those of both topologies."""
        others = () if self.other is None else self.other.addresses
        return [*dict.fromkeys([*self.placement.addresses, *others])]

    def moves(self, wire: bytes) -> bool:
        """Whether a key's old owner and its new one differ."""
        return len(self.owners(wire)) == 2

    def _watch(self, make: Callable[[FollowingPlanner], Plan[T]], keys: Sequence[bytes] = ()) -> Plan[T]:
        """A command's plan, which is made again where the topology turns out to be another one."""
        return Watched(make(self), self, lambda planner: planner._watch(make, keys), keys)

    # -- reads

    def get_many(self, keys: Iterable[Key], tokens: bool = False) -> Plan[dict[Any, Any]]:
        """See `Planner.get_many`; a token names its node and epoch."""
        names = keys if isinstance(keys, str | bytes) else [*keys]
        return self._watch(lambda planner: planner._get_many(names, tokens))

    def _get_many(self, keys: Iterable[Key], tokens: bool) -> Plan[dict[Any, Any]]:
        reading = Planner.get_many(self, keys, tokens)
        if self.other is not None and phases.steps(self.phase, "read")[0].action == "lease":
            groups = self.group(keys)
            moving = {wire for wires, _ in groups.values() for wire in wires if self.moves(wire)}
            if moving:
                reading = ReadNew(self, groups, moving, tokens)
        return Chain(reading, self._named) if tokens else reading

    def _named(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        return {name: (value, self._token(self.wire(name), cas)) for name, (value, cas) in values.items()}

    def _token(self, wire: bytes, cas: bytes) -> bytes:
        return b"%b:%d:%b" % (cas, self.epoch, self.address(wire).encode())

    def token(self, cas: int | str | bytes) -> bytes:
        """See `Planner.token`."""
        raw = cas.encode() if isinstance(cas, str) else cas
        if not isinstance(raw, bytes):
            raise IllegalValue(f"cas must be what gets of this client returned, not {cas!r:.100}")
        _parts(raw)
        return raw

    def get_and_touch(self, key: Key, expire: int, tokens: bool = False) -> Plan[dict[Any, Any]]:
        """See `Planner.get_and_touch`."""

        def make(planner: FollowingPlanner) -> Plan[dict[Any, Any]]:
            if planner.moves(planner.wire(key)):
                return Chain(planner._touch(key, expire), lambda _: planner._get_many([key], tokens))
            reading = Planner.get_and_touch(planner, key, expire, tokens)
            return Chain(reading, planner._named) if tokens else reading

        return self._watch(make)

    def overhear(self, plan: Plan[T]) -> Plan[T]:
        """See `Planner.overhear`."""
        return Watched(plan, self, None)

    def take_along(self, leases: Iterable[tuple[bytes, int]]) -> Plan[set[bytes]] | None:
        """See `Planner.take_along`: values that old owners have are copied to the places that the leases are."""
        if self.reads_once:
            return None
        moving = {wire: cas for wire, cas in leases if self.moves(wire)}
        return self.overhear(TakeAlong(self, moving)) if moving else None

    # -- writes that may be repeated

    def store(
        self, mode: bytes, key: Key, value: Any, expire: float, flags: int | None, noreply: bool, cas: bytes | None = None
    ) -> Plan[bool | None]:
        """See `Planner.store`. The answer is awaited also with ``noreply``."""
        wire = self.wire(key)

        def at(planner: Planner, number: bytes | None = None) -> Plan[bool | None]:
            quiet = noreply and mode != b"S"
            return Planner.store(planner, mode, key, value, expire, flags, quiet, number)

        if self.other is not None:
            at(self)  # what is wrong with the arguments is said before anything is sent
        if mode == b"S" and cas is None:
            return self._watch(lambda planner: _said(planner._set(wire, at), noreply, True), (wire,))
        if cas is None:
            return self._change(wire, at)
        number, epoch, address = _parts(cas)
        if (epoch, address) != (self.epoch, self.address(wire)):
            return Then(self.namespace, {}, False)
        return self._change(wire, lambda planner: _said(at(planner, number), noreply, True), (epoch, address))

    def _set(self, wire: bytes, at: Callable[[Planner], Plan[bool | None]]) -> Plan[bool | None]:
        if not self.moves(wire):
            return at(self)
        first, second = phases.steps(self.phase, "set")
        if first.action == "delete":
            return Chain(self._remove(first.side, [wire]), lambda told: at(self.at(second.side)) if told else False)
        return Chain(at(self.at(first.side)), lambda stored: Chain(self._remove(second.side, [wire]), lambda told: told and stored))

    def _remove(self, side: Side, wires: Sequence[bytes]) -> Removal:
        groups = self.at(side).group_wires(wires)
        return Removal(self.namespace, {address: Deletes.of(group) for address, group in groups.items()})

    def store_many(self, values: Mapping[Key, Any], expire: float, flags: int | None, noreply: bool) -> Plan[list[Any]]:
        """See `Planner.store_many`. The answers are awaited also with ``noreply``."""
        wires = {name: self.wire(name) for name in values}

        def make(planner: FollowingPlanner) -> Plan[list[Any]]:
            moving = {name: wire for name, wire in wires.items() if planner.moves(wire)} if planner.other is not None else {}
            if not moving:
                return Planner.store_many(planner, values, expire, flags, False)
            first, second = phases.steps(planner.phase, "set")
            storing, removing = (second, first) if first.action == "delete" else (first, second)
            removal = planner._remove(removing.side, list(moving.values()))
            removal_of = removal.requests

            def untold() -> list[Any]:
                """The keys whose other owner was not told."""
                told = {wire for request in removal_of.values() if cast(Deletes, request).replies for wire in request.deletes}
                return [name for name, wire in moving.items() if wire not in told]

            def then_store(_: bool) -> Plan[list[Any]]:
                lost = untold()
                left = {name: value for name, value in values.items() if name not in lost}
                storage = planner.at(storing.side).store_many(left, expire, flags, False)
                return Chain(storage, lambda failed: [*lost, *failed])

            if removing is first:
                return Chain(removal, then_store)
            stored = planner.at(storing.side).store_many(values, expire, flags, False)
            return Chain(stored, lambda failed: Chain(removal, lambda _: [*dict.fromkeys([*failed, *untold()])]))

        return self._watch(make, list(wires.values()))

    def delete_many(self, keys: Iterable[Key]) -> Plan[dict[Any, bool]]:
        """See `Planner.delete_many`."""
        names = keys if isinstance(keys, str | bytes) else [*keys]
        return self._watch(lambda planner: planner._delete(lambda one: one.group(names)))

    def invalidate(self, invalidation: Invalidation) -> Plan[dict[Any, bool]]:
        """See `Planner.invalidate`: the old owners first, then the new ones; a stamp has one new value on all nodes."""
        return self._watch(lambda planner: planner._invalidate(invalidation))

    def everywhere(self, make: Callable[[Planner], Plan[dict[Any, bool]]]) -> Plan[dict[Any, bool]]:
        """See `Planner.everywhere`: the old owners first, then the new ones."""

        def both(planner: FollowingPlanner) -> Plan[dict[Any, bool]]:
            if planner.other is None:
                return make(planner)
            first, second = [make(planner.at(step.side)) for step in phases.steps(planner.phase, "delete")]
            return _both(first, second)

        return self._watch(both)

    def _invalidate(self, invalidation: Invalidation) -> Plan[dict[Any, bool]]:
        if self.other is None:
            return Planner.invalidate(self, invalidation)
        old, new = [self.at(step.side) for step in phases.steps(self.phase, "delete")]
        moving = [wire for wire in invalidation.wires if self.moves(wire)]
        value, known = os.urandom(STAMP_SIZE), {node.address for node in old.placement.nodes}
        added = {node.address for node in new.placement.nodes} - known if invalidation.stamps else set()
        return _both(
            old.renewal(invalidation.wires, dict.fromkeys(known, invalidation.stamps) if invalidation.stamps else {}, value),
            new.renewal(moving, dict.fromkeys(added, invalidation.stamps), value),
        )

    def _delete(self, group: Callable[[Planner], Grouped]) -> Plan[dict[Any, bool]]:
        if self.other is None:
            return self._deletion(group(self))
        steps = phases.steps(self.phase, "delete")
        first, second = (group(self.at(step.side)) for step in steps)
        moving: dict[str, tuple[list[bytes], list[Any]]] = {}
        for address, (wires, names) in second.items():
            pairs = [(wire, name) for wire, name in zip(wires, names, strict=True) if self.moves(wire)]
            if pairs:
                moving[address] = ([wire for wire, _ in pairs], [name for _, name in pairs])
        return _both(self._deletion(first), self._deletion(moving))

    def touch(self, key: Key, expire: float, noreply: bool) -> Plan[bool]:
        """See `Planner.touch`. The answer is awaited also with ``noreply``."""
        return self._watch(lambda planner: _said(planner._touch(key, expire), noreply, True))

    def _touch(self, key: Key, expire: float) -> Plan[bool]:
        if not self.moves(self.wire(key)):
            return Planner.touch(self, key, expire, False)
        old, new = [Planner.touch(self.at(step.side), key, expire, False) for step in phases.steps(self.phase, "touch")]
        return Chain(old, lambda there: Chain(new, lambda too: there or too))

    # -- changes

    def count(self, mode: bytes, key: Key, delta: int, noreply: bool) -> Plan[int | None]:
        """See `Planner.count`. The answer is awaited also with ``noreply``."""
        wire = self.wire(key)
        return self._change(wire, lambda planner: _said(Planner.count(planner, mode, key, delta, False), noreply, None))

    def _change(self, wire: bytes, at: Callable[[Planner], Plan[T]], token: tuple[int, str] | None = None) -> Plan[T]:
        """A command that nobody may repeat: first it is made sure that the epoch is still this one.

        :param token: the epoch and address that a CAS number is good for
        """

        def make(planner: FollowingPlanner) -> Plan[T]:
            if token is not None and token != (planner.epoch, planner.address(wire)):
                return Then(planner.namespace, {}, cast(T, False))
            asked = planner.address(wire)
            confirming: Plan[Any] = Then(planner.namespace, {asked: Commands(b"", 0)}, None)
            return Chain(confirming, lambda _: planner._changing(wire, at, promotes=token is None))

        return self._watch(make, (wire,))

    def _changing(self, wire: bytes, at: Callable[[Planner], Plan[T]], promotes: bool) -> Plan[T]:
        if not self.moves(wire):
            return Chain(at(self), lambda result: result, once=True)
        plan: Plan[Any] | None = None
        for step in reversed(phases.steps(self.phase, "change")):
            plan = self._step(step, wire, at, promotes, plan)
        return cast(Plan[T], plan)

    def _step(
        self, step: phases.Step, wire: bytes, at: Callable[[Planner], Plan[Any]], promotes: bool, rest: Plan[Any] | None
    ) -> Plan[Any]:
        """One step of a change, and the rest of it."""
        match step.action:
            case "change":
                change = Chain(at(self.at(step.side)), lambda result: result, once=True)
                return change if rest is None else Chain(change, lambda result: Chain(rest, lambda _: result))
            case "delete":
                removal = self._remove(step.side, [wire])
                return removal if rest is None else Chain(removal, lambda _: rest)
            case _:
                assert rest is not None
                return Chain(self._promote(wire), lambda _: rest) if promotes else rest

    def _promote(self, wire: bytes) -> Plan[None]:
        """Copy a key to its new owner, whoever else is about to."""
        address = self.at("N").address(wire)
        asking = Commands(requests.meta_get(wire, b"v f t c N%d" % RESERVATION), 1)

        def reserved(told: Commands | None) -> Plan[None] | None:
            if told is None:
                return None
            there = seen(told.replies[0])
            if there.value:
                command = mend(wire, told.replies[0])
                return Then(self.namespace, {address: Commands(command, 1)}, None) if command else None
            if phases.reserved(there) == "read":
                return Chain(Asked(self.namespace, source, reading), lambda old: copy(old, there.cas))
            removal = Commands(requests.meta_delete(wire, b"C%d" % there.cas), 1)
            return Chain(Asked(self.namespace, address, removal), lambda gone: None if gone is None else self._promote(wire))

        def copy(told: Commands | None, cas: int) -> Plan[None]:
            reply = None if told is None else told.replies[0]
            writes = {address: [copy_command(self, wire, cas, reply)]}
            if reply is not None and (command := mend(wire, reply)):
                writes[source] = [command]
            stored = reply is not None and phases.copied(seen(reply)) == "store"
            copying = Asked(self.namespace, address, Commands(writes[address][0], 1))

            def unless_lost(done: Commands | None) -> Plan[None] | None:
                lost = stored and done is not None and done.replies[0].status != "HD"
                return self._promote(wire) if lost else None

            filled: Plan[None] = Chain(copying, unless_lost)
            return Then(self.namespace, as_requests({source: writes[source]}), filled) if source in writes else filled

        source = self.at("O").address(wire)
        reading = Commands(requests.meta_get(wire, b"v f t c"), 1)
        return Chain(Asked(self.namespace, address, asking), reserved)


def _said(plan: Plan[T], noreply: bool, result: T) -> Plan[T]:
    """A plan with the result that a caller gets who did not want to wait for it."""
    return Chain(plan, lambda _: result) if noreply else plan


def _both(first: Plan[dict[Any, bool]], second: Plan[dict[Any, bool]]) -> Plan[dict[Any, bool]]:
    """Deletes at old owners, then at new ones, whatever became of the first; a key was there if it was at either.

    :raises DeleteFailed: with the keys of both
    """
    if not second.requests:
        return first

    def join(old: dict[Any, bool] | DeleteFailed, new: dict[Any, bool] | DeleteFailed) -> dict[Any, bool]:
        failed = [part for part in (old, new) if isinstance(part, DeleteFailed)]
        if failed:
            keys = dict.fromkeys(key for error in failed for key in error.keys)
            raise DeleteFailed(keys, {address: cause for error in failed for address, cause in error.causes.items()})
        assert isinstance(old, dict)
        assert isinstance(new, dict)
        return {name: old.get(name, False) or new.get(name, False) for name in {**old, **new}}

    return Chain(first, lambda old: Chain(second, lambda new: join(old, new), attempt=True), attempt=True)


def _parts(cas: bytes) -> tuple[bytes, int, str]:
    """The parts of a CAS token.

    :raises IllegalValue: for what `gets` of a client that follows a topology cannot have returned
    """
    number, _, rest = cas.partition(b":")
    epoch, _, address = rest.partition(b":")
    if not epoch.isdigit() or not address:
        raise IllegalValue(f"cas must be what gets of this client returned, not {cas!r:.100}")
    return cas_number(number), int(epoch), address.decode("utf-8", "replace")
