"""The servers themselves: what is promised of their beginning and of their end."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from sqlalchemy import text

from tests.databases import SERVERS, Database, describe

_ASKED = {"sqlite": "SELECT sqlite_version()", "mariadb": "SELECT @@version", "postgresql": "SHOW server_version"}


def test_a_database_of_each_kind_answers(database: Database) -> None:
    engine = database.engine()
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (id INT)"))
        version = str(connection.execute(text(_ASKED[database.kind])).scalar())
    engine.dispose()
    assert version.partition("-")[0].split()[0] in describe(database.kind) or "Docker" in describe(database.kind)


def test_tests_do_not_meet_in_one_database(database: Database) -> None:
    """Both this and the one before make the same table."""
    test_a_database_of_each_kind_answers(database)


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize("how", ["Ctrl-C", "kill -9"])
def test_nothing_outlives_the_tests(kind: str, how: str) -> None:
    if "(/" not in describe(kind):
        pytest.skip(f"{kind} is not run from a binary here")
    script = f"from tests.databases import Server; server = Server({kind!r}); print(server.directory, flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    directory = child.stdout.readline().strip()
    try:
        assert os.path.isdir(directory)
    finally:
        child.send_signal(2 if how == "Ctrl-C" else 9)
        child.wait()
        child.stdout.close()
        child.stdin.close()
    deadline = time.monotonic() + 20
    while os.path.isdir(directory):
        assert time.monotonic() < deadline
        time.sleep(0.02)
