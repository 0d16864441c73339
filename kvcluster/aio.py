"""`AsyncClient`: many memcached servers as one, for asyncio.

The same commands as `kvcluster.Client`, over the same plans. What is here is the shell: it queues a plan's requests on the nodes'
connections, where those of one turn of the loop travel together, and waits for their replies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from kvcluster.cluster import Cluster, FollowingCluster
from kvcluster.errors import KvclusterError
from kvcluster.following.plans import Refetch, Sent
from kvcluster.plan import Plan
from kvcluster.planner import Key, Planner
from kvcluster.protocol.hot import plain_key
from kvcluster.protocol.requests import Request
from kvcluster.topology import Node
from kvcluster.transport.aio import DOUBTFUL, MISSING, AsyncConnection, AsyncEndpoint
from kvcluster.transport.connection import keep_alive

if TYPE_CHECKING:
    from kvcluster.sources import TopologySource

T = TypeVar("T")


class AsyncClient(Cluster[AsyncEndpoint]):
    """A cluster of memcached nodes, for one event loop at a time.

    Parameters and behaviour as for `kvcluster.Client`; the calls are awaited. A call may be cancelled at any point: its reply is
    read in its place and reaches nobody. Close a client in the loop that it was used in; after that it may be used in another.
    ``pool_size`` has no meaning here, for one connection to each node carries all calls.

    >>> async def main():
    ...     async with AsyncClient.from_url("memory://") as client:
    ...         await client.set("user:1", {"name": "Kim"}, expire=60)
    ...         return await client.get("user:1")
    >>> asyncio.run(main())
    {'name': 'Kim'}
    """

    def _endpoint(self, node: Node) -> AsyncEndpoint:
        return AsyncEndpoint(node, self._dial, self._timeout)

    def _keep(self, endpoint: AsyncEndpoint, member: bool) -> None:
        endpoint.retired = not member
        if not member:
            endpoint.drain()

    async def _dial(self, node: Node, connection: Callable[[], AsyncConnection]) -> AsyncConnection:
        loop = asyncio.get_running_loop()
        if node.memory_name is not None:
            from kvcluster import embedded  # here, because few programs need it
            from kvcluster.embedded.aio import MemoryTransport

            protocol = connection()
            MemoryTransport(embedded.node(node.memory_name), protocol, loop)
            return protocol
        async with asyncio.timeout(self._connect_timeout):
            if node.socket_path is not None:
                _, protocol = await loop.create_unix_connection(connection, node.socket_path)
            else:
                transport, protocol = await loop.create_connection(connection, node.host, node.port, ssl=self._tls)
                if self._keepalive is not None:
                    keep_alive(transport.get_extra_info("socket"), self._keepalive)
        return protocol

    @classmethod
    def from_topology(cls, source: TopologySource | str | PathLike[str], **settings: Any) -> FollowingAsyncClient:
        """A client for a cluster that may be resized while it is used: it follows the topology that a source holds.

        Each answer brings the epoch of its node, so that a change of the topology is noticed by the next command, and done again if
        need be. During a resize a command goes to the old and the new owner of a key as `kvcluster.phases` says. ``noreply`` is
        taken, and the answers are awaited. A CAS token is good at one node and for one epoch.

        :param source: the path of a file, or a `kvcluster.sources.FileSource` or `kvcluster.sources.TableSource`
        :param settings: as for `Client`, but for nodes, placement and slots, which are the source's
        :raises ConfigurationError: for a source without a topology, or a setting that cannot be used
        :raises SourceUnavailable: where the source cannot be read
        """
        return FollowingAsyncClient(source, **settings)

    async def exchange(self, address: str, request: Request, planner: Planner) -> KvclusterError | None:
        """Exchange one request that was made for a planner's node. A failure is counted and returned, not raised."""
        return await self._endpoints[address].exchange(request, planner.namespace)

    async def run(self, plan: Plan[T]) -> T:
        """Carry out a plan, and those that follow from it, and return the result."""
        while True:
            outcome = plan.finish(await self._exchange(plan))
            if not isinstance(outcome, Plan):
                return outcome
            plan = outcome

    async def _exchange(self, plan: Plan[Any]) -> dict[str, KvclusterError]:
        """Exchange a plan's requests with their nodes, all at the same time; the failures, by address."""
        namespace = plan.namespace
        several = len(plan.requests) > 1
        submitted = [
            (endpoint := self._endpoints[address], request, endpoint.submit(request, namespace, several))
            for address, request in plan.requests.items()
        ]
        try:
            if len(submitted) > 1 and any(submission is None for _, _, submission in submitted):
                results = await asyncio.gather(*[endpoint.exchange(request, namespace, s) for endpoint, request, s in submitted])
            else:
                results = [
                    # The future alone says all on a good day, and costs less than a coroutine around it.
                    None
                    if submission is not None and await submission[1] is None and endpoint.state.ready
                    else await endpoint.exchange(request, namespace, submission)
                    for endpoint, request, submission in submitted
                ]
        except asyncio.CancelledError:
            for endpoint, request, _ in submitted:  # whether the nodes were told is unknown
                if request.deletes:
                    endpoint.state.failed_call(request, namespace)
            raise
        return {endpoint.address: error for (endpoint, _, _), error in zip(submitted, results, strict=True) if error is not None}

    # -- reads

    async def get(self, key: Key, default: Any = None) -> Any:
        """The value of a key, or ``default`` where there is none.

        :raises IllegalKey: for a key that cannot be used
        """
        planner = self._planner
        wire = plain_key(key, planner.prefix)
        if wire is not None:
            placement = planner.placement
            endpoint = self._endpoints[placement.addresses[placement.index(wire)]]
            value = await endpoint.get(wire, planner)
            if type(value) is AsyncConnection:
                value = await endpoint.get_alone(wire, planner, value)
            if value is not DOUBTFUL:
                return default if value is MISSING else value
        return (await self.run(planner.get_many((key,)))).get(key, default)

    async def gets(self, key: Key, default: Any = None, cas_default: Any = None) -> tuple[Any, Any]:
        """The value of a key and its CAS number (bytes, for `cas`), or the two defaults."""
        pair: tuple[Any, Any] = (await self.run(self._planner.get_many((key,), tokens=True))).get(key, (default, cas_default))
        return pair

    async def get_many(self, keys: Iterable[Key]) -> dict[Key, Any]:
        """The values of those keys that have one, by key. All nodes are asked at the same time."""
        return await self.run(self._planner.get_many(keys))

    async def gets_many(self, keys: Iterable[Key]) -> dict[Key, tuple[Any, bytes]]:
        """As `get_many`, with pairs of value and CAS number."""
        return await self.run(self._planner.get_many(keys, tokens=True))

    async def gat(self, key: Key, expire: int = 0, default: Any = None) -> Any:
        """As `get`, and the key gets a new ttl of ``expire`` seconds."""
        return (await self.run(self._planner.get_and_touch(key, expire))).get(key, default)

    async def gats(self, key: Key, expire: int = 0, default: Any = None, cas_default: Any = None) -> tuple[Any, Any]:
        """As `gets`, and the key gets a new ttl of ``expire`` seconds."""
        found = await self.run(self._planner.get_and_touch(key, expire, tokens=True))
        pair: tuple[Any, Any] = found.get(key, (default, cas_default))
        return pair

    # -- writes

    async def set(self, key: Key, value: Any, expire: float = 0, noreply: bool = False, flags: int | None = None) -> bool:
        """Store a value; True where it was stored.

        :param expire: seconds until it expires, 0 for no expiry; a number above 10^9 is a point in time
        :param noreply: do not wait for the node's answer. The commands that depend on what is there (add, replace, append, prepend)
            wait for it all the same
        :param flags: client flags to store instead of the codec's
        :raises CallerError: for a key, value or ttl that cannot be used
        """
        return await self.run(self._planner.store(b"S", key, value, expire, flags, noreply)) is True

    async def add(self, key: Key, value: Any, expire: float = 0, noreply: bool = False, flags: int | None = None) -> bool:
        """Store a value if the key has none. Parameters as for `set`."""
        return await self.run(self._planner.store(b"E", key, value, expire, flags, noreply)) is True

    async def replace(self, key: Key, value: Any, expire: float = 0, noreply: bool = False, flags: int | None = None) -> bool:
        """Store a value if the key has one. Parameters as for `set`."""
        return await self.run(self._planner.store(b"R", key, value, expire, flags, noreply)) is True

    async def append(self, key: Key, value: Any, expire: float = 0, noreply: bool = False, flags: int | None = None) -> bool:
        """Put a value's bytes after those of a key that has one; its flags and ttl stay. Parameters as for `set`."""
        return await self.run(self._planner.store(b"A", key, value, expire, flags, noreply)) is True

    async def prepend(self, key: Key, value: Any, expire: float = 0, noreply: bool = False, flags: int | None = None) -> bool:
        """Put a value's bytes before those of a key that has one; its flags and ttl stay. Parameters as for `set`."""
        return await self.run(self._planner.store(b"P", key, value, expire, flags, noreply)) is True

    async def cas(
        self, key: Key, value: Any, cas: int | str | bytes, expire: float = 0, noreply: bool = False, flags: int | None = None
    ) -> bool | None:
        """Store a value if the key has not changed since `gets`: True stored, False changed, None gone.

        :param cas: the CAS number that `gets` returned
        """
        return await self.run(self._planner.store(b"S", key, value, expire, flags, noreply, self._planner.token(cas)))

    async def set_many(
        self, values: Mapping[Key, Any], expire: float = 0, noreply: bool = False, flags: int | None = None
    ) -> list[Key]:
        """Store values, at all nodes at the same time; returns the keys that were not stored. Parameters as for `set`."""
        return await self.run(self._planner.store_many(values, expire, flags, noreply))

    async def delete(self, key: Key, noreply: bool = False) -> bool:
        """Delete a key; True where it was there.

        :param noreply: taken as pymemcache's, but the answer is awaited all the same: a delete that failed must not go unseen
        :raises DeleteFailed: where its node could not be told
        """
        return (await self.run(self._planner.delete_many((key,)))).get(key, False)

    async def delete_many(self, keys: Iterable[Key], noreply: bool = False) -> bool:
        """Delete keys, at all nodes at the same time. Parameters as for `delete`; True, as in pymemcache.

        :raises DeleteFailed: where some node could not be told; ``.keys`` says which keys are concerned
        """
        await self.run(self._planner.delete_many(keys))
        return True

    async def incr(self, key: Key, value: int, noreply: bool = False) -> int | None:
        """Add to a number; the new number, or None where the key has none.

        :raises CommandRefused: where the value is not a number
        """
        return await self.run(self._planner.count(b"I", key, value, noreply))

    async def decr(self, key: Key, value: int, noreply: bool = False) -> int | None:
        """Take from a number, down to 0. As `incr` otherwise."""
        return await self.run(self._planner.count(b"D", key, value, noreply))

    async def touch(self, key: Key, expire: float = 0, noreply: bool = False) -> bool:
        """Give a key a new ttl of ``expire`` seconds; True where it was there."""
        return await self.run(self._planner.touch(key, expire, noreply))

    get_multi = get_many
    set_multi = set_many
    delete_multi = delete_many

    # -- administration, by pymemcache's client

    async def flush_all(self, delay: int = 0, noreply: bool = False) -> bool:
        """Drop everything on every node, after ``delay`` seconds.

        :raises NetworkError: where a node cannot be told; those before it were
        """
        return await asyncio.to_thread(self._flush_all, delay, noreply)

    async def stats(self, *args: str) -> dict[str, dict[str, Any]]:
        """The nodes' own statistics, by address; a node that cannot be reached is left out."""
        return await asyncio.to_thread(self._stats, *args)

    async def version(self) -> dict[str, str]:
        """The nodes' versions, by address.

        :raises NetworkError: where a node cannot be reached
        """
        return await asyncio.to_thread(self._version)

    # -- the shell itself

    async def replay_deletes(self) -> int:
        """Send the deletes that did not reach their nodes again, now; how many are still owed.

        Every call to such a node does so first by itself, once the node is due for a probe; this does not wait for either.
        """
        indebted = [endpoint for endpoint in list(self._endpoints.values()) if endpoint.state.missed_deletes]
        for endpoint in indebted:
            await endpoint.replay()
        return sum(endpoint.state.missed_deletes for endpoint in indebted)

    async def close(self) -> None:
        """Close all connections; a later call opens new ones."""
        for endpoint in list(self._endpoints.values()):
            endpoint.close()

    quit = close
    disconnect_all = close

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()


