"""Which nodes there are: frozen values, and the one place where addresses are understood.

A node's *id* is what placement hashes, its *address* is where it listens. They are equal unless the caller names an id, which lets
a machine be replaced under its old id so that fewer keys change owner.

A `Topology` is a set of nodes. A `Document` is what all clients of a cluster that may be resized read from one source: a topology
with its epoch, and during a resize the phase and the nodes as they were before.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, Literal, Self, TypeAlias, get_args

from kvcluster.errors import ConfigurationError

DEFAULT_PORT = 11211
MAX_WEIGHT = 100
DEFAULT_SLOTS = 16384

_BRACKETED = re.compile(r"\[([0-9A-Fa-f:.%\w]+)\](?::(\d{1,9}))?")
_HOST = re.compile(r"([^\s:\[\]/,@\0-\x1f\x7f]+)(?::(\d{1,9}))?")
_LOCAL = re.compile(r"unix:/[^\s\0-\x1f\x7f]+|memory:[\w.-]+")


@dataclass(frozen=True, slots=True)
class Node:
    """One memcached server.

    :param address: ``"host"``, ``"host:port"``, ``"[v6]:port"``, ``"unix:/path"``, or ``"memory:name"`` for an embedded node of
        this process; the port is 11211 where none is given
    :param weight: its share of the keys relative to the other nodes, an integer from 1 to 100
    :param id: the name that placement hashes; the address where none is given. ``host`` and ``host:11211`` are one id, ``host``
    :raises ConfigurationError: for an address or a weight that cannot be used

    >>> Node("cache1")
    Node(address='cache1:11211', weight=1, id='cache1')
    >>> Node("[::1]:22122", weight=2, id="left").port
    22122
    """

    address: str
    weight: int = 1
    id: str = ""
    host: str = field(init=False, repr=False, compare=False)
    port: int = field(init=False, repr=False, compare=False)

    def __init__(self, address: str, weight: int = 1, id: str | None = None) -> None:
        host, port = parse_address(address)
        if type(weight) is not int or not 1 <= weight <= MAX_WEIGHT:
            raise ConfigurationError(f"weight of node {address!r} must be an integer from 1 to {MAX_WEIGHT}, not {weight!r}")
        if id is not None and (not isinstance(id, str) or not id):
            raise ConfigurationError(f"id of node {address!r} must be a non-empty string, not {id!r}")
        canonical = format_address(host, port)
        set_ = object.__setattr__
        set_(self, "address", canonical)
        set_(self, "weight", weight)
        set_(self, "id", canonical_id(canonical if id is None else id))
        set_(self, "host", host)
        set_(self, "port", port)

    @property
    def socket_path(self) -> str | None:
        """The path of a Unix socket, or None for any other node."""
        return self.address.removeprefix("unix:") if self.address.startswith("unix:") else None

    @property
    def memory_name(self) -> str | None:
        """The name of an embedded node of this process, or None for any other node."""
        return self.address.removeprefix("memory:") if self.address.startswith("memory:") else None

    def __str__(self) -> str:
        return self.address


NodeSpec: TypeAlias = "Node | str | tuple[str, int]"


def parse_address(address: str) -> tuple[str, int]:
    """Split an address into host and port. A node off the network has port 0 and its whole address as the host.

    :raises ConfigurationError: for anything but ``host``, ``host:port``, ``[v6]:port``, ``unix:/path`` and ``memory:name``

    >>> parse_address("[::1]"), parse_address("unix:/run/mc.sock")
    (('::1', 11211), ('unix:/run/mc.sock', 0))
    """
    if not isinstance(address, str):
        raise ConfigurationError(f"address must be a string such as 'host:11211', not {address!r}")
    if _LOCAL.fullmatch(address):
        return address, 0
    match = _BRACKETED.fullmatch(address) or _HOST.fullmatch(address)
    if match is None:
        raise ConfigurationError(f"address {redacted(address)!r} is none of 'host', 'host:port', '[v6]:port', 'unix:/path'")
    try:
        match[1].encode("idna")  # what the resolver does with it
    except UnicodeError as error:
        raise ConfigurationError(f"address {address!r}: the host is no name ({error})") from None
    port = int(match[2]) if match[2] else DEFAULT_PORT
    if not 1 <= port <= 65535:
        raise ConfigurationError(f"address {address!r}: the port must be from 1 to 65535")
    return match[1], port


def redacted(text: str) -> str:
    """An address or URL as an error may show it: without what stands before an ``@``, which may be a password.

    >>> redacted("me:secret@host:1"), redacted("host:1")
    ('***@host:1', 'host:1')
    """
    _, at, rest = text.rpartition("@")
    return f"***@{rest}" if at else text


def format_address(host: str, port: int) -> str:
    """The canonical text of an address: what errors and statistics show."""
    if port == 0:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def canonical_id(id: str) -> str:
    """``host`` and ``host:11211`` name one node, so the default port is not part of an id."""
    return id.removesuffix(f":{DEFAULT_PORT}") or id


def as_node(spec: NodeSpec) -> Node:
    """A `Node` from what a caller may write: a `Node`, an address, or pymemcache's ``(host, port)``."""
    if isinstance(spec, Node):
        return spec
    if isinstance(spec, tuple) and len(spec) == 2 and isinstance(spec[0], str) and type(spec[1]) is int:
        return Node(format_address(*spec))
    return Node(spec)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Topology:
    """A set of nodes and the scheme that spreads keys over them.

    :param nodes: at least one; their order matters to ``modulo`` only
    :param placement: the name of a scheme, see `kvcluster.placement.placement`
    :param slots: the size of the slot table, a power of two. It is chosen when a cluster is born and never changed afterwards:
        changing it moves nearly every key. 16384 suits up to 30 nodes, 65536 more
    :raises ConfigurationError: for no nodes, or two with one id or one address
    """

    nodes: tuple[Node, ...]
    placement: str = "slots"
    slots: int = DEFAULT_SLOTS

    def __init__(self, nodes: Iterable[NodeSpec], placement: str = "slots", slots: int = DEFAULT_SLOTS) -> None:
        members = tuple(as_node(spec) for spec in nodes)
        if not members:
            raise ConfigurationError("nodes must name at least one node")
        for attribute in ("id", "address"):
            seen: set[str] = set()
            for node in members:
                value = getattr(node, attribute)
                if value in seen:
                    raise ConfigurationError(f"nodes must differ, but {value!r} is the {attribute} of two")
                seen.add(value)
        if type(slots) is not int or not 64 <= slots <= 1 << 20 or slots & (slots - 1):
            raise ConfigurationError(f"slots must be a power of two from 64 to 1048576, not {slots!r}")
        set_ = object.__setattr__
        set_(self, "nodes", members)
        set_(self, "placement", placement)
        set_(self, "slots", slots)


