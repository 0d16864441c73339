"""Herds: many callers in several processes that want the same keys at the same time.

A process is started once and serves every contender in turn, so that the turns can be interleaved and no start is measured. All
callers begin at one moment of the monotonic clock, which the processes of a machine share; a caller's time is counted from its own
first instruction after that.

- `cold`: every caller asks for one cold key whose loader takes `LOAD`. How often was it loaded, and how long did they wait?
- `orphaned`: as before, and the process that won is killed in the middle of its load.
- `unrefreshed`: every caller reads an aging value until it is a new one; the process that was to refresh it was killed meanwhile.
- `storm`: callers read a few keys again and again while a writer changes them. How many loads does the database get a second?
"""

from __future__ import annotations

import multiprocessing
import random
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Self

PROCESSES, CALLERS = 8, 16
LOAD = 0.2  # seconds that a load takes in `cold` and `orphaned`
START = 0.15  # seconds for telling all processes
LIMIT = 60.0  # seconds until a process is given up
GLANCE = 0.01  # seconds between two reads in `unrefreshed`, half of the longest pause
PATIENCE = 10.0  # seconds, the time limit of every client: nobody does less work by giving up

STORM_KEYS, STORM_LOAD, STORM_PAUSE, STORM_WRITE = 10, 0.02, 0.02, 0.025  # seconds: of a load, between reads, between writes

Load = Callable[[], str]


class Naive:
    """pymemcache as most people use it: get, else load and set."""

    distribution = "pymemcache"

    def __init__(self, addresses: Sequence[str]) -> None:
        from pymemcache import HashClient

        self._client = HashClient(list(addresses), use_pooling=True, max_pool_size=CALLERS, timeout=PATIENCE)

    def get(self, key: str, load: Load) -> str:
        value = self._client.get(key)
        if value is None:
            value = load()
            self._client.set(key, value, expire=600)
        return value if isinstance(value, str) else value.decode()


class Django:
    """``cache.get_or_set`` of Django's backend for pymemcache."""

    distribution = "Django"

    def __init__(self, addresses: Sequence[str]) -> None:
        from django.core.cache.backends.memcached import PyMemcacheCache

        options = {"use_pooling": True, "max_pool_size": CALLERS, "timeout": PATIENCE}
        self._cache = PyMemcacheCache(list(addresses), {"OPTIONS": options})

    def get(self, key: str, load: Load) -> str:
        value: str = self._cache.get_or_set(key, load, 600)
        return value


class Dogpile:
    """dogpile.cache over pymemcache, with its lock in the process."""

    distribution = "dogpile.cache"
    distributed = False

    def __init__(self, addresses: Sequence[str]) -> None:
        from dogpile.cache import make_region

        arguments = {"url": [*addresses], "distributed_lock": self.distributed, "lock_timeout": 30}
        self._region = make_region().configure("dogpile.cache.pymemcache", expiration_time=600, arguments=arguments)

    def get(self, key: str, load: Load) -> str:
        value: str = self._region.get_or_create(key, load)
        return value


class DogpileDistributed(Dogpile):
    """dogpile.cache with its lock in memcached."""

    distributed = True


class MetaMemcache:
    """meta-memcache's ``get_or_lease`` with its default policy."""

    distribution = "meta-memcache"

    def __init__(self, addresses: Sequence[str]) -> None:
        from meta_memcache import CacheClient, LeasePolicy, ServerAddress, connection_pool_factory_builder

        from benchmarks.rivals import host_port

        self._client = CacheClient.cache_client_from_servers(
            [ServerAddress(*host_port(address)) for address in addresses],
            connection_pool_factory_builder(connection_timeout=PATIENCE, recv_timeout=PATIENCE, max_pool_size=CALLERS),
        )
        self._policy = LeasePolicy()

    def get(self, key: str, load: Load) -> str:
        value, token = self._client.get_or_lease_cas(key, lease_policy=self._policy)
        if value is None:
            value = load()
            self._client.set(key, value, ttl=600, cas_token=token)
        found: str = value
        return found


