"""The table, what a row says, and its acknowledgement."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.pool import NullPool

from kvcluster.cache.outbox import KEYS_PER_ROW, Lag, Message, Outbox, Unreadable, quiet
from kvcluster.errors import ConfigurationError
from kvcluster.protocol.requests import BinaryKey, wire_key
from tests.databases import Database
from tests.outbox.conftest import count, write

KEYS = st.lists(st.binary(min_size=1, max_size=300).map(wire_key)).map(tuple)


# -- what a row says


@given(KEYS, KEYS, st.lists(st.text()).map(tuple))
def test_a_payload_says_what_was_written(wires: tuple[bytes, ...], stamps: tuple[bytes, ...], told: tuple[str, ...]) -> None:
    message = Message(wires, stamps, told)
    back = Message.unpack(message.pack())
    assert back == message
    assert [*map(type, back.wires + back.stamps)] == [*map(type, wires + stamps)], "a binary key travels in base64 again"


def test_the_format_is_pinned() -> None:
    """Another release has to read it."""
    assert Message((b"a", BinaryKey(b"b c")), (b"s",), ("n:1",)).pack() == bytes.fromhex(
        "94 01 92 c40161 c703016220 63 91 c40173 91 a36e3a31"
    )


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff",
        b"\x01",
        msgspec.msgpack.encode((2, [], [], [])),
        msgspec.msgpack.encode((1, ["text"], [], [])),
        b"\x94\x01\x90",
        b"\x91" * 100_000,
        Message((b"a\r\nflush_all",)).pack(),
        Message((b"a q",)).pack(),
        Message((b"",)).pack(),
        Message((b"a\x7f",)).pack(),
        Message((b"k" * 251,)).pack(),
        Message((BinaryKey(b""),)).pack(),
        Message((BinaryKey(b"k" * 187),)).pack(),
        Message((b"a",), (b"s\n",)).pack(),
        msgspec.msgpack.encode((1, [b"a"], [], [1])),
        msgspec.msgpack.encode((1, [b"a"], [b"s"], [["n:1"]])),
    ],
)
def test_a_payload_that_is_not_ours_is_unreadable(payload: bytes) -> None:
    with pytest.raises(Unreadable):
        Message.unpack(payload)


# -- the table


def test_a_table_is_made_once(engine: Engine, outbox: Outbox) -> None:
    write(engine, outbox, b"a")
    with engine.begin() as connection:
        outbox.create(connection)
    assert count(engine, outbox) == 1


def test_a_missing_table_is_named(engine: Engine) -> None:
    with engine.connect() as connection, pytest.raises(ConfigurationError, match=r"no table elsewhere .* cache\.create_outbox"):
        Outbox("elsewhere").check(connection)


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
@pytest.mark.parametrize("kind", ["MyISAM", "Aria"])
def test_a_table_without_transactions_is_refused(engine: Engine, outbox: Outbox, kind: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(f"ALTER TABLE kvcluster_outbox ENGINE={kind}"))
        with pytest.raises(ConfigurationError, match=f"kept by {kind}, not InnoDB"):
            outbox.create(connection)


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_another_default_engine_does_not_matter(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(text("SET SESSION default_storage_engine=MyISAM"))
        Outbox().create(connection)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(url: str) -> None:
    engine = create_engine(url)
    with engine.connect() as connection, pytest.raises(ConfigurationError, match="in memory"):
        Outbox().create(connection)
    engine.dispose()


def test_a_row_shares_the_fate_of_its_transaction(engine: Engine, outbox: Outbox) -> None:
    with engine.connect() as connection:
        outbox.write(connection, Message((b"a",)))
        connection.rollback()
    assert count(engine, outbox) == 0


def test_ids_are_not_used_again(engine: Engine, outbox: Outbox) -> None:
    """A late acknowledgement would delete another's row."""
    (first,) = write(engine, outbox, b"a")
    with engine.begin() as connection:
        outbox.delete(connection, [first])
    (second,) = write(engine, outbox, b"b")
    assert second > first


@pytest.mark.parametrize("of", ["connection", "engine"])
def test_a_map_of_schemas_does_not_move_the_table(engine: Engine, outbox: Outbox, of: str) -> None:
    """Else a row would be in one table, and its acknowledgement would delete from another."""
    options: dict[str, Any] = {"schema_translate_map": {None: "elsewhere"}}
    mapped = engine.execution_options(**options) if of == "engine" else engine
    with mapped.connect() as connection:
        if of == "connection":
            connection.execution_options(**options)
        ids = outbox.write(connection, Message((b"a",)))
        connection.commit()
        assert outbox.lag(connection).rows == 1
        outbox.create(connection)
    outbox.done(mapped, ids)
    assert outbox.flush()
    assert count(engine, outbox) == 0


