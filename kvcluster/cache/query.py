"""`Query`: a cached query whose result is primary keys, and whose rows come from a repository.

So a row that ten lists hold is cached once, and a change of it costs the lists nothing but a small load of ids each. Warm, a call
is two exchanges: one with the node that has the ids, one with all nodes that have the rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from kvcluster.cache.repository import RepositoryBase
from kvcluster.errors import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy import Select

    from kvcluster.cache import Cache
    from kvcluster.cache.aio import AsyncLoader
    from kvcluster.cache.aio_repository import AsyncRepository
    from kvcluster.cache.loader import Loader
    from kvcluster.cache.repository import Repository

P = ParamSpec("P")
M = TypeVar("M")


class QueryBase(Generic[P, M]):
    """What `Query` and `AsyncQuery` share.

    :param ids: the cached ids, a loader
    :param rows: the rows' repository
    """

    def __init__(self, ids: Any, rows: Any) -> None:
        self._ids = ids
        self._rows = rows
        self.__doc__ = ids.__doc__
        self.__name__ = ids.__name__

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._ids!r}>"


class Query(QueryBase[P, M]):
    """A cached query. Made by `Cache.query`."""

    _ids: Loader[P, list[Any]]
    _rows: Repository[M]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> list[M]:
        return self._rows.list(self._ids(*args, **kwargs))

    def ids(self, *args: P.args, **kwargs: P.kwargs) -> list[Any]:
        """The primary keys alone."""
        return self._ids(*args, **kwargs)

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Forget a result. A load that is under way will not be stored.

        :raises DeleteFailed: where its node could not be told; it is told before this client reads from it again
        """
        self._ids.invalidate(*args, **kwargs)

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> list[M]:
        """Query now whatever is cached, store the ids, and return the rows."""
        return self._rows.list(self._ids.refresh(*args, **kwargs))


class AsyncQuery(QueryBase[P, M]):
    """A cached query. Made by `Cache.query`. As `Query`, with calls that are awaited."""

    _ids: AsyncLoader[P, list[Any]]
    _rows: AsyncRepository[M]

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> list[M]:
        return await self._rows.list(await self._ids(*args, **kwargs))

    async def ids(self, *args: P.args, **kwargs: P.kwargs) -> list[Any]:
        """The primary keys alone."""
        return await self._ids(*args, **kwargs)

    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Forget a result. A load that is under way will not be stored. Once begun, it is not undone by a cancellation.

        :raises DeleteFailed: where its node could not be told; it is told before this client reads from it again
        """
        await self._ids.invalidate(*args, **kwargs)

    async def refresh(self, *args: P.args, **kwargs: P.kwargs) -> list[M]:
        """Query now whatever is cached, store the ids, and return the rows."""
        return await self._rows.list(await self._ids.refresh(*args, **kwargs))


def repository_of(cache: Cache, watched: Iterable[Any]) -> RepositoryBase[Any]:
    """The repository of the one mapped class that a query watches and that has one; of several, one for threads.

    :raises ConfigurationError: where there is none, or where several classes have one
    """
    models = [model for model in watched if isinstance(model, type) and model in cache.repositories]
    if len(models) != 1:
        raise ConfigurationError(
            f"cache {cache.namespace!r}: a query's rows come from the repository of the mapped class that it watches; "
            f"{'none' if not models else 'more than one'} of {[*watched]} has one: declare "
            "cache.repository(Model, session_factory) before, or say repository="
        )
    return min(cache.repositories[models[0]], key=lambda repository: repository.is_async)


def query_of(function: Callable[..., Select[Any]], rows: RepositoryBase[Any], declare: Callable[[Any], Any]) -> QueryBase[Any, Any]:
    """A query as it is decorated.

    :param function: makes the statement from the arguments that stand in the key
    :param declare: makes a loader of a function
    """

    def load(*args: Any, **kwargs: Any) -> Sequence[Any]:
        with rows.sessions() as session:
            return [*session.scalars(rows.ids_only(function(*args, **kwargs)))]

    async def load_async(*args: Any, **kwargs: Any) -> Sequence[Any]:
        async with rows.sessions() as session:
            return [*await session.scalars(rows.ids_only(function(*args, **kwargs)))]

    loading: Any = load_async if rows.is_async else load
    for name in ("__module__", "__name__", "__qualname__", "__doc__"):
        setattr(loading, name, getattr(function, name))
    loading.__signature__ = inspect.signature(function)
    kind: Any = Any if rows.kind is object else rows.kind
    loading.__annotations__ = {"return": list[kind]}
    return (AsyncQuery if rows.is_async else Query)(declare(loading), rows)
