"""Many threads and one client: no wrong value, no lost count, no leaked connection, no deadlock."""

from __future__ import annotations

import os
import random
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvcluster import Client
from kvcluster.testing.plugin import NodeFactory
from tests.client.cluster import PATIENT, Cluster, stat

THREADS = 16
OPERATIONS = 100_000 if os.environ.get("KVCLUSTER_SOAK") == "1" else 1_000  # of each thread; a batch counts for its keys
KEYS = 2_000


def checksummed(key: str, payload: bytes) -> bytes:
    return b"%b|%b|%08x" % (key.encode(), payload, zlib.crc32(key.encode() + payload))


def is_right(key: str, value: bytes) -> bool:
    name, payload, checksum = value.split(b"|")
    return name == key.encode() and int(checksum, 16) == zlib.crc32(name + payload)


class Worker(threading.Thread):
    """Issues commands drawn at random, checks every value, and counts what the client's statistics must show."""

    def __init__(self, client: Client, seed: int) -> None:
        super().__init__()
        self.client = client
        self.random = random.Random(seed)
        self.seed = seed
        self.did: Counter[str] = Counter()
        self.wrong: list[object] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            done = 0
            while done < OPERATIONS:
                done += self.step()
            self.finish()
        except BaseException as error:
            self.error = error
            raise

    def value(self, key: str) -> bytes:
        return checksummed(key, self.random.randbytes(self.random.choice((0, 10, 100, 1000))).hex().encode())

    def check(self, key: str, value: object) -> None:
        if value is None:
            self.did["misses"] += 1
            return
        self.did["hits"] += 1
        if not (isinstance(value, bytes) and is_right(key, value)):
            self.wrong.append((key, value))

    def step(self) -> int:
        client, draw = self.client, self.random.random()
        key = f"key:{self.random.randrange(KEYS)}"
        if draw < 0.5:
            self.check(key, client.get(key))
        elif draw < 0.7:
            self.did["sets"] += client.set(key, self.value(key))
        elif draw < 0.75:
            keys = [f"key:{self.random.randrange(KEYS)}" for _ in range(20)]
            found = client.get_many(keys)
            for key in keys:
                self.check(key, found.get(key))
            return 20
        elif draw < 0.78:
            values = {key: self.value(key) for key in (f"key:{self.random.randrange(KEYS)}" for _ in range(20))}
            failed = client.set_many(values)
            self.did["sets"] += len(values) - len(failed)
            self.wrong += failed
            return len(values)
        elif draw < 0.85:
            client.delete(key)
            self.did["deletes"] += 1
        elif draw < 0.9:
            value, token = client.gets(key)
            self.check(key, value)
            if value is not None:
                self.did["sets"] += client.cas(key, self.value(key), token) is True
        elif draw < 0.95:
            self.did["sets"] += client.add(key, self.value(key))
        else:
            # a counter of this thread's own: it must be exact
            self.did["increments"] += 1
            number = client.incr(f"counter:{self.seed}", 1)
            if number is None:
                self.did["sets"] += client.add(f"counter:{self.seed}", self.did["increments"])
            elif number != self.did["increments"]:
                self.wrong.append(("counter", number, self.did["increments"]))
        return 1

    def finish(self) -> None:
        assert self.client.get(f"counter:{self.seed}") == self.did["increments"]
        self.did["hits"] += 1


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("pool_size", [4, 1] if OPERATIONS < 100_000 else [4])
def test_mixed_operations(pool_size: int, kv_nodes: NodeFactory, capsys: pytest.CaptureFixture[str]) -> None:
    addresses = [node.address for node in kv_nodes(4)]
    idle = {address: stat(address, "curr_connections") for address in addresses}
    with Client(addresses, timeout=PATIENT, connect_timeout=PATIENT, pool_size=pool_size) as client:
        workers = [Worker(client, seed) for seed in range(THREADS)]
        started = time.perf_counter()
        for worker in workers:
            worker.start()
        most = dict(idle)
        while any(worker.is_alive() for worker in workers):
            for address in addresses:
                most[address] = max(most[address], stat(address, "curr_connections"))
            time.sleep(0.05)
        for worker in workers:
            worker.join()
        seconds = time.perf_counter() - started
        assert [worker.error for worker in workers if worker.error] == []
        assert [wrong for worker in workers for wrong in worker.wrong] == []

        did: Counter[str] = sum((worker.did for worker in workers), Counter())
        total = client.statistics().total
        assert {name: getattr(total, name) for name in ("hits", "misses", "sets", "deletes")} == {
            name: did[name] for name in ("hits", "misses", "sets", "deletes")
        }
        assert (total.errors, total.undecodable) == (0, 0)
        assert total.hits > total.misses > 0

        for address in addresses:
            assert most[address] - idle[address] <= pool_size
            assert stat(address, "curr_connections") - idle[address] <= pool_size
    for address in addresses:
        until(lambda address=address: stat(address, "curr_connections") == idle[address])  # type: ignore[misc]
    with capsys.disabled():
        if OPERATIONS == 100_000:
            print(f"\n{THREADS} threads x {OPERATIONS:,} operations in {seconds:.1f} s: {dict(did)}")


def test_ten_thousand_values_of_twenty_kilobytes(kv_nodes: NodeFactory) -> None:
    addresses = [node.address for node in kv_nodes(4, memory=128)]
    values = {f"key:{number}": b"%05d" % number * 4000 for number in range(10_000)}
    with Client(addresses) as client:  # by the default timeouts: what moves is not late
        assert client.set_many(values) == []
        found = client.get_many(values)
        assert len(found) == len(values)
        assert found == values
        assert client.statistics().total.errors == 0


def test_one_request_of_many_keys_to_one_node(kv_nodes: NodeFactory) -> None:
    with Client(kv_nodes(1)[0].address, timeout=PATIENT) as client:
        values = {f"key with spaces:{number}": number for number in range(20_000)}
        assert client.set_many(values) == []
        assert client.get_many(values) == values
        assert {key: value for key, (value, _) in client.gets_many(values).items()} == values
        assert client.set_many(values, noreply=True) == []
        assert client.get_many(values) == values
        assert client.delete_many(values)
        assert client.get_many(values) == {}
        assert client.statistics().total.errors == 0


def test_threads_that_want_the_same_nodes_do_not_block_each_other(kv_nodes: NodeFactory) -> None:
    addresses = [node.address for node in kv_nodes(4)]
    with Client(addresses, timeout=PATIENT, pool_size=1) as client:
        keys = [f"{number}" for number in range(40)]
        client.set_many({key: key for key in keys})
        wrong: list[object] = []

        def work(seed: int) -> None:
            shuffled = random.Random(seed)
            for _ in range(100):
                mine = shuffled.sample(keys, len(keys))
                found = client.get_many(mine)
                if found != {key: key for key in mine}:
                    wrong.append(found)

        started = time.monotonic()
        run([lambda seed=seed: work(seed) for seed in range(8)])  # type: ignore[misc]
        assert not wrong
        assert client.statistics().total.errors == 0
        assert time.monotonic() - started < PATIENT  # nobody waited for a connection until the end


def run(calls: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def until(condition: Callable[[], bool]) -> None:
    """Wait for a node to notice that connections were closed."""
    deadline = time.monotonic() + PATIENT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_appends_of_several_threads_all_arrive(alone: Cluster) -> None:
    client = alone.client(pool_size=4)
    client.set("k", b"")
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda _: client.append("k", b"x"), range(100)))
    assert client.get("k") == b"x" * 100
