"""`Cache`: reading through the cluster to the database, and keeping the cluster true when the data changes.

The rooms: `policy` how long and how, `keys` arguments to keys, `flows` the rules of reading through, `drive` carries them out,
`loader` cached functions, `repository` cached rows, `query` cached lists of them; `watch` what hangs on which rows, `invalidation`
what a commit invalidates, `outbox` so that a crash does not lose it.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Protocol, TypeVar, Unpack, overload

from kvcluster.cache.connected import Connected
from kvcluster.cache.flights import Flights, LoadTimes, Sightings
from kvcluster.cache.keys import Template
from kvcluster.cache.leases import Source, outdating
from kvcluster.cache.loader import Loader, LoaderBase
from kvcluster.cache.near import Near
from kvcluster.cache.policy import Duration, Options, Policy, Settings, seconds
from kvcluster.cache.shapes import Shape
from kvcluster.cache.stamps import stamp_wire, table_stamps, tag_stamp
from kvcluster.cache.watch import Registry, Watched, watch_of
from kvcluster.client import Client
from kvcluster.codec import Codec
from kvcluster.errors import ConfigurationError, MissingExtra
from kvcluster.plan import Invalidation, Plan

if TYPE_CHECKING:
    from sqlalchemy import Engine, Select
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
    from sqlalchemy.orm import Session, sessionmaker

    from kvcluster.aio import AsyncClient
    from kvcluster.cache.aio import AsyncLoader
    from kvcluster.cache.aio_repository import AsyncRepository
    from kvcluster.cache.invalidation import Binding
    from kvcluster.cache.outbox import Outbox
    from kvcluster.cache.query import AsyncQuery, Query
    from kvcluster.cache.repository import Repository, RepositoryBase

P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M")

L1_SIZE: Final = 10_000


class Cache(Connected):
    """A namespace of cached values, declared at import and connected later.

    :param namespace: put before every key, as ``"namespace:"``, and what the statistics are counted under
    :param ttl: how long values live unless a loader says otherwise: seconds, a ``timedelta`` or text such as ``"10m"``; None for
        ever
    :param client: the cluster, where it is known already; else see `connect`
    :param l1_size: the most values that are kept in the process itself, where loaders say ``l1``
    :param settings: the policy of all its loaders and repositories, which may say otherwise; see `Settings`
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
        l1_size: int = L1_SIZE,
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(namespace)
        if type(l1_size) is not int or l1_size < 1:
            raise ConfigurationError(f"l1_size must be a number of values, at least 1, not {l1_size!r}")
        self._policy = Policy(None if ttl is None else seconds(ttl, "ttl")).but(settings)
        self._flights = Flights()
        self._async_flights = Flights()  # apart: a thread that waited for a task of its own event loop would wait for ever
        self._near = Near(l1_size)
        self._sightings = Sightings()
        self.loaders: list[LoaderBase[..., Any]] = []
        self.repositories: dict[type[Any], list[RepositoryBase[Any]]] = {}
        self.outbox: Outbox | None = None
        self.watches = Registry()
        self._bindings: list[Binding] = []
        if client is not None:
            self.connect(client)

    def __repr__(self) -> str:
        return f"<Cache {self.namespace!r} on {self._client or self._async_client or self._url!r}>"

    @property
    def l1_hits(self) -> int:
        """How many values were found in the process itself, where ``l1`` keeps them. They are not in the client's statistics."""
        return self._near.hits

    def source(
        self, client: Client | AsyncClient, policy: Policy, times: LoadTimes, codec: Codec, shape: Shape, label: str
    ) -> Source:
        """What a flow needs to know; for loaders and repositories."""
        flights = self._flights if isinstance(client, Client) else self._async_flights
        near = self._near if policy.l1 else None
        return Source(self.planner_of(client), policy, codec, flights, times, time.monotonic, self._sightings, near, shape, label)

    def loader(
        self,
        key: str,
        *,
        ignore: Iterable[str] = (),
        watch: Watched = (),
        tags: Iterable[str] = (),
        **options: Unpack[Options],
    ) -> _Decorator:
        """Decorate a function, or a coroutine function, whose results are to be cached.

        Its return annotation, where it has one, says what the results are, and they come back as that.

        :param key: the key's template, such as ``"user:{id}"``; each argument must stand in it or in ``ignore``
        :param ignore: arguments that do not change the result
        :param watch: what the result hangs on, so that commits of bound sessions forget it: columns and the arguments that they are
            equal to (``{User.id: "user_id"}``), or a list of such mappings, mapped classes, tables and Django models. A column is
            equal to an argument where Python says so, whatever the database's collation
        :param tags: templates over the arguments (``"author:{user_id}"``), for `invalidate_tag`
        :param options: what is to be otherwise than the namespace has it; see `Options`
        :raises ConfigurationError: where template and function do not fit, or where another loader or repository has the same keys
        """
        if not isinstance(key, str):
            raise ConfigurationError(f"key must be a template, as in @cache.loader('user:{{id}}'), not {key!r}")
        policy = self._policy.but(options)

        def decorate(function: Callable[..., Any]) -> Any:
            template = Template(key, function, ignore, policy.prefixes)
            watching = watch_of(template, watch, tags)
            self._require_own_keys(template)
            loader: LoaderBase[..., Any]
            if inspect.iscoroutinefunction(function):
                from kvcluster.cache.aio import AsyncLoader  # here, because few programs use both

                loader = AsyncLoader(self, template, function, policy)
            else:
                loader = Loader(self, template, function, policy)
            if watching:
                loader.stamps_of = watching.stamps_of
            self.watches.add(template.shape, watching)
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
            self._near.clear()  # it may declare another type
        for model, repositories in self.repositories.items():
            if any(template.shape == repository.key_shape for repository in repositories):
                raise self._crossing(f"{template.text!r} of {name}", f"the repository of {model.__name__}")

    def _crossing(self, one: str, other: str) -> ConfigurationError:
        return ConfigurationError(f"cache {self.namespace!r}: key template {one} and {other} have the same keys")

    @overload
    def repository(
        self,
        model: type[M],
        session_factory: sessionmaker[Any],
        **options: Unpack[Options],
    ) -> Repository[M]: ...

    @overload
    def repository(
        self,
        model: type[M],
        session_factory: async_sessionmaker[Any],
        **options: Unpack[Options],
    ) -> AsyncRepository[M]: ...

    def repository(
        self,
        model: type[M],
        session_factory: sessionmaker[Any] | async_sessionmaker[Any],
        **options: Unpack[Options],
    ) -> Repository[M] | AsyncRepository[M]:
        """A mapped class whose rows are cached by primary key; see `Repository`.

        :param model: a class mapped by SQLAlchemy 2, with a primary key of one column
        :param session_factory: what the rows are loaded with; each load has a session of its own. With an ``async_sessionmaker``
            the repository's calls are awaited; of a ``scoped_session`` its sessionmaker is taken
        :param options: what is to be otherwise than the namespace has it; see `Options`
        :raises MissingExtra: without ``kvcluster[sql]``
        :raises ConfigurationError: for a model that cannot be cached
        """
        _require_sql("cache.repository")
        from sqlalchemy.orm import sessionmaker

        from kvcluster.cache.repository import Repository, maker_of  # here, because it needs the extra

        session_factory = maker_of(session_factory)
        repository: Repository[M] | AsyncRepository[M]
        policy = self._policy.but(options)
        if isinstance(session_factory, sessionmaker):
            repository = Repository(self, model, session_factory, policy)
        else:
            from kvcluster.cache.aio_repository import AsyncRepository

            repository = AsyncRepository(self, model, session_factory, policy)
        for loader in self.loaders:
            if loader.template.shape == repository.key_shape:
                name = _name_of(loader.template.function)
                raise self._crossing(f"{loader.template.text!r} of {name}", f"the repository of {model.__name__}")
        self.repositories.setdefault(model, []).append(repository)
        return repository

    @overload
    def query(
        self,
        key: str,
        *,
        watch: Iterable[Any],
        repository: Repository[M],
        tags: Iterable[str] = (),
        **options: Unpack[Options],
    ) -> Callable[[Callable[P, Select[Any]]], Query[P, M]]: ...

    @overload
    def query(
        self,
        key: str,
        *,
        watch: Iterable[Any],
        repository: AsyncRepository[M],
        tags: Iterable[str] = (),
        **options: Unpack[Options],
    ) -> Callable[[Callable[P, Select[Any]]], AsyncQuery[P, M]]: ...

    @overload
    def query(
        self, key: str, *, watch: Iterable[Any], tags: Iterable[str] = (), **options: Unpack[Options]
    ) -> Callable[[Callable[P, Select[Any]]], Query[P, Any]]: ...

    def query(
        self,
        key: str,
        *,
        watch: Iterable[Any],
        repository: RepositoryBase[Any] | None = None,
        tags: Iterable[str] = (),
        **options: Unpack[Options],
    ) -> Any:
        """Decorate a function that makes a ``Select`` of a mapped class: its result's primary keys are cached, and the rows come
        from that class's repository. With a repository whose calls are awaited, the query's are too.

        :param key: the key's template, such as ``"front:{tag}:{n}"``; each argument must stand in it
        :param watch: what the result hangs on, as for `loader`: nearly always the classes that the statement selects from
        :param repository: of the rows; by default the one of the class that is watched
        :param tags: templates over the arguments, for `invalidate_tag`
        :param options: what is to be otherwise than the namespace has it; see `Options`
        :raises MissingExtra: without ``kvcluster[sql]``
        :raises ConfigurationError: as `loader`, and where it is not known which repository has the rows
        """
        _require_sql("cache.query")
        from kvcluster.cache.query import query_of, repository_of  # here, because it needs the extra

        if isinstance(watch, Iterator):
            watch = [*watch]  # it is read here, and by each loader
        rows = repository or repository_of(self, watch)
        return lambda function: query_of(function, rows, self.loader(key, watch=watch, tags=tags, **options))

    def bind(self, session_factory: sessionmaker[Any] | async_sessionmaker[Any]) -> None:
        """Invalidate what the sessions of this factory change, after each commit: the rows of this cache's repositories.

        It is the session's own ``commit()`` that counts: with an engine in AUTOCOMMIT call it too, and where a session was given a
        connection whose transaction goes on afterwards, invalidate once that is committed.

        :raises MissingExtra: without ``kvcluster[sql]``
        """
        _require_sql("cache.bind")
        from kvcluster.cache.invalidation import bind  # here, because it needs the extra

        self._bindings.append(bind(self, session_factory))

    def flush(self, session: Session) -> None:
        """See to it that everything a session has committed is invalidated: for tests, and for code that must know.

        A commit does that by itself, without raising. What could not be done then is done now, or raises.

        :param session: of a factory that is bound
        :raises DeleteFailed: where a node could not be told; it is told before this client reads from it again
        :raises ConfigurationError: for a session of another factory
        """
        self._binding_of(session).flush(session)

    async def flush_async(self, session: AsyncSession) -> None:
        """As `flush`. Once begun, it is not undone by a cancellation.

        :param session: of a factory that is bound
        :raises DeleteFailed: where a node could not be told; it is told before this client reads from it again
        :raises ConfigurationError: for a session of another factory
        """
        await self._binding_of(session.sync_session).flush_async(session)

    def is_bound(self, session_factory: sessionmaker[Any] | async_sessionmaker[Any]) -> bool:
        """Whether the sessions of a factory invalidate what they change."""
        return any(binding.maker is session_factory for binding in self._bindings)

    def _binding_of(self, session: Session) -> Binding:
        for binding in self._bindings:
            if isinstance(session, binding.sessions):
                return binding
        raise ConfigurationError(f"cache {self.namespace!r} is not bound to the factory of this session: call cache.bind(factory)")

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
            client.count(address, planner.namespace, unstored=len(group))

    def invalidate(self, invalidation: Invalidation) -> None:
        """Forget keys, and renew stamps on all nodes. A load that is under way will not be stored.

        :raises DeleteFailed: where a node could not be told; it is told before this client reads from it again
        """
        client = self.client
        self._run(client, invalidation, self.planner_of(client).invalidate(invalidation))

    async def invalidate_async(self, invalidation: Invalidation) -> None:
        """As `invalidate`. Once begun, it is not undone by a cancellation.

        :raises DeleteFailed: where a node could not be told; it is told before this client reads from it again
        """
        client = self.async_client
        await self._run_async(client, invalidation, self.planner_of(client).invalidate(invalidation))

    def invalidate_wires(self, wires: tuple[bytes, ...], stale: int = 0) -> None:
        """Forget keys, or leave them as stale ones.

        :param stale: for how many seconds they may yet be served; 0 to forget them
        :raises DeleteFailed: where a node could not be told; it is told before this client reads from it again
        """
        if not stale:
            self.invalidate(Invalidation(wires))
            return
        client = self.client
        plan = self.planner_of(client).everywhere(lambda planner: outdating(planner, wires, stale))
        self._run(client, Invalidation(wires), plan)

    async def invalidate_wires_async(self, wires: tuple[bytes, ...], stale: int = 0) -> None:
        """As `invalidate_wires`. Once begun, it is not undone by a cancellation.

        :param stale: for how many seconds they may yet be served; 0 to forget them
        :raises DeleteFailed: where a node could not be told; it is told before this client reads from it again
        """
        if not stale:
            await self.invalidate_async(Invalidation(wires))
            return
        client = self.async_client
        await self._run_async(
            client, Invalidation(wires), self.planner_of(client).everywhere(lambda planner: outdating(planner, wires, stale))
        )

    def _run(self, client: Client, invalidation: Invalidation, plan: Plan[Any]) -> None:
        self._forget(invalidation)
        try:
            client.run(plan)
        finally:
            self._forget_near(invalidation)  # what was read between may have been old

    async def _run_async(self, client: AsyncClient, invalidation: Invalidation, plan: Plan[Any]) -> None:
        from kvcluster.cache.aio import to_the_end  # here, because few programs use both

        async def run() -> None:
            try:
                await client.run(plan)
            finally:
                self._forget_near(invalidation)

        self._forget(invalidation)
        await to_the_end(run())

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

    def _forget(self, invalidation: Invalidation) -> None:
        self._forget_near(invalidation)
        self._flights.forget(invalidation.wires)
        self._async_flights.forget(invalidation.wires)

    def _forget_near(self, invalidation: Invalidation) -> None:
        """Drop what the process itself keeps of it; with stamps everything, for values do not say there what they depend on."""
        if invalidation.stamps:
            self._near.clear()
        else:
            self._near.forget(invalidation.wires)


def _require_sql(feature: str) -> None:
    """Say what is missing before an import does, which would not say how to get it.

    :raises MissingExtra: without ``kvcluster[sql]``
    """
    if find_spec("sqlalchemy") is None:
        raise MissingExtra("sql", feature)


def _name_of(function: Callable[..., Any]) -> str:
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', function)}"


class _Decorator(Protocol):
    """What `Cache.loader` returns."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]]) -> AsyncLoader[P, R]: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, function: Callable[P, R]) -> Loader[P, R]: ...
