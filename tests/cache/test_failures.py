"""Nodes that die, restart, hang or refuse while the cache is at work: no old value may come of it."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy.orm import Session, sessionmaker

from kvcluster import Cache, Client
from kvcluster.errors import DeleteFailed
from kvcluster.testing.nodes import RunningNode
from kvcluster.testing.plugin import NodeFactory
from kvcluster.testing.proxy import FaultProxy
from tests.cache.patience import until
from tests.cache.shop import User
from tests.client.cluster import ask

Sessions = sessionmaker[Session]


@pytest.fixture
def node(kv_nodes: NodeFactory) -> RunningNode:
    """A node that has just started, whose CAS numbers begin anew."""
    (node,) = kv_nodes(1)
    node.restart()
    return node


@pytest.fixture
def alone(node: RunningNode) -> Iterator[Cache]:
    """A cache on that one node."""
    with Client([node.address], timeout=2, connect_timeout=2) as client:
        yield Cache("shop", ttl="10m", client=client)


# -- restarts


def placeholder(node: RunningNode, key: bytes) -> int:
    """The CAS number of the placeholder of a key, for which this takes the lease where there is none."""
    reply = ask(node.address, b"mg %b v c N30\r\n" % key)
    match = re.fullmatch(rb"VA 0 c(\d+) [WZ]\r\n\r\n", reply)
    assert match, reply
    return int(match[1])


def test_a_fill_does_not_land_on_a_restarted_node_whose_cas_numbers_repeat(alone: Cache, node: RunningNode) -> None:
    numbers: list[int] = []

    @alone.loader("row:{id}")
    def load(id: int) -> str:
        numbers.append(placeholder(node, b"shop:row:1"))
        node.restart()
        numbers.append(placeholder(node, b"shop:row:1"))  # another process's, which loads what is newer than this
        alone.client.get("anything")  # opens a connection to the node as it is now
        return "old"

    assert load(1) == "old"
    assert numbers[0] == numbers[1], "else this test shows nothing"
    assert placeholder(node, b"shop:row:1") == numbers[0]
    assert alone.client.statistics().namespaces["shop"].unstored == 1
    control = b"ms shop:row:1 3 C%d\r\nold\r\n" % numbers[0]
    assert ask(node.address, control) == b"HD\r\n", "the number alone would have let it land"


def test_fills_of_many_do_not_land_either(alone: Cache, node: RunningNode) -> None:
    @alone.loader("row:{id}")
    def load(id: int) -> str:
        return "old"

    @load.bulk
    def _(ids: list[int]) -> dict[int, str]:
        node.restart()
        for id in ids:
            placeholder(node, b"shop:row:%d" % id)
        alone.client.get("anything")
        return dict.fromkeys(ids, "old")

    assert load.get_many([1, 2, 3]) == dict.fromkeys([1, 2, 3], "old")
    for id in (1, 2, 3):
        placeholder(node, b"shop:row:%d" % id)
    assert alone.client.statistics().namespaces["shop"].unstored == 3


def test_a_load_over_a_restart_is_returned_and_the_next_one_stored(alone: Cache, node: RunningNode) -> None:
    loads: list[int] = []

    @alone.loader("row:{id}")
    def load(id: int) -> str:
        loads.append(id)
        if len(loads) == 1:
            node.restart()
        return "value"

    assert [load(1), load(1), load(1)] == ["value"] * 3
    assert len(loads) == 2


# -- nodes that are gone


def test_callers_of_a_node_that_is_gone_share_loads(alone: Cache, node: RunningNode) -> None:
    node.kill()
    gate, loads = threading.Barrier(16), []

    @alone.loader("hot")
    def load() -> str:
        loads.append(1)
        time.sleep(0.2)  # a slow query
        return "value"

    def read(_: int) -> str:
        gate.wait(10)
        return load()

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(read, range(16))) == ["value"] * 16
    assert len(loads) <= 3, "one for those who asked before it began, one for the rest, one for a late thread"
    assert load() == "value"
    assert alone.client.statistics().namespaces["shop"].sets == 0


def test_a_node_that_dies_while_we_wait_for_another_process(alone: Cache, node: RunningNode) -> None:
    placeholder(node, b"shop:row:1")  # somebody's, who never comes back

    @alone.loader("row:{id}")
    def load(id: int) -> str:
        return "value"

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(load, 1)
        assert until(lambda: alone.client.statistics().total.bytes_read > 60)
        node.kill()
        assert waiting.result(10) == "value"


def test_a_winner_that_never_comes_back_is_taken_over(alone: Cache, node: RunningNode) -> None:
    loads: list[int] = []

    @alone.loader("row:{id}")
    def load(id: int) -> str:
        loads.append(id)
        return "value"

    load(99)  # from now on it is known how short loads are
    placeholder(node, b"shop:row:1")
    placeholder(node, b"shop:row:2")
    assert load(1) == "value"
    assert load.get_many([2, 3]) == {2: "value", 3: "value"}
    assert loads == [99, 1, 3, 2]
    assert load.list([1, 2, 3]) == ["value"] * 3
    assert len(loads) == 4


# -- nodes that hang


@pytest.fixture
def impatient(node: RunningNode, sessions: Sessions) -> Iterator[Cache]:
    """A cache that gives the node a tenth of a second, bound to a database with users 1 to 9."""
    with sessions.begin() as session:
        session.add_all(User(id=n, name="old") for n in range(1, 10))
    with Client([node.address], timeout=0.1, connect_timeout=0.1) as client:
        cache = Cache("shop", ttl="10m", client=client)
        cache.bind(sessions)
        yield cache
        node.resume()
        assert until(lambda: not client.replay_deletes()), "no thread of this test goes on into the next"


def rename(sessions: Sessions, *ids: int) -> None:
    for id in ids:
        with sessions.begin() as session:
            session.get_one(User, id).name = "new"


def stored(node: RunningNode, id: int) -> bool:
    return ask(node.address, b"mg shop:User:%d\r\n" % id) == b"HD\r\n"


def test_commits_over_a_hanging_node_raise_nothing_and_are_made_up_for(
    impatient: Cache, node: RunningNode, sessions: Sessions, caplog: pytest.LogCaptureFixture
) -> None:
    users = impatient.repository(User, sessions)
    while any(user.name != "old" or not stored(node, user.id) for user in users.list(range(1, 10))):
        impatient.client.replay_deletes()  # a busy machine: ask again until all are cached
    with caplog.at_level(logging.INFO, "kvcluster"):
        node.pause()
        rename(sessions, *range(1, 7))
        assert [user.name for user in users.list(range(1, 7))] == ["new"] * 6, "from the database, while the node is left alone"
        node.resume()
        assert until(lambda: not any(stored(node, id) for id in range(1, 7))), "by a thread, without a further call"
        assert until(lambda: "have succeeded" in caplog.text)
    errors = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert "repeated until they succeed" in errors[0]
    assert [user.name for user in users.list(range(1, 10))] == ["new"] * 6 + ["old"] * 3


def test_this_client_does_not_read_from_a_node_before_it_has_made_up_for_its_deletes(
    node: RunningNode, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes to the node vanish on their way, so that only the replay can have deleted anything."""
    monkeypatch.setattr("kvcluster.cache.retries.Retries.start", lambda *rest: None)
    with sessions.begin() as session:
        session.add_all(User(id=n, name="old") for n in range(1, 10))
    with FaultProxy(node.address) as proxy, Client([proxy.address], timeout=0.3, connect_timeout=0.3) as client:
        cache = Cache("shop", ttl="10m", client=client)
        cache.bind(sessions)
        users = cache.repository(User, sessions)
        users.list(range(1, 10))
        proxy.requests.drop = True
        rename(sessions, 1, 2, 3)
        proxy.requests.clear()
        assert [stored(node, id) for id in (1, 2, 3)] == [True] * 3, "other clients may still read these"

        def replayed() -> bool:
            assert [user.name for user in users.list([1, 2, 3])] == ["new"] * 3
            return not any(b"old" in ask(node.address, b"mg shop:User:%d v\r\n" % id) for id in (1, 2, 3))

        assert until(replayed), "by reading alone"


