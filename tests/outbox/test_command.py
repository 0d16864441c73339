"""``kvcluster worker`` as an operator runs it."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, make_url, text

from kvcluster import Client
from kvcluster.cache.outbox import Message, Outbox
from kvcluster.cli.app import run
from kvcluster.cli.worker import engine_of
from kvcluster.errors import ConfigurationError
from kvcluster.sources import FileSource
from kvcluster.testing.nodes import RunningNode
from kvcluster.topology import Document, Node
from tests.databases import Database
from tests.outbox.conftest import count, wait_for, write

SQLITE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


def arguments(database: Database, nodes: list[RunningNode], *rest: str) -> list[str]:
    return ["worker", "--database", database.url, "--nodes", ",".join(node.address for node in nodes), *rest]


@contextmanager
def working(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """The command in a process, and what it logs."""
    command = [sys.executable, "-W", "error", "-c", "from kvcluster.cli import main; main()", *arguments]
    lines: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        stderr = process.stderr
        reading = threading.Thread(target=lambda: lines.extend(stderr))
        reading.start()
        try:
            yield process, lines
        finally:
            process.kill()
            reading.join()


def grown_old(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE kvcluster_outbox SET created_at = created_at - 6000"))


def write_old(engine: Engine, outbox: Outbox, wire: bytes) -> None:
    """A row that no worker ever sees young, and says that it waits."""
    with engine.begin() as connection:
        outbox.write(connection, Message((wire,)))
        connection.execute(text("UPDATE kvcluster_outbox SET created_at = created_at - 6000"))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_works_and_ends_when_told(
    database: Database, engine: Engine, outbox: Outbox, nodes: list[RunningNode], client: Client, how: signal.Signals
) -> None:
    client.set_many({"a": 1, "b": 2})
    write_old(engine, outbox, b"a")
    with working(*arguments(database, nodes)) as (process, lines):
        wait_for(lambda: len(lines) == 2)  # a pass ends with its report, which counts what is written until then
        assert count(engine, outbox) == 0
        assert client.get_many(["a", "b"]) == {"b": 2}
        write_old(engine, outbox, b"b")
        wait_for(lambda: len(lines) == 3)
        assert count(engine, outbox) == 0
        assert client.get("b") is None
        process.send_signal(how)
        assert process.wait(20) == 0
    said = [line.split(" INFO ", 1)[1].rstrip() for line in lines]
    assert said[0].startswith("worker: table kvcluster_outbox in ")
    assert said[0].endswith(f", nodes {', '.join(node.address for node in nodes)}")
    assert said[1:] == ["1 rows carried out, none waiting"] * 2 + ["worker: ended, none waiting"]


@SQLITE
def test_once(
    database: Database,
    engine: Engine,
    outbox: Outbox,
    nodes: list[RunningNode],
    client: Client,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client.set("a", 1)
    monkeypatch.setenv("KVCLUSTER_URL", f"memcached://{','.join(node.address for node in nodes)}")
    monkeypatch.setenv("KVCLUSTER_DATABASE", database.url)
    assert run(["worker", "--once"]) == 0
    assert capsys.readouterr().out == "0 rows carried out, none waiting\n"
    write(engine, outbox, b"a")
    assert run(["worker", "--once"]) == 0, "it is not yet old"
    assert capsys.readouterr().out.startswith("0 rows carried out, 1 waiting, the oldest for ")
    grown_old(engine)
    assert run(["worker", "--once"]) == 0
    assert capsys.readouterr().out == "1 rows carried out, none waiting\n"
    assert client.get("a") is None
    for node in nodes:
        node.kill()
    write(engine, outbox, b"a")
    grown_old(engine)
    assert run(["worker", "--once"]) == 1
    assert capsys.readouterr().out.startswith("0 rows carried out, 1 waiting, the oldest for 6.")


@SQLITE
def test_another_table(database: Database, engine: Engine, nodes: list[RunningNode], capsys: pytest.CaptureFixture[str]) -> None:
    other = Outbox("pages_outbox")
    with engine.begin() as connection:
        other.create(connection)
        other.write(connection, Message((b"a",)))
        connection.execute(text("UPDATE pages_outbox SET created_at = 0"))
    assert run(arguments(database, nodes, "--once", "--table", "pages_outbox")) == 0
    assert capsys.readouterr().out == "1 rows carried out, none waiting\n"


@SQLITE
@pytest.mark.parametrize("rest", [(), ("--once",)])
def test_a_missing_table(database: Database, nodes: list[RunningNode], capsys: pytest.CaptureFixture[str], rest: Any) -> None:
    assert run(arguments(database, nodes, *rest)) == 2
    assert "there is no table kvcluster_outbox in this database" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("secret", "is not a URL such as"),
        ("mysql+pymysql://user:secret@host:port/name", "is not a URL such as"),
        ("nosuch://user:secret@host/name", "nosuch"),
        ("sqlite+aiosqlite:///x.db", "aiosqlite, a driver for asyncio"),
        ("postgresql+nosuch://user:secret@host/name", "nosuch"),
    ],
)
def test_a_url_that_cannot_be_used_is_not_quoted(url: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        engine_of(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("driver", ["mysql+pymysql", "postgresql+psycopg"])
def test_a_password_is_not_logged(driver: str, nodes: list[RunningNode], capsys: pytest.CaptureFixture[str]) -> None:
    url = f"{driver}://user:secret@127.0.0.1:1/name"
    command = ["worker", "--database", url, "--nodes", nodes[0].address]
    assert run([*command, "--once"]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith(f"kvcluster: database {make_url(url).render_as_string()} cannot be asked: ")
    with working(*command) as (process, lines):
        wait_for(lambda: any("cannot be read" in line for line in lines))
        process.terminate()
        assert process.wait(20) == 0
    assert "secret" not in shown.out + shown.err + "".join(lines)
    assert "***" in lines[0]


@SQLITE
def test_a_worker_follows_the_topology_that_the_programs_follow(
    database: Database, engine: Engine, outbox: Outbox, nodes: list[RunningNode], tmp_path: Path
) -> None:
    """Nodes with ids of their own: their keys are not where a list of their addresses would have them."""
    source = FileSource(tmp_path / "topology.toml")
    source.create(Document(tuple(Node(node.address, id=f"cache{at}") for at, node in enumerate(nodes))))
    keys = [f"k{at}" for at in range(50)]
    with Client.from_topology(source) as client:
        client.set_many(dict.fromkeys(keys, 1))
        for key in keys:
            write(engine, outbox, key.encode())
        grown_old(engine)
        assert run(["worker", "--database", database.url, "--topology", str(source.path), "--once"]) == 0
        assert client.get_many(keys) == {}


def test_nodes_and_a_topology_are_two_answers_to_one_question(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["locate", "k", "--nodes", "a:1", "--topology", str(tmp_path / "t.toml")]) == 2
    assert "leave --nodes" in capsys.readouterr().err
