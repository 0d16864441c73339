"""The servers themselves: what is promised of their beginning and of their end."""

from __future__ import annotations

import os
import signal
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
    script = f"""
import time
from tests.databases import Server
server = Server({kind!r})
print(server.directory, flush=True)
while True:
    time.sleep(0.05)
"""
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job, which the tests may be, ignores SIGINT and hands that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as child:
        assert child.stdout is not None
        try:
            directory = child.stdout.readline().strip()
            assert os.path.isdir(directory)
            child.send_signal(signal.SIGINT if how == "Ctrl-C" else signal.SIGKILL)
            child.wait(20)
        finally:
            child.kill()
    deadline = time.monotonic() + 20
    while os.path.isdir(directory):
        assert time.monotonic() < deadline
        time.sleep(0.02)
