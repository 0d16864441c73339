"""`Cache`: reading through the cluster to the database, and keeping the cluster true when the data changes.

The rooms: `policy` how long and how, `keys` arguments to keys, `flows` the rules of reading through, `drive` carries them out,
`loader` cached functions, `repository` cached rows, `invalidation` what a commit deletes.
"""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Protocol, TypeVar, overload

from kvcluster.cache import fork
from kvcluster.cache.flights import Flights, LoadTimes
from kvcluster.cache.keys import Template, checked_namespace
from kvcluster.cache.leases import Source
from kvcluster.cache.loader import Loader, LoaderBase
from kvcluster.cache.policy import Duration, Policy, seconds
from kvcluster.cache.stamps import stamp_wire, table_stamps, tag_stamp
from kvcluster.client import Client
from kvcluster.cluster import Cluster, default_url, parse_url
from kvcluster.codec import Codec
from kvcluster.errors import ConfigurationError
from kvcluster.plan import Invalidation
from kvcluster.planner import Planner

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
    from sqlalchemy.orm import sessionmaker

    from kvcluster.aio import AsyncClient
    from kvcluster.cache.aio import AsyncLoader
    from kvcluster.cache.aio_repository import AsyncRepository
    from kvcluster.cache.outbox import Outbox
    from kvcluster.cache.repository import Repository, RepositoryBase

P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M")

_INHERIT: Final[Any] = object()


