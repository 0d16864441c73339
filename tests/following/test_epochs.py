"""What a client makes of the epochs that its nodes tell: topologies that change, nodes that restart or were cut off."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from kvcluster import Client
from kvcluster.errors import ConfigurationError, DeleteFailed, NodeBehind, OutcomeUnknown, SourceUnavailable
from kvcluster.following import epochs
from kvcluster.following.epochs import EPOCH_KEY, tell_epoch
from kvcluster.testing.proxy import FaultProxy
from kvcluster.topology import Document, Node
from tests.client.cluster import ask
from tests.following.stage import Stage

Staged = Callable[..., Stage]


def holds(client: Any, key: str, value: object = "v") -> None:
    assert client.set(key, value) is True
    assert client.get(key) == value


@pytest.mark.parametrize("command", ["get", "get_many", "set", "set_many", "delete", "delete_many", "touch"])
def test_a_command_under_an_old_epoch_is_done_again(staged: Staged, command: str) -> None:
    """The client learns from the answer that the key has moved since, and goes to its new owner."""
    stage = staged()
    (key,) = stage.moving()
    o, n = stage.owners(key)
    client = stage.client()
    holds(client, key)
    while stage.advance().phase != "new":
        pass
    ask(o, b"md %b\r\n" % key.encode())
    stage.put(n, key, b"new")
    match command:
        case "get":
            assert client.get(key) == "new"
        case "get_many":
            assert client.get_many([key]) == {key: "new"}
        case "set":
            assert client.set(key, "set") is True
        case "set_many":
            assert client.set_many({key: "set"}) == []
        case "delete":
            assert client.delete(key) is True
        case "delete_many":
            client.delete_many([key])
        case "touch":
            assert client.touch(key, 30) is True
    assert client.document.phase == "new"
    assert stage.at(o, key) is None, "what it had written there by the old rules is gone"
    assert stage.at(n, key) == {"s": b"set", "d": None}.get(command[0], b"new")


def test_a_new_topology_is_used_from_then_on(staged: Staged) -> None:
    stage = staged()
    client, other = stage.client(), stage.client()
    keys = [*stage.moving(20), *stage.staying(20)]
    assert client.set_many(dict.fromkeys(keys, "v")) == []
    for phase in ("prepare", "migrate"):
        assert stage.advance().phase == phase
        assert client.get_many(keys) == dict.fromkeys(keys, "v"), phase
    for phase in ("drain", "new", "old"):
        assert stage.advance().phase == phase
        assert other.get_many(keys) == dict.fromkeys(keys, "v"), phase
        assert client.get_many(keys) == dict.fromkeys(keys, "v"), phase
    assert (client.document, other.document) == (stage.document, stage.document)


CHANGES: dict[str, Callable[[Any, str], object]] = {
    "incr": lambda client, key: client.incr(key, 10),
    "decr": lambda client, key: client.decr(key, 10),
    "add": lambda client, key: client.add(key, "1"),
    "replace": lambda client, key: client.replace(key, "1"),
    "append": lambda client, key: client.append(key, "1"),
    "prepend": lambda client, key: client.prepend(key, "1"),
}


@pytest.mark.parametrize("name", list(CHANGES))
def test_a_change_asks_for_the_epoch_first(staged: Staged, name: str) -> None:
    stage = staged()
    (key,) = stage.moving()
    o, n = stage.owners(key)
    client = stage.client()
    holds(client, key, "20")
    while stage.advance().phase != "migrate":
        pass
    CHANGES[name](client, key)
    assert stage.at(o, key) is None
    assert (
        stage.at(n, key) == {"incr": b"30", "decr": b"10", "add": b"20", "replace": b"1", "append": b"201", "prepend": b"120"}[name]
    )


@pytest.mark.parametrize("name", list(CHANGES))
def test_a_change_that_was_late_all_the_same_is_not_repeated(staged: Staged, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The epoch changes after the client has asked for it, and before its command."""
    stage = staged()
    (key,) = stage.moving()
    o, n = stage.owners(key)
    client = stage.client()
    holds(client, key, "20")
    told: list[int] = []
    honest = epochs.Watch.epoch.fget  # type: ignore[attr-defined]

    def once(watch: Any) -> int | None:
        told.append(honest(watch))
        if len(told) == 1:
            while stage.advance().phase != "new":
                pass
        return told[-1]

    monkeypatch.setattr(epochs.Watch, "epoch", property(once))
    with pytest.raises(OutcomeUnknown, match="just as the cluster was resized") as unknown:
        CHANGES[name](client, key)
    assert unknown.value.node == o
    assert client.document.phase == "new"
    assert stage.at(o, key) is None, "what it may have written to a node that owns the key no more"
    assert stage.at(n, key) is None