class Own:
    """A loader of kvcluster's `Cache`."""

    distribution = "kvcluster"

    def __init__(self, addresses: Sequence[str]) -> None:
        from kvcluster import Cache, Client

        cache = Cache("herd", ttl="10m", client=Client(addresses, timeout=PATIENCE, connect_timeout=PATIENCE))
        self._load: Load = str

        @cache.loader("{key}")
        def loaded(key: str) -> str:
            return self._load()

        @cache.loader("aging:{key}", ttl=1, stale_while_revalidate="1h")
        def aging(key: str) -> str:
            return self._load()

        self._loaded = loaded
        self._aging = aging

    def get(self, key: str, load: Load) -> str:
        self._load = load
        return self._loaded(key)

    def aging(self, key: str, load: Load) -> str:
        """A value that is served on while somebody refreshes it, once it is a second old."""
        self._load = load
        return self._aging(key)

    def forget(self, key: str) -> None:
        self._loaded.invalidate(key)


class Unleased:
    """The same client without leases: what `Naive` does, so that leases are the only difference."""

    distribution = "kvcluster"

    def __init__(self, addresses: Sequence[str]) -> None:
        from kvcluster import Client

        self._client = Client(addresses, timeout=PATIENCE, connect_timeout=PATIENCE)

    def get(self, key: str, load: Load) -> str:
        value: str | None = self._client.get(key)
        if value is None:
            value = load()
            self._client.set(key, value, expire=600)
        return value

    def forget(self, key: str) -> None:
        self._client.delete(key)


KINDS: Mapping[str, type[Any]] = {
    "naive pymemcache": Naive,
    "Django get_or_set": Django,
    "dogpile.cache": Dogpile,
    "dogpile.cache, distributed lock": DogpileDistributed,
    "meta-memcache get_or_lease": MetaMemcache,
    "kvcluster": Own,
}
LEASED, UNLEASED = "kvcluster", "without leases"