@pytest.mark.parametrize("request_", [b"no such command\r\n", b"md " + b"k" * 300 + b"\r\n"], ids=["ERROR", "CLIENT_ERROR"])
def test_a_refused_delete_counts_as_one_that_did_not_arrive(node: RunningNode, request_: bytes) -> None:
    version = ["old"]
    with FaultProxy(node.address) as proxy, Client([proxy.address], timeout=2, connect_timeout=2) as client:
        load = Cache("shop", ttl="10m", client=client).loader("row")(lambda: version[0])
        assert load() == "old"
        version[0] = "new"
        proxy.requests.garble = lambda piece: request_
        with pytest.raises(DeleteFailed, match="1 keys may still be cached"):
            load.invalidate()
        proxy.requests.clear()
        assert client.replay_deletes() == 0
        assert load() == "new"


def test_an_explicit_invalidation_raises_and_is_made_up_for(node: RunningNode) -> None:
    version = ["old"]
    with Client([node.address], timeout=0.1, connect_timeout=0.1) as client:
        load = Cache("shop", ttl="10m", client=client).loader("row")(lambda: version[0])
        assert load() == "old"
        node.pause()
        version[0] = "new"
        with pytest.raises(DeleteFailed) as raised:
            load.invalidate()
        assert raised.value.keys == (b"shop:row",)
        assert raised.value.node == node.address
        assert load() == "new"
        node.resume()
        for _ in range(50):
            assert load() == "new"
