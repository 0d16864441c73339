"""What a worker does with rows that their writers left, whatever is down."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import SQLAlchemyError

from kvcluster import Client
from kvcluster.cache.outbox import Message, Outbox
from kvcluster.cache.worker import Worker, remainder, skips_locked
from kvcluster.placement import placement
from kvcluster.planner import Planner
from kvcluster.protocol.requests import BinaryKey, wire_key
from kvcluster.testing.nodes import RunningNode
from kvcluster.testing.proxy import FaultProxy
from kvcluster.topology import Topology
from tests.databases import Database
from tests.outbox.conftest import count, keys_of, wait_for, write

SERVERS = pytest.mark.parametrize("database", ["mariadb", "postgresql"], indirect=True)
NODES = ("a:1", "b:1", "c:1")


def planner(*addresses: str) -> Planner:
    topology = Topology(addresses, "slots")
    return Planner(placement(topology.placement, topology.nodes, topology.slots))


# -- what remains of a row, decided without I/O

ROWS = st.builds(
    Message,
    st.lists(st.binary(min_size=1, max_size=8).map(wire_key), unique=True, max_size=20).map(tuple),
    st.lists(st.binary(min_size=1, max_size=8).map(wire_key), unique=True, max_size=3).map(tuple),
)


def recipients(ours: Planner, message: Message) -> dict[str, set[bytes]]:
    """What each node is to be told."""
    keys: dict[str, set[bytes]] = {}
    for wire in message.wires:
        keys.setdefault(ours.address(wire), set()).add(wire)
    for address in {*ours.members}.difference(message.told) if message.stamps else ():
        keys.setdefault(address, set()).update(message.stamps)
    return keys


@given(ROWS, st.lists(st.sets(st.sampled_from(NODES)), max_size=5))
def test_whatever_fails_in_between_every_node_is_told_everything(row: Message, failures: list[set[str]]) -> None:
    ours = planner(*NODES)
    told: dict[str, set[bytes]] = {}
    remains: Message | None = row
    for unreachable in [*failures, set()]:
        if remains is None:
            break
        for address, keys in recipients(ours, remains).items():
            if address not in unreachable:
                told.setdefault(address, set()).update(keys)
        remains = remainder(ours, Message.unpack(remains.pack()), unreachable)
    assert remains is None
    assert told == recipients(ours, row)


@given(ROWS, st.sets(st.sampled_from(NODES)), st.sets(st.sampled_from(NODES)))
def test_a_node_that_was_told_is_not_told_again(row: Message, first: set[str], second: set[str]) -> None:
    ours = planner(*NODES)
    remains = remainder(ours, row, first)
    concerned = recipients(ours, row).keys() & first
    assert (remains is None) == (not concerned)
    if remains is not None:
        assert recipients(ours, remains).keys() == concerned
        assert (remainder(ours, remains, second) is None) == (not concerned & second)


def test_a_node_that_joined_meanwhile_is_told_too() -> None:
    remains = remainder(planner(*NODES), Message((), (b"stamp",)), {"a:1"})
    assert remains is not None
    assert recipients(planner(*NODES, "d:1"), remains).keys() == {"a:1", "d:1"}


# -- over real nodes and real databases


def test_what_a_row_says_is_done(engine: Engine, outbox: Outbox, worker: Worker, client: Client) -> None:
    keys = [f"key {n}" for n in range(50)]
    client.set_many(dict.fromkeys([*keys, "other"], 1))
    wires = [client.planner.wire(key) for key in keys]
    assert BinaryKey in map(type, wires)
    stamp = b"__stamp:table:user"
    for node in client.topology.nodes:
        with Client([node]) as one:
            one.set(stamp, b"before")
    write(engine, outbox, *wires, stamps=(stamp,))
    assert worker.drain().rows == 0
    assert client.get_many([*keys, "other"]) == {"other": 1}
    for node in client.topology.nodes:
        with Client([node]) as one:
            assert one.get(stamp) not in (b"before", None)
    assert worker.statistics().done == 1
    assert count(engine, outbox) == 0


def test_young_rows_are_left_to_their_writers(engine: Engine, outbox: Outbox, client: Client) -> None:
    client.set("a", 1)
    write(engine, outbox, b"a")
    worker = Worker(client, engine, outbox, age=5)
    assert worker.drain().rows == 1
    assert client.get("a") == 1
    with engine.begin() as connection:
        connection.execute(text("UPDATE kvcluster_outbox SET created_at = created_at - 5000"))
    assert worker.drain().rows == 0
    assert client.get("a") is None


def test_rows_are_found_because_they_exist(engine: Engine, outbox: Outbox, worker: Worker, client: Client) -> None:
    """A transaction that began first may commit last."""
    client.set("early", 1)
    if engine.dialect.name == "sqlite":
        write(engine, outbox, b"other")
        write(engine, outbox, b"late")
        assert worker.drain().rows == 0
        with engine.begin() as connection:
            connection.execute(
                text("INSERT INTO kvcluster_outbox VALUES (1, 0, :payload)"), {"payload": Message((b"early",)).pack()}
            )
    else:
        with engine.begin() as slow:
            (first,) = outbox.write(slow, Message((b"early",)))
            assert write(engine, outbox, b"late")[0] > first
            assert worker.drain().rows == 0
    assert client.get("early") == 1
    assert worker.drain().rows == 0
    assert client.get("early") is None


def test_many_rows_in_one_pass(engine: Engine, outbox: Outbox, worker: Worker, client: Client) -> None:
    client.set_many({f"key{n}": n for n in range(1200)})
    with engine.begin() as connection:
        for n in range(1200):
            outbox.write(connection, Message((b"key%d" % n,)))
    assert worker.drain().rows == 0
    assert client.get_many([f"key{n}" for n in range(1200)]) == {}
    assert worker.statistics().done == 1200


def test_a_batch_is_sent_at_once(engine: Engine, outbox: Outbox, worker: Worker, client: Client) -> None:
    for n in range(200):
        write(engine, outbox, b"key%d" % n)
    exchanges: list[Any] = []
    run = client.run
    client.run = lambda plan: (exchanges.append(plan), run(plan))[1]  # type: ignore[method-assign]
    worker.drain()
    assert len(exchanges) == 1


def test_a_row_of_another_release_is_left_alone_and_named_once(
    engine: Engine, outbox: Outbox, worker: Worker, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    client.set("a", 1)
    with engine.begin() as connection:
        for _ in range(2):
            connection.execute(text("INSERT INTO kvcluster_outbox (created_at, payload) VALUES (0, :p)"), {"p": b"\x91\x02"})
    write(engine, outbox, b"a")
    with caplog.at_level(logging.ERROR, "kvcluster"):
        assert worker.drain().rows == worker.drain().rows == 2
    assert client.get("a") is None, "those behind them are done"
    assert worker.statistics().unreadable == 2
    assert [record.message for record in caplog.records] == [
        "table kvcluster_outbox: 2 rows are left alone: payload has format 2, this release reads 1"
    ]


@pytest.mark.parametrize("key", [b"x q\r\nflush_all noreply\r\nmd y", b"k" * 1000, b""])
def test_a_row_that_is_no_key_sends_no_command_and_blocks_nobody(
    engine: Engine, outbox: Outbox, worker: Worker, client: Client, key: bytes
) -> None:
    client.set_many({"stays": 1, "a": 1})
    write(engine, outbox, key)
    write(engine, outbox, b"a")
    assert worker.drain().rows == 1
    assert worker.statistics().unreadable == 1
    assert client.get_many(["stays", "a"]) == {"stays": 1}


# -- a node is down


@pytest.mark.parametrize("how", ["kill", "pause"])
def test_a_node_that_is_down_keeps_its_rows_and_no_others(
    engine: Engine, outbox: Outbox, nodes: list[RunningNode], how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """More rows than a batch, those of the node first."""
    with Client([node.address for node in nodes], timeout=0.5, connect_timeout=0.5) as client:
        worker = Worker(client, engine, outbox, age=0)
        down, *others = (node.address for node in nodes)
        blocked = keys_of(client, down, 600)
        free = [key for address in others for key in keys_of(client, address, 20)]
        client.set_many(dict.fromkeys([*blocked, *free], 1))
        client.set("__stamp", 1)
        with engine.begin() as connection:
            for key in [*blocked, *free]:
                outbox.write(connection, Message((client.planner.wire(key),)))
            outbox.write(connection, Message((), (b"__stamp",)))
        getattr(nodes[0], how)()
        assert worker.drain().rows == 601
        assert client.get_many(free) == {}
        with engine.connect() as connection:
            last = connection.execute(text("SELECT payload FROM kvcluster_outbox ORDER BY id DESC LIMIT 1")).scalar_one()
        assert {*Message.unpack(last).told} == {*others}
        began = time.monotonic()
        assert worker.drain().rows == 601
        assert time.monotonic() - began < 10
        if how == "pause":
            nodes[0].resume()
        else:
            nodes[0].restart()
        deadline = time.monotonic() + 20
        while worker.drain().rows:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert client.get_many(blocked) == {}
        for node in nodes:
            with Client([node.address]) as one:
                assert one.get("__stamp") != 1


def test_what_is_done_of_a_row_is_not_done_again(engine: Engine, outbox: Outbox, nodes: list[RunningNode]) -> None:
    """While a node is down, the others would lose what hangs on a stamp at every pass."""
    with Client([node.address for node in nodes], timeout=0.5, connect_timeout=0.5) as client:
        worker = Worker(client, engine, outbox, age=0)
        write(engine, outbox, stamps=(b"stamp",))
        nodes[0].kill()
        assert worker.drain().rows == 1
        with Client([nodes[1].address]) as other:
            other.set("stamp", "new")
            assert worker.drain().rows == 1
            assert other.get("stamp") == "new"


# -- several workers


def test_several_workers_at_once(engine: Engine, outbox: Outbox, nodes: list[RunningNode], client: Client) -> None:
    client.set_many({f"key{n}": n for n in range(1500)})
    with engine.begin() as connection:
        for n in range(1500):
            outbox.write(connection, Message((b"key%d" % n,)))
    with Client([node.address for node in nodes], timeout=5.0, pool_size=8) as shared, ThreadPoolExecutor(4) as pool:
        workers = [Worker(shared, engine, outbox, age=0) for _ in range(4)]
        while max(lag.rows for lag in pool.map(Worker.drain, workers)):
            pass
    assert client.get_many([f"key{n}" for n in range(1500)]) == {}
    if engine.dialect.name != "sqlite":
        assert sum(worker.statistics().done for worker in workers) == 1500, "each row by one of them"


@SERVERS
def test_locked_rows_are_passed_over_and_writers_do_not_wait(
    engine: Engine, outbox: Outbox, worker: Worker, client: Client
) -> None:
    client.set_many({"a": 1, "b": 1})
    write(engine, outbox, b"a")
    taken, go_on = threading.Event(), threading.Event()
    slow = Worker(client, engine, outbox, age=0)
    tell = slow._tell

    def wait(*args: Any) -> Any:
        taken.set()
        assert go_on.wait(30)
        return tell(*args)

    slow._tell = wait  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as pool:
        draining = pool.submit(slow.drain)
        try:
            assert taken.wait(30)
            write(engine, outbox, b"b")  # the lock would be on the gap behind the rows
            assert worker.drain().rows == 1
            assert client.get_many(["a", "b"]) == {"a": 1}
        finally:
            go_on.set()
        assert draining.result().rows == 0
    assert client.get("a") is None


def test_who_can_pass_over_locked_rows(engine: Engine, database: Database) -> None:
    with engine.connect() as connection:
        assert skips_locked(connection) == (database.kind != "sqlite")
        if database.kind == "mariadb":
            connection.dialect.server_version_info = (10, 5, 9)
            assert not skips_locked(connection)


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_an_older_mariadb_is_drained_without_locks(engine: Engine, outbox: Outbox, worker: Worker, client: Client) -> None:
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    client.set("a", 1)
    write(engine, outbox, b"a")
    engine.dialect.server_version_info = (10, 5, 9)  # type: ignore[attr-defined]
    assert worker.drain().rows == 0
    assert client.get("a") is None
    assert not any("LOCK" in statement for statement in statements)


# -- the database is down


@SERVERS
def test_a_database_that_is_down_is_asked_again(
    database: Database, outbox: Outbox, engine: Engine, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    from sqlalchemy import create_engine, make_url

    url = make_url(database.url)
    client.set("a", 1)
    write(engine, outbox, b"a")
    with FaultProxy(f"127.0.0.1:{url.port}") as proxy:
        through = create_engine(url.set(port=int(proxy.address.rpartition(":")[2])))
        worker = Worker(client, through, outbox, age=0)
        proxy.refuse()
        with pytest.raises(SQLAlchemyError):
            worker.drain()
        stop = threading.Event()
        with caplog.at_level(logging.WARNING, "kvcluster"), ThreadPoolExecutor(1) as pool:
            running = pool.submit(worker.run, stop, 0.01)
            try:
                wait_for(lambda: "cannot be read" in caplog.text)
                time.sleep(0.1)  # and say so once
                proxy.accept()
                wait_for(lambda: client.get("a") is None and count(engine, outbox) == 0)
            finally:
                stop.set()
            running.result()
        through.dispose()
    messages = [record.message for record in caplog.records]
    assert [message.partition(":")[0] for message in messages] == [
        "table kvcluster_outbox cannot be read, which is tried again",
        "table kvcluster_outbox can be read again",
    ]