def test_very_many_keys_become_several_rows(engine: Engine, outbox: Outbox) -> None:
    wires = tuple(b"%d" % n for n in range(2 * KEYS_PER_ROW + 1))
    ids = write(engine, outbox, *wires, stamps=(b"s",))
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT payload FROM kvcluster_outbox ORDER BY id")).scalars().all()
    messages = [*map(Message.unpack, rows)]
    assert len(ids) == len(messages) == 3
    assert tuple(wire for message in messages for wire in message.wires) == wires
    assert [message.stamps for message in messages] == [(b"s",), (), ()]


def test_one_statement_per_transaction(engine: Engine, outbox: Outbox) -> None:
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    write(engine, outbox, b"a", stamps=(b"s",))
    assert len(statements) == 1


def test_the_lag_is_by_the_clock_of_the_database(engine: Engine, outbox: Outbox) -> None:
    with engine.connect() as connection:
        assert outbox.lag(connection) == Lag(0, 0.0)
    began = time.monotonic()
    write(engine, outbox, b"a")
    write(engine, outbox, b"b")
    with engine.begin() as connection:
        assert (young := outbox.lag(connection)).rows == 2
        assert 0 <= young.oldest <= time.monotonic() - began + 0.01
        connection.execute(text("UPDATE kvcluster_outbox SET created_at = created_at - 60000 WHERE id = 1"))
        assert 60 <= outbox.lag(connection).oldest < 61 + time.monotonic() - began


@pytest.mark.parametrize("zone", ["-08:00", "+09:00"])
@pytest.mark.parametrize("database", ["mariadb", "postgresql"], indirect=True)
def test_time_zones_do_not_matter(engine: Engine, outbox: Outbox, database: Database, zone: str) -> None:
    @event.listens_for(engine, "connect")
    def _(connection: object, record: object) -> None:
        cursor = connection.cursor()  # type: ignore[attr-defined]
        cursor.execute(f"SET time_zone = '{zone}'" if database.kind == "mariadb" else f"SET TIME ZONE '{zone}'")
        cursor.close()

    engine.dispose()  # so that connections are made anew
    write(engine, outbox, b"a")
    with engine.connect() as connection:
        created = connection.execute(text("SELECT created_at FROM kvcluster_outbox")).scalar_one() / 1000
    assert abs(created - time.time()) < 5


# -- acknowledgement


def test_done_rows_are_deleted_in_one_transaction(engine: Engine, outbox: Outbox) -> None:
    outbox = Outbox(delay=30)
    ids = [id for n in range(20) for id in write(engine, outbox, b"%d" % n)]
    stays = write(engine, outbox, b"not done")
    commits: list[object] = []
    event.listen(engine, "commit", commits.append)
    for id in ids:
        outbox.done(engine, [id])
    assert outbox.flush()
    assert len(commits) == 1
    assert outbox.statistics().written == 21
    assert outbox.statistics().acknowledged == 20
    with engine.connect() as connection:
        assert connection.execute(text("SELECT id FROM kvcluster_outbox")).scalars().all() == [*stays]


def test_without_waiting_they_are_deleted_soon(engine: Engine, outbox: Outbox) -> None:
    outbox.done(engine, write(engine, outbox, b"a"))
    deadline = time.monotonic() + 10
    while count(engine, outbox):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_thread_ends_and_begins_again(engine: Engine, outbox: Outbox) -> None:
    for _ in range(3):
        outbox.done(engine, write(engine, outbox, b"a"))
        assert outbox.flush()
        assert count(engine, outbox) == 0
        assert "kvcluster-outbox" not in {thread.name for thread in threading.enumerate()}


def test_from_many_threads(engine: Engine, outbox: Outbox) -> None:
    def work() -> None:
        for n in range(20):
            outbox.done(engine, write(engine, outbox, b"%d" % n))

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outbox.flush()
    assert outbox.statistics().acknowledged == 100
    assert count(engine, outbox) == 0


