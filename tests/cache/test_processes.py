"""Several processes with several threads each on four nodes: one load per key, and no old value after an invalidation.

``KVCLUSTER_SOAK=1`` makes the search for old values as long as the claim is large: a million checked reads, or ``KVCLUSTER_READS``.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy.orm import Session, sessionmaker

from kvcluster import Cache, Client
from kvcluster.cache.outbox import Outbox
from kvcluster.testing.nodes import RunningNode
from tests.cache import workers
from tests.cache.shop import User
from tests.databases import Database

SPAWN = multiprocessing.get_context("spawn")
READS = int(os.environ.get("KVCLUSTER_READS", "1000000")) if os.environ.get("KVCLUSTER_SOAK") == "1" else 0
SECONDS = 12.0  # where no number of reads is asked for
PATIENCE = 120 + READS / 100  # seconds
USERS = 12


@contextmanager
def running(*works: tuple[Callable[..., None], tuple[Any, ...]]) -> Iterator[list[Any]]:
    """Processes that do these works, ended at the end."""
    processes = [SPAWN.Process(target=work, args=arguments, daemon=True) for work, arguments in works]
    try:
        for process in processes:
            process.start()
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join()
            process.close()


def addresses(nodes: list[RunningNode]) -> list[str]:
    return [node.address for node in nodes]


def end(processes: list[Any], seconds: float = 60) -> None:
    for process in processes:
        process.join(seconds)
        assert process.exitcode == 0


def test_a_cold_key_is_loaded_once_over_all_processes(nodes: list[RunningNode]) -> None:
    gate, loads, answers = SPAWN.Barrier(4 * 8), SPAWN.Value("i", 0), SPAWN.Value("i", 0)
    with running(*[(workers.herd, (addresses(nodes), 8, gate, loads, answers, 0.2))] * 4) as processes:
        end(processes)
    assert (loads.value, answers.value) == (1, 4 * 8)


def test_a_winner_that_is_killed_costs_one_more_load(nodes: list[RunningNode]) -> None:
    loading, go, ready = SPAWN.Event(), SPAWN.Event(), SPAWN.Semaphore(0)
    loads, answers = SPAWN.Value("i", 0), SPAWN.Value("i", 0)
    heirs = [(workers.heir, (addresses(nodes), 4, go, ready, loads, answers, 0.3))] * 2
    with running((workers.doomed, (addresses(nodes), loading, loads)), *heirs) as (winner, *others):
        assert loading.wait(30)
        for _ in others:
            assert ready.acquire(timeout=30)
        go.set()
        time.sleep(0.1)  # let some of them find the lease taken before its owner dies; either order must do
        winner.kill()
        end(others)
    assert (loads.value, answers.value) == (2, 2 * 4)


def test_a_live_winner_is_left_to_finish(nodes: list[RunningNode]) -> None:
    """With the default lease, and before anybody knows how long loads take."""
    gate, loads, answers = SPAWN.Barrier(4 * 4), SPAWN.Value("i", 0), SPAWN.Value("i", 0)
    with running(*[(workers.herd, (addresses(nodes), 4, gate, loads, answers, 0.6))] * 4) as processes:
        end(processes)
    assert (loads.value, answers.value) == (1, 4 * 4)


def test_a_winner_that_is_killed_in_an_early_refresh_costs_one_more_load(nodes: list[RunningNode]) -> None:
    loading, go, ready = SPAWN.Event(), SPAWN.Event(), SPAWN.Semaphore(0)
    loads, answers = SPAWN.Value("i", 0), SPAWN.Value("i", 0)
    with Client(addresses(nodes), timeout=5, connect_timeout=5) as client:
        assert client.set("herd:row:hot", "old", expire=60)
    readers = [(workers.reader, (addresses(nodes), 4, go, ready, loads, answers, 0.3))] * 2
    with running((workers.refresher, (addresses(nodes), loading, loads)), *readers) as (winner, *others):
        assert loading.wait(30)
        for _ in others:
            assert ready.acquire(timeout=30)
        winner.kill()
        go.set()
        end(others)
    assert (loads.value, answers.value) == (2, 2 * 4)


def deploy(kinds: list[str], nodes: list[RunningNode], current: dict[str, Any], seconds: float) -> dict[str, int]:
    tally = {name: SPAWN.Value("q", 0) for name in ("reads", "stale", "hits", "undecodable")}
    gate = SPAWN.Barrier(len(kinds))
    with running(*[(workers.deployed, (kind, addresses(nodes), gate, seconds, current, tally)) for kind in kinds]) as processes:
        end(processes, seconds + 60)
    return {name: value.value for name, value in tally.items()}


@pytest.mark.slow
def test_two_versions_of_a_program_and_then_the_older_alone_read_nothing_old(nodes: list[RunningNode]) -> None:
    """A rolling deploy that changes what is cached, and its rollback."""
    current = {name: SPAWN.RawArray("Q", 20) for name in ("rows", "committed")}
    both = deploy(["older", "newer"], nodes, current, 5)
    print(both)
    assert both["stale"] == 0
    assert both["reads"] > 200
    assert both["hits"] > both["reads"] // 10
    assert both["undecodable"] > 0, "the newer one's field is missing in what the older one has stored"
    alone = deploy(["older"], nodes, current, 2)
    print(alone)
    assert alone["stale"] == 0
    assert alone["reads"] > 50


def stress(naive: bool, nodes: list[RunningNode], database: Database, reads: float, seconds: float) -> dict[str, int]:
    """Let three processes read and write the same users, and count what they saw, and what is wrong in the end."""
    engine = database.engine()
    User.__table__.create(engine)  # type: ignore[attr-defined]
    outbox = Outbox()
    with engine.begin() as connection:
        outbox.create(connection)
    with Session(engine) as session, session.begin():
        session.add_all(User(id=n, name="0") for n in range(1, USERS + 1))
    tally = {name: SPAWN.Value("q", 0) for name in ("reads", "writes", "stale", "hits", "unstored")}
    soak = workers.Soak(SPAWN.RawArray("Q", USERS + 1), tally, reads, seconds)
    with running(*[(workers.shop, (n, 3, naive, addresses(nodes), database, soak)) for n in range(3)]) as processes:
        end(processes, PATIENCE)
    seen = {name: value.value for name, value in tally.items()}
    ids = range(1, USERS + 1)
    with Client(addresses(nodes), timeout=workers.PATIENT) as client, Session(engine) as session:
        sessions = sessionmaker(engine)
        cached: Any = Cache("stress", ttl="10m", client=client).repository(User, sessions)
        users = workers.Naive(client, sessions) if naive else cached
        true = [session.get_one(User, id).name for id in ids]
        seen["left"] = sum(user.name != name for user, name in zip(users.list(ids), true, strict=True))
    with engine.connect() as connection:
        seen["rows"] = outbox.lag(connection).rows
    engine.dispose()
    print(seen)
    return seen


@pytest.mark.slow
@pytest.mark.timeout(PATIENCE + 60)
@pytest.mark.parametrize("database", ["sqlite", "mariadb"], indirect=True)
def test_no_read_is_older_than_a_completed_invalidation(nodes: list[RunningNode], database: Database) -> None:
    seen = stress(False, nodes, database, READS or math.inf, math.inf if READS else SECONDS)
    assert seen["stale"] == seen["left"] == 0
    assert seen["reads"] > 500
    assert seen["writes"] > 50
    assert seen["hits"] > seen["reads"] // 10, "it was the cache that answered"
    assert seen["unstored"] > 0, "loads were overtaken by invalidations, which is what this is about"
    assert seen["rows"] == 0, "writers that live acknowledge"


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite", "mariadb"], indirect=True)
def test_the_same_search_finds_the_old_values_of_a_naive_cache(nodes: list[RunningNode], database: Database) -> None:
    assert stress(True, nodes, database, math.inf, 6)["stale"] > 0
