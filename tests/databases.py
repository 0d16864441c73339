"""Real databases for tests: a server of each kind started in a moment, a database of its own for each test, nothing left behind.

A server runs in a temporary directory on a free loopback port, from the installed binaries; else from an image, where Docker
answers. It is started when the first test asks for it, once per process that runs tests. `durable` servers wait for the disk at
every commit, as a database is delivered; the others leave that to the system, which a test that does not cut the power cannot see.

A small guard stands over each server: it waits for the end of the pipe that it shares with the process of the tests, ends the
server, and removes the directory. So nothing outlives the tests, however they end.
"""

from __future__ import annotations

import functools
import os
import pwd
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError

from kvcluster.testing.nodes import NodeDidNotStart, docker_answers, on_free_port

KINDS = ("sqlite", "mariadb", "postgresql")
SERVERS = ("mariadb", "postgresql")
START_TIMEOUT = 60.0  # seconds; a second is enough unless an image is fetched

# The pipe is kept under another number, for a shell gives /dev/null to what it starts in the background.
_GUARD = """
"$@" >"$DIRECTORY/log" 2>&1 &
server=$!
exec 3<&0
{ read end <&3; kill -s "$END" $server; } &
wait $server
rm -rf "$DIRECTORY"
"""
_names = count(1)


@dataclass(frozen=True, slots=True)
class Database:
    """An empty database.

    :ivar kind: one of `KINDS`
    :ivar url: for `create_engine`
    :ivar async_url: for `create_async_engine`
    """

    kind: str
    url: str
    async_url: str

    def engine(self, **options: Any) -> Engine:
        """An engine for it, which the caller disposes of. SQLite is in WAL mode, where readers never wait for a writer."""
        engine = create_engine(self.url, **options)
        if self.kind == "sqlite":
            event.listen(engine, "connect", _in_wal_mode)
        return engine


def _in_wal_mode(connection: Any, record: object) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA busy_timeout=30000")


@dataclass(frozen=True, slots=True)
class Dialect:
    """What is to be known of a kind of server.

    :ivar driver: of `create_engine`
    :ivar async_driver: of `create_async_engine`
    :ivar image: in Docker, with the environment it needs and the port it listens on
    :ivar end: the signal that ends it at once
    """

    driver: str
    async_driver: str
    image: str
    environment: dict[str, str]
    port: int
    administration: str
    end: str


DIALECTS = {
    "mariadb": Dialect(
        "mysql+pymysql", "mysql+aiomysql", "mariadb:11", {"MARIADB_ALLOW_EMPTY_ROOT_PASSWORD": "1"}, 3306, "root@{}/", "KILL"
    ),
    "postgresql": Dialect(
        "postgresql+psycopg",
        "postgresql+psycopg",
        "postgres:17",
        {"POSTGRES_HOST_AUTH_METHOD": "trust"},
        5432,
        "postgres@{}/postgres",
        "QUIT",  # a killed one would leave its shared memory
    ),
}


