"""The outbox: what a commit invalidates, written down in the same transaction, so that a crash after the commit loses nothing.

A transaction adds one row that holds the keys to delete and the stamps to renew. After the commit the writer tells the nodes
itself, as it does without an outbox, and acknowledges: the row is deleted, together with others, by a background thread, because a
transaction of its own for each would double the cost of a write. A row that is still there after some seconds belonged to a writer
that died, or to a node that could not be told; a worker (`kvcluster.cache.worker`) does what it says. Doing that twice, or for a
transaction that was invalidated long ago, costs a load and nothing else. So an acknowledgement may be lost, and a row may not.

Rows are found because they exist, never by being newer than the last one seen: ids are given out in another order than
transactions commit in. Ids are never used again, or a late acknowledgement would delete somebody else's row.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import re
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import msgspec

from kvcluster.cache import fork
from kvcluster.errors import ConfigurationError, KvclusterError, MissingExtra
from kvcluster.plan import Invalidation
from kvcluster.protocol.requests import MAX_BINARY_KEY, MAX_KEY, BinaryKey

try:
    from sqlalchemy import (
        BigInteger,
        Column,
        Connection,
        Engine,
        Integer,
        LargeBinary,
        MetaData,
        Table,
        bindparam,
        delete,
        event,
        func,
        insert,
        inspect,
        select,
    )
    from sqlalchemy.dialects.mysql import LONGBLOB
    from sqlalchemy.ext.compiler import compiles
    from sqlalchemy.schema import CreateTable
    from sqlalchemy.sql.functions import FunctionElement
except ImportError:
    raise MissingExtra("sql", "an outbox") from None

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

log = logging.getLogger("kvcluster")

TABLE: Final = "kvcluster_outbox"
FORMAT: Final = 1  # of a row's payload
KEYS_PER_ROW: Final = 4_000  # of 250 bytes each at most: a row stays far below what databases take in one statement
DIALECTS: Final = ("sqlite", "mysql", "mariadb", "postgresql")
_ONE_TABLE: Final = {"schema_translate_map": None}  # whatever schema a program maps its own tables to
_BATCH: Final = 500  # rows deleted by one statement
_UNACKNOWLEDGED_MAX: Final = 100_000  # rows that wait for their acknowledgement; what is beyond is left to the worker
_PLAIN: Final = re.compile(rb"[^\x00-\x20\x7f]{1,%d}" % MAX_KEY).fullmatch
_BINARY: Final = 1  # msgpack's extension type of a key that travels in base64


class Unreadable(KvclusterError):
    """A row was written by a release whose format this one does not know, or not by kvcluster."""


@dataclass(frozen=True, slots=True)
class Message:
    """What a row says.

    :ivar wires: keys to delete at their owners
    :ivar stamps: keys to delete on every node; a stamp that is not there is made anew by whoever needs it, so that what was stored
        under the old one is no longer valid
    :ivar told: addresses of the nodes that have deleted the stamps already

    >>> Message.unpack(Message((b"shop:User:1",), (b"shop:__stamp:table:user",)).pack()).wires
    (b'shop:User:1',)
    """

    wires: tuple[bytes, ...]
    stamps: tuple[bytes, ...] = ()
    told: tuple[str, ...] = ()

    def pack(self) -> bytes:
        """The row's payload: msgpack of the format's number and the fields in their order."""
        return _encode((FORMAT, [*map(_packed, self.wires)], [*map(_packed, self.stamps)], self.told))

    @classmethod
    def unpack(cls, payload: bytes) -> Message:
        """What a payload says.

        :raises Unreadable: where this release cannot know
        """
        try:
            written, *rest = _decode(payload)
            message = cls(*map(tuple, rest)) if written == FORMAT else None
        except (ValueError, TypeError, RecursionError) as error:
            raise Unreadable(f"not an outbox's payload: {error}") from None
        if message is None:
            raise Unreadable(f"payload has format {written!r:.20}, this release reads {FORMAT}")
        if not all(map(_is_wire, message.wires + message.stamps)):
            raise Unreadable("not an outbox's payload: it has keys that no node takes")
        if not all(isinstance(address, str) for address in message.told):
            raise Unreadable("not an outbox's payload: addresses are text")
        return message


def _is_wire(key: object) -> bool:
    """Whether a node takes this as one key, and as nothing else: others than a writer may insert rows."""
    if type(key) is BinaryKey:
        return 0 < len(key) <= MAX_BINARY_KEY
    return type(key) is bytes and _PLAIN(key) is not None


def _packed(key: bytes) -> bytes | msgspec.msgpack.Ext:
    return msgspec.msgpack.Ext(_BINARY, key) if type(key) is BinaryKey else key


def _unpacked(code: int, data: memoryview) -> BinaryKey:
    if code != _BINARY:
        raise ValueError(f"unknown extension type {code}")
    return BinaryKey(data)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Any], ext_hook=_unpacked).decode


class Now(FunctionElement[int]):
    """Milliseconds since 1970 by the database's clock, at this statement and not at the beginning of its transaction."""

    type = BigInteger()
    inherit_cache = True