def test_a_node_that_restarted_is_told_the_epoch(staged: Staged, kv_nodes: Any) -> None:
    nodes = kv_nodes(3)
    stage = staged("old", [node.address for node in nodes])
    (key,) = stage.staying()
    owner = next(node for node in nodes if node.address == stage.owners(key)[0])
    client = stage.client()
    holds(client, key)
    owner.restart()
    assert client.get(key) is None
    assert client.get(key) is None
    assert stage.epoch(owner.address) == stage.document.epoch
    holds(client, key)


def test_a_node_that_restarted_while_the_topology_changed(staged: Staged, kv_nodes: Any) -> None:
    """The only node that a client asks has forgotten its epoch, so the client asks the source."""
    nodes = kv_nodes(3)
    stage = staged("old", [node.address for node in nodes])
    (key,) = stage.moving()
    o, n = stage.owners(key)
    client = stage.client()
    holds(client, key)
    next(node for node in nodes if node.address == o).restart()
    while stage.advance(tell=False).phase != "new":
        pass
    stage.tell(*[address for address in stage.addresses if address != o])
    stage.put(n, key, b"new")
    assert client.get(key) == "new"
    assert (client.document.phase, stage.epoch(n)) == ("new", stage.document.epoch)


def test_a_node_that_missed_more_than_one_epoch_is_down_until_it_is_flushed(staged: Staged) -> None:
    stage = staged("migrate")
    (key,) = stage.staying()
    owner, _ = stage.owners(key)
    client = stage.client()
    holds(client, key)
    stage.tell(owner, epoch=1)
    assert client.get(key) is None
    assert client.get_many([key, key + "x"]) == {}
    assert client.gets(key) == (None, None)
    assert client.set(key, "w") is False
    assert client.set_many({key: 1}) == [key]
    assert client.touch(key, 5) is False
    assert client.incr(key, 1) is None
    with pytest.raises(DeleteFailed, match="has epoch 1, and the cluster 3: it was cut off") as failed:
        client.delete(key)
    assert isinstance(failed.value.causes[owner], NodeBehind)
    assert stage.epoch(owner) == 1, "nobody but a flush may make it look well"
    ask(owner, b"flush_all\r\n")
    assert client.get(key) is None
    holds(client, key)
    assert stage.epoch(owner) == 3


def test_a_node_about_to_be_told_serves_and_is_told(staged: Staged) -> None:
    stage = staged("migrate")
    (key,) = stage.staying()
    owner, _ = stage.owners(key)
    client = stage.client()
    stage.tell(owner, epoch=2)
    holds(client, key)
    assert stage.epoch(owner) == 3


def test_the_epoch_is_written_only_upward(staged: Staged) -> None:
    stage = staged()
    client = stage.client()
    first, second, third = stage.addresses
    stage.tell(first, epoch=9)
    stage.tell(second, epoch=5)
    ask(third, b"flush_all\r\n")
    with Client([first, second, third], timeout=5) as plain:
        assert plain.run(tell_epoch("", [first, second, third], 7)) == {first, second, third}
    assert [stage.epoch(address) for address in stage.addresses] == [9, 7, 7]
    assert client.document.epoch == 1


