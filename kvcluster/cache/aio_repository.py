"""`AsyncRepository`: `Repository` for asyncio. On its own, because SQLAlchemy's asyncio half needs greenlet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker  # where it lacks greenlet, it says how to install that

from kvcluster.cache.aio import drive_async, read_async
from kvcluster.cache.explain import Explanation, explain
from kvcluster.cache.flows import refresh_one
from kvcluster.cache.loader import in_order
from kvcluster.cache.policy import Policy
from kvcluster.cache.repository import RepositoryBase

if TYPE_CHECKING:
    from kvcluster.cache import Cache

M = TypeVar("M")


class AsyncRepository(RepositoryBase[M]):
    """The rows of one mapped class. Made by `Cache.repository`. As `Repository`, with calls that are awaited."""

    is_async = True

    def __init__(self, cache: Cache, model: type[M], sessions: async_sessionmaker[Any], policy: Policy) -> None:
        super().__init__(cache, model, policy)
        self.sessions = sessions

    async def get(self, id: Any, *, session: AsyncSession | None = None) -> M | None:
        """The row with this primary key as a detached instance, or None where there is none.

        :param session: read by this session instead, and store nothing: it sees its own changes, and perhaps an older snapshot
        """
        client = self._cache.async_client
        wire = self.wire(id)
        if session is not None:
            self._cache.count_unstored(client, [wire])
            return self._instance((await self._load_with(session, [id])).get(id))
        source = self._source(client)
        return self._instance(await read_async(client, source, wire, lambda: self._load_one(id), self._stamps(self.stamps)))

    async def get_many(self, ids: Iterable[Any], *, session: AsyncSession | None = None) -> dict[Any, M | None]:
        """The rows with these primary keys, by primary key: one multi-get over all nodes, and one SELECT for what is missing."""
        wires = {id: self.wire(id) for id in dict.fromkeys(ids)}
        wanted = [*wires]
        client = self._cache.async_client
        if session is not None:
            self._cache.count_unstored(client, [*wires.values()])
            rows = await self._load_with(session, wanted)
        else:
            rows = await drive_async(self._reading(self._bulk_source(client), wires, self._load), client) if wanted else {}
        return {id: self._instance(rows.get(id)) for id in wanted}

    async def list(self, ids: Iterable[Any], *, session: AsyncSession | None = None) -> list[M]:
        """As `get_many`, as a list in the order asked, without rows that are not there."""
        order = [*ids]
        return in_order(order, await self.get_many(order, session=session))

    async def refresh(self, id: Any) -> M | None:
        """Load a row now whatever is cached, store it, and return it."""
        client = self._cache.async_client
        source = self._source(client)
        flow = refresh_one(source, self.wire(id), lambda: self._load_one(id), self._stamps(self.stamps))
        return self._instance(await drive_async(flow, client))

    async def invalidate(self, id: Any, *, soft: bool = False) -> None:
        """Forget a row, in each version of its key. A load that is under way will not be stored. Once begun, it is not undone by a
        cancellation.

        :param soft: keep it as a stale one instead, which may be served while it is refreshed or where that fails, for as long as
            the policy says; where it says nothing of the kind, forget it
        :raises DeleteFailed: where its node could not be told; it is told before this client reads from it again
        """
        await self._cache.invalidate_wires_async(self.wires(id), self.policy.stale if soft else 0)

    async def save(self, instance: M) -> M:
        """Write a row in a transaction of its own, and forget what that makes untrue: for a row that is new, and for one that was
        read here and changed. What of it was never loaded or set stays as it is in the database; every other column is written as
        it is here, and undoes what others have changed since this was read. Where others write too, change the row in a session, or
        give the mapping a ``version_id_col``: then this raises `sqlalchemy.orm.exc.StaleDataError`.

        As with any commit, the cache is no reason to raise: a node that could not be told is told later.

        :returns: the row as the database has it now, detached
        """
        self._require_own(instance)
        async with self._writing.begin() as session:
            merged: M = await session.merge(instance)
            await session.flush()
            await session.refresh(merged)
            session.expunge(merged)
        return merged

    async def delete(self, id: Any) -> bool:
        """Delete a row in a transaction of its own, and forget what that makes untrue. Parameters and errors as for `save`.

        :returns: whether there was one
        """
        self.wire(id)  # an id of another type is an error, as when it is read
        async with self._writing.begin() as session:
            instance = await session.get(self.model, id)
            if instance is not None:
                await session.delete(instance)
        return instance is not None

    async def explain(self, id: Any) -> Explanation:
        """Where a row would come from now, and why. It changes nothing."""
        client = self._cache.async_client
        source = self._source(client)
        return await drive_async(explain(source, self.wire(id), self._stamps(self.stamps)), client)

    async def _load_one(self, id: Any) -> dict[str, Any] | None:
        return (await self._load([id])).get(id)

    async def _load(self, ids: Sequence[Any]) -> dict[Any, dict[str, Any]]:
        async with self.sessions() as session:
            return await self._load_with(session, ids)

    async def _load_with(self, session: AsyncSession, ids: Sequence[Any]) -> dict[Any, dict[str, Any]]:
        return self._rows(await session.execute(self._query(ids)))