class Worker:
    """One process of the herd: what it is told to do."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses
        self._clients: dict[str, Any] = {}
        self._lock = threading.Lock()

    def open(self, name: str) -> None:
        """Connect one contender; kvcluster learns meanwhile how long a load takes."""
        kind = Unleased if name == UNLEASED else KINDS[name]
        self._clients[name] = client = kind(self._addresses)
        client.get(f"warm-{random.random()}", lambda: time.sleep(LOAD) or "warm")

    def cold(self, name: str, key: str, at: float) -> tuple[int, list[float]]:
        """All callers ask at that moment: how often the loader ran here, and how many seconds each waited."""
        client, loads, waited = self._clients[name], [0], [0.0] * CALLERS

        def load() -> str:
            with self._lock:
                loads[0] += 1
            time.sleep(LOAD)
            return key

        def ask(number: int) -> None:
            time.sleep(max(0.0, at - time.monotonic()))
            start = time.perf_counter()
            answer = client.get(key, load)
            waited[number] = time.perf_counter() - start
            if answer != key:
                raise AssertionError(f"{name} answered {answer!r}")

        _in_threads(ask)
        return loads[0], waited

    def unrefreshed(self, name: str, key: str, at: float) -> tuple[int, list[float]]:
        """All callers read an aging value from that moment on: how often the loader ran here, and when each had a new value."""
        client, loads, waited = self._clients[name], [0], [0.0] * CALLERS
        client.aging(f"warm-{random.random()}", lambda: time.sleep(LOAD) or "warm")

        def load() -> str:
            with self._lock:
                loads[0] += 1
            time.sleep(LOAD)
            return key

        def ask(number: int) -> None:
            chance = random.Random(f"{key} {number}")
            time.sleep(max(0.0, at - time.monotonic()))
            start = time.perf_counter()
            while client.aging(key, load) != key:
                time.sleep(chance.uniform(0, 2 * GLANCE))
            waited[number] = time.perf_counter() - start

        _in_threads(ask)
        return loads[0], waited

    def storm(self, name: str, mark: str, at: float, seconds: float) -> tuple[list[float], int]:
        """All callers read for so long: when after the beginning loads began here, and how many reads there were."""
        client, began, reads = self._clients[name], [], [0] * CALLERS

        def load() -> str:
            began.append(time.monotonic() - at)
            time.sleep(STORM_LOAD)
            return "value"

        def ask(number: int) -> None:
            chance = random.Random(f"{mark} {number}")
            time.sleep(max(0.0, at - time.monotonic()))
            while time.monotonic() < at + seconds:
                client.get(f"{mark}-{chance.randrange(STORM_KEYS)}", load)
                reads[number] += 1
                time.sleep(chance.uniform(0, 2 * STORM_PAUSE))

        _in_threads(ask)
        return began, sum(reads)

    def write(self, name: str, mark: str, at: float, seconds: float) -> int:
        """Change one key after the other for so long: how many."""
        client, chance = self._clients[name], random.Random(mark)
        writes = round(seconds / STORM_WRITE)
        for number in range(writes):
            time.sleep(max(0.0, at + number * STORM_WRITE - time.monotonic()))
            client.forget(f"{mark}-{chance.randrange(STORM_KEYS)}")
        return writes


def _in_threads(call: Callable[[int], None]) -> None:
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            call(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _serve(pipe: Connection, addresses: Sequence[str]) -> None:
    """Answer until there are no more questions."""
    worker = Worker(addresses)
    while (task := pipe.recv()) is not None:
        do, arguments = task
        try:
            pipe.send((getattr(worker, do)(*arguments), None))
        except Exception as error:  # whatever a client raises is its result
            pipe.send((None, f"{type(error).__name__}: {error}"[:200]))


def _doomed(pipe: Connection, addresses: Sequence[str], key: str) -> None:
    """Win the lease of a key, say so, and never come back."""
    Own(addresses).get(key, lambda: pipe.send("loading") or time.sleep(LIMIT) or "")


def _doomed_refresh(pipe: Connection, addresses: Sequence[str], key: str) -> None:
    """Store a value, let it age, win its refresh, say so, and never come back."""
    own = Own(addresses)
    own.aging(key, lambda: "old")
    loading = threading.Event()

    def hang() -> str:
        pipe.send("loading")
        loading.set()
        time.sleep(LIMIT)
        return ""

    while not loading.wait(0.05):
        own.aging(key, hang)
    time.sleep(LIMIT)


class Failed(Exception):
    """A contender cannot take part, or failed."""


@dataclass
class Waits:
    """What came out of `cold` or `orphaned`: a figure for each round, and why there are none."""

    loads: list[int] = field(default_factory=list)
    middle: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    trouble: str = ""

    def note(self, answers: Sequence[tuple[int, list[float]]]) -> None:
        """Take one round into account."""
        waited = sorted(seconds for _, each in answers for seconds in each)
        self.loads.append(sum(loads for loads, _ in answers))
        self.middle.append(statistics.median(waited))
        self.late.append(waited[int(len(waited) * 0.99)])


@dataclass
class Storm:
    """What came out of `storm`: when loads began, in seconds since the first round's beginning, reads, writes and seconds."""

    loads: list[float] = field(default_factory=list)
    reads: int = 0
    writes: int = 0
    seconds: float = 0.0

    def per_second(self, bins: int) -> list[float]:
        """Loads a second in each of so many parts of the time."""
        counts = [0] * bins
        for moment in self.loads:
            counts[min(bins - 1, int(moment / self.seconds * bins))] += 1
        return [count / (self.seconds / bins) for count in counts]