class Server:
    """A database server on this machine.

    :param kind: one of `SERVERS`
    :param durable: whether a commit waits for the disk
    :raises NodeDidNotStart: when it cannot run
    """

    def __init__(self, kind: str, durable: bool = False) -> None:
        self.kind = kind
        self._dialect = DIALECTS[kind]
        self._durable = durable
        self._end: Callable[[], None]
        on_free_port(self._start if binary(kind) else self._start_container)

    def __repr__(self) -> str:
        return f"<{describe(self.kind)} at {self._place}>"

    @contextmanager
    def database(self) -> Iterator[Database]:
        """A new database, dropped at the end."""
        name = f"kvcluster_{os.getpid()}_{next(_names)}"
        self._administer(f"CREATE DATABASE {name}")
        place = self._dialect.administration.format(self._place).partition("/")[0] + f"/{name}"
        yield Database(self.kind, f"{self._dialect.driver}://{place}", f"{self._dialect.async_driver}://{place}")
        self._administer(f"DROP DATABASE {name}" + (" WITH (FORCE)" if self.kind == "postgresql" else ""))

    def stop(self) -> None:
        """End it, and remove what it wrote."""
        self._end()

    def _administer(self, statement: str) -> str:
        engine = create_engine(
            f"{self._dialect.driver}://{self._dialect.administration.format(self._place)}", isolation_level="AUTOCOMMIT"
        )
        try:
            with engine.connect() as connection:
                result = connection.execute(text(statement))
                return str(result.scalar()) if result.returns_rows else ""
        finally:
            engine.dispose()

    def _start(self, port: int) -> None:
        self._place = f"127.0.0.1:{port}"
        self.directory = directory = Path(tempfile.mkdtemp(prefix="kvcluster-database-"))
        user = _user(self.kind)
        if user is not None:
            os.chown(directory, user.pw_uid, user.pw_gid)
        as_user: dict[str, Any] = {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        try:
            prepare, command = _commands(self.kind, directory, port, self._durable)
            subprocess.run(prepare, check=True, capture_output=True, cwd=directory, timeout=START_TIMEOUT, **as_user)
        except BaseException as error:
            shutil.rmtree(directory)
            if isinstance(error, subprocess.CalledProcessError):
                raise NodeDidNotStart(f"{prepare[0]} failed: {error.stderr.decode(errors='replace')[-1000:]}") from None
            raise
        guard = subprocess.Popen(
            ["sh", "-c", _GUARD, "guard", *command],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # where a shell tells of what was killed
            cwd="/",
            env={**os.environ, "DIRECTORY": str(directory), "END": self._dialect.end},
            start_new_session=True,  # Ctrl-C is for the tests, which then let go of the pipe
            **as_user,
        )

        def end() -> None:
            assert guard.stdin is not None
            guard.stdin.close()
            guard.wait()

        self._end = end
        asking = "SELECT @@datadir" if self.kind == "mariadb" else "SHOW data_directory"
        try:
            self._wait(lambda: guard.poll() is not None)
            if not self._administer(asking).startswith(str(directory)):
                raise NodeDidNotStart(f"{self._place}: another server answers there")
        except BaseException:
            end()
            raise

    def _start_container(self, port: int) -> None:
        from testcontainers.core.container import DockerContainer  # here, because few runs need it

        self._place = f"127.0.0.1:{port}"
        dialect = self._dialect
        container: Any = DockerContainer(dialect.image).with_bind_ports(dialect.port, port)
        for name, value in dialect.environment.items():
            container.with_env(name, value)
        self._end = container.stop
        try:
            container.start()
            self._wait(lambda: False)
        except Exception as error:
            container.stop()
            raise NodeDidNotStart(f"{dialect.image}: {error}") from error

    def _wait(self, ended: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not ended():
            try:
                self._administer("SELECT 1")
                return
            except DBAPIError as error:
                if time.monotonic() > deadline:
                    raise NodeDidNotStart(f"{self._place}: no answer within {START_TIMEOUT:g} s: {error}") from None
            time.sleep(0.02)
        raise NodeDidNotStart(f"{self._place}: the {self.kind} server ended while it started")


def _commands(kind: str, directory: Path, port: int, durable: bool) -> tuple[list[str], list[str]]:
    """What makes a server's files, and what starts it."""
    program, data = binary(kind), directory / "data"
    assert program is not None
    if kind == "mariadb":
        install = shutil.which("mariadb-install-db") or "mariadb-install-db"
        common = ["--no-defaults", f"--datadir={data}", "--innodb-log-file-size=8M"]
        if os.geteuid() == 0:
            common.append("--user=root")
        place = [f"--port={port}", "--bind-address=127.0.0.1", f"--socket={directory}/socket", f"--pid-file={directory}/pid"]
        small = ["--innodb-buffer-pool-size=64M", "--performance-schema=OFF", "--skip-name-resolve"]
        fast = [] if durable else ["--innodb-flush-log-at-trx-commit=0"]
        return (
            [install, *common, "--auth-root-authentication-method=normal", "--skip-test-db"],
            [program, *common, *place, *small, *fast],
        )
    install = str(Path(program).with_name("initdb"))
    fast = [] if durable else ["-c", "fsync=off"]
    return (
        [install, "-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"],
        [program, "-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", str(directory), *fast],
    )


def _user(kind: str) -> pwd.struct_passwd | None:
    """Whom to run a server as: PostgreSQL refuses root."""
    if kind == "mariadb" or os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return None


@functools.cache
def binary(kind: str) -> str | None:
    """The path of a kind's server, or None. Debian keeps PostgreSQL's off the PATH."""
    if kind == "mariadb":
        return shutil.which("mariadbd") or shutil.which("mariadbd", path="/usr/sbin:/usr/local/sbin")
    found = shutil.which("postgres")
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    return os.path.realpath(found) if found else str(installed[-1]) if installed else None


@functools.cache
def describe(kind: str) -> str:
    """What tests of a kind run on, for people; or why they are skipped, which begins with ``no``."""
    if kind == "sqlite":
        return f"SQLite {sqlite3.sqlite_version}"
    program = binary(kind)
    if program is not None:
        answer = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=30).stdout
        version = next((word for word in answer.split() if word[:1].isdigit()), "")
        return f"{kind} {version.partition('-')[0]} ({program})"
    if docker_answers():
        return f"{DIALECTS[kind].image} (Docker)"
    return f"no {kind}: it is not installed, and Docker does not answer"


class Servers:
    """The servers of one run, started when they are first asked for."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, bool], Server] = {}

    @contextmanager
    def database(self, kind: str, directory: Path, durable: bool = False) -> Iterator[Database]:
        """An empty database.

        :param directory: where SQLite's file may be
        """
        if kind == "sqlite":
            file = directory / "database.db"
            yield Database(kind, f"sqlite:///{file}", f"sqlite+aiosqlite:///{file}")
            return
        wanted = (kind, durable)
        if wanted not in self._running:
            self._running[wanted] = Server(kind, durable)
        with self._running[wanted].database() as database:
            yield database

    def stop(self) -> None:
        """End them all."""
        for server in self._running.values():
            server.stop()
        self._running.clear()
