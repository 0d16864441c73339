"""One command, decided without I/O: which bytes go to which node, and what the replies mean.

A `Planner` turns a caller's command into a `Plan`. A shell, sync or async, exchanges the plan's requests with their nodes, tells
the plan which of them failed, and gets the result or the next plan of the same command:

    while True:
        failures = exchange(plan)          # the requests now hold their replies
        outcome = plan.finish(failures)    # a result, or one more Plan
        if not isinstance(outcome, Plan):
            return outcome

Most commands are one plan. A second one is needed where a reply shows a lease's placeholder, which plain commands must treat as
absent, where a meta get took the refill token of a stale item that it did not want, and gives it back, or where what is written
depends on what is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeAlias, TypeVar

from kvcluster.codec import Codec, StandardCodec
from kvcluster.errors import CommandRefused, ConfigurationError, DeleteFailed, IllegalKey, IllegalValue, KvclusterError
from kvcluster.placement.base import Placement
from kvcluster.protocol import requests
from kvcluster.protocol.hot import Reply, group
from kvcluster.protocol.requests import (
    BinaryKey,
    Commands,
    Deletes,
    Fetch,
    Lookups,
    Request,
    Stores,
    is_placeholder,
    wire_key,
    wire_keys,
)

T = TypeVar("T")
Key: TypeAlias = str | bytes
Failures: TypeAlias = Mapping[str, KvclusterError]

ITEM_SIZE_MAX: Final = 1 << 20
_RELATIVE_MAX: Final = 30 * 86400  # above this memcached takes a ttl for a point in time
_EPOCH_TIMES: Final = 1_000_000_000  # above this a caller gives one, as memcached's clients may
_EXPTIME_MAX: Final = (1 << 31) - 1  # memcached keeps points in time in 32 bits with a sign; a later one is past
_UINT32, _UINT64 = 1 << 32, 1 << 64
MODIFY_ATTEMPTS: Final = 100  # as many other writers may come in between


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
        return _stored(self.address, replies[0])


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
        stored = bool(_stored(self.address, replies[0]))
        if not stored and is_placeholder(replies[1]):
            removal = Commands(requests.meta_delete(self.wire, b"C%d" % replies[1].cas), 1)
            before = self.requests[self.address]
            assert isinstance(before, Stores)
            again = Add(
                self.namespace, self.address, Stores(before.payload, 2, probe=1, opaque=before.opaque), self.wire, self.noreply
            )
            return Then(self.namespace, {self.address: removal}, again)
        mending = _mend(self.wire, replies[1])
        stored = stored or self.noreply
        return Then(self.namespace, {self.address: Commands(mending, 1)}, stored) if mending else stored


class ReadMany(Plan[dict[Any, Any]]):
    """Classic reads at several nodes, then meta gets for what they left in doubt and for keys that only those can carry."""

    __slots__ = ("lookups", "planner", "tokens", "values")

    def __init__(
        self, planner: Planner, fetches: Mapping[str, Fetch], lookups: _Grouped, values: dict[Any, Any], tokens: bool
    ) -> None:
        super().__init__(planner.namespace, fetches)
        self.planner = planner
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
        return self.planner.look_up(self.lookups, self.values, self.tokens) if self.lookups else self.values


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
                if (command := _mend(wire, reply, self.drop_placeholders))
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


_Grouped: TypeAlias = "dict[str, tuple[list[bytes], list[Any]]]"


@dataclass(frozen=True, slots=True)
class Planner:
    """Everything that decides what a command looks like on the wire, and nothing that could send it.

    :param placement: which node owns a key
    :param prefix: put before every key
    :param namespace: what the statistics are counted under
    :param codec: values to bytes and back
    :param strict_keys: raise for keys that memcached itself forbids, instead of carrying them in base64 or by a digest
    :param item_size_max: bytes; a larger value is refused before anything is sent (memcached's ``-I``)
    :param clock: seconds since 1970, for ttls of more than 30 days
    """

    placement: Placement
    prefix: bytes = b""
    namespace: str = ""
    codec: Codec = field(default_factory=StandardCodec)
    strict_keys: bool = False
    item_size_max: int = ITEM_SIZE_MAX
    clock: Callable[[], float] = time.time

    def wire(self, key: Key) -> bytes:
        """A key as its node stores it."""
        return wire_key(key, self.prefix, self.strict_keys)

    def address(self, wire: bytes) -> str:
        """The address of the node that owns a key."""
        return self.placement.nodes[self.placement.index(wire)].address

    def group(self, keys: Iterable[Key]) -> _Grouped:
        """Wire keys and the caller's names for them, by the address of the node that owns them.

        :raises IllegalKey: for a key that cannot be used, and where one key is passed instead of several
        """
        if isinstance(keys, str | bytes):
            raise IllegalKey(f"keys must be several keys, not one {type(keys).__name__}")
        names = list(keys)
        wires = wire_keys(names, self.prefix, self.strict_keys)
        nodes = self.placement.nodes
        groups = group(wires, names, self.placement.indexes(wires))
        return {nodes[owner].address: pair for owner, pair in groups.items()}

    def group_wires(self, wires: Sequence[bytes]) -> dict[str, list[bytes]]:
        """Wire keys by the address of the node that owns them."""
        nodes = self.placement.nodes
        groups: dict[str, list[bytes]] = {}
        for wire, owner in zip(wires, self.placement.indexes(wires), strict=True):
            groups.setdefault(nodes[owner].address, []).append(wire)
        return groups

    # -- reads

    def get_many(self, keys: Iterable[Key], tokens: bool = False) -> Plan[dict[Any, Any]]:
        """The values found, by key; with ``tokens`` as pairs of value and CAS number."""
        values: dict[Any, Any] = {}
        encode = requests.gets if tokens else requests.get
        fetches: dict[str, Fetch] = {}
        lookups: _Grouped = {}
        decode = self.codec.decode
        for address, (wires, names) in self.group(keys).items():
            if BinaryKey in map(type, wires):
                lookups[address] = (
                    [wire for wire in wires if type(wire) is BinaryKey],
                    [name for wire, name in zip(wires, names, strict=True) if type(wire) is BinaryKey],
                )
                names = [name for wire, name in zip(wires, names, strict=True) if type(wire) is bytes]
                wires = [wire for wire in wires if type(wire) is bytes]
            if wires:
                fetches[address] = Fetch(encode(wires), wires, names, decode, values, tokens)
        if not fetches and lookups:
            return self.look_up(lookups, values, tokens)
        return ReadMany(self, fetches, lookups, values, tokens)

    def look_up(self, groups: _Grouped, values: dict[Any, Any], tokens: bool, expire: int | None = None) -> LookUp:
        """The same by meta gets; with ``expire`` they set a new ttl by the way."""
        token = requests.opaque()
        flags = b"v f t c O%b%b" % (token, b"" if expire is None else b" T%d" % expire)
        lookups = {
            address: Lookups(
                b"".join([requests.meta_get(wire, flags) for wire in wires]), wires, names, self.codec.decode, values, tokens, token
            )
            for address, (wires, names) in groups.items()
        }
        return LookUp(self.namespace, lookups, values, drop_placeholders=expire is not None)

    def get_and_touch(self, key: Key, expire: int, tokens: bool = False) -> Plan[dict[Any, Any]]:
        """As `get_many` for one key, which gets a new ttl."""
        return self.look_up(self.group([key]), {}, tokens, self.ttl(expire))

    # -- writes

    def store(
        self, mode: bytes, key: Key, value: Any, expire: float, flags: int | None, noreply: bool, cas: bytes | None = None
    ) -> Plan[bool | None]:
        """Store one value: mode ``S`` set, ``E`` add, ``R`` replace, ``A`` append, ``P`` prepend.

        The result is True where it was stored, False where it was not, and None where ``cas`` was given and there is no such key.
        """
        wire = self.wire(key)
        address = self.address(wire)
        data, its_flags = self.encode(value, flags)
        options = b"T%d F%d" % (self.ttl(expire), its_flags)
        if mode != b"S":
            options += b" M" + mode
        if cas is not None:
            options += b" C" + cas
        if mode == b"S" and noreply:
            quiet = Stores(requests.meta_set(wire, data, options + b" q") + requests.NOOP, 0, owed=1)
            return StoreOne(self.namespace, address, quiet)
        if mode not in (b"S", b"E"):
            return self._modify(wire, data, options, noreply)
        token = requests.opaque()
        storing = requests.meta_set(wire, data, options + b" O" + token)
        if mode == b"S":
            return StoreOne(self.namespace, address, Stores(storing, 1, opaque=token))
        probe = requests.meta_get(wire, b"s f c O" + token)
        return Add(self.namespace, address, Stores(storing + probe, 2, probe=1, opaque=token), wire, noreply)

    def _modify(
        self, wire: bytes, data: bytes, options: bytes, noreply: bool, attempts: int = MODIFY_ATTEMPTS
    ) -> Plan[bool | None]:
        """A look at what is there, and a value stored only if that is one and still the same: append, prepend, replace.

        Without the look a lease's placeholder would become an item that others read.
        """
        address = self.address(wire)
        token = requests.opaque()

        def store(replies: Sequence[Reply]) -> bool | Plan[bool | None] | None:
            there = replies[0]
            if there.status == "EN" or is_placeholder(there):
                mending = _mend(wire, there)
                return self._then(address, mending, noreply) if mending else noreply
            if there.status != "HD":
                return bool(_stored(address, there))
            storing = requests.meta_set(wire, data, options + b" C%d O%b" % (there.cas, token))
            return Single(self.namespace, address, Stores(storing, 1, opaque=token), unless_changed, _false)

        def unless_changed(replies: Sequence[Reply]) -> bool | Plan[bool | None] | None:
            if replies[0].status != "EX":
                return bool(_stored(address, replies[0])) or noreply
            if attempts == 1:
                raise CommandRefused(address, f"EX to each of {MODIFY_ATTEMPTS} attempts, because others write the key")
            return self._modify(wire, data, options, noreply, attempts - 1)

        probe = Commands(requests.meta_get(wire, b"s f c O" + token), 1, opaque=token)
        return Single(self.namespace, address, probe, store, _false)

    def store_many(self, values: Mapping[Key, Any], expire: float, flags: int | None, noreply: bool) -> StoreMany:
        """Store values; the result is the keys that were not stored."""
        token = requests.opaque()
        options = b"T%d %b" % (self.ttl(expire), b"q" if noreply else b"O" + token)
        stores: dict[str, Request] = {}
        names_by_node: dict[str, Sequence[Any]] = {}
        for address, (wires, names) in self.group(values).items():
            payload = requests.meta_sets(wires, self.encode_many([values[name] for name in names], flags), options)
            if noreply:
                stores[address] = Stores(payload + requests.NOOP, 0, owed=1)
            else:
                stores[address] = Stores(payload, len(wires), opaque=token)
            names_by_node[address] = names
        return StoreMany(self.namespace, stores, names_by_node)

    def delete_many(self, keys: Iterable[Key]) -> DeleteMany:
        """Delete keys; the result says for each whether it was there."""
        return self._deletion(self.group(keys))

    def delete_wires(self, wires: Sequence[bytes]) -> DeleteMany:
        """Delete keys given as the nodes store them, which are their own names in the result."""
        return self._deletion({address: (group, group) for address, group in self.group_wires(wires).items()})

    def _deletion(self, groups: Mapping[str, tuple[Sequence[bytes], Sequence[Any]]]) -> DeleteMany:
        deletes: dict[str, Request] = {address: Deletes.of(wires) for address, (wires, _) in groups.items()}
        return DeleteMany(self.namespace, deletes, {address: names for address, (_, names) in groups.items()})

    def touch(self, key: Key, expire: float, noreply: bool) -> Plan[bool]:
        """Give a key a new ttl; the result says whether it was there."""
        wire = self.wire(key)
        address = self.address(wire)
        payload = requests.meta_get(wire, b"s f c T%d" % self.ttl(expire))

        def meaning(replies: Sequence[Reply]) -> bool | Plan[bool]:
            there = replies[0].status == "HD" and not is_placeholder(replies[0])
            mending = _mend(wire, replies[0], drop_placeholders=True)
            return self._then(address, mending, there) if mending else there

        if noreply:
            quiet = Commands(payload[:-2] + b" q\r\n" + requests.NOOP, 0, owed=1)
            return Single(self.namespace, address, quiet, lambda replies: True, _false)
        return Single(self.namespace, address, Commands(payload, 1), meaning, _false)

    def count(self, mode: bytes, key: Key, delta: int, noreply: bool) -> Plan[int | None]:
        """Add to a counter (mode ``I``) or take from it (``D``); the result is the new number, or None where there is none."""
        if type(delta) is not int or not 0 <= delta < _UINT64:
            raise IllegalValue(f"value must be an integer from 0 to 2**64 - 1, not {delta!r}")
        wire = self.wire(key)
        address = self.address(wire)
        payload = requests.meta_arithmetic(wire, delta, mode)
        if noreply:
            quiet = Commands(payload[:-2] + b" q\r\n" + requests.NOOP, 0, owed=1)
            return Single(self.namespace, address, quiet, lambda replies: None, _none)

        def meaning(replies: Sequence[Reply]) -> int | Plan[int | None] | None:
            if replies[0].value is not None:
                return int(replies[0].value)
            if replies[0].status == "NF":
                return None
            refusal = CommandRefused(address, replies[0].status)

            def unless_placeholder(probed: Sequence[Reply]) -> Plan[int | None] | None:
                if not is_placeholder(probed[0]):
                    raise refusal
                return self._then(address, requests.meta_delete(wire, b"C%d" % probed[0].cas), None)

            probe = Commands(requests.meta_get(wire, b"s f c"), 1)
            return Single(self.namespace, address, probe, unless_placeholder, _none)

        return Single(self.namespace, address, Commands(payload, 1), meaning, _none)

    # -- values and numbers

    def encode(self, value: Any, flags: int | None) -> tuple[bytes, int]:
        """A value's bytes and client flags.

        :raises IllegalValue: for a value that cannot be stored exactly, or is larger than ``item_size_max``
        """
        data, its_flags = self.codec.encode(value)
        self.check_size(data)
        if flags is None:
            return data, its_flags
        if type(flags) is not int or not 0 <= flags < _UINT32:
            raise ConfigurationError(f"flags must be an integer from 0 to 2**32 - 1, not {flags!r}")
        return data, flags

    def encode_many(self, values: Sequence[Any], flags: int | None) -> list[tuple[bytes, int]]:
        """As `encode`, for each of some values."""
        if flags is not None:
            return [self.encode(value, flags) for value in values]
        encoded = [*map(self.codec.encode, values)]
        for data, _ in encoded:
            if len(data) > self.item_size_max:
                self.check_size(data)
        return encoded

    def check_size(self, data: bytes) -> None:
        """Refuse what no node would store.

        :raises IllegalValue: where the data are larger than ``item_size_max``
        """
        if len(data) > self.item_size_max:
            raise IllegalValue(f"value is {len(data)} bytes encoded, and the limit (item_size_max) is {self.item_size_max}")

    def ttl(self, expire: float) -> int:
        """What memcached is told for a ttl in seconds: 0 for no expiry, and a point in time beyond its limit of 30 days.

        A number above 10^9 is a point in time already, as in every memcached client.

        :raises ConfigurationError: for a negative ttl, for one between 0 and 1, which would round to "for ever", and for one that
            ends after 2038-01-19, where memcached's clock does
        """
        if isinstance(expire, bool) or not isinstance(expire, (int, float)):
            raise ConfigurationError(f"expire must be a number of seconds, not {expire!r}")
        if expire < 0 or 0 < expire < 1 or expire != expire:
            raise ConfigurationError(f"expire must be 0 (no expiry) or at least 1 second, not {expire!r}")
        ends = self.clock() + expire if _RELATIVE_MAX < expire < _EPOCH_TIMES else expire
        if ends > _EXPTIME_MAX:
            raise ConfigurationError(
                f"expire must be over by {_EXPTIME_MAX} (2038-01-19), the last second memcached knows, not {expire!r}"
            )
        return int(ends)

    def _then(self, address: str, command: bytes, result: T) -> Then[T]:
        return Then(self.namespace, {address: Commands(command, 1)}, result)


def _mend(wire: bytes, reply: Reply, drop_placeholders: bool = False) -> bytes | None:
    """The command that undoes what a meta get did by the way, if anything.

    A meta get takes the refill token of a stale item, and one with a ttl prolongs the life of a lease's placeholder.
    """
    if drop_placeholders and is_placeholder(reply):
        return requests.meta_delete(wire, b"C%d" % reply.cas)
    if reply.won and reply.stale:
        return requests.meta_delete(wire, b"I C%d" % reply.cas)
    return None


def _false(error: KvclusterError) -> bool:
    return False


def _none(error: KvclusterError) -> None:
    return None


def cas_number(cas: int | str | bytes) -> bytes:
    """A CAS number as the wire has it.

    :raises IllegalValue: for what `gets` cannot have returned
    """
    try:
        number = int(cas)
    except (TypeError, ValueError):
        number = -1
    if not 0 <= number < 1 << 64:
        raise IllegalValue(f"cas must be a number that gets returned, not {cas!r}")
    return b"%d" % number


def _stored(address: str, reply: Reply) -> bool | None:
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