#: Where a resize stands: ``old`` none is under way; ``prepare``, ``migrate`` and ``drain`` see `kvcluster.phases`; ``new`` the new
#: nodes serve alone, and what is left behind at their predecessors is being swept away.
Phase: TypeAlias = Literal["old", "prepare", "migrate", "drain", "new"]

FORMAT: Final = 1
_EPOCH_MAX: Final = (1 << 63) - 1
_NODE_FIELDS: Final = ("id", "address", "weight")


@dataclass(frozen=True, slots=True)
class Document:
    """What every client of a cluster that may be resized agrees on.

    :param nodes: the members; during a resize those that it leads to
    :param epoch: goes up by one with every change of phase or nodes, from 1
    :param phase: where a resize stands
    :param previous: the members before the resize that is under way; none in the phase ``old``
    :param placement: the name of a scheme, see `kvcluster.placement.placement`
    :param slots: the size of the slot table
    :param table_crc: the CRC-32 of the slot table of ``nodes``, so that a client that would place keys otherwise notices; None
        where nobody has computed it, as in a file written by hand
    :param owner: who holds the lock of a resize; empty where nobody does
    :param lease_until: when the lock ends unless it is renewed, in seconds since 1970
    :raises ConfigurationError: for what cannot be used

    >>> Document.from_toml('[[nodes]]\\naddress = "cache1"').nodes
    (Node(address='cache1:11211', weight=1, id='cache1'),)
    """

    nodes: tuple[Node, ...]
    epoch: int = 1
    phase: Phase = "old"
    previous: tuple[Node, ...] = ()
    placement: str = "slots"
    slots: int = DEFAULT_SLOTS
    table_crc: int | None = None
    owner: str = ""
    lease_until: float = 0.0

    def __post_init__(self) -> None:
        if type(self.epoch) is not int or not 1 <= self.epoch <= _EPOCH_MAX:
            raise ConfigurationError(f"epoch must be an integer from 1 to 2**63 - 1, not {self.epoch!r}")
        if self.phase not in get_args(Phase):
            raise ConfigurationError(f"phase must be one of {', '.join(get_args(Phase))}, not {self.phase!r}")
        if bool(self.previous) is (self.phase == "old"):
            raise ConfigurationError(
                f"previous must name the nodes before the resize in the phases {', '.join(get_args(Phase)[1:])}, and none in 'old'"
            )
        if self.table_crc is not None and (type(self.table_crc) is not int or not 0 <= self.table_crc < 1 << 32):
            raise ConfigurationError(f"table_crc must be an integer of 32 bits, not {self.table_crc!r}")
        if not isinstance(self.owner, str) or not isinstance(self.placement, str):
            raise ConfigurationError("owner and placement must be text")
        if type(self.lease_until) not in (int, float) or not 0 <= self.lease_until < 1e12:
            raise ConfigurationError(f"lease_until must be seconds since 1970, not {self.lease_until!r}")
        set_ = object.__setattr__
        set_(self, "nodes", self.topology.nodes)
        set_(self, "previous", self.former.nodes if self.former else ())

    @property
    def topology(self) -> Topology:
        """The nodes and their placement; during a resize those that it leads to."""
        return Topology(self.nodes, self.placement, self.slots)

    @property
    def former(self) -> Topology | None:
        """The nodes before the resize that is under way, and their placement."""
        return Topology(self.previous, self.placement, self.slots) if self.previous else None

    @property
    def members(self) -> tuple[Node, ...]:
        """All nodes that a client may have to ask, each once: the new ones, then those that only the old topology has."""
        addresses = {node.address for node in self.nodes}
        return (*self.nodes, *(node for node in self.previous if node.address not in addresses))

    def step(self, **changes: Any) -> Self:
        """This document one epoch on, with these fields changed."""
        return replace(self, epoch=self.epoch + 1, **changes)

    def to_toml(self) -> str:
        """As TOML, for `from_toml`."""
        lines = [f"format = {FORMAT}"]
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name not in ("nodes", "previous") and (value != one.default or one.name in ("epoch", "phase", "placement")):
                lines.append(f"{one.name} = {_toml(value)}")
        for name in ("nodes", "previous"):
            for node in getattr(self, name):
                lines.append(f"\n[[{name}]]")
                lines.extend(f"{key} = {_toml(getattr(node, key))}" for key in _NODE_FIELDS)
        return "\n".join(lines) + "\n"

    @classmethod
    def from_toml(cls, text: str, name: str = "topology") -> Self:
        """The document that a text holds. A person need write no more than ``[[nodes]]`` with an ``address`` each.

        :param name: what errors call the text, such as the path of its file
        :raises ConfigurationError: for text that is no TOML, a field that this release does not know, a value of no use
        """
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigurationError(f"{name}: is not TOML: {error}") from None
        written = table.pop("format", FORMAT)
        if type(written) is not int or not 1 <= written <= FORMAT:
            raise ConfigurationError(f"{name}: has format {written!r}, and this release of kvcluster reads 1 to {FORMAT}")
        try:
            _require_known(table, [one.name for one in fields(cls)])
            if "nodes" not in table:
                raise ConfigurationError("nodes must name at least one node, as [[nodes]] with an address")
            for key in ("nodes", "previous"):
                table[key] = tuple([_node(entry, key) for entry in _tables(table.get(key, []), key)])
            return cls(**table)
        except ConfigurationError as error:
            raise ConfigurationError(f"{name}: {error}") from None


def _tables(value: object, name: str) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise ConfigurationError(f"{name} must be written as [[{name}]], one for each node")
    return value


def _node(entry: Mapping[str, Any], name: str) -> Node:
    _require_known(entry, _NODE_FIELDS, f"{name}: ")
    if "address" not in entry:
        raise ConfigurationError(f"{name}: each node needs an address")
    return Node(**entry)


def _require_known(table: Mapping[str, Any], known: Iterable[str], where: str = "") -> None:
    names = [*known]
    for name in table:
        if name not in names:
            raise ConfigurationError(f"{where}unknown field {name!r}, known are {', '.join(names)}")


def _toml(value: str | float) -> str:
    """A value as TOML: its text is JSON's but for DEL, which must be escaped too."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f") if isinstance(value, str) else repr(value)