def test_a_source_that_knows_less_than_the_nodes(staged: Staged) -> None:
    """As a replica that lags behind: nothing that was done by the old rules counts."""
    stage = staged()
    (key,) = stage.staying()
    client = stage.client()
    holds(client, key)
    stage.tell(*stage.addresses, epoch=2)
    assert client.get(key) is None
    assert client.set(key, "w") is False
    with pytest.raises(DeleteFailed, match="has epoch 1 still, and a node a later one"):
        client.delete(key)
    assert client.incr(key, 1) is None


def test_a_source_out_of_reach(staged: Staged) -> None:
    stage = staged()
    (key,) = stage.staying()
    client = stage.client()
    holds(client, key)
    stage.source.path.rename(stage.source.path.with_suffix(".away"))
    holds(client, key, "w")
    stage.tell(*stage.addresses, epoch=2)
    assert client.get(key) is None
    with pytest.raises(DeleteFailed, match="there is no such file"):
        client.delete(key)
    stage.source.path.with_suffix(".away").rename(stage.source.path)
    stage.advance()
    holds(client, key)


def test_what_a_client_is_made_of(staged: Staged) -> None:
    stage = staged()
    client = stage.client(prefix="p:")
    assert client.topology == stage.document.topology
    with pytest.raises(ConfigurationError, match="are changed at its source"):
        client.set_nodes(["a"])
    holds(client, "k")
    assert any(stage.at(address, "p:k") for address in stage.addresses)
    stage.source.path.unlink()
    with pytest.raises(ConfigurationError, match="there is no such file"):
        stage.client()


def test_an_older_document_is_not_followed(staged: Staged) -> None:
    stage = staged("migrate")
    client = stage.client()
    stage.source.path.write_text(Document(tuple([Node(address) for address in stage.addresses[:-1]]), 2).to_toml())
    client._follow(stage.document)
    assert client.document.epoch == 3


def test_a_client_notices_and_is_noticed(staged: Staged) -> None:
    stage = staged()
    client = stage.client()
    follower = client._follower
    now = [100.0]
    follower._clock = lambda: now[0]
    (key,) = stage.moving()
    client.get(key)
    wait_for(lambda: stage.source.sightings())
    (sighting,) = stage.source.sightings()
    assert (sighting.epoch, sighting.version) == (1, follower.sighting.version)
    stage.advance(tell=False)
    now[0] += 2
    client.get(key)
    wait_for(lambda: follower.news)
    client.get(key)
    assert client.document.phase == "prepare"
    now[0] += 2
    client.get(key)
    wait_for(lambda: stage.source.sightings()[0].epoch == 2)
    client.close()
    assert stage.source.sightings() == [], "no resize waits for a client that has ended"
    now[0] += 2
    client.get(key)
    wait_for(lambda: stage.source.sightings())


