"""Which nodes there are: frozen values, and the one place where addresses are understood.

A node's *id* is what placement hashes, its *address* is where it listens. They are equal unless the caller names an id, which lets
a machine be replaced under its old id so that fewer keys change owner.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

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
