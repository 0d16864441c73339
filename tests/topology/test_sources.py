"""Where a document lives: two kinds of source, one contract."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql
from sqlalchemy.pool import NullPool

from kvcluster.errors import ConfigurationError, SourceUnavailable
from kvcluster.sources import FORGOTTEN, FileSource, Sighting, TableSource, checked, sealed
from kvcluster.topology import Document, Node

A, B, C = Node("a:1"), Node("b:1"), Node("c:1")
FIRST = Document((A, B))


def open_file(path: Path, clock: Callable[[], float] = lambda: 0.0) -> FileSource:
    return FileSource(path / "topology.toml", clock)


def open_table(path: Path, clock: Callable[[], float] = lambda: 0.0) -> TableSource:
    # A process that waits for another's transaction waits; one that could not upgrade its own would fail at once.
    engine = sql.create_engine(f"sqlite:///{path / 'topology.db'}", poolclass=NullPool, connect_args={"timeout": 30})
    return TableSource(engine, clock=clock)


OPEN: dict[str, Callable[..., Any]] = {"file": open_file, "table": open_table}


@pytest.fixture(params=list(OPEN))
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    found = OPEN[request.param](tmp_path)
    found.create(FIRST)
    return found


def test_what_was_written_is_read(source: Any) -> None:
    assert source.read() == sealed(FIRST)
    following = FIRST.step(phase="prepare", nodes=(A, B, C), previous=(A, B), owner="me", lease_until=99.5)
    assert source.replace(1, following) is True
    assert source.read() == sealed(following)


def test_a_first_document_is_written_once(source: Any) -> None:
    with pytest.raises(ConfigurationError, match="there is a topology already"):
        source.create(FIRST)


def test_a_change_is_noticed(source: Any) -> None:
    before = source.stamp()
    assert source.stamp() == before
    source.replace(1, FIRST.step())
    assert source.stamp() != before


def test_a_late_change_is_refused(source: Any) -> None:
    assert source.replace(1, FIRST.step(owner="first"))
    assert source.replace(1, FIRST.step(owner="second")) is False
    assert source.read().owner == "first"


def test_only_its_owner_renews_a_lock(source: Any) -> None:
    mine = FIRST.step(owner="me", lease_until=10)
    assert source.replace(1, mine)
    assert source.replace(2, Document((A, B), 2, owner="me", lease_until=20)) is True
    assert source.replace(2, Document((A, B), 2, owner="you", lease_until=30)) is False
    assert source.replace(2, Document((A, B), 2)) is False
    assert (source.read().owner, source.read().lease_until) == ("me", 20)
    assert source.replace(2, source.read().step(owner="you", lease_until=40)), "who takes it over writes the next epoch"
    assert source.replace(2, Document((A, B), 2, owner="me", lease_until=50)) is False


def test_nobody_owns_a_document_without_a_lock(source: Any) -> None:
    assert source.replace(1, Document((A, B, C), 1)) is False


@pytest.mark.parametrize("epoch", [5, 7, 100])
def test_epochs_follow_each_other(source: Any, epoch: int) -> None:
    with pytest.raises(ConfigurationError, match=f"epoch 3 may be followed by itself or by the next one, not by {epoch}"):
        source.replace(3, Document((A,), epoch))


def test_a_table_that_differs_is_refused(source: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="place: table_crc is 1, but these nodes give a table of"):
        checked(Document((A, B), table_crc=1), "place")
    with pytest.raises(ConfigurationError, match="placement must be 'slots'"):
        sealed(Document((A, B), placement="modulo"))
    with pytest.raises(ConfigurationError, match="'nonsense' is unknown"):
        sealed(Document((A, B), placement="nonsense"))


def test_an_edit_by_hand_of_a_sealed_file_is_refused(tmp_path: Path) -> None:
    source = open_file(tmp_path)
    source.create(FIRST)
    text = source.path.read_text()
    source.path.write_text(text + '\n[[nodes]]\naddress = "c:1"\n')
    with pytest.raises(ConfigurationError, match=r"topology.toml: table_crc is .* edited by hand \(change a live cluster by"):
        source.read()
    source.path.write_text('[[nodes]]\naddress = "c:1"\n')
    assert source.read() == Document((C,))


def test_sightings(tmp_path: Path) -> None:
    now = [1000.0]
    for kind, open_source in OPEN.items():
        source = open_source(tmp_path, lambda: now[0])
        source.create(FIRST)
        assert source.sightings() == []
        first, second = Sighting("host-1", "0.1", 1, 900.5), Sighting("host-2", "0.1", 1, 950.0)
        source.announce(first)
        source.announce(second)
        source.announce(Sighting("host-1", "0.2", 2, 999.0))
        assert source.sightings() == [Sighting("host-1", "0.2", 2, 999.0), second], kind
        source.withdraw(second)
        source.withdraw(second)
        assert [sighting.name for sighting in source.sightings()] == ["host-1"]
        source.announce(second)
        now[0] = 960 + FORGOTTEN
        assert [sighting.name for sighting in source.sightings()] == ["host-1"]
        now[0] = 1000.0


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"topology.toml: there is no such file"):
        open_file(tmp_path).read()
    with pytest.raises(SourceUnavailable, match="no such table"):
        open_table(tmp_path).read()
    table = open_table(tmp_path)
    table.create(FIRST)
    with table._engine.begin() as connection:
        connection.execute(table._documents.delete())
    with pytest.raises(ConfigurationError, match="holds no topology; 'kvcluster rebalance init' writes one"):
        table.read()
    (tmp_path / "topology.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigurationError, match="is not UTF-8"):
        open_file(tmp_path).read()


def test_a_source_out_of_reach(tmp_path: Path) -> None:
    gone = FileSource(tmp_path / "no" / "topology.toml")
    for attempt in (gone.stamp, lambda: gone.replace(1, FIRST.step()), lambda: gone.announce(Sighting("a", "1", 1, 1.0))):
        with pytest.raises(SourceUnavailable, match=r"topology.toml"):
            attempt()
    assert gone.sightings() == []


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_file(tmp_path)
    source.create(FIRST)
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(SourceUnavailable, match="disk full"):
        source.replace(1, FIRST.step())
    assert source.read() == sealed(FIRST)


def test_a_link_stays_one_and_a_file_keeps_who_may_read_it(tmp_path: Path) -> None:
    """A document that only its writer can read any more would leave the clients behind."""
    place = tmp_path / "mounted" / "cluster.toml"
    place.parent.mkdir()
    FileSource(place).create(FIRST)
    place.chmod(0o664)
    if os.geteuid() == 0:
        os.chown(place, 1234, 4321)
    before = place.stat()
    source = FileSource(tmp_path / "topology.toml")
    source.path.symlink_to(place)
    umask = os.umask(0o077)
    try:
        assert source.replace(1, FIRST.step())
    finally:
        os.umask(umask)
    after = place.stat()
    source.announce(Sighting("web1-42-1", "0.1.0", 2, 0.0))
    assert not list(tmp_path.glob("topology.toml.*")), "lock and sightings are the file's"
    assert source.path.is_symlink()
    assert FileSource(place).read().epoch == 2
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


ROUNDS = 30


def race(kind: str, path: Path, name: str, wins: Any) -> None:
    """Try to write each epoch, as fast as one can."""
    source = OPEN[kind](path)
    won = []
    while (document := source.read()).epoch <= ROUNDS:
        if source.replace(document.epoch, document.step(owner=name)):
            won.append(document.epoch + 1)
    wins.put((name, won))


@pytest.mark.parametrize("kind", list(OPEN))
def test_of_two_processes_one_writes_each_epoch(kind: str, tmp_path: Path) -> None:
    OPEN[kind](tmp_path).create(FIRST)
    context = multiprocessing.get_context("spawn")
    wins: Any = context.Queue()
    processes = [context.Process(target=race, args=(kind, tmp_path, name, wins)) for name in ("one", "two", "three")]
    for process in processes:
        process.start()
    won = dict([wins.get(timeout=60) for _ in processes])
    for process in processes:
        process.join(60)
        process.close()
    wins.close()
    wins.join_thread()
    assert sorted(epoch for epochs in won.values() for epoch in epochs) == list(range(2, ROUNDS + 2))
