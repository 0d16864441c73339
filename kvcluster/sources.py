"""Where the topology of a cluster that may be resized is kept: one `Document` that every client reads and a resize replaces.

A source is asked for its document when a client starts and when a node's answer tells of another epoch, and every few seconds
whether there is something new, which costs next to nothing. A change is a compare-and-set: of two who replace the document of one
epoch, one succeeds. That is also the lock of a resize: whoever takes it writes the next epoch, and only the owner may write the
same epoch again, to renew it.

Clients leave a `Sighting` beside the document, so that a resize can be refused while one of them does not follow.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from kvcluster.errors import ConfigurationError, MissingExtra, SourceUnavailable
from kvcluster.placement import placement
from kvcluster.placement.slots import Slots
from kvcluster.topology import Document

if TYPE_CHECKING:
    from sqlalchemy import Engine

SIGHTED: Final = 30.0  # seconds after which a client says again that it is there
FORGOTTEN: Final = 86400.0  # seconds after which a sighting is removed


@dataclass(frozen=True, slots=True)
class Sighting:
    """A client that follows the document, as it said of itself.

    ``name`` tells clients apart (host, process, a random number), ``version`` is its release of kvcluster, ``epoch`` what it
    follows, and ``seen`` when it said so, in seconds since 1970.
    """

    name: str
    version: str
    epoch: int
    seen: float


class TopologySource(Protocol):
    """One document, shared by all clients of a cluster."""

    patience: float
    """Seconds between two looks for something new."""

    def read(self) -> Document:
        """The document.

        :raises SourceUnavailable: where the source cannot be read now
        :raises ConfigurationError: where there is none, or what is there cannot be used
        """

    def stamp(self) -> object:
        """A value that differs once the document has another epoch, cheaper than reading it.

        :raises SourceUnavailable: where the source cannot be read now
        """

    def replace(self, expected_epoch: int, document: Document) -> bool:
        """Put a document in the place of the one that has ``expected_epoch``; False where somebody else was faster.

        :param document: of the next epoch, or of the same where it has the same owner: a lock that is renewed
        :raises ConfigurationError: for a document of any other epoch
        :raises SourceUnavailable: where the source cannot be written now
        """

    def announce(self, sighting: Sighting) -> None:
        """Note that a client is there.

        :raises SourceUnavailable: where the source cannot be written
        """

    def withdraw(self, sighting: Sighting) -> None:
        """Note that a client has ended.

        :raises SourceUnavailable: where the source cannot be written
        """

    def sightings(self) -> list[Sighting]:
        """The clients that were there within the last day, the last seen first.

        :raises SourceUnavailable: where the source cannot be read now
        """


def sealed(document: Document) -> Document:
    """The document with the checksum of its slot table.

    :raises ConfigurationError: for a placement that is unknown, or one without slots
    """
    return replace(document, table_crc=_slots(document).crc)


def checked(document: Document, name: str) -> Document:
    """The document itself.

    :param name: what errors call the source
    :raises ConfigurationError: where this process would place keys otherwise than whoever wrote it
    """
    crc = _slots(document).crc
    if document.table_crc not in (None, crc):
        raise ConfigurationError(
            f"{name}: table_crc is {document.table_crc}, but these nodes give a table of {crc}. Either nodes, ids, weights or "
            "slots were edited by hand (change a live cluster by `kvcluster rebalance`), or another release fills tables otherwise"
        )
    return document


def _slots(document: Document) -> Slots:
    found = placement(document.placement, document.nodes, document.slots)
    if not isinstance(found, Slots):
        raise ConfigurationError(f"placement must be 'slots' for a cluster that may be resized, not {document.placement!r}")
    return found


def _require_next(expected_epoch: int, document: Document) -> None:
    if document.epoch not in (expected_epoch, expected_epoch + 1):
        raise ConfigurationError(f"epoch {expected_epoch} may be followed by itself or by the next one, not by {document.epoch}")


def _may_follow(present: Document, expected_epoch: int, document: Document) -> bool:
    """Whether a document may take another's place: of the same epoch only the lock's owner may write another one."""
    if present.epoch != expected_epoch:
        return False
    return document.epoch > present.epoch or document.owner == present.owner != ""


def _keep_access(before: Path, after: Path) -> None:
    """Let those read and write a file who may another; its owner can be kept by the superuser and by the owner."""
    status = before.stat()
    with contextlib.suppress(PermissionError):
        os.chown(after, status.st_uid, status.st_gid)
    after.chmod(stat.S_IMODE(status.st_mode))  # last: a change of owner may take bits away


class FileSource:
    """A document in a TOML file, for clients that share a file system.

    A change is written beside it and renamed into its place, under an advisory lock on ``PATH.lock``. Sightings are files in
    ``PATH.clients``.

    :param path: the file; `create` writes the first one, or a person does

    >>> import tempfile
    >>> from kvcluster.topology import Node
    >>> source = FileSource(Path(tempfile.mkdtemp(), "topology.toml"))
    >>> source.create(Document((Node("cache1"), Node("cache2"))))
    >>> source.replace(1, source.read().step(owner="me", lease_until=time.time() + 30)), source.read().epoch
    (True, 2)
    """

    patience = 1.0

    def __init__(self, path: str | os.PathLike[str], clock: Callable[[], float] = time.time) -> None:
        self.path = Path(path)
        self._clock = clock

    def __repr__(self) -> str:
        return f"FileSource({str(self.path)!r})"

    def create(self, document: Document) -> None:
        """Write the first document.

        :raises ConfigurationError: where there is a file already
        """
        with self._locked():
            if self.path.exists():
                raise ConfigurationError(f"{self.path}: there is a topology already")
            self._write(sealed(document))

    def read(self) -> Document:
        """See `TopologySource`."""
        try:
            text = self.path.read_text("utf-8")
        except FileNotFoundError:
            raise ConfigurationError(f"{self.path}: there is no such file; `kvcluster rebalance init` writes one") from None
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"{self.path}: is not UTF-8: {error.reason}") from None
        except OSError as error:
            raise SourceUnavailable(f"{self.path}: {error}") from error
        return checked(Document.from_toml(text, str(self.path)), str(self.path))

    def stamp(self) -> object:
        """See `TopologySource`."""
        try:
            status = os.stat(self.path)
        except OSError as error:
            raise SourceUnavailable(f"{self.path}: {error}") from error
        return status.st_mtime_ns, status.st_ino, status.st_size

    def replace(self, expected_epoch: int, document: Document) -> bool:
        """See `TopologySource`."""
        _require_next(expected_epoch, document)
        document = sealed(document)
        with self._locked():
            if not _may_follow(self.read(), expected_epoch, document):
                return False
            self._write(document)
            return True

    def _write(self, document: Document) -> None:
        place = self._place
        beside = place.with_name(f"{place.name}.{os.getpid()}.new")
        try:
            with beside.open("w", encoding="utf-8") as file:
                file.write(document.to_toml())
                file.flush()
                os.fsync(file.fileno())
            if place.exists():
                _keep_access(place, beside)
            beside.replace(place)
        except OSError as error:
            raise SourceUnavailable(f"{self.path}: {error}") from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        import fcntl  # here, because only those who write need it, and Windows has none

        try:
            descriptor = os.open(self._place.with_name(f"{self._place.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise SourceUnavailable(f"{self.path}: {error}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # ends with the process, however that ends
            yield
        finally:
            os.close(descriptor)

    def announce(self, sighting: Sighting) -> None:
        """See `TopologySource`."""
        place = self._sighted / f"{sighting.name}.json"
        try:
            self._sighted.mkdir(exist_ok=True)
            beside = place.with_suffix(f".{os.getpid()}.new")
            beside.write_bytes(msgspec.json.encode(asdict(sighting)))
            beside.replace(place)
        except OSError as error:
            raise SourceUnavailable(f"{place}: {error}") from error

    def withdraw(self, sighting: Sighting) -> None:
        """See `TopologySource`."""
        place = self._sighted / f"{sighting.name}.json"
        try:
            place.unlink(missing_ok=True)
        except OSError as error:
            raise SourceUnavailable(f"{place}: {error}") from error

    def sightings(self) -> list[Sighting]:
        """See `TopologySource`."""
        found, since = [], self._clock() - FORGOTTEN
        for place in self._sighted.glob("*.json"):
            with contextlib.suppress(OSError, msgspec.DecodeError):  # another process may remove it meanwhile
                sighting = msgspec.json.decode(place.read_bytes(), type=Sighting)
                if sighting.seen < since:
                    place.unlink()
                else:
                    found.append(sighting)
        return sorted(found, key=lambda sighting: -sighting.seen)

    @property
    def _sighted(self) -> Path:
        return self._place.with_name(f"{self._place.name}.clients")

    @property
    def _place(self) -> Path:
        """The file itself: a link stays one, and whoever comes by it shares lock and sightings with those who do not."""
        return Path(os.path.realpath(self.path))


class TableSource:
    """A document in a table of the user's database, for clients that share that.

    The table has one row for each cluster. Sightings are in a second table, ``NAME_clients``.

    :param engine: SQLAlchemy's, synchronous; an `AsyncClient` asks it in a thread
    :param table: the table's name; `create` creates it
    :param cluster: the row
    :raises MissingExtra: without ``kvcluster[sql]``
    """

    patience = 5.0

    def __init__(
        self, engine: Engine, table: str = "kvcluster_topology", cluster: str = "main", clock: Callable[[], float] = time.time
    ) -> None:
        try:
            import sqlalchemy as sql
        except ImportError:
            raise MissingExtra("sql", "TableSource") from None
        self._sql: Any = sql
        self._engine = engine
        self._name = f"{table}[{cluster}]"
        self._cluster = cluster
        self._clock = clock
        metadata = sql.MetaData()
        self._documents = sql.Table(
            table,
            metadata,
            sql.Column("cluster", sql.String(100), primary_key=True),
            sql.Column("epoch", sql.BigInteger, nullable=False),
            sql.Column("owner", sql.String(200), nullable=False),
            sql.Column("document", sql.Text, nullable=False),
        )
        self._sightings = sql.Table(
            f"{table}_clients",
            metadata,
            sql.Column("cluster", sql.String(100), primary_key=True),
            sql.Column("name", sql.String(200), primary_key=True),
            sql.Column("version", sql.String(40), nullable=False),
            sql.Column("epoch", sql.BigInteger, nullable=False),
            sql.Column("seen", sql.Double, nullable=False),
        )

    def __repr__(self) -> str:
        return f"TableSource({self._name!r})"

    def create(self, document: Document) -> None:
        """Create the tables where they are missing, and write the first document.

        :raises ConfigurationError: where there is one already
        """
        with self._transaction() as connection:
            self._documents.metadata.create_all(connection)
            if connection.execute(self._where(self._sql.select(self._documents.c.epoch))).first() is not None:
                raise ConfigurationError(f"{self._name}: there is a topology already")
            row = self._row(sealed(document))
            connection.execute(self._documents.insert().values(cluster=self._cluster, **row))

    def read(self) -> Document:
        """See `TopologySource`."""
        with self._transaction() as connection:
            row = connection.execute(self._where(self._sql.select(self._documents.c.document))).first()
        if row is None:
            raise ConfigurationError(f"{self._name}: the table holds no topology; 'kvcluster rebalance init' writes one")
        return checked(Document.from_toml(row.document, self._name), self._name)

    def stamp(self) -> object:
        """See `TopologySource`."""
        with self._transaction() as connection:
            return connection.execute(self._where(self._sql.select(self._documents.c.epoch))).scalar()

    def replace(self, expected_epoch: int, document: Document) -> bool:
        """See `TopologySource`."""
        _require_next(expected_epoch, document)
        table, update = self._documents.c, self._where(self._documents.update()).where(self._documents.c.epoch == expected_epoch)
        if document.epoch == expected_epoch:
            update = update.where(table.owner == document.owner, table.owner != "")
        with self._transaction() as connection:
            result = connection.execute(update.values(**self._row(sealed(document))))
            return bool(result.rowcount == 1)

    def announce(self, sighting: Sighting) -> None:
        """See `TopologySource`."""
        table, values = self._sightings.c, asdict(sighting)
        this = (table.cluster == self._cluster) & (table.name == sighting.name)
        with self._transaction() as connection:
            connection.execute(
                self._sightings.delete().where(table.cluster == self._cluster, this | (table.seen < self._clock() - FORGOTTEN))
            )
            connection.execute(self._sightings.insert().values(cluster=self._cluster, **values))

    def withdraw(self, sighting: Sighting) -> None:
        """See `TopologySource`."""
        table = self._sightings.c
        with self._transaction() as connection:
            connection.execute(self._sightings.delete().where(table.cluster == self._cluster, table.name == sighting.name))

    def sightings(self) -> list[Sighting]:
        """See `TopologySource`."""
        table = self._sightings.c
        asked = (
            self._sql.select(table.name, table.version, table.epoch, table.seen)
            .where(table.cluster == self._cluster, table.seen >= self._clock() - FORGOTTEN)
            .order_by(table.seen.desc())
        )
        with self._transaction() as connection:
            return [Sighting(*row) for row in connection.execute(asked)]

    def _row(self, document: Document) -> dict[str, Any]:
        return {"epoch": document.epoch, "owner": document.owner, "document": document.to_toml()}

    def _where(self, statement: Any) -> Any:
        return statement.where(self._documents.c.cluster == self._cluster)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Any]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except self._sql.exc.SQLAlchemyError as error:
            raise SourceUnavailable(f"{self._name}: {str(error).splitlines()[0]}") from error