@compiles(Now, "sqlite")
def _(element: Now, compiler: Any, **options: Any) -> str:
    return "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"


@compiles(Now, "mysql")
@compiles(Now, "mariadb")
def _(element: Now, compiler: Any, **options: Any) -> str:
    # Not UNIX_TIMESTAMP(): it goes through local time, which has an hour twice a year.
    return "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) DIV 1000"


@compiles(Now, "postgresql")
def _(element: Now, compiler: Any, **options: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)"


def table_of(name: str = TABLE) -> Table:
    """The table, for `create_all` and for migrations."""
    return Table(
        name,
        MetaData(),
        Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
        Column("created_at", BigInteger, nullable=False, default=Now()),
        Column("payload", LargeBinary().with_variant(LONGBLOB, "mysql", "mariadb"), nullable=False),
        mysql_engine="InnoDB",
        sqlite_autoincrement=True,  # else SQLite gives the last id again
    )


@dataclass(frozen=True, slots=True)
class Lag:
    """How far the cache is behind the database.

    :ivar rows: that are not acknowledged
    :ivar oldest: the age of the oldest, in seconds
    """

    rows: int
    oldest: float

    def __str__(self) -> str:
        return f"{self.rows} waiting, the oldest for {self.oldest:.1f} s" if self.rows else "none waiting"


@dataclass(frozen=True, slots=True)
class OutboxStatistics:
    """What this process did with an outbox.

    :ivar written: rows, of transactions that were rolled back too
    :ivar acknowledged: rows deleted because what they say was done
    :ivar left: rows left to the worker though it was done, because they could not be deleted
    """

    written: int
    acknowledged: int
    left: int


