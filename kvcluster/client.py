"""`Client`: many memcached servers as one, for threads.

Every command is one line over `kvcluster.planner`: a `Planner` decides what goes where and what the replies mean,
`transport.exchange` moves the bytes. `get` alone takes the same path by hand, because it is the call an application makes
thousands of times a page.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from kvcluster.cluster import Cluster, FollowingCluster
from kvcluster.errors import KvclusterError
from kvcluster.following.epochs import WatchFetch
from kvcluster.following.plans import Refetch, Sent
from kvcluster.plan import Plan
from kvcluster.planner import Key, Planner
from kvcluster.protocol.hot import plain_key
from kvcluster.protocol.requests import Fetch, Request
from kvcluster.topology import Node
from kvcluster.transport.connection import Stream, dial
from kvcluster.transport.exchange import exchange as exchange_all
from kvcluster.transport.pool import Endpoint

if TYPE_CHECKING:
    from kvcluster.sources import TopologySource

T = TypeVar("T")
_ABSENT: Final = object()


class Client(Cluster[Endpoint]):
    """A cluster of memcached nodes.

    Safe for threads, and for processes that fork. Reads never raise because a node is down: its keys miss, a set of them says
    False, and a delete that did not reach it raises.

    :param nodes: `Node`, ``"host:port"`` or ``(host, port)`` each; where nothing is given, the URL in ``KVCLUSTER_URL``,
        whose settings hold for every argument that has its default
    :param placement: the name of the scheme that spreads keys over nodes, see `kvcluster.placement`
    :param timeout: seconds that one node has for one exchange; a call to several nodes has twice that for all of them together
    :param connect_timeout: seconds for opening a connection
    :param prefix: put before every key, and the namespace of the statistics
    :param codec: values to bytes and back; by default bytes, str, int and msgpack, and no pickle
    :param pool_size: the most connections to each node
    :param strict_keys: raise for keys that memcached itself forbids, instead of carrying them in base64 or by a digest
    :param item_size_max: bytes; larger values are refused before anything is sent. The nodes' ``-I``, 1 MiB by default
    :param slots: the size of the slot table, see `Topology`
    :param socket_keepalive: pymemcache's ``KeepaliveOpts``; off where None
    :param tls_context: encrypts all connections but those over Unix sockets; plain text where None
    :raises ConfigurationError: for an argument that cannot be used

    >>> client = Client.from_url("memory://")
    >>> client.set("user:1", {"name": "Kim"}, expire=60)
    True
    >>> client.get("user:1")
    {'name': 'Kim'}
    """

    def _endpoint(self, node: Node) -> Endpoint:
        return Endpoint(node, self._dial, self._pool_size, self._timeout)

    def _keep(self, endpoint: Endpoint, member: bool) -> None:
        endpoint.retired = not member  # first: a call under way may be about to open a connection
        super()._keep(endpoint, member)

    def _dial(self, node: Node) -> Stream:
        if node.memory_name is not None:
            from kvcluster import embedded  # here, because few programs need it

            return embedded.MemorySocket(embedded.node(node.memory_name))
        return dial(node, self._connect_timeout, self._timeout, self._keepalive, self._tls)

    @classmethod
    def from_topology(cls, source: TopologySource | str | PathLike[str], **settings: Any) -> FollowingClient:
        """A client for a cluster that may be resized while it is used: it follows the topology that a source holds.

        Each answer brings the epoch of its node, so that a change of the topology is noticed by the next command, and done again if
        need be. During a resize a command goes to the old and the new owner of a key as `kvcluster.phases` says. ``noreply`` is
        taken, and the answers are awaited. A CAS token is good at one node and for one epoch.

        :param source: the path of a file, or a `kvcluster.sources.FileSource` or `kvcluster.sources.TableSource`
        :param settings: as for `Client`, but for nodes, placement and slots, which are the source's
        :raises ConfigurationError: for a source without a topology, or a setting that cannot be used
        :raises SourceUnavailable: where the source cannot be read
        """
        return FollowingClient(source, **settings)

    def exchange(self, address: str, request: Request, planner: Planner) -> KvclusterError | None:
        """Exchange one request that was made for a planner's node. A failure is counted and returned, not raised."""
        return self._endpoints[address].exchange(request, planner.namespace)

    def run(self, plan: Plan[T]) -> T:
        """Carry out a plan, and those that follow from it, and return the result."""
        while True:
            outcome = plan.finish(exchange_all(self._endpoints, plan, 2 * self._timeout))
            if not isinstance(outcome, Plan):
                return outcome
            plan = outcome

    # -- reads

    def get(self, key: Key, default: Any = None) -> Any:
        """The value of a key, or ``default`` where there is none.

        :raises IllegalKey: for a key that cannot be used
        """
        planner = self._planner
        wire = plain_key(key, planner.prefix)
        if wire is not None:
            values: dict[Key, Any] = {}
            fetch = Fetch((wire,), (key,), planner.codec.decode, values)
            placement = planner.placement
            self._endpoints[placement.addresses[placement.index(wire)]].exchange(fetch, planner.namespace)
            if not fetch.doubtful:
                return values.get(key, default)
        return self.run(planner.get_many((key,))).get(key, default)

    def gets(self, key: Key, default: Any = None, cas_default: Any = None) -> tuple[Any, Any]:
        """The value of a key and its CAS number (bytes, for `cas`), or the two defaults."""
        pair: tuple[Any, Any] = self.run(self._planner.get_many((key,), tokens=True)).get(key, (default, cas_default))
        return pair

    def get_many(self, keys: Iterable[Key]) -> dict[Key, Any]:
        """The values of those keys that have one, by key. All nodes are asked at the same time."""
        return self.run(self._planner.get_many(keys))

    def gets_many(self, keys: Iterable[Key]) -> dict[Key, tuple[Any, bytes]]:
        """As `get_many`, with pairs of value and CAS number."""
        return self.run(self._planner.get_many(keys, tokens=True))

    def gat(self, key: Key, expire: int = 0, default: Any = None) -> Any:
        """As `get`, and the key gets a new ttl of ``expire`` seconds."""
        return self.run(self._planner.get_and_touch(key, expire)).get(key, default)

    def gats(self, key: Key, expire: int = 0, default: Any = None, cas_default: Any = None) -> tuple[Any, Any]:
        """As `gets`, and the key gets a new ttl of ``expire`` seconds."""
        found = self.run(self._planner.get_and_touch(key, expire, tokens=True))
        pair: tuple[Any, Any] = found.get(key, (default, cas_default))
        return pair

    # -- writes

    def set(self, key: Key, value: Any, expire: float = 0, noreply: bool = False, flags: int | None = None) -> bool:
        """Store a value; True where it was stored.

        :param expire: seconds until it expires, 0 for no expiry; a number above 10^9 is a point in time
        :param noreply: do not wait for the node's answer. The commands that depend on what is there (add, replace, append, prepend)
            wait for it all the same
        :param flags: client flags to store instead of the codec's
        :raises CallerError: for a key, value or ttl that cannot be used
        """
        return self.run(self._planner.store(b"S", key, value, expire, flags, noreply)) is True

    def add(self, key: Key, value: Any, expire: float = 0, noreply: bool = False, flags: int | None = None) -> bool:
        """Store a value if the key has none. Parameters as for `set`."""
        return self.run(self._planner.store(b"E", key, value, expire, flags, noreply)) is True

    def replace(self, key: Key, value: Any, expire: float = 0, noreply: bool = False, flags: int | None = None) -> bool:
        """Store a value if the key has one. Parameters as for `set`."""
        return self.run(self._planner.store(b"R", key, value, expire, flags, noreply)) is True

    def append(self, key: Key, value: Any, expire: float = 0, noreply: bool = False, flags: int | None = None) -> bool:
        """Put a value's bytes after those of a key that has one; its flags and ttl stay. Parameters as for `set`."""
        return self.run(self._planner.store(b"A", key, value, expire, flags, noreply)) is True

    def prepend(self, key: Key, value: Any, expire: float = 0, noreply: bool = False, flags: int | None = None) -> bool:
        """Put a value's bytes before those of a key that has one; its flags and ttl stay. Parameters as for `set`."""
        return self.run(self._planner.store(b"P", key, value, expire, flags, noreply)) is True

    def cas(
        self, key: Key, value: Any, cas: int | str | bytes, expire: float = 0, noreply: bool = False, flags: int | None = None
    ) -> bool | None:
        """Store a value if the key has not changed since `gets`: True stored, False changed, None gone.

        :param cas: the CAS number that `gets` returned
        """
        return self.run(self._planner.store(b"S", key, value, expire, flags, noreply, self._planner.token(cas)))

    def set_many(self, values: Mapping[Key, Any], expire: float = 0, noreply: bool = False, flags: int | None = None) -> list[Key]:
        """Store values, at all nodes at the same time; returns the keys that were not stored. Parameters as for `set`."""
        return self.run(self._planner.store_many(values, expire, flags, noreply))

    def delete(self, key: Key, noreply: bool = False) -> bool:
        """Delete a key; True where it was there.

        :param noreply: taken as pymemcache's, but the answer is awaited all the same: a delete that failed must not go unseen
        :raises DeleteFailed: where its node could not be told
        """
        return self.run(self._planner.delete_many((key,))).get(key, False)

    def delete_many(self, keys: Iterable[Key], noreply: bool = False) -> bool:
        """Delete keys, at all nodes at the same time. Parameters as for `delete`; True, as in pymemcache.

        :raises DeleteFailed: where some node could not be told; ``.keys`` says which keys are concerned
        """
        self.run(self._planner.delete_many(keys))
        return True

    def incr(self, key: Key, value: int, noreply: bool = False) -> int | None:
        """Add to a number; the new number, or None where the key has none.

        :raises CommandRefused: where the value is not a number
        """
        return self.run(self._planner.count(b"I", key, value, noreply))

    def decr(self, key: Key, value: int, noreply: bool = False) -> int | None:
        """Take from a number, down to 0. As `incr` otherwise."""
        return self.run(self._planner.count(b"D", key, value, noreply))

    def touch(self, key: Key, expire: float = 0, noreply: bool = False) -> bool:
        """Give a key a new ttl of ``expire`` seconds; True where it was there."""
        return self.run(self._planner.touch(key, expire, noreply))

    get_multi = get_many
    set_multi = set_many
    delete_multi = delete_many

    def __getitem__(self, key: Key) -> Any:
        value = self.get(key, _ABSENT)
        if value is _ABSENT:
            raise KeyError(key)
        return value

    def __contains__(self, key: Key) -> bool:
        return self.get(key, _ABSENT) is not _ABSENT

    def __setitem__(self, key: Key, value: Any) -> None:
        self.set(key, value)

    def __delitem__(self, key: Key) -> None:
        self.delete(key)

    # -- administration, by pymemcache's client

    def flush_all(self, delay: int = 0, noreply: bool = False) -> bool:
        """Drop everything on every node, after ``delay`` seconds.

        :raises NetworkError: where a node cannot be told; those before it were
        """
        return self._flush_all(delay, noreply)

    def stats(self, *args: str) -> dict[str, dict[str, Any]]:
        """The nodes' own statistics, by address; a node that cannot be reached is left out."""
        return self._stats(*args)

    def version(self) -> dict[str, str]:
        """The nodes' versions, by address.

        :raises NetworkError: where a node cannot be reached
        """
        return self._version()

    # -- the shell itself

    def replay_deletes(self) -> int:
        """Send the deletes that did not reach their nodes again, now; how many are still owed.

        Every call to such a node does so first by itself, once the node is due for a probe; this does not wait for either.
        """
        indebted = [endpoint for endpoint in list(self._endpoints.values()) if endpoint.state.missed_deletes]
        for endpoint in indebted:
            endpoint.replay()
        return sum(endpoint.state.missed_deletes for endpoint in indebted)

    def close(self) -> None:
        """Close all connections; a later call opens new ones."""
        for endpoint in list(self._endpoints.values()):
            endpoint.close()

    quit = close
    disconnect_all = close

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class FollowingClient(FollowingCluster[Endpoint], Client):
    """What `Client.from_topology` makes."""

    def run(self, plan: Plan[T]) -> T:
        """Carry out a plan, and those that follow from it, and return the result."""
        if self._follower.overdue:
            self._follower.catch_up()
        outcome = self._up_to_date(plan)
        while isinstance(outcome, Plan):
            if isinstance(outcome, Refetch):
                outcome = self._refetched(outcome)
            else:
                outcome = outcome.finish(exchange_all(self._endpoints, outcome, 2 * self._timeout) if outcome.requests else {})
        return outcome

    def exchange(self, address: str, request: Request, planner: Planner) -> KvclusterError | None:
        """Exchange one request that was made for a planner's node. A failure is counted and returned, not raised."""
        return self.run(planner.overhear(Sent(planner.namespace, address, request)))

    def close(self) -> None:
        """Close all connections; a later call opens new ones."""
        super().close()
        self._follower.withdraw()

    quit = close
    disconnect_all = close

    def _refetched(self, plan: Refetch[T]) -> T | Plan[T]:
        needs = self._follower.refetch(plan, lambda: self._planner, self._follow)
        try:
            need = next(needs)
            while True:
                try:
                    result = need()
                except KvclusterError as error:
                    need = needs.throw(error)
                else:
                    need = needs.send(result)
        except StopIteration as stop:
            return plan.resume(self._planner, stop.value)

    def get(self, key: Key, default: Any = None) -> Any:
        """The value of a key, or ``default`` where there is none.

        :raises IllegalKey: for a key that cannot be used
        """
        planner, follower = self._planner, self._follower
        wire = plain_key(key, planner.prefix)
        if wire is not None and not follower.due and (planner.reads_once or not planner.moves(wire)):
            values: dict[Key, Any] = {}
            fetch = WatchFetch((wire,), (key,), planner.codec.decode, values)
            failure = self._endpoints[planner.address(wire)].exchange(fetch, planner.namespace)
            if failure is None and fetch.epoch == planner.epoch and not fetch.doubtful:
                return values.get(key, default)
        return self.run(planner.get_many((key,))).get(key, default)
