"""What the processes of `test_processes` do. Their tallies are in shared memory, because some of them are killed."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import event, select
from sqlalchemy.orm import Session, sessionmaker

from kvcluster import Cache, Client
from tests.cache.shop import User
from tests.databases import Database

PATIENT = 20.0


def in_threads(*calls: Callable[[], None]) -> None:
    """Run calls in threads, and let what they raise end the process with an error."""
    errors: list[BaseException] = []

    def guarded(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def bump(counter: Any, by: int = 1) -> None:
    with counter.get_lock():
        counter.value += by


def herd(addresses: list[str], callers: int, gate: Any, loads: Any, answers: Any, seconds: float) -> None:
    """Ask for one cold key from many threads at once."""
    cache = Cache("herd", ttl="10m", client=Client(addresses, timeout=PATIENT, connect_timeout=PATIENT))

    @cache.loader("hot")
    def load() -> str:
        bump(loads)
        time.sleep(seconds)
        return "value"

    def ask() -> None:
        gate.wait(60)
        assert load() == "value"
        bump(answers)

    in_threads(*[ask] * callers)


def heir(addresses: list[str], callers: int, go: Any, ready: Any, loads: Any, answers: Any, seconds: float) -> None:
    """Know how long loads take, then ask for the key whose winner is about to die."""
    cache = Cache("herd", ttl="10m", client=Client(addresses, timeout=PATIENT, connect_timeout=PATIENT))

    @cache.loader("row:{name}")
    def load(name: str) -> str:
        if name == "hot":
            bump(loads)
        time.sleep(seconds)
        return name

    load(f"warm {id(cache)} {random.random()}")
    ready.release()
    assert go.wait(60)

    def ask() -> None:
        assert load("hot") == "hot"
        bump(answers)

    in_threads(*[ask] * callers)


def doomed(addresses: list[str], loading: Any, loads: Any) -> None:
    """Win the lease and never come back."""
    cache = Cache("herd", ttl="10m", client=Client(addresses, timeout=PATIENT, connect_timeout=PATIENT))

    @cache.loader("row:{name}")
    def load(name: str) -> str:
        bump(loads)
        loading.set()
        time.sleep(600)
        return name

    load("hot")


def refresher(addresses: list[str], loading: Any, loads: Any) -> None:
    """Win an early refresh and never come back."""
    cache = Cache("herd", ttl=60, client=Client(addresses, timeout=PATIENT, connect_timeout=PATIENT))

    @cache.loader("row:{name}", stale_while_revalidate=60)
    def load(name: str) -> str:
        bump(loads)
        loading.set()
        time.sleep(600)
        return name

    assert load("hot") == "old"
    time.sleep(600)


def reader(addresses: list[str], callers: int, go: Any, ready: Any, loads: Any, answers: Any, seconds: float) -> None:
    """Know how long loads take, then read the stale value whose refresher was killed until there is a new one."""
    cache = Cache("herd", ttl=60, client=Client(addresses, timeout=PATIENT, connect_timeout=PATIENT))

    @cache.loader("row:{name}", stale_while_revalidate=60)
    def load(name: str) -> str:
        if name == "hot":
            bump(loads)
        time.sleep(seconds)
        return name

    load(f"warm {id(cache)} {random.random()}")
    ready.release()
    assert go.wait(60)

    def ask() -> None:
        deadline = time.monotonic() + 30
        while (value := load("hot")) != "hot":
            assert value == "old"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        bump(answers)

    in_threads(*[ask] * callers)


@dataclass
class Profile:
    """What the older version of a program caches."""

    id: int
    version: int


@dataclass
class LongProfile:
    """What the newer one does: one field more, and one less."""

    id: int
    version: int
    email: str


def deployed(kind: str, addresses: list[str], gate: Any, seconds: float, current: Any, tally: dict[str, Any]) -> None:
    """One version of a program: read profiles, and change those of which it is the only writer.

    :param kind: "older" or "newer"
    :param current: for each profile, the version whose commit, with its invalidation, has returned
    """
    client = Client(addresses, timeout=PATIENT, connect_timeout=PATIENT)
    cache = Cache("deploy", ttl=60, client=client)
    number = int(kind == "newer")
    ids = range(len(current["committed"]))

    def row(id: int) -> int:
        version: int = current["rows"][id]
        time.sleep(random.random() * 0.002)  # an answer takes its time on the way back
        return version

    if kind == "older":

        @cache.loader("profile:{id}")
        def load(id: int) -> Profile:
            return Profile(id, row(id))

    else:

        @cache.loader("profile:{id}")
        def load(id: int) -> LongProfile:
            return LongProfile(id, row(id), "someone@example.org")

    def read() -> None:
        reads = stale = 0
        while time.time() < deadline:
            id = random.choice(ids)
            floor = current["committed"][id]
            found = load(id)
            assert type(found) is (LongProfile if number else Profile)
            reads += 1
            stale += found.version < floor
        bump(tally["reads"], reads)
        bump(tally["stale"], stale)

    def write() -> None:
        mine = [id for id in ids if id % 2 == number]
        while time.time() < deadline:
            id = random.choice(mine)
            version = current["rows"][id] + 1
            current["rows"][id] = version
            load.invalidate(id)
            current["committed"][id] = version
            time.sleep(random.random() * 0.01)

    gate.wait(60)
    deadline = time.time() + seconds
    in_threads(read, read, write)
    seen = client.statistics().namespaces["deploy"]
    bump(tally["hits"], seen.hits)
    bump(tally["undecodable"], seen.undecodable)


@dataclass
class Soak:
    """What the processes of a search for old values share.

    :ivar current: for each user, the version whose commit, with its invalidation, has returned
    :ivar reads: how many checked reads are enough
    :ivar seconds: from the first call of `over` in each process; how long is enough, whatever was read
    """

    current: Any
    tally: dict[str, Any]
    reads: float = math.inf
    seconds: float = math.inf
    deadline: float | None = None

    def over(self) -> bool:
        """Whether it was enough."""
        if self.deadline is None:
            self.deadline = time.monotonic() + self.seconds
        return time.monotonic() > self.deadline or self.tally["reads"].value >= self.reads


class Naive:
    """What people write: get, else load and set; commit, then delete."""

    def __init__(self, client: Client, sessions: sessionmaker[Session]) -> None:
        self._client = client
        self._sessions = sessions

    def get(self, id: int) -> User:
        name = self._client.get(f"user:{id}")
        if name is None:
            with self._sessions() as session:
                name = session.scalars(select(User.name).where(User.id == id)).one()
            self._client.set(f"user:{id}", name, expire=600)
        return User(id=id, name=name)

    def list(self, ids: list[int]) -> list[User]:
        return [self.get(id) for id in ids]

    def forget(self, id: int) -> None:
        self._client.delete(f"user:{id}")


def shop(number: int, processes: int, naive: bool, addresses: list[str], database: Database, soak: Soak) -> None:
    """Two threads that read, one that reads inside open transactions, and one that writes rows of which it is the only writer."""
    engine = database.engine()
    sessions = sessionmaker(engine)
    client = Client(addresses, timeout=PATIENT, connect_timeout=PATIENT)
    current = soak.current
    users: Any
    outbox: Any = None
    if naive:
        users = Naive(client, sessions)
    else:
        cache = Cache("stress", ttl="10m", client=client)
        cache.use_outbox()
        outbox = cache.outbox
        cache.bind(sessions)
        users = cache.repository(User, sessions)
    ids = range(1, len(current))

    @event.listens_for(engine, "after_cursor_execute")
    def _(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.startswith("SELECT"):
            time.sleep(random.random() * 0.004)  # an answer takes its time on the way back

    def tally(reads: int, stale: int) -> None:
        bump(soak.tally["reads"], reads)
        bump(soak.tally["stale"], stale)

    def read() -> None:
        reads = stale = 0
        while not soak.over():
            page = random.sample(ids, 3) if random.random() < 0.3 else [random.choice(ids)]
            floors = [current[id] for id in page]
            found = users.list(page) if len(page) > 1 else [users.get(page[0])]
            reads += len(page)
            stale += sum(int(user.name) < floor for user, floor in zip(found, floors, strict=True))
            if reads >= 100:
                tally(reads, stale)
                reads = stale = 0
        tally(reads, stale)

    def read_inside() -> None:
        """What such a session reads is as old as its transaction, and must not be stored; what is read beside it is not older."""
        while not soak.over():
            reads = stale = 0
            began = list(current)
            with sessions() as session:
                for id in random.sample(ids, 4):
                    reads += 1
                    user = session.get_one(User, id) if naive else users.get(id, session=session)
                    stale += int(user.name) < began[id]
                    floor = current[id]
                    reads += 1
                    stale += int(users.get(id).name) < floor
                    time.sleep(random.random() * 0.004)
            tally(reads, stale)

    def write() -> None:
        mine = [id for id in ids if id % processes == number]
        while not soak.over():
            id = random.choice(mine)
            version = current[id] + 1
            with sessions.begin() as session:
                session.get_one(User, id).name = str(version)
            if naive:
                users.forget(id)
            current[id] = version
            bump(soak.tally["writes"])
            time.sleep(random.random() * 0.01)

    in_threads(read, read, read_inside, write)
    assert outbox is None or outbox.flush(PATIENT)
    bump(soak.tally["hits"], client.statistics().total.hits)
    bump(soak.tally["unstored"], client.statistics().total.unstored)
    client.close()
    engine.dispose()