def test_clients_in_containers_of_one_name_are_told_apart(staged: Staged, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is process 1 of a host that has the same name, and the first client of its process."""
    stage = staged()
    monkeypatch.setattr("os.getpid", lambda: 1)
    names = set()
    for _ in range(2):
        spec = importlib.util.find_spec("kvcluster.following.follower")
        assert spec is not None
        assert spec.loader is not None
        fresh = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(fresh)
        names.add(fresh.Follower(stage.source).sighting.name)
    assert len(names) == 2


@pytest.mark.parametrize("idle", [True, False])
def test_the_first_command_after_a_change_goes_by_it(staged: Staged, idle: bool) -> None:
    """The old owner has left the cluster, so that nobody tells it of an epoch, and holds what was deleted since."""
    stage = staged(replaced=1)
    (key,) = stage.moving()
    client = stage.client()
    holds(client, key)
    follower = client._follower
    wait_for(lambda: not follower._looking.locked())
    stage.advance(tell=False)
    while stage.document.phase != "old":
        stage.advance(tell=False)
    if idle:
        follower._looked = follower._look_at = follower._clock() - 10
    else:
        follower.news = stage.document
    assert client.get(key) is None
    assert client.document.epoch == stage.document.epoch


def test_a_source_that_hangs_is_waited_for_once(staged: Staged, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = staged()
    (key,) = stage.staying()
    client = stage.client()
    holds(client, key)
    follower = client._follower
    wait_for(lambda: not follower._looking.locked())
    hanging = threading.Event()
    monkeypatch.setattr(stage.source, "stamp", hanging.wait)
    monkeypatch.setattr(stage.source, "patience", 0.05, raising=False)
    now = follower._clock() + 10
    follower._clock = lambda: now
    assert follower.overdue
    assert client.get(key) == "v"
    assert not follower.overdue
    hanging.set()
    wait_for(lambda: not follower._looking.locked())


def wait_for(condition: Callable[[], object]) -> None:
    import time

    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def proxies(kv_nodes: Any) -> Iterator[list[FaultProxy]]:
    with ExitStack() as stack:
        yield [stack.enter_context(FaultProxy(node.address)) for node in kv_nodes(3)]


def test_a_client_that_was_cut_off_from_a_bump(staged: Staged, proxies: list[FaultProxy]) -> None:
    """It cannot reach the node that knows; the others tell it."""
    stage = staged("old", [proxy.address for proxy in proxies])
    moving = stage.moving(40)
    client = stage.client(timeout=0.3, connect_timeout=0.3)
    assert client.set_many(dict.fromkeys(moving, "v")) == []
    by_owner = {address: [key for key in moving if stage.owners(key)[0] == address] for address in stage.addresses[:2]}
    (cut, unreachable), (told, reachable) = by_owner.items()
    proxies[stage.addresses.index(cut)].refuse()
    proxies[stage.addresses.index(cut)].cut()
    assert client.get(unreachable[0]) is None
    while stage.advance(tell=False).phase != "migrate":
        pass
    stage.tell(told, stage.addresses[2])
    assert client.get(reachable[0]) == "v"
    assert client.document.phase == "migrate"
    with pytest.raises(DeleteFailed):
        client.delete(unreachable[0])
    assert client.delete(reachable[1]) is True


def test_an_answer_without_its_epoch_is_no_answer(staged: Staged, proxies: list[FaultProxy]) -> None:
    stage = staged("old", [proxy.address for proxy in proxies])
    (key,) = stage.staying()
    client = stage.client(timeout=0.3, connect_timeout=0.3)
    holds(client, key)
    proxy = proxies[stage.addresses.index(stage.owners(key)[0])]
    proxy.replies.cut_after(len(b"HD O1\r\n"))
    assert client.set(key, "w") is False
    proxy.replies.clear()
    assert ask(proxy.address, b"mg %b v\r\n" % EPOCH_KEY) == b"VA 1\r\n1\r\n"


def test_the_source_is_read_once_for_many_commands(staged: Staged, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = staged("migrate")
    client = stage.client()
    reads: list[int] = []
    honest = stage.source.read

    def counted() -> Document:
        reads.append(1)
        return honest()

    monkeypatch.setattr(client._follower.source, "read", counted)
    keys = [*stage.moving(20), *stage.staying(20)]
    client._follower._stamp = stage.source.stamp()
    for key in keys:
        client.set(key, 1)
    assert client.get_many(keys) == dict.fromkeys(keys, 1)
    assert not reads
    monkeypatch.setattr(client._follower.source, "read", honest)


def test_a_broken_source_says_so() -> None:
    class Broken:
        patience = 1.0

        def read(self) -> Document:
            raise SourceUnavailable("the database is away")

    with pytest.raises(SourceUnavailable, match="the database is away"):
        Client.from_topology(Broken())  # type: ignore[arg-type]
