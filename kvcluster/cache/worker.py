"""What carries out the rows of an outbox that their writers could not: `kvcluster worker`.

A pass goes over all rows older than some seconds, in batches. Of a batch, each node is sent what concerns it at once. A row whose
nodes were all told is deleted; one of which a node could not be told stays, with what is left of it, and that node is not asked
again in this pass, so that rows behind it do not wait for it. Each pass begins at the first row again.

Workers may run at the same time: a batch's rows are locked while the nodes are told, and other workers pass over them (SKIP
LOCKED). A database without that, such as SQLite, is not kept waiting: nothing is locked, and two workers may do the same, which
costs a load and no more.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Engine, bindparam, select, update

from kvcluster.cache.outbox import Lag, Message, Now, Outbox, Unreadable, cause, quiet
from kvcluster.client import Client
from kvcluster.errors import ConfigurationError, DeleteFailed
from kvcluster.plan import DeleteMany, Invalidation, Plan
from kvcluster.planner import Planner
from kvcluster.protocol.requests import Deletes

log = logging.getLogger("kvcluster")

AGE: Final = 5.0  # seconds in which writers do it themselves
INTERVAL: Final = 1.0  # seconds between two passes
_ROWS: Final = 500  # in one batch
_KEYS: Final = 1_000  # sent to one node at a time, so that a node has time for them


@dataclass(frozen=True, slots=True)
class WorkerStatistics:
    """What a worker did since it was made, and what it saw last.

    :ivar passes: how often it went over the table
    :ivar done: rows it carried out and deleted
    :ivar unreadable: rows of the last pass that a newer release must have written
    :ivar lag: what was waiting after the last pass, rows that are not yet old enough included
    """

    passes: int
    done: int
    unreadable: int
    lag: Lag


class Worker:
    """Carries out the rows of one outbox.

    :param client: the nodes, placed as the writers place them
    :param engine: the database
    :param age: seconds; younger rows are left to their writers
    """

    def __init__(self, client: Client, engine: Engine, outbox: Outbox, *, age: float = AGE) -> None:
        self._client = client
        self._engine = quiet(engine)
        self._outbox = outbox
        table = outbox.table
        self._waiting = (
            select(table.c.id, table.c.payload)
            .where(table.c.created_at <= Now() - int(age * 1000), table.c.id > bindparam("after"))
            .order_by(table.c.id)
            .limit(_ROWS)
        )
        self._shorten = update(table).where(table.c.id == bindparam("row")).values(payload=bindparam("payload"))
        self._passes = self._done = self._unreadable = 0
        self._lag = Lag(0, 0.0)
        self._failing = False

    def statistics(self) -> WorkerStatistics:
        """What it did and saw."""
        return WorkerStatistics(self._passes, self._done, self._unreadable, self._lag)

    def run(self, stop: threading.Event, interval: float = INTERVAL) -> None:
        """Drain again and again until ``stop`` is set. A database that does not answer is asked again, and so is a node.

        :raises ConfigurationError: where there is no such table
        """
        while not stop.is_set():
            before = self.statistics()
            try:
                self.drain()
            except ConfigurationError:
                raise
            except Exception as error:  # whatever a driver raises: the rows are there, and the next pass begins anew
                if not self._failing:
                    log.error("table %s cannot be read, which is tried again: %s", self._outbox.table.name, cause(error))
                self._failing = True
            else:
                if self._failing:
                    log.warning("table %s can be read again", self._outbox.table.name)
                self._failing = False
                self._report(before, self.statistics())
            stop.wait(interval)

    def drain(self) -> Lag:
        """Go over all rows once; what is waiting afterwards.

        :raises ConfigurationError: where there is no such table
        :raises SQLAlchemyError: where the database cannot be asked
        """
        if not self._passes:
            with self._engine.connect() as connection:
                self._outbox.check(connection)
        unreachable: set[str] = set()
        unreadable: list[Unreadable] = []
        after, more = 0, True
        while more:
            with self._engine.connect() as connection:
                rows = self._take(connection, after)
                messages = dict(_readable(rows, unreadable))
                done, left = [], []
                for id, remains in self._tell(messages, unreachable):
                    if remains is None:
                        done.append(id)
                    elif remains != messages[id]:
                        left.append({"row": id, "payload": remains.pack()})
                if done:
                    self._outbox.delete(connection, done)
                if left:
                    connection.execute(self._shorten, left)
                connection.commit()
            self._done += len(done)
            more = len(rows) == _ROWS
            after = rows[-1].id if rows else after
        with self._engine.connect() as connection:
            self._lag = self._outbox.lag(connection)
        if unreadable and not self._unreadable:
            log.error("table %s: %d rows are left alone: %s", self._outbox.table.name, len(unreadable), unreadable[0])
        self._passes += 1
        self._unreadable = len(unreadable)
        return self._lag

    def _take(self, connection: Connection, after: int) -> Sequence[Any]:
        """The next rows, locked where that keeps nobody waiting."""
        if skips_locked(connection):
            return connection.execute(self._waiting.with_for_update(skip_locked=True), {"after": after}).all()
        rows = connection.execute(self._waiting, {"after": after}).all()
        connection.rollback()  # the nodes are told outside a transaction
        return rows

    def _tell(self, messages: dict[int, Message], unreachable: set[str]) -> Iterator[tuple[int, Message | None]]:
        """Tell the nodes, and say for each row what remains of it. Nodes that cannot be told join the ``unreachable``."""
        planner = self._client.planner
        wires = [*dict.fromkeys(wire for message in messages.values() for wire in message.wires)]
        stamps = tuple(dict.fromkeys(stamp for message in messages.values() if not message.told for stamp in message.stamps))
        while wires or stamps:
            wires = [wire for wire in wires if not planner.owners(wire) & unreachable]
            self._run(planner.invalidate(Invalidation(tuple(wires[:_KEYS]), stamps)), unreachable)
            wires, stamps = wires[_KEYS:], ()
        owed: dict[str, dict[bytes, None]] = {}
        for message in messages.values():
            for address in {*planner.members}.difference(message.told, unreachable) if message.told else ():
                owed.setdefault(address, {}).update(dict.fromkeys(message.stamps))
        if owed:
            keys = {address: [*its] for address, its in owed.items()}
            deletes = {address: Deletes.of(its) for address, its in keys.items()}
            self._run(DeleteMany(planner.namespace, deletes, keys), unreachable)
        for id, message in messages.items():
            yield id, remainder(planner, message, unreachable)

    def _run(self, plan: Plan[Any], unreachable: set[str]) -> None:
        try:
            self._client.run(plan)
        except DeleteFailed as error:
            unreachable.update(error.causes)

    def _report(self, before: WorkerStatistics, now: WorkerStatistics) -> None:
        done = now.done - before.done
        if done or (now.lag.rows and not before.lag.rows) or now.unreadable != before.unreadable:
            unreadable = f", {now.unreadable} unreadable" if now.unreadable else ""
            log.info("%d rows carried out, %s%s", done, now.lag, unreadable)


def remainder(planner: Planner, message: Message, unreachable: set[str]) -> Message | None:
    """What is still to be done of a row whose other nodes were told; None where that is nothing.

    Of a stamp it is remembered which nodes were told: telling them again would make misses of everything under it at each pass,
    until the last node is back.
    """
    wires = tuple(wire for wire in message.wires if planner.owners(wire) & unreachable)
    untold = {*planner.members}.difference(message.told) & unreachable if message.stamps else set()
    if untold:
        told = dict.fromkeys([*message.told, *(address for address in planner.members if address not in untold)])
        return Message(wires, message.stamps, tuple(told))
    return Message(wires) if wires else None


def skips_locked(connection: Connection) -> bool:
    """Whether the database can lock the rows of a query and pass over those that others have locked."""
    dialect: Any = connection.dialect
    version = dialect.server_version_info or ()
    if dialect.name == "sqlite":
        return False
    if dialect.name == "postgresql":
        return version >= (9, 5)
    return version >= ((10, 6) if dialect.is_mariadb else (8, 0, 1))


def _readable(rows: Sequence[Any], unreadable: list[Unreadable]) -> Iterator[tuple[int, Message]]:
    for id, payload in rows:
        try:
            yield id, Message.unpack(payload)
        except Unreadable as error:
            unreadable.append(error)
