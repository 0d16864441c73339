"""A nursery of writers that are killed: ``python -m tests.outbox.crash URL ADDRESSES SEED``.

For each line on its standard input it forks a writer, lets it begin, kills it a random while later, and answers with a line.
Forking is what makes hundreds of deaths affordable: a new interpreter takes longer than all that a writer does in its life.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from typing import Any

from sqlalchemy import String, create_engine, event
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from kvcluster import Cache, Client
from kvcluster.cache.repository import Repository

USERS = 20
LIFE = 0.1  # seconds that a writer lives at most; a few transactions
PAUSE = 0.03  # seconds between a commit and its invalidation, at most


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50))


def shop(engine: Any, client: Client) -> tuple[Cache, sessionmaker[Session], Repository[User]]:
    """A cache with an outbox, bound."""
    cache, sessions = Cache("crash", ttl="10m", client=client), sessionmaker(engine)
    users = cache.repository(User, sessions)
    cache.use_outbox()
    cache.bind(sessions)
    return cache, sessions, users


def write(url: str, addresses: list[str], chance: random.Random, begun: int) -> None:
    """Transaction after transaction, until somebody comes with a -9."""
    engine = create_engine(url)
    _, sessions, _ = shop(engine, Client(addresses, timeout=5, connect_timeout=5))
    event.listen(sessions, "after_commit", lambda session: time.sleep(chance.random() * PAUSE))
    with engine.connect():
        pass
    os.write(begun, b".")
    while True:
        with sessions.begin() as session:
            one, two, three = chance.sample(range(1, USERS + 1), 3)
            session.get_one(User, one).name = f"{chance.random()}"
            session.flush()
            savepoint = session.begin_nested()
            session.get_one(User, two).name = f"{chance.random()}"
            session.flush()
            if chance.random() < 0.3:
                savepoint.rollback()
            session.get_one(User, three).name = f"{chance.random()}"


def main() -> None:
    """Fork, kill, answer."""
    url, addresses, seed = sys.argv[1], sys.argv[2].split(","), int(sys.argv[3])
    chance = random.Random(seed)
    for _ in sys.stdin:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                write(url, addresses, chance, writing)
            finally:
                os._exit(1)  # a writer that ends by itself
        os.close(writing)
        begun = os.read(reading, 1)
        os.close(reading)
        time.sleep(chance.random() * LIFE)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert begun
        assert os.WIFSIGNALED(status), "it was to be killed"
        chance.random()  # a child begins where its parent is: the next is to be another
        print("killed", flush=True)


if __name__ == "__main__":
    main()