def test_a_failed_acknowledgement_leaves_the_row_and_says_so_once(
    engine: Engine, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    ids = [write(engine, outbox, b"a") for _ in range(3)]
    broken = [True]

    @event.listens_for(engine, "before_cursor_execute")
    def _(*args: object) -> None:
        if broken[0] and "DELETE " in str(args[2]):
            raise OSError("no route")

    with caplog.at_level(logging.WARNING, "kvcluster"):
        for each in ids[:2]:
            outbox.done(engine, each)
            assert outbox.flush()
        broken[0] = False
        outbox.done(engine, ids[2])
        assert outbox.flush()
    assert count(engine, outbox) == 2
    assert outbox.statistics().left == 2
    assert [record.message for record in caplog.records] == [
        "table kvcluster_outbox: done rows were not deleted, the worker will see to them: no route",
        "table kvcluster_outbox: done rows are deleted again",
    ]


def test_the_queue_is_bounded(engine: Engine, outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvcluster.cache.outbox._UNACKNOWLEDGED_MAX", 2)
    outbox = Outbox(delay=30)
    for n in range(5):
        outbox.done(engine, write(engine, outbox, b"%d" % n))
    assert outbox.flush()
    assert outbox.statistics().acknowledged == 2
    assert outbox.statistics().left == 3
    assert count(engine, outbox) == 3


@pytest.mark.parametrize("database", ["mariadb", "postgresql"], indirect=True)
@pytest.mark.parametrize("total", [2, 3, 20, 400, 1500])
def test_an_acknowledgement_does_not_wait_for_writers(engine: Engine, outbox: Outbox, total: int) -> None:
    """Some of many rows, which MariaDB would read the whole table for."""
    with engine.begin() as connection:
        connection.execute(outbox.table.insert(), [{"payload": b""}] * total)
    with engine.begin() as slow:
        outbox.write(slow, Message((b"not committed",)))
        outbox.done(engine, range(1, total))
        assert outbox.flush()
        assert count(engine, outbox) == 1


@pytest.mark.parametrize("database", ["mariadb", "postgresql"], indirect=True)
def test_writers_do_not_wait_for_an_acknowledgement(database: Database, engine: Engine, outbox: Outbox) -> None:
    """Of a row that is gone already, whose place an InnoDB transaction at the default isolation would lock."""
    with quiet(engine).begin() as slow:
        outbox.delete(slow, [1, 2, 3, 1000])
        done = threading.Event()

        def work() -> None:
            write(engine, outbox, b"a")
            done.set()

        thread = threading.Thread(target=work)
        thread.start()
        assert done.wait(10)
        thread.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_forked_child_acknowledges_its_own_and_leaves_its_parents(database: Database, engine: Engine, outbox: Outbox) -> None:
    outbox = Outbox(delay=30)
    outbox.done(engine, write(engine, outbox, b"parent's"))
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            own = create_engine(database.url, poolclass=NullPool)
            outbox.done(own, write(own, outbox, b"child's"))
            code = 0 if outbox.flush() and count(own, outbox) == 1 and outbox.statistics().written == 1 else 2
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert count(engine, outbox) == 1
    assert outbox.flush()
    assert count(engine, outbox) == 0


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_what_is_done_is_acknowledged_at_exit(database: Database, engine: Engine, outbox: Outbox) -> None:
    script = (
        "import sys\nfrom sqlalchemy import create_engine\nfrom kvcluster.cache.outbox import Message, Outbox\n"
        "engine, outbox = create_engine(sys.argv[1]), Outbox(delay=30)\n"
        "with engine.begin() as connection:\n    ids = outbox.write(connection, Message((b'a',)))\n"
        "outbox.done(engine, ids)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, database.url], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert count(engine, outbox) == 0


def test_the_migration_in_the_documentation_makes_this_table(engine: Engine) -> None:
    page = (Path(__file__).parents[2] / "docs" / "outbox.md").read_text()
    (migration,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    script: dict[str, Any] = {}
    exec(migration, script)

    def columns(connection: Connection) -> list[tuple[str, str, bool]]:
        found = inspect(connection).get_columns("kvcluster_outbox")
        return [(column["name"], repr(column["type"]), column["nullable"]) for column in found]

    with engine.begin() as connection, Operations.context(MigrationContext.configure(connection)):
        script["upgrade"]()
        migrated = columns(connection)
        Outbox().check(connection)
        script["downgrade"]()
        Outbox().create(connection)
        assert columns(connection) == migrated
    (first,) = write(engine, Outbox(), b"a")
    with engine.begin() as connection:
        Outbox().delete(connection, [first])
    assert write(engine, Outbox(), b"b") > (first,)