class Herd:
    """The processes."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses
        self._context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []

    def __enter__(self) -> Self:
        for _ in range(PROCESSES + 1):  # the last one writes
            here, there = self._context.Pipe()
            process = self._context.Process(target=_serve, args=(there, self._addresses), daemon=True)
            process.start()
            self._pipes.append(here)
            self._processes.append(process)
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self._processes:
            process.kill()
            process.join()

    def _all(self, do: str, *arguments: Any, pipes: Sequence[Connection] | None = None) -> list[Any]:
        pipes = self._pipes[:PROCESSES] if pipes is None else pipes
        for pipe in pipes:
            pipe.send((do, arguments))
        return self._answers(pipes)

    def _answers(self, pipes: Sequence[Connection]) -> list[Any]:
        answers = []
        for pipe in pipes:
            if not pipe.poll(LIMIT):
                raise Failed(f"no end within {LIMIT:g} s")
            answers.append(pipe.recv())
        for _, trouble in answers:
            if trouble:
                raise Failed(trouble)
        return [answer for answer, _ in answers]

    def cold(self, rounds: int, tell: Callable[[str], object]) -> dict[str, Waits]:
        """Every contender in turn, so many times."""
        found = {name: Waits() for name in KINDS}
        for name, waits in found.items():
            tell(f"cold herd: {name} connects")
            try:
                self._all("open", name)
            except Failed as error:
                waits.trouble = str(error)
        for number in range(rounds):
            for name, waits in found.items():
                if waits.trouble:
                    continue
                tell(f"cold herd: {name}, round {number + 1} of {rounds}")
                try:
                    waits.note(self._all("cold", name, _key(), time.monotonic() + START))
                except Failed as error:
                    waits.trouble = str(error)
        return found

    def orphaned(self, rounds: int, tell: Callable[[str], object]) -> Waits:
        """kvcluster's herd behind a winner that is killed."""
        waits = Waits()
        for number in range(rounds):
            tell(f"killed winner, round {number + 1} of {rounds}")
            answers = self._all("cold", LEASED, self._left_by(_doomed), time.monotonic() + START)
            waits.note([(1, []), *answers])
        return waits

    def unrefreshed(self, rounds: int, tell: Callable[[str], object]) -> Waits:
        """kvcluster's herd before a value whose refresh was won by a process that is killed."""
        waits = Waits()
        for number in range(rounds):
            tell(f"killed in a refresh, round {number + 1} of {rounds}")
            answers = self._all("unrefreshed", LEASED, self._left_by(_doomed_refresh), time.monotonic() + START + 2 * LOAD)
            waits.note([(1, []), *answers])
        return waits

    def _left_by(self, process: Callable[..., None]) -> str:
        """A key that a process was loading when it was killed."""
        key = _key()
        here, there = self._context.Pipe()
        doomed = self._context.Process(target=process, args=(there, self._addresses, key), daemon=True)
        doomed.start()
        try:
            if not here.poll(LIMIT):
                raise Failed("the winner did not begin")
        finally:
            doomed.kill()
            doomed.join()
        return key

    def storm(self, rounds: int, seconds: float, tell: Callable[[str], object]) -> dict[str, Storm]:
        """With and without leases in turn."""
        found = {UNLEASED: Storm(), LEASED: Storm()}
        writer = self._pipes[PROCESSES:]
        for name in found:
            if name == UNLEASED:
                self._all("open", name)
            self._all("open", name, pipes=writer)
        for number in range(rounds):
            for name, storm in found.items():
                tell(f"herd with a writer: {name}, round {number + 1} of {rounds}")
                arguments = (name, _key(), time.monotonic() + START, seconds)
                for pipe in writer:
                    pipe.send(("write", arguments))
                answers = self._all("storm", *arguments)
                storm.writes += sum(self._answers(writer))
                for began, reads in answers:
                    storm.loads += [storm.seconds + min(moment, seconds) for moment in began]
                    storm.reads += reads
                storm.seconds += seconds
        return found


def _key() -> str:
    return f"cold-{random.randbytes(8).hex()}"
