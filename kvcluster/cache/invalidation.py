"""What a commit invalidates.

While a session's transaction goes on, the names of the keys and stamps that its changes make untrue are noted: those of a unit of
work when it was flushed, those of other statements when they are executed. Each savepoint has its own: released, they become
those of the transaction around it; rolled back, they are forgotten. What a statement on an engine's own connection changes, and
one that is written as text, is not seen: `Cache.invalidate_table` is for those.

The nodes are told when the root transaction has ended: after the commit, because a reader in between would store the old row again,
and after the transaction's end, because raising or taking a second connection inside ``after_commit`` leaves the session unusable.
A commit that raised invalidates too, since the database may have it.

``commit()`` never raises because of the cache: the rows are in the database, and a caller that tried again would write twice. What
a signal handler raises meanwhile, such as a task's time limit, is not the cache's and goes on to the caller.
Deletes that did not reach their node are repeated in the background until they do, which is logged when it begins and when it is
done; this client does not read from the node before.

With an outbox, what is to be invalidated is a row of the same transaction, written by the last statement before its COMMIT.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary, WeakSet, ref

from sqlalchemy import Connection, Engine, Table, event
from sqlalchemy.orm import Mapper, ORMExecuteState, Session, SessionTransaction, UOWTransaction, object_session, sessionmaker
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.orm.context import FromStatement
from sqlalchemy.orm.state import InstanceState
from sqlalchemy.sql.dml import Delete, Update, UpdateBase

from kvcluster.cache.changes import (
    Unknown,
    properties,
    rows_in_database,
    rows_of_instance,
    rows_of_statement,
    written_columns,
    written_tables,
)
from kvcluster.cache.dependants import dependants, in_order, referred
from kvcluster.cache.repository import maker_of
from kvcluster.cache.retries import Retries, tell, tell_async
from kvcluster.cache.watch import Names, Row
from kvcluster.planner import Planner

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

    from kvcluster.cache import Cache
    from kvcluster.cache.outbox import Outbox

log = logging.getLogger("kvcluster")

_UNNAMED: Final = "cache %r cannot tell which rows of table %s were changed, and forgets them all"


class Changes:
    """What one session has changed since its root transaction began.

    :ivar names: of what that invalidates, by savepoint; None stands for the root transaction
    :ivar known: what the database had for instances that are being flushed, by table
    :ivar modified: their attributes that are being written
    :ivar flush: the last unit of work
    :ivar wrote: the connections that it changed anything by
    :ivar written: the rows of the outbox that say the same
    """

    def __init__(self) -> None:
        self.names: dict[SessionTransaction | None, Names] = {}
        self.known: dict[str, dict[InstanceState[Any], Row]] = {}
        self.modified: dict[InstanceState[Any], frozenset[str]] = {}
        self.flush: UOWTransaction | None = None
        self.committing = self.committed = False
        self.wrote: WeakSet[Connection] = WeakSet()
        self.written: list[tuple[Engine, tuple[int, ...]]] = []

    def is_flushing(self, session: Session) -> bool:
        """Whether the unit of work is writing: not its listeners before, nor what they begin meanwhile."""
        transaction = getattr(self.flush, "transaction", None)
        return transaction is not None and transaction is session._transaction

    def names_of(self, session: Session) -> Names:
        """What is noted for the innermost savepoint that is open."""
        return self.names.setdefault(session.get_nested_transaction(), Names())

    def release(self, transaction: SessionTransaction) -> None:
        """Make a savepoint's names those of the transaction around it."""
        if (names := self.names.pop(transaction, None)) is not None:
            outer = transaction.parent
            while outer is not None and not outer.nested:
                outer = outer.parent
            self.names.setdefault(outer, Names()).update(names)

    @property
    def root(self) -> Names:
        """What the root transaction changed, if it was to be committed."""
        return self.names.get(None, Names()) if self.committing or self.committed else Names()