class Outbox:
    """A table of invalidations in the database whose changes they belong to. Made by `Cache.create_outbox` and `Cache.use_outbox`.

    :param name: the table's. Caches on the same nodes share one
    :param delay: seconds that acknowledgements are gathered for
    """

    def __init__(self, name: str = TABLE, *, delay: float = 0.5) -> None:
        self.table = table_of(name)
        self._insert = insert(self.table)
        self._deletion = delete(self.table).where(self.table.c.id == bindparam("row"))
        self._delay = delay
        self._tasks: dict[asyncio.AbstractEventLoop, tuple[asyncio.Task[None], asyncio.Event]] = {}
        self._engines: weakref.WeakSet[Engine] = weakref.WeakSet()  # listened to
        self._attached: weakref.WeakKeyDictionary[Connection, dict[object, Callable[[Connection], None]]]
        self._attached = weakref.WeakKeyDictionary()
        fork.renewed(self)
        _outboxes.add(self)

    def renew(self) -> None:
        """Begin with nothing written; in a forked child too, whose parent acknowledges its own rows."""
        self._changed = threading.Condition()
        self._rows: list[tuple[Engine, int]] = []  # done, not yet acknowledged, of engines for threads
        self._async_rows: dict[asyncio.AbstractEventLoop, list[tuple[Engine, int]]] = {}
        self._thread: threading.Thread | None = None
        self._hurry = False
        self._failing = False
        self._written = self._acknowledged = self._left = 0

    def __repr__(self) -> str:
        return f"<Outbox {self.table.name} {self.statistics()}>"

    def statistics(self) -> OutboxStatistics:
        """What this process did since the outbox was made."""
        return OutboxStatistics(self._written, self._acknowledged, self._left)

    # -- the table

    def create(self, connection: Connection) -> None:
        """Make the table where it is missing.

        :raises ConfigurationError: for a database, or a table, that cannot be an outbox
        """
        _require_dialect(connection)
        if not inspect(connection).has_table(self.table.name):
            connection.execute(CreateTable(self.table), execution_options=_ONE_TABLE)
        self.check(connection)

    def check(self, connection: Connection) -> None:
        """Look whether the table is there and has transactions.

        :raises ConfigurationError: where it has not
        """
        _require_dialect(connection)
        if not inspect(connection).has_table(self.table.name):
            raise ConfigurationError(
                f"there is no table {self.table.name} in this database: make it by cache.create_outbox(engine), "
                "or by the migration in docs/outbox.md"
            )
        if connection.dialect.name in ("mysql", "mariadb"):
            options = inspect(connection).get_table_options(self.table.name)
            kind = options.get("mysql_engine") or options.get("mariadb_engine")
            if str(kind).lower() != "innodb":
                raise ConfigurationError(
                    f"table {self.table.name} is kept by {kind}, not InnoDB, and would not share the fate of a transaction: "
                    f"ALTER TABLE {self.table.name} ENGINE=InnoDB"
                )

    def lag(self, connection: Connection) -> Lag:
        """How far the cache is behind this database."""
        created = self.table.c.created_at
        rows, age = connection.execute(select(func.count(), Now() - func.min(created)), execution_options=_ONE_TABLE).one()
        return Lag(rows, max(0, age or 0) / 1000)

    def delete(self, connection: Connection, ids: Iterable[int]) -> None:
        """Delete rows. In the order of their ids, so that two who delete the same ones do not deadlock."""
        dialect: Any = connection.dialect
        several = sorted(ids)
        if dialect.name not in ("mysql", "mariadb"):
            connection.execute(self._deletion, [{"row": id} for id in several])
            return
        # Drivers would send one statement for each row. Of one with IN, MariaDB may read the whole table, and wait for rows that
        # others have locked: this says that the rows are looked up one after the other.
        # It is not the scan that a cautious server would refuse.
        table = dialect.identifier_preparer.quote(self.table.name)
        before, hints = "SET STATEMENT sql_safe_updates=0, sql_big_selects=1 FOR ", ""
        if not dialect.is_mariadb:
            before, hints = "", "/*+ SET_VAR(sql_safe_updates=0) SET_VAR(sql_big_selects=1) */ "
        rows = " UNION ALL ".join([f"SELECT {id:d} AS id" for id in several])
        connection.exec_driver_sql(
            f"{before}DELETE {hints}o FROM ({rows}) AS done STRAIGHT_JOIN {table} AS o FORCE INDEX (PRIMARY) ON o.id = done.id"
        )

    # -- the writer

    def write(self, connection: Connection, invalidation: Invalidation) -> tuple[int, ...]:
        """Write down, in the transaction that this connection is in, what it invalidates.

        :returns: the row's id, for `done`; several where there are very many keys
        """
        ids = []
        for message in _messages(invalidation):
            result = connection.execute(self._insert, {"payload": message.pack()}, execution_options=_ONE_TABLE)
            key: Any = result.inserted_primary_key
            ids.append(key[0])
        self._written += len(ids)
        return tuple(ids)

    def attach(self, connection: Connection, name: object, write: Callable[[Connection], None]) -> None:
        """Call ``write`` when the transaction of a connection is about to be committed, after the last flush of any session.

        :param name: a second call by this name, for the same transaction, replaces the first
        """
        engine = connection.engine
        if engine not in self._engines:
            self._engines.add(engine)
            event.listen(engine, "commit", self._committing)
            event.listen(engine, "prepare_twophase", self._committing)
        self._attached.setdefault(connection, {})[name] = write

    def _committing(self, connection: Connection, xid: object = None) -> None:
        for write in self._attached.pop(connection, {}).values():
            write(connection)

    def done(self, engine: Engine, ids: Iterable[int]) -> None:
        """Acknowledge rows of committed transactions whose invalidation has reached all nodes. Never waits, never raises.

        :param engine: what they were written with; of an asynchronous one call this in its event loop
        """
        rows = [(engine, id) for id in ids]
        if engine.dialect.is_async:
            self._done_async(rows)
            return
        with self._changed:
            if len(self._rows) >= _UNACKNOWLEDGED_MAX:
                self._left += len(rows)
                return
            self._rows += rows
            if self._thread is None:
                self._thread = threading.Thread(target=self._acknowledge, name="kvcluster-outbox", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError:  # the interpreter is about to end
                    self._thread = None

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until what is done is acknowledged; whether that was so within ``timeout`` seconds. It happens at exit by itself."""
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            try:
                return self._changed.wait_for(lambda: self._thread is None, timeout)
            finally:
                self._hurry = False

    async def flush_async(self) -> None:
        """As `flush`, for what is done in this event loop. Before the loop ends, else the worker does those rows again."""
        if running := self._tasks.get(asyncio.get_running_loop()):
            task, hurry = running
            hurry.set()
            await asyncio.wait({task})

    def _acknowledge(self) -> None:
        """In the background: gather, delete, and end when there is nothing left."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._hurry, self._delay)
                rows, self._rows = self._rows, []
                if not rows:
                    self._thread = None
                    self._changed.notify_all()
                    return
            for engine, ids in _batches(rows):
                with self._judged(len(ids)), quiet(engine).begin() as connection:
                    self.delete(connection, ids)

    def _done_async(self, rows: list[tuple[Engine, int]]) -> None:
        loop = asyncio.get_running_loop()
        waiting = self._async_rows.setdefault(loop, [])
        if len(waiting) >= _UNACKNOWLEDGED_MAX:
            self._left += len(rows)
            return
        waiting += rows
        if loop not in self._tasks:
            hurry = asyncio.Event()
            self._tasks[loop] = (loop.create_task(self._acknowledge_async(loop, hurry)), hurry)

    async def _acknowledge_async(self, loop: asyncio.AbstractEventLoop, hurry: asyncio.Event) -> None:
        """As `_acknowledge`, in a task."""
        from sqlalchemy.ext.asyncio import AsyncEngine  # here, because it needs greenlet

        try:
            while True:
                with suppress(TimeoutError):
                    await asyncio.wait_for(hurry.wait(), self._delay)
                if not (rows := self._async_rows.pop(loop, [])):
                    return
                for engine, ids in _batches(rows):
                    with self._judged(len(ids)):
                        async with AsyncEngine(quiet(engine)).begin() as connection:
                            await connection.run_sync(self.delete, ids)
        finally:
            del self._tasks[loop]
            self._left += len(self._async_rows.pop(loop, ()))  # the loop ends

    @contextmanager
    def _judged(self, rows: int) -> Iterator[None]:
        """Count an attempt to acknowledge, and log when that begins to fail, and when it works again."""
        try:
            yield
        except Exception as error:  # whatever it is, the next rows are to be acknowledged all the same
            self._left += rows
            if not self._failing:
                log.warning("table %s: done rows were not deleted, the worker will see to them: %s", self.table.name, cause(error))
            self._failing = True
        else:
            self._acknowledged += rows
            if self._failing:
                log.warning("table %s: done rows are deleted again", self.table.name)
            self._failing = False


_outboxes: Final[weakref.WeakSet[Outbox]] = weakref.WeakSet()


@atexit.register
def _at_exit() -> None:
    for outbox in list(_outboxes):
        outbox.flush(1.0)


def created(outbox: Outbox, engine: Engine | AsyncEngine, then: Callable[[], None]) -> Coroutine[Any, Any, None] | None:
    """Make an outbox's table where it is missing, and then do something; for an asynchronous engine once that is awaited."""

    async def create_async(engine: AsyncEngine) -> None:
        async with engine.begin() as connection:
            await connection.run_sync(outbox.create)
        then()

    if not isinstance(engine, Engine):
        return create_async(engine)
    with engine.begin() as connection:
        outbox.create(connection)
    then()
    return None


def quiet(engine: Engine) -> Engine:
    """An engine, on the same pool, for transactions that lock the rows they name and no more, in the one table there is.

    At its default isolation InnoDB locks the gaps beside them too, and every transaction that writes a row would wait.
    """
    engine = engine.execution_options(**_ONE_TABLE)
    return engine if engine.dialect.name == "sqlite" else engine.execution_options(isolation_level="READ COMMITTED")


def cause(error: BaseException) -> str:
    """What an error says, in one line, without statements and their parameters."""
    return " ".join(str(getattr(error, "orig", None) or error).split())[:300]


def _require_dialect(connection: Connection) -> None:
    dialect, database = connection.dialect, connection.engine.url.database
    if dialect.name not in DIALECTS:
        raise ConfigurationError(f"an outbox can be in SQLite, MariaDB, MySQL and PostgreSQL, not in {dialect.name}")
    if dialect.name == "sqlite" and database in (None, "", ":memory:"):
        raise ConfigurationError("an outbox cannot be in a database in memory, which ends with its process")


def _messages(invalidation: Invalidation) -> Iterator[Message]:
    wires, stamps = invalidation.wires, tuple(invalidation.stamps)
    yield Message(tuple(wires[:KEYS_PER_ROW]), stamps)
    for start in range(KEYS_PER_ROW, len(wires), KEYS_PER_ROW):
        yield Message(tuple(wires[start : start + KEYS_PER_ROW]))


def _batches(rows: Sequence[tuple[Engine, int]]) -> Iterator[tuple[Engine, list[int]]]:
    """Ids by engine, in batches."""
    by_engine: dict[Engine, list[int]] = {}
    for engine, id in rows:
        by_engine.setdefault(engine, []).append(id)
    for engine, ids in by_engine.items():
        remaining = iter(ids)
        while batch := list(islice(remaining, _BATCH)):
            yield engine, batch
