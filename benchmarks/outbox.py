"""What an outbox adds to a committed write: ``python -m benchmarks.outbox``.

One row is changed in a transaction of its own, by a bound session, on real nodes; with and without an outbox, in turns, so that
both see the same machine. Commits are durable: the database waits for the disk. Each turn of writes with an outbox ends when its
rows are acknowledged, and pays for that, though a program does not wait for it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from kvcluster import Cache, Client
from kvcluster.testing.nodes import start_node
from tests.databases import KINDS, Database, Servers, describe

MARK = 1.3  # times a write without an outbox
TURN = 100  # writes of one kind before the other's turn


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50))


def measure(database: Database, addresses: list[str], turns: int) -> dict[str, list[float]]:
    """Seconds that each write took, by kind."""
    engine = database.engine()
    Base.metadata.create_all(engine)
    outbox = None
    with Client(addresses) as client:
        writers: dict[str, Callable[[int], None]] = {}
        for name in ("without", "with"):
            cache = Cache(name, ttl="10m", client=client)
            if name == "with":
                cache.create_outbox(engine)
                outbox = cache.outbox
            sessions = sessionmaker(engine)
            cache.repository(User, sessions)
            cache.bind(sessions)

            def write(n: int, name: str = name, sessions: sessionmaker = sessions) -> None:  # type: ignore[type-arg]
                with sessions.begin() as session:
                    session.get_one(User, 1 + n % 100).name = f"{name} {n}"  # no value twice: it would not be written

            writers[name] = write
        with sessions.begin() as session:
            session.add_all(User(id=n, name="") for n in range(1, 101))
        seconds: dict[str, list[float]] = {name: [] for name in writers}
        assert outbox is not None
        for turn in range(turns + 1):
            for name, write in writers.items():
                each = []
                for n in range(TURN):
                    began = time.perf_counter()
                    write(turn * TURN + n)
                    each.append(time.perf_counter() - began)
                began = time.perf_counter()
                outbox.flush()
                acknowledging = time.perf_counter() - began if name == "with" else 0.0
                if turn > 0:
                    seconds[name] += [one + acknowledging / TURN for one in each]
    engine.dispose()
    return seconds


def main() -> None:
    """Print the ratio for each database."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=20, help=f"of {TURN} writes of each kind")
    arguments = parser.parse_args()
    servers, nodes = Servers(), [start_node() for _ in range(3)]
    try:
        print(f"{'database':40} {'without':>10} {'with':>10} {'ratio':>6}   median and mean, ms; at most {MARK}")
        for kind in KINDS:
            if (found := describe(kind)).startswith("no "):
                print(found)
                continue
            with tempfile.TemporaryDirectory() as directory, servers.database(kind, Path(directory), durable=True) as database:
                seconds = measure(database, [node.address for node in nodes], arguments.turns)
            for figure in (statistics.median, statistics.mean):
                without, with_one = (figure(seconds[name]) * 1000 for name in ("without", "with"))
                print(f"{found:40} {without:10.3f} {with_one:10.3f} {with_one / without:6.2f}")
    finally:
        servers.stop()
        for node in nodes:
            node.stop()


if __name__ == "__main__":
    main()