class Binding:
    """A cache that listens to the sessions of a factory; see `Cache.bind`."""

    def __init__(self, cache: Cache, session_factory: sessionmaker[Any] | async_sessionmaker[Any]) -> None:
        maker = maker_of(session_factory)
        self.maker = maker
        self._cache = cache
        self._retries = Retries()
        self._is_async = not isinstance(maker, sessionmaker)
        #: The class of the sessions, which no other factory's are of.
        self.sessions: type[Session] = _own_session_class(maker) if self._is_async else maker.class_
        self._slot = f"kvcluster:{cache.namespace}:{id(cache)}"
        self._slot_of_task = f"{self._slot}:task"
        self._slot_of_failed = f"{self._slot}:failed"
        self._engines: WeakSet[Engine] = WeakSet()
        self._connected: WeakKeyDictionary[Connection, ref[Session]] = WeakKeyDictionary()
        for name in (
            "after_begin", "before_flush", "after_flush", "persistent_to_deleted", "do_orm_execute",
            "before_commit", "after_commit", "after_transaction_end",
        ):  # fmt: skip
            event.listen(self.sessions, name, getattr(self, f"_{name}"))
        for name in ("before_update", "before_delete"):
            event.listen(Mapper, name, self._before_statement)

    @property
    def _planner(self) -> Planner:
        return self._cache.planner

    def _changes(self, session: Session) -> Changes:
        changes: Changes = session.info.setdefault(self._slot, Changes())
        return changes

    # -- statements

    def _after_begin(self, session: Session, transaction: object, connection: Connection) -> None:
        engine = connection.engine
        if engine not in self._engines:
            self._engines.add(engine)
            event.listen(engine, "before_execute", self._before_execute)
            event.listen(engine, "before_cursor_execute", self._before_cursor_execute)
            event.listen(engine, "commit", self._committing)
            if engine.dialect.name == "sqlite":
                event.listen(engine, "savepoint", _begin)
        self._connected[connection] = ref(session)

    def _session_of(self, connection: Connection) -> Session | None:
        found = self._connected.get(connection)
        return None if found is None else found()

    def _before_execute(
        self, connection: Connection, statement: object, many: Sequence[Any], one: Any, options: Mapping[str, Any]
    ) -> None:
        if isinstance(statement, FromStatement):
            statement = statement.element
        if not isinstance(statement, UpdateBase) or (session := self._session_of(connection)) is None:
            return
        changes = self._changes(session)
        tables = written_tables(statement)
        for table in tables:
            self._enlist(changes, connection, table)
        if changes.is_flushing(session) and "compiled_cache" in options:
            return  # the unit of work's own
        parameters = [*many] or [one]
        for table in tables:
            # of several tables, and of an alias, it is not asked which rows
            is_plain = tables == [statement.table]
            self._note(session, table, partial(rows_of_statement, statement, parameters) if is_plain else _unknown)
            if isinstance(statement, Delete):
                self._note_cascades(session, table)
            elif isinstance(statement, Update):
                self._note_followers(session, table, written_columns(statement, parameters))

    def _do_orm_execute(self, execution: ORMExecuteState) -> None:
        """A statement that a flush's listener gives the session: by its options it may look like the unit of work's own."""
        statement = execution.statement
        if isinstance(statement, UpdateBase) and self._changes(execution.session).is_flushing(execution.session):
            for table in written_tables(statement):
                self._note(execution.session, table, _unknown)
                self._note_cascades(execution.session, table)

    def _before_cursor_execute(
        self, connection: Connection, cursor: object, text: str, parameters: object, context: Any, many: bool
    ) -> None:
        """Statements inside of others, which are known without a search once the whole was compiled."""
        ctes = getattr(context.compiled, "ctes", None)
        if not ctes or (session := self._session_of(connection)) is None:
            return
        for table in [table for cte in ctes if isinstance(cte.element, UpdateBase) for table in written_tables(cte.element)]:
            self._enlist(self._changes(session), connection, table)
            self._note(session, table, _unknown)
            self._note_cascades(session, table)

    # -- units of work

    def _before_flush(self, session: Session, context: UOWTransaction, instances: object) -> None:
        changes = self._changes(session)
        changes.flush, changes.known, changes.modified = context, {}, {}
        by_table: dict[Table, dict[Mapper[Any], list[InstanceState[Any]]]] = {}
        for instance in (*session.dirty, *session.deleted):
            state = instance_state(instance)
            for table in _tables(state.mapper):
                by_table.setdefault(table, {}).setdefault(state.mapper, []).append(state)
        for table in in_order(by_table):  # of all transactions, so that none locks rows which another waits for
            for mapper in sorted(by_table[table], key=str):
                self._look_up(session, mapper, table, by_table[table][mapper])

    def _before_statement(self, mapper: Mapper[Any], connection: Connection, instance: object) -> None:
        """Look at what only the flush itself found changed: orphans, and what a relationship writes."""
        session, state = object_session(instance), instance_state(instance)
        if isinstance(session, self.sessions):
            self._changes(session).modified[state] = frozenset(state.committed_state)
            for table in _tables(mapper):
                self._look_up(session, mapper, table, [state])

    def _look_up(self, session: Session, mapper: Mapper[Any], table: Table, states: Iterable[InstanceState[Any]]) -> None:
        """Ask the database for the columns of changed rows that are watched and not what the rows are found by."""
        if not (columns := self._cache.watches.columns(table.fullname)):
            return
        known = self._changes(session).known.setdefault(table.fullname, {})
        unknown = [state for state in states if state.key is not None and state not in known]
        if unknown and (asked := _not_identifying(mapper, table, columns)):
            connection = session.connection(bind_arguments={"mapper": mapper, "clause": table})
            known.update(rows_in_database(connection, mapper, table, asked, unknown))

    def _after_flush(self, session: Session, context: object) -> None:
        for instance in session.new:
            self._note_instance(session, instance)
        for instance in session.dirty:
            state = instance_state(instance)
            written = [*self._changes(session).modified.get(state, ()), *state.committed_state]
            columns = {column.name for key in written for column in getattr(state.mapper.attrs.get(key), "columns", ())}
            for table in self._note_instance(session, instance):
                self._note_followers(session, table, columns)

    def _persistent_to_deleted(self, session: Session, instance: object) -> None:
        for table in self._note_instance(session, instance):
            self._note_cascades(session, table)

    def _note_instance(self, session: Session, instance: object) -> list[Table]:
        state = instance_state(instance)
        tables = _tables(state.mapper)
        changes = self._changes(session)
        modified = changes.modified.get(state, frozenset())
        for table in tables:
            row = changes.known.get(table.fullname, {}).get(state)
            self._note(session, table, partial(rows_of_instance, state, table, row, modified))
        return tables

    def _note(self, session: Session, table: Any, rows_of: Callable[[Iterable[str]], Iterable[Row]]) -> None:
        """Note what a change invalidates: of the rows that are told, else of the table."""
        watches, name = self._cache.watches, getattr(table, "fullname", "")
        if name not in watches:
            return
        rows: list[Row] | None = None
        try:
            rows = [*rows_of(watches.columns(name))]
        except (Unknown, LookupError):
            pass
        except Exception:  # it has to do with the cache alone, and the flush goes on
            log.warning(_UNNAMED, self._cache.namespace, name, exc_info=True)
        self._changes(session).names_of(session).update(watches.invalidated(name, rows))

    def _note_cascades(self, session: Session, table: Any) -> None:
        """Note what the database itself deletes or changes when rows of a table are deleted."""
        for other in dependants(table):
            self._note(session, other, _unknown)

    def _note_followers(self, session: Session, table: Table, written: Iterable[str]) -> None:
        """Note what the database itself changes when columns are written that others refer to."""
        if not referred(table).isdisjoint(written):
            for other in dependants(table, on_update=True):
                self._note(session, other, _unknown)

    # -- transactions

    def _before_commit(self, session: Session) -> None:
        if session.get_nested_transaction() is None:
            self._changes(session).committing = True  # before the last flush, which adds names

    def _committing(self, connection: Connection) -> None:
        """A COMMIT follows. While savepoints are open, ``before_commit`` cannot tell the root transaction from them."""
        if (session := self._session_of(connection)) is not None:
            self._changes(session).committing = True

    def _enlist(self, changes: Changes, connection: Connection, table: Table) -> None:
        """Let the transaction that changes anything write down what it changed, as its last statement."""
        outbox = self._cache.outbox
        if outbox is None or connection in changes.wrote:
            return
        if any(each.fullname in self._cache.watches for each in (table, *dependants(table))):
            changes.wrote.add(connection)
            outbox.attach(connection, changes, partial(self._record, outbox, changes))

    def _record(self, outbox: Outbox, changes: Changes, connection: Connection) -> None:
        names = changes.names.get(None)
        if self._cache.connected and names:  # else the keys are not known, which is logged afterwards
            invalidation = names.invalidation(self._planner)
            changes.written.append((connection.engine, outbox.write(connection, invalidation)))

    def _after_commit(self, session: Session) -> None:
        """Savepoints are released; and asyncio's sessions begin here, in a task: a cancellation while a session gives its
        connection back keeps ``after_transaction_end`` from coming.
        """
        changes = self._changes(session)
        if (savepoint := session.get_nested_transaction()) is not None:
            changes.release(savepoint)
            return
        changes.committed = True
        if self._is_async and changes.root:
            del session.info[self._slot]
            session.info[self._slot_of_task] = asyncio.get_running_loop().create_task(self._tell_async(session, changes))

    def _after_transaction_end(self, session: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is not None:
            self._changes(session).names.pop(transaction, None)
            return
        changes: Changes = session.info.pop(self._slot, None) or Changes()
        telling: Any = session.info.get(self._slot_of_task)
        if not changes.root:
            changes.names.clear()  # rolled back: a connection that the session was given may yet be committed
        else:
            if not self._is_async:
                self._tell(session, changes)
                return
            telling = self._tell_async(session, changes)
        if telling is not None:
            from sqlalchemy.util import await_only  # the sync half of an async session runs in a greenlet, which can wait

            from kvcluster.cache.aio import to_the_end

            await_only(to_the_end(telling))
            session.info.pop(self._slot_of_task, None)

    # -- telling the nodes

    def _tell(self, session: Session, changes: Changes) -> None:
        failed = self._failed(session, changes)
        if tell(self._cache, self._retries, changes.root):
            self._told(failed, changes)

    async def _tell_async(self, session: Session, changes: Changes) -> None:
        failed = self._failed(session, changes)
        if await tell_async(self._cache, self._retries, changes.root):
            self._told(failed, changes)

    def _failed(self, session: Session, changes: Changes) -> Names:
        """What no node may have heard of yet, now with these changes."""
        failed: Names = session.info.setdefault(self._slot_of_failed, Names())
        failed.update(changes.root)
        return failed

    def _told(self, failed: Names, changes: Changes) -> None:
        """Acknowledge what the outbox says. A commit that raised may be carried out yet, after its changes were invalidated: its
        row is left to the worker.
        """
        failed.remove(changes.root)
        if self._cache.outbox is not None and changes.committed:
            for engine, ids in changes.written:
                self._cache.outbox.done(engine, ids)

    # -- for those who wait

    def flush(self, session: Session) -> None:
        """See `Cache.flush`."""
        if failed := session.info.get(self._slot_of_failed):
            self._cache.invalidate(failed.invalidation(self._planner))
            failed.clear()

    async def flush_async(self, session: AsyncSession) -> None:
        """See `Cache.flush_async`."""
        info = session.sync_session.info
        if (telling := info.get(self._slot_of_task)) is not None:
            await asyncio.wait((telling,))
        if failed := info.get(self._slot_of_failed):
            await self._cache.invalidate_async(failed.invalidation(self._planner))
            failed.clear()


def bind(cache: Cache, session_factory: sessionmaker[Any] | async_sessionmaker[Any]) -> Binding:
    """Listen to the sessions of a factory; see `Cache.bind`."""
    return Binding(cache, session_factory)


def _begin(connection: Connection, name: str) -> None:
    """Python's sqlite3 begins a transaction only before the first change: a savepoint before it would be committed by its release,
    whatever becomes of the session.
    """
    if not connection.connection.driver_connection.in_transaction:  # type: ignore[union-attr]
        connection.exec_driver_sql("BEGIN")


def _unknown(columns: object) -> Iterable[Row]:
    raise Unknown


def _tables(mapper: Mapper[Any]) -> list[Table]:
    return [table for table in mapper.tables if isinstance(table, Table)]


def _not_identifying(mapper: Mapper[Any], table: Table, columns: Iterable[str]) -> list[str]:
    """Those of some columns that are mapped, and no part of the primary key."""
    identifying = {mapper.get_property_by_column(column).key for column in mapper.primary_key}
    mapped = {column.name for column in table.columns if mapper.columns.contains_column(column)}
    attributes = properties(mapper, table, mapped.intersection(columns))
    return [name for name, key in attributes.items() if key not in identifying]


def _own_session_class(factory: async_sessionmaker[Any]) -> type[Session]:
    """The class of the sync sessions under an async factory's, made its own, so that no other factory hears of it."""
    given: type[Session] = factory.kw.get("sync_session_class") or factory.class_.sync_session_class
    own = type(given.__name__, (given,), {})
    factory.configure(sync_session_class=own)
    return own
