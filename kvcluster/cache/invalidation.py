"""What a commit deletes.

While a session flushes, the keys of the rows it changes are noted. They are deleted when its root transaction has ended: after
the commit, because a reader in between would store the old row again, and after the transaction's end, because raising or taking
a second connection inside ``after_commit`` leaves the session unusable. A rolled back savepoint keeps its keys: deleting one too
many costs a load, one too few is a stale read. For the same reason a commit that raised deletes too, since the database may have
it.

``commit()`` never raises because of the cache: the rows are in the database, and a caller that tried again would write twice. What
a signal handler raises meanwhile, such as a task's time limit, is not the cache's and goes on to the caller.
Deletes that did not reach their node are repeated in the background until they do, which is logged when it begins and when it is
done; this client does not read from the node before.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction, sessionmaker

from kvcluster.cache import fork
from kvcluster.cache.repository import RepositoryBase, maker_of
from kvcluster.client import Client
from kvcluster.errors import DeleteFailed, IllegalKey, KvclusterError
from kvcluster.plan import Invalidation

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine
    from sqlalchemy.ext.asyncio import async_sessionmaker

    from kvcluster.aio import AsyncClient
    from kvcluster.cache import Cache
    from kvcluster.cache.outbox import Outbox

log = logging.getLogger("kvcluster")

_FIRST_RETRY: Final = 0.1
_LAST_RETRY: Final = 1.0
_NOT_INVALIDATED: Final = "after a commit: %d rows of cache %r were not invalidated"


class _Pending:
    """What one session has changed since its root transaction began."""

    def __init__(self) -> None:
        self.rows: dict[tuple[RepositoryBase[Any], Any], None] = {}
        self.committing = False
        self.committed = False
        self.models: set[type[Any]] = set()  # whose transactions will write into the outbox
        self.written: list[tuple[Engine, tuple[int, ...]]] = []  # into the outbox

    def wires(self) -> list[bytes]:
        """The rows' keys, without repetition: repositories of one model share them. One that cannot be is left out."""
        wires: dict[bytes, None] = {}
        for repository, id in self.rows:
            try:
                wires.update(dict.fromkeys(repository.wires(id)))
            except IllegalKey as error:
                log.error("after a commit: a row of %r was not invalidated: %s", repository, error)
        return [*wires]