class FollowingAsyncClient(FollowingCluster[AsyncEndpoint], AsyncClient):
    """What `AsyncClient.from_topology` makes."""

    async def run(self, plan: Plan[T]) -> T:
        """Carry out a plan, and those that follow from it, and return the result."""
        if self._follower.overdue:
            await asyncio.to_thread(self._follower.catch_up)
        outcome = self._up_to_date(plan)
        while isinstance(outcome, Plan):
            if isinstance(outcome, Refetch):
                outcome = await self._refetched(outcome)
            else:
                outcome = outcome.finish(await self._exchange(outcome) if outcome.requests else {})
        return outcome

    async def exchange(self, address: str, request: Request, planner: Planner) -> KvclusterError | None:
        """Exchange one request that was made for a planner's node. A failure is counted and returned, not raised."""
        return await self.run(planner.overhear(Sent(planner.namespace, address, request)))

    async def close(self) -> None:
        """Close all connections; a later call opens new ones."""
        await super().close()
        await asyncio.to_thread(self._follower.withdraw)

    quit = close
    disconnect_all = close

    async def _refetched(self, plan: Refetch[T]) -> T | Plan[T]:
        needs = self._follower.refetch(plan, lambda: self._planner, self._follow)
        try:
            need = next(needs)
            while True:
                try:
                    result = await asyncio.to_thread(need)
                except KvclusterError as error:
                    need = needs.throw(error)
                else:
                    need = needs.send(result)
        except StopIteration as stop:
            return plan.resume(self._planner, stop.value)

    async def get(self, key: Key, default: Any = None) -> Any:
        """The value of a key, or ``default`` where there is none.

        :raises IllegalKey: for a key that cannot be used
        """
        return (await self.run(self._planner.get_many((key,)))).get(key, default)
