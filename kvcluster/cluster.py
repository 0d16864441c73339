"""What a client knows of its cluster, whether it serves threads or an event loop: settings, topology, planner, and an endpoint for
each node it ever had. An endpoint outlives its node's membership, because calls may be under way, because its counts remain, and
because a node that comes back is owed the deletes it missed.
"""

from __future__ import annotations

import inspect
import os
import re
import ssl
import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, Self, TypeVar
from urllib.parse import parse_qsl, unquote

from pymemcache.client.base import Client as AdminClient
from pymemcache.client.base import KeepaliveOpts
from pymemcache.exceptions import MemcacheError

from kvcluster.codec import Codec, StandardCodec
from kvcluster.errors import ConfigurationError, IllegalKey, KvclusterError, NodeError, NodeUnreachable
from kvcluster.placement import Placement, moved, placement
from kvcluster.planner import ITEM_SIZE_MAX, Planner
from kvcluster.stats.counters import Counters, Statistics
from kvcluster.topology import DEFAULT_SLOTS, Document, Node, NodeSpec, Topology, redacted
from kvcluster.transport.state import NodeState

if TYPE_CHECKING:
    from kvcluster.following.planner import FollowingPlanner
    from kvcluster.plan import Plan
    from kvcluster.sources import TopologySource

URL_VARIABLE: Final = "KVCLUSTER_URL"


class EndpointLike(Protocol):
    """What both kinds of endpoint offer to the cluster."""

    state: NodeState

    def totals(self) -> dict[str, Counters]:
        """What was counted, by namespace."""
        ...

    def close(self) -> None:
        """Close its connections."""
        ...


T = TypeVar("T")
E = TypeVar("E", bound=EndpointLike)


