"""A client that was made before its process forked serves both processes, each over connections of its own."""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable

import pytest

from tests.client.cluster import Cluster, stat

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


def in_child(work: Callable[[], None]) -> int:
    """Start `work` in a forked process; the process id. It ends with status 0 if the work did not raise."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def succeeded(pid: int) -> bool:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_no_reply_crosses_between_processes(real: Cluster) -> None:
    client = real.client()
    client.set_many({f"{name}:{key}": f"{name}:{key}" for name in range(5) for key in range(20)})

    def work(name: int) -> None:
        for _ in range(200):
            for key in (f"{name}:{number}" for number in range(20)):
                assert client.get(key) == key
        many = [f"{name}:{number}" for number in range(20)]
        assert client.get_many(many) == {key: key for key in many}

    children = [in_child(lambda name=name: work(name)) for name in range(1, 4)]  # type: ignore[misc]
    work(0)
    assert list(map(succeeded, children)) == [True, True, True]
    assert client.statistics().total.errors == 0


def test_the_child_opens_its_own_connections_and_leaves_the_parents(real: Cluster) -> None:
    client = real.client(real.addresses[:1])
    client.set("k", 1)
    (ours,) = next(iter(client._endpoints.values()))._open
    before = stat(real.addresses[0], "total_connections")

    def work() -> None:
        assert client.get("k") == 1
        (own,) = next(iter(client._endpoints.values()))._open
        assert own is not ours
        client.close()

    assert succeeded(in_child(work))
    assert stat(real.addresses[0], "total_connections") - before == 2  # the child's, and that which asks
    assert client.get("k") == 1
    assert next(iter(client._endpoints.values()))._open == {ours}


def test_each_process_counts_for_itself(cluster: Cluster) -> None:
    client = cluster.client()
    client.get("k")
    client.close()
    client.get("k")

    def work() -> None:
        assert client.statistics().total.misses == 0
        client.get("k")
        assert client.statistics().total.misses == 1

    assert succeeded(in_child(work))
    assert client.statistics().total.misses == 2


def test_a_fork_while_threads_are_busy(real: Cluster) -> None:
    client = real.client(pool_size=2)
    client.set_many({f"{number}": number for number in range(100)})
    stop, wrong = threading.Event(), []

    def work() -> None:
        while not stop.is_set():
            for number in range(100):
                if client.get(f"{number}") != number:
                    wrong.append(number)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        child = in_child(
            lambda: None if client.get_many([f"{n}" for n in range(100)]) == {f"{n}": n for n in range(100)} else 1 / 0
        )
        assert succeeded(child)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_missed_deletes_are_inherited(real: Cluster) -> None:
    client = real.client(real.addresses[:1])
    client.set("k", "old")
    endpoint = next(iter(client._endpoints.values()))
    endpoint.state.failed_call(client.planner.delete_many(["k"]).requests[endpoint.address], "")

    def work() -> None:
        assert client.get("k") is None

    assert succeeded(in_child(work))
