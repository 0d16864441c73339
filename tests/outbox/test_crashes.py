"""kill -9 at random points between the beginning of a transaction and the end of its invalidation, over real processes.

``KVCLUSTER_CRASHES`` says how many points for each database; ``make soak`` takes 200.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from kvcluster import Client
from kvcluster.cache.outbox import Outbox
from kvcluster.cache.worker import Worker
from kvcluster.testing.nodes import RunningNode
from tests.databases import Database
from tests.outbox.conftest import count, wait_for
from tests.outbox.crash import USERS, Base, User, shop

POINTS = int(os.environ.get("KVCLUSTER_CRASHES", "15"))
IDS = range(1, USERS + 1)
OTHERS = {
    "mariadb": "SELECT count(*) FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()",
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()",
}


def settled(engine: Engine) -> bool:
    """Whether the database has noticed the death of all others: until then it may carry out a commit that it was sent."""
    if engine.dialect.name == "sqlite":
        return True
    with engine.connect() as connection:
        others: int = connection.execute(text(OTHERS["mariadb" if engine.dialect.name == "mysql" else "postgresql"])).scalar_one()
        return others == 0


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.timeout(120 + 15 * POINTS)
def test_after_a_crash_the_worker_makes_the_cache_true(database: Database, nodes: list[RunningNode]) -> None:
    engine = database.engine(poolclass=NullPool)
    Base.metadata.create_all(engine)
    outbox = Outbox()
    with engine.begin() as connection:
        outbox.create(connection)
    with Session(engine) as session, session.begin():
        session.add_all(User(id=id, name="") for id in IDS)
    addresses = [node.address for node in nodes]
    client = Client(addresses, timeout=5, connect_timeout=5, pool_size=8)
    _, _, users = shop(engine, client)
    worker = Worker(client, engine, outbox, age=0)

    def differing() -> int:
        """How many users are not as the database has them."""
        with Session(engine) as session:
            true = {user.id: user.name for user in session.scalars(select(User))}
        return sum(user.name != true[user.id] for user in users.list(IDS))

    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            users.list(IDS)
            time.sleep(0.001)

    seed = time.time_ns() % 1_000_000
    left = before = after = 0
    command = [sys.executable, "-m", "tests.outbox.crash", database.url, ",".join(addresses), str(seed)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as nursery:
        assert nursery.stdin is not None
        assert nursery.stdout is not None
        try:
            for _ in range(POINTS):
                users.list(IDS)
                stop.clear()
                reader = threading.Thread(target=read)
                reader.start()
                try:
                    nursery.stdin.write("\n")
                    nursery.stdin.flush()
                    assert nursery.stdout.readline() == "killed\n"
                finally:
                    stop.set()
                    reader.join()
                wait_for(lambda: settled(engine))
                left += count(engine, outbox) > 0
                before += differing() > 0
                assert worker.drain().rows == 0
                after += differing() > 0
        finally:
            nursery.kill()
    client.close()
    engine.dispose()
    print(f"{database.kind}, seed {seed}: {POINTS} deaths, {left} left rows, {before} left a wrong cache, {after} after the worker")
    assert after == 0
    assert before > 0, "some died between commit and invalidation, or this shows nothing"