class Cluster(Generic[E]):
    """The base of `kvcluster.Client` and `kvcluster.AsyncClient`, which say what its parameters mean."""

    def __init__(
        self,
        nodes: Iterable[NodeSpec] | NodeSpec | None = None,
        placement: str = "slots",
        *,
        timeout: float = 0.25,
        connect_timeout: float = 0.25,
        prefix: str | bytes = "",
        codec: Codec | None = None,
        pool_size: int = 4,
        strict_keys: bool = False,
        item_size_max: int = ITEM_SIZE_MAX,
        slots: int = DEFAULT_SLOTS,
        socket_keepalive: KeepaliveOpts | None = None,
        tls_context: ssl.SSLContext | None = None,
    ) -> None:
        if nodes is None:
            nodes, options = parse_url(default_url())
            settings: dict[str, Any] = {
                "placement": placement,
                "timeout": timeout,
                "connect_timeout": connect_timeout,
                "prefix": prefix,
                "pool_size": pool_size,
                "slots": slots,
                "item_size_max": item_size_max,
            }
            defaults = inspect.signature(Cluster.__init__).parameters
            settings |= {name: value for name, value in options.items() if settings[name] == defaults[name].default}
            placement, timeout, connect_timeout, prefix, pool_size, slots, item_size_max = settings.values()
        for name, seconds in (("timeout", timeout), ("connect_timeout", connect_timeout)):
            if not isinstance(seconds, (int, float)) or not 0 < seconds < 86400:
                raise ConfigurationError(f"{name} must be a number of seconds above 0, not {seconds!r}")
        if type(pool_size) is not int or pool_size < 1:
            raise ConfigurationError(f"pool_size must be an integer of at least 1, not {pool_size!r}")
        if type(item_size_max) is not int or item_size_max < 1:
            raise ConfigurationError(f"item_size_max must be an integer of at least 1 (bytes), not {item_size_max!r}")
        if codec is not None and not (callable(getattr(codec, "encode", None)) and callable(getattr(codec, "decode", None))):
            raise ConfigurationError(f"codec must have the methods encode and decode, not {codec!r:.100}")
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._pool_size = pool_size
        self._keepalive = socket_keepalive
        self._tls = tls_context
        self._changing = threading.Lock()
        self._topology = Topology(_as_list(nodes), placement, slots)
        raw_prefix = _checked_prefix(prefix)
        self._endpoints: dict[str, E] = {}
        self._add_endpoints(self._topology.nodes)
        self._planner = Planner(
            _placement_of(self._topology),
            raw_prefix,
            raw_prefix.decode("utf-8", "replace"),
            StandardCodec() if codec is None else codec,
            strict_keys,
            item_size_max,
        )

    def _endpoint(self, node: Node) -> E:
        """A new endpoint for a node."""
        raise NotImplementedError

    @classmethod
    def from_url(cls, url: str | None = None, **settings: Any) -> Self:
        """A client for the cluster that a URL names.

        :param url: ``"memcached://h1:11211,h2:11211?placement=ketama"``, with any of placement, timeout, connect_timeout, prefix,
            pool_size, slots, item_size_max and weights (``weights=1,2``) as its query; ``"memory://"`` for a node in this process,
            without a server. Where None, the value of ``KVCLUSTER_URL``
        :param settings: as for `Client`; they win over the URL's
        :raises ConfigurationError: for a URL that cannot be used
        """
        nodes, options = parse_url(default_url() if url is None else url)
        return cls(nodes, **{**options, **settings})

    @property
    def topology(self) -> Topology:
        """The nodes and the placement in use."""
        return self._topology

    @property
    def planner(self) -> Planner:
        """What decides how this client's commands look on the wire."""
        return self._planner

    def set_nodes(self, nodes: Iterable[NodeSpec]) -> float:
        """Use these nodes from now on, and return the share of the key space that has another owner, from 0 to 1.

        The keys that moved start cold at their new owner, and what they leave behind stays at the old one until its ttl ends: a
        node that gets keys back within that time serves what it had.

        :raises ConfigurationError: for nodes that cannot be used; nothing has changed then
        """
        with self._changing:
            topology = Topology(_as_list(nodes), self._topology.placement, self._topology.slots)
            before, after = self._planner.placement, _placement_of(topology)
            self._add_endpoints(topology.nodes)
            self._planner = replace(self._planner, placement=after)
            self._topology = topology
            members = {node.address for node in topology.nodes}
            for address, endpoint in self._endpoints.items():
                self._keep(endpoint, address in members)
        return moved(before, after)

    def _keep(self, endpoint: E, member: bool) -> None:
        """Keep the connections of an endpoint whose node is a member, and close the others."""
        if not member:
            endpoint.close()

    def statistics(self) -> Statistics:
        """What this client did since it was made: an immutable record, by node and by namespace."""
        nodes: dict[str, Counters] = {}
        namespaces: dict[str, Counters] = {}
        total = Counters()
        for address, endpoint in list(self._endpoints.items()):
            nodes[address] = Counters()
            for namespace, counters in endpoint.totals().items():
                nodes[address].add(counters)
                namespaces.setdefault(namespace, Counters()).add(counters)
                total.add(counters)
        return Statistics(
            total.frozen(),
            {address: counters.frozen() for address, counters in nodes.items()},
            {namespace: counters.frozen() for namespace, counters in namespaces.items()},
        )

    @property
    def missed_deletes(self) -> int:
        """How many deletes did not reach their nodes and are still owed."""
        return sum(endpoint.state.missed_deletes for endpoint in list(self._endpoints.values()))

    @property
    def left_alone(self) -> list[str]:
        """The addresses of the nodes that are owed so many deletes that this client serves nothing from them any more."""
        return [address for address, endpoint in list(self._endpoints.items()) if endpoint.state.overflowed]

    def count(self, address: str, namespace: str, **numbers: int) -> None:
        """Count what happened to a node's keys without asking the node.

        :param numbers: by the name of their counter
        """
        counters = Counters()
        for name, number in numbers.items():
            setattr(counters, name, number)
        self._endpoints[address].state.retire({namespace: counters})

    def __repr__(self) -> str:
        endpoints = list(self._endpoints.values())
        return f"<{type(self).__name__} of {len(self._topology.nodes)} nodes, {self._topology.placement}: {endpoints}>"

    @property
    def _members(self) -> Iterable[Node]:
        """The nodes in use."""
        return self._topology.nodes

    @property
    def _to_flush(self) -> Iterable[Node]:
        """The nodes to flush, in this order."""
        return self._members

    def _add_endpoints(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            if node.address not in self._endpoints:
                self._endpoints[node.address] = self._endpoint(node)

    def _flush_all(self, delay: int, noreply: bool) -> bool:
        done = [self._administer(node, lambda admin: admin.flush_all(delay, noreply)) for node in self._to_flush]
        return all(done)

    def _stats(self, *args: str) -> dict[str, dict[str, Any]]:
        found = {}
        for node in self._members:
            try:
                raw = self._administer(node, lambda admin: admin.stats(*args))
            except KvclusterError:
                continue
            found[node.address] = {_text(name): _text(value) for name, value in raw.items()}
        return found

    def _version(self) -> dict[str, str]:
        return {node.address: _text(self._administer(node, lambda admin: admin.version())) for node in self._members}

    def _administer(self, node: Node, action: Any) -> Any:
        server: Any = node.socket_path or (node.host, node.port)
        options: dict[str, Any] = {
            "connect_timeout": self._connect_timeout,
            "timeout": max(1.0, self._timeout),
            "tls_context": self._tls,
        }
        if node.memory_name is not None:
            from kvcluster import embedded  # here, because few programs need it

            server, options["socket_module"] = f"/{node.memory_name}", embedded.SocketModule(embedded.node(node.memory_name))
        admin = AdminClient(server, **options)
        try:
            return action(admin)
        except OSError as error:
            raise NodeUnreachable(node.address, f"cannot be reached ({error})") from error
        except MemcacheError as error:
            raise NodeError(node.address, str(error)) from error
        finally:
            admin.close()


class FollowingCluster(Cluster[E]):
    """The base of what `Client.from_topology` and `AsyncClient.from_topology` make: the topology is a source's, and may change."""

    _planner: FollowingPlanner

    def __init__(self, source: TopologySource | str | os.PathLike[str], **settings: Any) -> None:
        from kvcluster.following.follower import Follower  # here, because few programs need it
        from kvcluster.sources import FileSource

        self._follower = Follower(FileSource(source) if isinstance(source, (str, os.PathLike)) else source)
        document = self._follower.document
        super().__init__(document.nodes, document.placement, slots=document.slots, **settings)
        self._follow(document)

    @property
    def document(self) -> Document:
        """What the source said last."""
        return self._follower.document

    @property
    def _members(self) -> Iterable[Node]:
        """The nodes in use, old and new ones."""
        return self._follower.document.members

    @property
    def _to_flush(self) -> Iterable[Node]:
        """Old owners first, as for a delete; then all new ones, flushed or not: a read may have copied to them since."""
        document = self._follower.document
        return (*document.previous, *document.nodes)

    def set_nodes(self, nodes: Iterable[NodeSpec]) -> float:
        """Refused: the nodes are the source's.

        :raises ConfigurationError: always
        """
        raise ConfigurationError("nodes of a client that follows a topology are changed at its source: kvcluster rebalance")

    def _follow(self, document: Document) -> None:
        """Use the nodes, the placement and the phase of a document from now on, unless it is older than what is known."""
        from kvcluster.following.planner import following_planner

        planner = following_planner(document, self._planner)
        with self._changing:
            if not self._follower.accept(document):
                return
            self._add_endpoints(document.members)
            self._planner = planner
            self._topology = document.topology
            members = {node.address for node in document.members}
            for address, endpoint in self._endpoints.items():
                self._keep(endpoint, address in members)

    def _up_to_date(self, plan: Plan[T]) -> T | Plan[T]:
        """Take over what was read in the background, look again where it is time, and make a plan anew that is out of date."""
        from kvcluster.following.plans import renewed  # here, because few programs need it

        if self._follower.due:
            news, self._follower.news = self._follower.news, None
            if news is not None:
                self._follow(news)
            self._follower.look()
        return renewed(plan, self._planner)


_PREFIX = re.compile(rb"[\x21-\x7e\x80-\xff]{0,150}").fullmatch
_URL_OPTIONS: Final[Mapping[str, Any]] = {
    "placement": str,
    "timeout": float,
    "connect_timeout": float,
    "prefix": str,
    "pool_size": int,
    "slots": int,
    "item_size_max": int,
}


def parse_url(url: str) -> tuple[list[Node], dict[str, Any]]:
    """The nodes and settings that a URL names; see `Client.from_url`.

    :raises ConfigurationError: saying what of it cannot be used
    """
    # urlsplit() refuses some lists of bracketed addresses, depending on Python's version.
    scheme, _, rest = url.partition("://")
    place, _, settings = rest.partition("?")
    hosts, slash, path = place.partition("/")
    query = dict(parse_qsl(settings, keep_blank_values=True))
    weights = query.pop("weights", "")
    if "@" in hosts:
        raise ConfigurationError(f"url must not name a user or a password, for nodes are not signed in to: {redacted(url)!r}")
    if scheme == "memory":
        addresses = [f"memory:{name}" for name in (hosts or "default").split(",")]
    elif scheme == "memcached" and hosts and not path:
        addresses = hosts.split(",")
    elif scheme == "memcached" and path and not hosts:
        addresses = [f"unix:{unquote(slash + path)}"]
    else:
        raise ConfigurationError(f"url must be 'memcached://host:port,…' or 'memory://', not {redacted(url)!r}")
    options: dict[str, Any] = {}
    for name, text in query.items():
        if name not in _URL_OPTIONS:
            raise ConfigurationError(f"url: unknown setting {name!r}, known are {', '.join(_URL_OPTIONS)} and weights")
        try:
            options[name] = _URL_OPTIONS[name](text)
        except ValueError:
            raise ConfigurationError(f"url: {name} must be a number, not {text!r}") from None
    try:
        numbers = [int(weight) for weight in weights.split(",")] if weights else [1] * len(addresses)
        return [Node(address, weight) for address, weight in zip(addresses, numbers, strict=True)], options
    except ConfigurationError:
        raise
    except ValueError:
        raise ConfigurationError(f"url: weights must be {len(addresses)} integers, one for each node, not {weights!r}") from None


def default_url() -> str:
    """The URL that the environment names.

    :raises ConfigurationError: where it names none
    """
    url = os.environ.get(URL_VARIABLE)
    if not url:
        raise ConfigurationError(f"nodes must be given, or a URL in the environment variable {URL_VARIABLE}")
    return url


def _as_list(nodes: Iterable[NodeSpec] | NodeSpec) -> list[NodeSpec]:
    """The nodes as a list, also where a caller passes only one."""
    given: Any = nodes
    is_one = isinstance(given, Node | str) or (isinstance(given, tuple) and len(given) == 2 and type(given[1]) is int)
    if not is_one and not isinstance(given, Iterable):
        raise ConfigurationError(f"nodes must be addresses such as 'host:11211', or Node values, not {given!r}")
    return [given] if is_one else list(given)


def _placement_of(topology: Topology) -> Placement:
    return placement(topology.placement, topology.nodes, topology.slots)


def _checked_prefix(prefix: str | bytes) -> bytes:
    try:
        raw = prefix.encode() if isinstance(prefix, str) else prefix
    except UnicodeEncodeError as error:
        raise IllegalKey(f"prefix must be encodable as UTF-8: {error.reason} at position {error.start}") from None
    if not isinstance(raw, bytes) or not _PREFIX(raw):
        raise IllegalKey(f"prefix must be at most 150 bytes without spaces and control bytes, not {prefix!r}")
    return raw


def _text(value: object) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
