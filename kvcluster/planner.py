"""`Planner`: a caller's command becomes a `Plan`: keys to their nodes, values to bytes, ttls to what memcached takes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, TypeVar

from kvcluster.codec import Codec, StandardCodec
from kvcluster.errors import CommandRefused, ConfigurationError, IllegalKey, IllegalValue, KvclusterError
from kvcluster.placement.base import Placement
from kvcluster.plan import (
    Add,
    DeleteMany,
    Grouped,
    Invalidation,
    LookUp,
    Plan,
    ReadMany,
    Single,
    StoreMany,
    StoreOne,
    Then,
    mend,
    was_stored,
)
from kvcluster.protocol import requests
from kvcluster.protocol.hot import Reply, group, plain_keys, reads
from kvcluster.protocol.requests import (
    Commands,
    Deletes,
    Lookups,
    Renewals,
    Request,
    Stores,
    is_placeholder,
    unusual_key,
    wire_key,
)

T = TypeVar("T")
Key: TypeAlias = str | bytes

ITEM_SIZE_MAX: Final = 1 << 20
STAMP_SIZE: Final = 8  # bytes
RELATIVE_MAX: Final = 30 * 86400  # above this memcached takes a ttl for a point in time
_EPOCH_TIMES: Final = 1_000_000_000  # above this a caller gives one, as memcached's clients may
EXPTIME_MAX: Final = (1 << 31) - 1  # memcached keeps points in time in 32 bits with a sign; a later one is past
_UINT32, _UINT64 = 1 << 32, 1 << 64
MODIFY_ATTEMPTS: Final = 100  # as many other writers may come in between


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

    def wires(self, keys: Sequence[Key]) -> list[bytes]:
        """Keys as their nodes store them."""
        return plain_keys(list(keys), self.prefix, self.unusual)

    def address(self, wire: bytes) -> str:
        """The address of the node that owns a key."""
        return self.placement.addresses[self.placement.index(wire)]

    def owners(self, wire: bytes) -> set[str]:
        """The addresses of the nodes that may hold a key."""
        return {self.address(wire)}

    @property
    def members(self) -> list[str]:
        """The addresses of all nodes."""
        return [*self.placement.addresses]

    def group(self, keys: Iterable[Key]) -> Grouped:
        """Wire keys and the caller's names for them, by the address of the node that owns them.

        :raises IllegalKey: for a key that cannot be used, and where one key is passed instead of several
        """
        names = several(keys)
        wires = plain_keys(names, self.prefix, self.unusual)
        addresses = self.placement.addresses
        groups = group(wires, names, self.placement.indexes(wires))
        return {addresses[owner]: pair for owner, pair in groups.items()}

    def unusual(self, key: Key) -> bytes:
        """`wire` for a key that cannot travel as it is."""
        return unusual_key(key, self.prefix, self.strict_keys)

    def group_wires(self, wires: Sequence[bytes]) -> dict[str, list[bytes]]:
        """Wire keys by the address of the node that owns them."""
        plain, addresses = [*wires], self.placement.addresses
        groups = group(plain, plain, self.placement.indexes(wires))
        return {addresses[owner]: owned for owner, (owned, _) in groups.items()}

    # -- reads

    def get_many(self, keys: Iterable[Key], tokens: bool = False) -> Plan[dict[Any, Any]]:
        """The values found, by key; with ``tokens`` as pairs of value and CAS number."""
        decode = self.codec.decode
        fetches, lookups, values = reads(several(keys), self.prefix, self.unusual, self.placement, decode, tokens)
        if not fetches and lookups:
            return self.look_up(lookups, values, tokens)
        return ReadMany(self.namespace, self.look_up, fetches, lookups, values, tokens)

    def look_up(self, groups: Grouped, values: dict[Any, Any], tokens: bool, expire: int | None = None) -> LookUp:
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
                mending = mend(wire, there)
                return self._then(address, mending, noreply) if mending else noreply
            if there.status != "HD":
                return bool(was_stored(address, there))
            storing = requests.meta_set(wire, data, options + b" C%d O%b" % (there.cas, token))
            return Single(self.namespace, address, Stores(storing, 1, opaque=token), unless_changed, _false)

        def unless_changed(replies: Sequence[Reply]) -> bool | Plan[bool | None] | None:
            if replies[0].status != "EX":
                return bool(was_stored(address, replies[0])) or noreply
            if attempts == 1:
                raise CommandRefused(address, f"EX to each of {MODIFY_ATTEMPTS} attempts, because others write the key")
            return self._modify(wire, data, options, noreply, attempts - 1)

        probe = Commands(requests.meta_get(wire, b"s f c O" + token), 1, opaque=token)
        return Single(self.namespace, address, probe, store, _false)

    def store_many(self, values: Mapping[Key, Any], expire: float, flags: int | None, noreply: bool) -> Plan[list[Any]]:
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

    def delete_many(self, keys: Iterable[Key]) -> Plan[dict[Any, bool]]:
        """Delete keys; the result says for each whether it was there."""
        return self._deletion(self.group(keys))

    def invalidate(self, invalidation: Invalidation) -> Plan[dict[Any, bool]]:
        """Delete keys and renew stamps, which are their own names in the result. One request for each node concerned: with stamps,
        for each node there is.
        """
        stamps = {node.address: invalidation.stamps for node in self.placement.nodes} if invalidation.stamps else {}
        return self.renewal(invalidation.wires, stamps, os.urandom(STAMP_SIZE))

    def renewal(self, wires: Sequence[bytes], stamps: Mapping[str, Sequence[bytes]], value: bytes) -> DeleteMany:
        """Delete keys, and renew stamps with one value at the addresses given."""
        groups = self.group_wires(wires)
        requests: dict[str, Deletes] = {
            address: Renewals(groups.get(address, ()), stamps[address], value) if address in stamps else Deletes.of(groups[address])
            for address in {**stamps, **groups}
        }
        return DeleteMany(self.namespace, requests, {address: request.deletes for address, request in requests.items()})

    def overhear(self, plan: Plan[T]) -> Plan[T]:
        """A plan that was made by hand for this planner's nodes, as it is to be carried out: here, as it is.

        Where the topology may change, a node whose answer comes too late has failed.
        """
        return plan

    def everywhere(self, make: Callable[[Planner], Plan[dict[Any, bool]]]) -> Plan[dict[Any, bool]]:
        """A plan of deletes made by hand for a planner's nodes; where a resize is under way, for old and new owners."""
        return make(self)

    def take_along(self, leases: Iterable[tuple[bytes, int]]) -> Plan[set[bytes]] | None:
        """What is to be done before values are loaded for leases that were won: None, for there is no other owner to ask.

        :param leases: wire keys, and the CAS numbers of their leases
        :returns: where a resize is under way, a plan whose result is the keys that can now be read
        """
        return None

    def _deletion(self, groups: Mapping[str, tuple[Sequence[bytes], Sequence[Any]]]) -> DeleteMany:
        deletes: dict[str, Request] = {address: Deletes.of(wires) for address, (wires, _) in groups.items()}
        return DeleteMany(self.namespace, deletes, {address: names for address, (_, names) in groups.items()})

    def touch(self, key: Key, expire: float, noreply: bool) -> Plan[bool]:
        """Give a key a new ttl; the result says whether it was there."""
        wire = self.wire(key)
        address = self.address(wire)
        flags = b"s f c T%d " % self.ttl(expire)
        if noreply:
            quiet = Commands(requests.meta_get(wire, flags + b"q") + requests.NOOP, 0, owed=1)
            return Single(self.namespace, address, quiet, lambda replies: True, _false)

        def meaning(replies: Sequence[Reply]) -> bool | Plan[bool]:
            there = replies[0].status == "HD" and not is_placeholder(replies[0])
            mending = mend(wire, replies[0], drop_placeholders=True)
            return self._then(address, mending, there) if mending else there

        token = requests.opaque()
        touching = Commands(requests.meta_get(wire, flags + b"O" + token), 1, opaque=token)
        return Single(self.namespace, address, touching, meaning, _false)

    def count(self, mode: bytes, key: Key, delta: int, noreply: bool) -> Plan[int | None]:
        """Add to a counter (mode ``I``) or take from it (``D``); the result is the new number, or None where there is none."""
        if type(delta) is not int or not 0 <= delta < _UINT64:
            raise IllegalValue(f"value must be an integer from 0 to 2**64 - 1, not {delta!r}")
        wire = self.wire(key)
        address = self.address(wire)
        if noreply:
            quiet = Commands(requests.meta_arithmetic(wire, delta, mode, b"q") + requests.NOOP, 0, owed=1)
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

            probe = Commands(requests.meta_get(wire, b"s f c O" + token), 1, opaque=token)
            return Single(self.namespace, address, probe, unless_placeholder, _none)

        token = requests.opaque()
        counting = Commands(requests.meta_arithmetic(wire, delta, mode, b"O" + token), 1, opaque=token)
        return Single(self.namespace, address, counting, meaning, _none)

    # -- values and numbers

    def token(self, cas: int | str | bytes) -> bytes:
        """A CAS number as `store` takes it.

        :raises IllegalValue: for what `gets` cannot have returned
        """
        return cas_number(cas)

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
        ends = self.clock() + expire if RELATIVE_MAX < expire < _EPOCH_TIMES else expire
        if ends > EXPTIME_MAX:
            raise ConfigurationError(
                f"expire must be over by {EXPTIME_MAX} (2038-01-19), the last second memcached knows, not {expire!r}"
            )
        return int(ends)

    def _then(self, address: str, command: bytes, result: T) -> Then[T]:
        return Then(self.namespace, {address: Commands(command, 1)}, result)


def expiry(ttl: int, now: float) -> int:
    """What memcached is told for the remaining ttl of an item, as a meta get returns it: 0 for none (-1), and a point in time above
    30 days, which is at most the last one it knows.

    >>> expiry(-1, 1.7e9), expiry(60, 1.7e9), expiry(31 * 86400, 1.7e9), expiry(2**31 - 1700000000, 1.7e9)
    (0, 60, 1702678400, 2147483647)
    """
    if ttl < 0:
        return 0
    return ttl if ttl <= RELATIVE_MAX else min(int(now) + ttl, EXPTIME_MAX)


def several(keys: Iterable[Key]) -> list[Key]:
    """The keys as a list of their own.

    :raises IllegalKey: where one key is passed instead of several
    """
    if isinstance(keys, str | bytes):
        raise IllegalKey(f"keys must be several keys, not one {type(keys).__name__}")
    return list(keys)


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