def bind(cache: Cache, session_factory: sessionmaker[Any] | async_sessionmaker[Any]) -> None:
    """Listen to the sessions of a factory; see `Cache.bind`."""
    slot = f"kvcluster:{cache.namespace}:{id(cache)}"
    slot_of_task = f"{slot}:deleting"
    retries = Retries()
    maker = maker_of(session_factory)
    is_async = not isinstance(maker, sessionmaker)
    target: Any = _own_session_class(maker) if is_async else maker

    def note(session: Session, instance: object) -> None:
        for repository in cache.repositories.get(type(instance), ()):
            pending = session.info.setdefault(slot, _Pending())
            pending.rows.update(((repository, id), None) for id in repository.identifiers_of(instance))
            enlist(session, pending, type(instance))

    def after_flush(session: Session, context: object) -> None:
        for instance in (*session.new, *session.dirty):
            note(session, instance)

    def before_commit(session: Session) -> None:
        if session.get_nested_transaction() is None:
            session.info.setdefault(slot, _Pending()).committing = True  # before the last flush, which adds keys

    def enlist(session: Session, pending: _Pending, model: type[Any]) -> None:
        """Let the transaction that changes these rows write down what it changed. While it does: a session may read elsewhere."""
        if cache.outbox is not None and model not in pending.models:
            pending.models.add(model)
            connection = session.connection(bind_arguments={"mapper": model})
            cache.outbox.attach(connection, pending, partial(record, cache.outbox, pending))

    def record(outbox: Outbox, pending: _Pending, connection: Connection) -> None:
        if cache.connected and (wires := pending.wires()):  # else the keys are not known, which is logged afterwards
            pending.written.append((connection.engine, outbox.write(connection, Invalidation(tuple(wires)))))

    def after_commit(session: Session) -> None:
        """In a task: a cancellation while the session gives its connection back keeps ``after_transaction_end`` from coming."""
        if session.get_nested_transaction() is not None or (pending := session.info.get(slot)) is None:
            return
        pending.committed = True
        if is_async and pending.rows:
            del session.info[slot]
            session.info[slot_of_task] = asyncio.get_running_loop().create_task(delete_async(pending))

    def after_transaction_end(session: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is not None:
            return
        pending = session.info.pop(slot, None)
        deleting = session.info.pop(slot_of_task, None)
        if pending is not None and (pending.committing or pending.committed) and pending.rows:
            if is_async:
                deleting = delete_async(pending)
            else:
                delete(pending)
        if deleting is not None:
            from sqlalchemy.util import await_only  # the sync half of an async session runs in a greenlet, which can wait

            from kvcluster.cache.aio import to_the_end

            await_only(to_the_end(deleting))

    def delete(pending: _Pending) -> None:
        try:
            cache.invalidate(Invalidation(tuple(pending.wires())))
            acknowledge(pending)
        except DeleteFailed as error:
            retries.start(cache.client, error)
        except BaseException as error:
            if _is_the_caches(error):
                log.exception(_NOT_INVALIDATED, len(pending.rows), cache.namespace)
                return
            if cache.client.missed_deletes:
                retries.start(cache.client, error)
            raise

    async def delete_async(pending: _Pending) -> None:
        try:
            await cache.invalidate_async(Invalidation(tuple(pending.wires())))
            acknowledge(pending)
        except DeleteFailed as error:
            retries.start_async(cache.async_client, error)
        except Exception as error:
            if _is_the_caches(error):
                log.exception(_NOT_INVALIDATED, len(pending.rows), cache.namespace)
                return
            if cache.async_client.missed_deletes:
                retries.start_async(cache.async_client, error)
            raise

    def acknowledge(pending: _Pending) -> None:
        """A commit that raised may be carried out yet, after what it changed was deleted: its row is left to the worker."""
        if cache.outbox is not None and pending.committed:
            for engine, ids in pending.written:
                cache.outbox.done(engine, ids)

    event.listen(target, "after_flush", after_flush)
    event.listen(target, "persistent_to_deleted", note)  # orphans too, which are in no list of the session
    event.listen(target, "before_commit", before_commit)
    event.listen(target, "after_commit", after_commit)
    event.listen(target, "after_transaction_end", after_transaction_end)


def _is_the_caches(error: BaseException) -> bool:
    """Whether an error comes from the cache, or from a fault in it: then it is this library's, or one of Python's own.

    Signal handlers raise errors of other classes, or such that are no Exception.
    """
    return isinstance(error, KvclusterError) or (isinstance(error, Exception) and type(error).__module__ == "builtins")


def _own_session_class(factory: async_sessionmaker[Any]) -> type[Session]:
    """The class of the sync sessions under an async factory's, made its own, so that no other factory hears of it."""
    given: type[Session] = factory.kw.get("sync_session_class") or factory.class_.sync_session_class
    own = type(given.__name__, (given,), {})
    factory.configure(sync_session_class=own)
    return own


class Retries:
    """Repeats clients' failed deletes in the background, in one daemon thread per client that ends when there are none left.

    It does so at once, and again at each further failure: what a hanging node finds in its socket's buffer when it wakes, it
    carries out before others read from it.
    """

    def __init__(self) -> None:
        self._tasks: dict[int, tuple[asyncio.Task[None], asyncio.Event]] = {}  # by client
        fork.renewed(self)

    def renew(self) -> None:
        """Begin without threads; in a forked child too, which has none of its parent's."""
        self._running: dict[int, threading.Event] = {}  # by client
        self._lock = threading.Lock()

    def start(self, client: Client, error: BaseException) -> None:
        """Repeat this client's failed deletes."""
        name = id(client)
        with self._lock:
            if name in self._running:
                self._running[name].set()
                return
            self._running[name] = failed_again = threading.Event()
        log.error("after a commit: %s; deletes are repeated until they succeed", error)
        arguments = (client, name, failed_again)
        threading.Thread(target=self._repeat, args=arguments, name="kvcluster-retries", daemon=True).start()

    def _repeat(self, client: Client, name: int, failed_again: threading.Event) -> None:
        delay = _FIRST_RETRY
        while client.replay_deletes() or not self._finish(client, name):
            delay = _FIRST_RETRY if failed_again.wait(delay) else min(delay * 2, _LAST_RETRY)
            failed_again.clear()
        _log_end(client)

    def _finish(self, client: Client, name: int) -> bool:
        """End, unless a commit failed just now that has seen this thread running."""
        with self._lock:
            if client.missed_deletes:
                return False
            del self._running[name]
            return True

    def start_async(self, client: AsyncClient, error: BaseException) -> None:
        """As `start`, in a task of the running loop, which ends with that."""
        loop = asyncio.get_running_loop()
        name = id(client)
        if name in self._tasks and self._tasks[name][0].get_loop() is loop:
            self._tasks[name][1].set()
            return
        log.error("after a commit: %s; deletes are repeated until they succeed", error)
        failed_again = asyncio.Event()
        self._tasks[name] = (loop.create_task(self._repeat_async(client, name, failed_again)), failed_again)

    async def _repeat_async(self, client: AsyncClient, name: int, failed_again: asyncio.Event) -> None:
        delay = _FIRST_RETRY
        try:
            while await client.replay_deletes():
                try:
                    await asyncio.wait_for(failed_again.wait(), delay)
                    delay = _FIRST_RETRY
                except TimeoutError:
                    delay = min(delay * 2, _LAST_RETRY)
                failed_again.clear()
        finally:
            self._tasks.pop(name, None)
        _log_end(client)


def _log_end(client: Client | AsyncClient) -> None:
    if not client.left_alone:  # else the node's state has logged what became of its deletes
        log.warning("all deletes that failed after a commit have succeeded")