class Cache:
    """A namespace of cached values, declared at import and connected later.

    :param namespace: put before every key, as ``"namespace:"``, and what the statistics are counted under
    :param ttl: how long values live unless a loader says otherwise: seconds, a ``timedelta`` or text such as ``"10m"``; None for
        ever
    :param client: the cluster, where it is known already; else see `connect`
    :param negative: the ttl of "there is no such row"
    :param lease: how long a node keeps the place of a caller that is loading; longer than the slowest load
    :raises ConfigurationError: for an argument that cannot be used

    >>> cache = Cache("shop", ttl="10m")
    >>> cache.connect("memory://")
    >>> @cache.loader("double:{n}")
    ... def double(n):
    ...     print("loading")
    ...     return 2 * n
    >>> double(21), double(21)
    loading
    (42, 42)
    """

    def __init__(
        self,
        namespace: str,
        ttl: Duration | None,
        client: Client | AsyncClient | None = None,
        *,
        negative: Duration = 10,
        lease: Duration = 30,
    ) -> None:
        self.namespace = checked_namespace(namespace)
        self._policy = Policy(
            ttl=None if ttl is None else seconds(ttl, "ttl"), negative=seconds(negative, "negative"), lease=seconds(lease, "lease")
        )
        self._url: str | None = None
        self._client: Client | None = None
        self._async_client: AsyncClient | None = None
        self._async_clients: dict[AbstractEventLoop | None, AsyncClient] = {}  # made here; None: before any event loop
        self._planners: dict[Client | AsyncClient, tuple[Planner, Planner]] = {}  # by client: its planner, and the one for here
        self._flights = Flights()
        self._async_flights = Flights()  # apart: a thread that waited for a task of its own event loop would wait for ever
        fork.renewed(self)
        self.loaders: list[LoaderBase[..., Any]] = []
        self.repositories: dict[type[Any], list[RepositoryBase[Any]]] = {}
        self.outbox: Outbox | None = None
        if client is not None:
            self.connect(client)

    def renew(self) -> None:
        """Begin with a free lock; in a forked child too."""
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Cache {self.namespace!r} on {self._client or self._async_client or self._url!r}>"

    def connect(self, target: str | Client | AsyncClient | None = None) -> None:
        """Say where the nodes are.

        :param target: a URL as for `Client.from_url`, which serves functions and coroutine functions alike; or a `Client`, which
            serves functions, or an `AsyncClient`, which serves coroutine functions. Where None, the URL in ``KVCLUSTER_URL``
        :raises ConfigurationError: for anything else
        """
        self.disconnect()
        if target is None or isinstance(target, str):
            self._url = default_url() if target is None else target
            parse_url(self._url)  # what is wrong with it is said here
        elif not isinstance(target, Cluster):
            raise ConfigurationError(f"target must be a URL, a Client or an AsyncClient, not {target!r}")
        elif isinstance(target, Client):
            self._client = target
        else:
            self._async_client = target

    def disconnect(self) -> None:
        """Forget where the nodes are; a client that was passed stays open for whoever made it.

        What was made for a URL is closed; an `AsyncClient` only if its event loop runs, for nothing else can close it.
        """
        made = self._client if self._url is not None else None
        async_clients, self._async_clients = self._async_clients, {}
        self._url = self._client = self._async_client = None
        self._planners = {}
        if made is not None:
            made.close()
        for loop, client in async_clients.items():
            if loop is not None and loop.is_running():
                from asyncio import run_coroutine_threadsafe  # here, as below

                run_coroutine_threadsafe(client.close(), loop)

    @property
    def connected(self) -> bool:
        """Whether `connect` was called, and `disconnect` not since."""
        return any(target is not None for target in (self._url, self._client, self._async_client))

    @property
    def client(self) -> Client:
        """The cluster, for threads.

        :raises ConfigurationError: before `connect`
        """
        if self._client is None:
            with self._lock:
                if self._client is None:
                    self._client = Client.from_url(self._connected_url("a Client"))
        return self._client

    @property
    def async_client(self) -> AsyncClient:
        """The cluster, for asyncio: the client that was passed, or with a URL that of the running event loop; where none runs, the
        one that was made last.

        Its connections are to be closed in their event loop: ``async with cache.async_client: ...``.

        :raises ConfigurationError: before `connect`
        """
        if self._async_client is not None:
            return self._async_client
        url = self._connected_url("an AsyncClient")
        from asyncio import get_running_loop  # here, because few programs use both

        loop: AbstractEventLoop | None
        try:
            loop = get_running_loop()
        except RuntimeError:
            loop = next(reversed(self._async_clients), None)
        client = self._async_clients.get(loop)
        return self._client_of(loop, url) if client is None else client

    def _client_of(self, loop: AbstractEventLoop | None, url: str) -> AsyncClient:
        """A loop's client. It is taken over from a loop that has ended, if one has: it knows which deletes nodes are still owed."""
        from kvcluster.aio import AsyncClient

        with self._lock:
            ended = [other for other in self._async_clients if other is None or other.is_closed()]
            client = self._async_clients.pop(ended[0]) if ended else AsyncClient.from_url(url)
            self._async_clients[loop] = client
            return client

    def _connected_url(self, wanted: str) -> str:
        if self._url is not None:
            return self._url
        if self.connected:
            raise ConfigurationError(
                f"cache {self.namespace!r} was not connected with {wanted}: cache.connect(url) serves both kinds"
            )
        raise ConfigurationError(f"cache {self.namespace!r} is not connected: call cache.connect('memcached://host:port,…') first")

    @property
    def planner(self) -> Planner:
        """A planner for this namespace, of whichever client there is."""
        return self.planner_of(self.client if self._async_client is None else self._async_client)

    def planner_of(self, client: Client | AsyncClient) -> Planner:
        """A client's planner, for this namespace."""
        base = client.planner
        planners = self._planners.get(client)
        if planners is None or planners[0] is not base:
            prefix = base.prefix + self.namespace.encode() + b":"
            self._planners[client] = planners = (base, replace(base, prefix=prefix, namespace=self.namespace))
        return planners[1]

    def source(self, client: Client | AsyncClient, policy: Policy, times: LoadTimes, codec: Codec | None = None) -> Source:
        """What a flow needs to know; for loaders and repositories."""
        planner = self.planner_of(client)
        flights = self._flights if isinstance(client, Client) else self._async_flights
        return Source(planner, policy, codec or planner.codec, flights, times, time.monotonic)

    def policy(self, ttl: Duration | None = _INHERIT, negative: Duration = _INHERIT) -> Policy:
        """The namespace's policy with what a loader says otherwise."""
        policy = self._policy
        if ttl is not _INHERIT:
            policy = replace(policy, ttl=None if ttl is None else seconds(ttl, "ttl"))
        if negative is not _INHERIT:
            policy = replace(policy, negative=seconds(negative, "negative"))
        return policy

    def loader(
        self, key: str, *, ttl: Duration | None = _INHERIT, negative: Duration = _INHERIT, ignore: Iterable[str] = ()
    ) -> _Decorator:
        """Decorate a function, or a coroutine function, whose results are to be cached.

        :param key: the key's template, such as ``"user:{id}"``; each argument must stand in it or in ``ignore``
        :param ttl: how long results live; the namespace's by default
        :param negative: how long None lives; the namespace's by default
        :param ignore: arguments that do not change the result
        :raises ConfigurationError: where template and function do not fit, or where another loader or repository has the same keys
        """
        policy = self.policy(ttl, negative)

        def decorate(function: Callable[..., Any]) -> Any:
            template = Template(key, function, ignore)
            self._require_own_keys(template)
            loader: LoaderBase[..., Any]
            if inspect.iscoroutinefunction(function):
                from kvcluster.cache.aio import AsyncLoader  # here, because few programs use both

                loader = AsyncLoader(self, template, function, policy)
            else:
                loader = Loader(self, template, function, policy)
            self.loaders.append(loader)
            return loader

        return decorate

    def _require_own_keys(self, template: Template) -> None:
        """Refuse a template whose values would be taken for another's. The same function may be declared again, as by a reload."""
        name = _name_of(template.function)
        for loader in list(self.loaders):
            other = loader.template
            if other.shape != template.shape:
                continue
            if _name_of(other.function) != name:
                raise self._crossing(f"{other.text!r} of {_name_of(other.function)}", f"{template.text!r} of {name}")
            self.loaders.remove(loader)
        for model in self.repositories:
            if template.shape == f"{model.__name__}:{{}}":
                raise self._crossing(f"{template.text!r} of {name}", f"the repository of {model.__name__}")

    def _crossing(self, one: str, other: str) -> ConfigurationError:
        return ConfigurationError(f"cache {self.namespace!r}: key template {one} and {other} have the same keys")

    @overload
    def repository(
        self,
        model: type[M],
        session_factory: sessionmaker[Any],
        *,
        ttl: Duration | None = _INHERIT,
        negative: Duration = _INHERIT,
    ) -> Repository[M]: ...

    @overload
    def repository(
        self,
        model: type[M],
        session_factory: async_sessionmaker[Any],
        *,
        ttl: Duration | None = _INHERIT,
        negative: Duration = _INHERIT,
    ) -> AsyncRepository[M]: ...

    def repository(
        self,
        model: type[M],
        session_factory: sessionmaker[Any] | async_sessionmaker[Any],
        *,
        ttl: Duration | None = _INHERIT,
        negative: Duration = _INHERIT,
    ) -> Repository[M] | AsyncRepository[M]:
        """A mapped class whose rows are cached by primary key; see `Repository`.

        :param model: a class mapped by SQLAlchemy 2, with a primary key of one column
        :param session_factory: what the rows are loaded with; each load has a session of its own. With an ``async_sessionmaker``
            the repository's calls are awaited; of a ``scoped_session`` its sessionmaker is taken
        :raises MissingExtra: without ``kvcluster[sql]``
        :raises ConfigurationError: for a model that cannot be cached
        """
        from sqlalchemy.orm import sessionmaker

        from kvcluster.cache.repository import Repository, maker_of  # here, because it needs the extra; first, because it says so

        session_factory = maker_of(session_factory)
        for loader in self.loaders:
            if loader.template.shape == f"{model.__name__}:{{}}":
                name = _name_of(loader.template.function)
                raise self._crossing(f"{loader.template.text!r} of {name}", f"the repository of {model.__name__}")
        repository: Repository[M] | AsyncRepository[M]
        policy = self.policy(ttl, negative)
        if isinstance(session_factory, sessionmaker):
            repository = Repository(self, model, session_factory, policy)
        else:
            from kvcluster.cache.aio_repository import AsyncRepository

            repository = AsyncRepository(self, model, session_factory, policy)
        self.repositories.setdefault(model, []).append(repository)
        return repository

    def bind(self, session_factory: sessionmaker[Any] | async_sessionmaker[Any]) -> None:
        """Invalidate what the sessions of this factory change, after each commit: the rows of this cache's repositories.

        :raises MissingExtra: without ``kvcluster[sql]``
        """
        from kvcluster.cache.invalidation import bind  # here, because it needs the extra

        bind(self, session_factory)

    @overload
    def create_outbox(self, engine: Engine, name: str = ...) -> None: ...

    @overload
    def create_outbox(self, engine: AsyncEngine, name: str = ...) -> Coroutine[Any, Any, None]: ...

    def create_outbox(self, engine: Engine | AsyncEngine, name: str = "kvcluster_outbox") -> Coroutine[Any, Any, None] | None:
        """Make the outbox's table where it is missing, and use it, see `use_outbox`. With an ``AsyncEngine`` the call is awaited.

        :param engine: the database of the sessions that are bound: SQLite, MariaDB, MySQL or PostgreSQL
        :param name: the table's
        :raises MissingExtra: without ``kvcluster[sql]``
        :raises ConfigurationError: for a database, or a table, that cannot be an outbox
        """
        from kvcluster.cache.outbox import Outbox, created  # here, because it needs the extra

        outbox = Outbox(name)

        def use() -> None:
            self.outbox = outbox

        return created(outbox, engine, use)

    def use_outbox(self, name: str = "kvcluster_outbox") -> None:
        """Let bound sessions write what they invalidate into this table, in their own transactions.

        A crash between a commit and its invalidation then loses nothing: ``kvcluster worker`` does what is left. A database that
        sessions change must have the table, made by `create_outbox` or by a migration (``docs/outbox.md``): where the row cannot
        be written, nothing is committed.

        :param name: the table's. Caches on the same nodes may share one
        :raises MissingExtra: without ``kvcluster[sql]``
        """
        from kvcluster.cache.outbox import Outbox  # here, because it needs the extra

        self.outbox = Outbox(name)

    def count_unstored(self, client: Client | AsyncClient, wires: Sequence[bytes]) -> None:
        """Count values that are read past the cache."""
        planner = self.planner_of(client)
        for address, group in planner.group_wires(wires).items():
            client.count_unstored(address, planner.namespace, len(group))

    def invalidate(self, invalidation: Invalidation) -> None:
        """Forget keys, and renew stamps on all nodes. A load that is under way will not be stored.

        :raises DeleteFailed: where a node could not be told; it is told before this client reads from it again
        """
        self._forget(invalidation.wires)
        client = self.client
        client.run(self.planner_of(client).invalidate(invalidation))

    async def invalidate_async(self, invalidation: Invalidation) -> None:
        """As `invalidate`. Once begun, it is not undone by a cancellation.

        :raises DeleteFailed: where a node could not be told; it is told before this client reads from it again
        """
        from kvcluster.cache.aio import to_the_end  # here, because few programs use both

        self._forget(invalidation.wires)
        client = self.async_client
        await to_the_end(client.run(self.planner_of(client).invalidate(invalidation)))

    def invalidate_tag(self, tag: str) -> None:
        """Forget every value of loaders that declare a tag with this text, whatever their keys.

        :param tag: such as ``"author:42"``, where loaders declare ``tags=["author:{user_id}"]``
        :raises DeleteFailed: where a node could not be told; it is told before this client reads from it again
        """
        self.invalidate(self._stamps_of(tag_stamp(tag)))

    async def invalidate_tag_async(self, tag: str) -> None:
        """As `invalidate_tag`. Once begun, it is not undone by a cancellation.

        :raises DeleteFailed: where a node could not be told; it is told before this client reads from it again
        """
        await self.invalidate_async(self._stamps_of(tag_stamp(tag)))

    def invalidate_table(self, table: object) -> None:
        """Forget every cached row of a table, and every value of loaders that watch it: after changes that no session told of, such
        as a SQL script's.

        :param table: a mapped class, a `Table`, or a Django model
        :raises ConfigurationError: for anything else
        :raises DeleteFailed: where a node could not be told; it is told before this client reads from it again
        """
        self.invalidate(self._stamps_of(*table_stamps(table)))

    async def invalidate_table_async(self, table: object) -> None:
        """As `invalidate_table`. Once begun, it is not undone by a cancellation.

        :raises ConfigurationError: for anything else
        :raises DeleteFailed: where a node could not be told; it is told before this client reads from it again
        """
        await self.invalidate_async(self._stamps_of(*table_stamps(table)))

    def _stamps_of(self, *names: str) -> Invalidation:
        planner = self.planner
        return Invalidation(stamps=tuple(stamp_wire(planner, name) for name in names))

    def _forget(self, wires: Sequence[bytes]) -> None:
        self._flights.forget(wires)
        self._async_flights.forget(wires)


def _name_of(function: Callable[..., Any]) -> str:
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', function)}"


class _Decorator(Protocol):
    """What `Cache.loader` returns."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]]) -> AsyncLoader[P, R]: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, function: Callable[P, R]) -> Loader[P, R]: ...
