"""What the nodes say about themselves, independent of any client.

`collect` asks every node for ``stats`` at the same time, through pymemcache's ``Client``, and returns one `NodeStats` per node in
the order asked. A node that does not answer is a record with its error: a report must show the cluster as it is, most of all when
part of it is gone. Everything else here is a pure function over those records.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields

from pymemcache.client.base import Client
from pymemcache.exceptions import MemcacheError

from kvcluster.topology import NodeSpec, as_node

# More threads than this wait for processors, not for nodes.
MAX_THREADS = 32


@dataclass(frozen=True, slots=True)
class NodeStats:
    """One node's figures since it started, or the reason why there are none.

    The names are short for memcached's own, which stand beside each.
    """

    address: str
    error: str | None = None  # why the node did not answer; the other fields are then empty
    version: str = ""
    pid: int = 0
    uptime: int = 0  # seconds
    items: int = 0  # curr_items
    bytes: int = 0  # held by items, their headers and keys included
    limit: int = 0  # limit_maxbytes
    gets: int = 0  # cmd_get; mg counts here too
    hits: int = 0  # get_hits
    misses: int = 0  # get_misses
    sets: int = 0  # cmd_set; every command that stores
    deletes: int = 0  # delete_hits and delete_misses
    evictions: int = 0  # live items pushed out for want of memory
    connections: int = 0  # curr_connections, this report's own included
    bytes_read: int = 0  # from clients
    bytes_written: int = 0  # to clients

    @property
    def hit_rate(self) -> float | None:
        """Hits per get, 0 to 1; None before the first get."""
        return self.hits / (self.hits + self.misses) if self.hits + self.misses else None

    @property
    def fill(self) -> float | None:
        """Bytes held per byte of the limit, 0 to 1; None where no limit is known."""
        return self.bytes / self.limit if self.limit else None

    def as_dict(self) -> dict[str, object]:
        """Every field, ``hit_rate`` and ``fill``, for JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"hit_rate": self.hit_rate, "fill": self.fill}


_TOTALLED = (
    "items",
    "bytes",
    "limit",
    "gets",
    "hits",
    "misses",
    "sets",
    "deletes",
    "evictions",
    "connections",
    "bytes_read",
    "bytes_written",
)


def parse(address: str, reply: Mapping[bytes, object]) -> NodeStats:
    """The record in a reply to ``stats``; a figure that a node does not give counts as 0.

    >>> parse("c1:11211", {b"version": b"1.6.18", b"get_hits": 3, b"get_misses": 1}).hit_rate
    0.75
    """

    def number(name: bytes) -> int:
        value = reply.get(name, 0)
        return int(value) if isinstance(value, int | float | str | bytes) else 0

    version = reply.get(b"version", b"")
    return NodeStats(
        address=address,
        version=version.decode("ascii", "replace") if isinstance(version, bytes) else str(version),
        pid=number(b"pid"),
        uptime=number(b"uptime"),
        items=number(b"curr_items"),
        bytes=number(b"bytes"),
        limit=number(b"limit_maxbytes"),
        gets=number(b"cmd_get"),
        hits=number(b"get_hits"),
        misses=number(b"get_misses"),
        sets=number(b"cmd_set"),
        deletes=number(b"delete_hits") + number(b"delete_misses"),
        evictions=number(b"evictions"),
        connections=number(b"curr_connections"),
        bytes_read=number(b"bytes_read"),
        bytes_written=number(b"bytes_written"),
    )


def total(records: Iterable[NodeStats], name: str = "total") -> NodeStats:
    """The sums over the nodes that answered; ``uptime``, ``pid`` and ``version`` have no sum and stay empty.

    >>> total([NodeStats("a", hits=1, misses=1), NodeStats("b", hits=2), NodeStats("c", error="refused")]).hit_rate
    0.75
    """
    members = list(records)  # one that did not answer is all zeros
    return NodeStats(name, **{field: sum(getattr(record, field) for record in members) for field in _TOTALLED})


def ask(node: NodeSpec, timeout: float = 1.0) -> NodeStats:
    """Ask one node; what goes wrong is in the record's ``error``.

    :param timeout: seconds for the connection, and again for each receive
    """
    member = as_node(node)
    address = member.address
    if member.memory_name is not None:
        return NodeStats(address, error="an embedded node of a process can be asked by that process alone")
    client = Client(address, connect_timeout=timeout, timeout=timeout)
    try:
        return parse(address, client.stats())
    except TimeoutError:
        return NodeStats(address, error=f"no answer within {timeout:g} s")
    except OSError as error:
        return NodeStats(address, error=error.strerror or str(error))
    except (MemcacheError, ValueError, IndexError) as error:
        # pymemcache reads a line that is not of the protocol as it would a line that is, and stumbles over it.
        return NodeStats(address, error=f"not a memcached reply: {error}" if str(error) else "the node closed the connection")
    finally:
        client.close()


def collect(nodes: Sequence[NodeSpec], timeout: float = 1.0) -> list[NodeStats]:
    """Ask all nodes at the same time; the records are in the order of `nodes`.

    :param timeout: seconds for each connection, and again for each receive
    :raises ConfigurationError: for an address that cannot be used

    >>> [record.error for record in collect(["127.0.0.1:1"])]
    ['Connection refused']
    """
    members = [as_node(node) for node in nodes]
    with ThreadPoolExecutor(max_workers=min(MAX_THREADS, len(members)) or 1) as pool:
        return list(pool.map(lambda node: ask(node, timeout), members))
