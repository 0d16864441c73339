"""Nodes that refuse, hang, trickle, break off or talk nonsense: what a caller sees and what is counted; no reply ever crosses."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from kvcluster import Cache, Client
from kvcluster.errors import BadReply, DeleteFailed, NetworkError, NodeDown, NodeTimeout, NodeUnreachable
from kvcluster.testing.plugin import NodeFactory
from kvcluster.testing.proxy import FaultProxy
from kvcluster.topology import Node
from kvcluster.transport import connection as connection_module
from kvcluster.transport import exchange as exchange_module
from kvcluster.transport import pool as pool_module
from kvcluster.transport.exchange import exchange
from tests.transport.conftest import BRIEF, Site, keys_of, let_pass

GENEROUS = 2.0  # seconds more than a call may take before a test says that it did not keep its deadline


@contextmanager
def within(seconds: float) -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds + GENEROUS


# -- replies that break off


READS: dict[str, Callable[[Client], object]] = {
    "get": lambda c: c.get("k"),
    "get_many": lambda c: c.get_many(["k", "l"]) == {"k": "value", "l": "other"} and "value",
    "gets": lambda c: c.gets("k")[0],
    "gat": lambda c: c.gat("k"),
    "binary key": lambda c: c.get("two words"),
}


@pytest.mark.parametrize("name", READS)
def test_a_reply_cut_anywhere(name: str, site: Site, proxy: FaultProxy) -> None:
    read = READS[name]
    writer = site.client([proxy])
    writer.set_many({"k": "value", "l": "other", "two words": "value"})
    before = proxy.replies.passed
    assert read(writer) == "value"
    size = proxy.replies.passed - before
    assert size > 20
    for position in range(size):
        fresh, used = site.client([proxy]), site.client([proxy])
        assert used.get("nothing") is None
        # a connection that never worked says that the node is unwell
        proxy.replies.cut_after(position)
        assert not read(fresh), position
        total = fresh.statistics().total
        assert (total.hits, total.errors) == (0, 1), position
        assert total.misses in (1, 2)
        # one that worked may have died of age, so the read is made again
        proxy.replies.cut_after(position)
        assert read(used) == "value", position
        assert used.statistics().total.errors == 0
        fresh.close()
        used.close()


@pytest.mark.parametrize(("method", "arguments"), [("set", ("k", 1)), ("add", ("new", 1)), ("incr", ("n", 1)), ("touch", ("k", 9))])
def test_a_write_whose_reply_is_cut_is_not_made_again(
    method: str, arguments: tuple[Any, ...], site: Site, proxy: FaultProxy
) -> None:
    client = site.client([proxy])
    client.set_many({"k": 0, "n": 5})
    proxy.replies.cut_after(1)
    assert not getattr(client, method)(*arguments)
    assert client.statistics().total.errors == 1
    assert client.get("n") == (6 if method == "incr" else 5)
    assert client.statistics().total.errors == 1  # the node was not blamed for it


def test_a_delete_whose_reply_is_cut_is_made_again(site: Site, proxy: FaultProxy) -> None:
    client = site.client([proxy])
    client.set("k", 1)
    proxy.replies.cut_after(1)
    assert client.delete("k") is False  # the second time it was gone
    assert client.get("k") is None


def test_values_of_a_reply_that_broke_off_are_not_returned(site: Site, proxy: FaultProxy) -> None:
    client = site.client([proxy])
    client.set_many({"a": b"1" * 50, "b": b"2" * 50})
    client.close()
    fresh = site.client([proxy])
    proxy.replies.cut_after(100)  # after the first value
    assert fresh.get_many(["a", "b"]) == {}
    assert (fresh.statistics().total.hits, fresh.statistics().total.misses) == (0, 2)


def test_a_value_that_is_gone_when_the_read_is_repeated_is_a_miss(site: Site, proxy: FaultProxy) -> None:
    client = site.client([proxy])
    client.set_many({"a": b"1" * 50, "b": b"2" * 50})
    proxy.replies.cut_after(100)

    dial = client._dial

    def dial_after_a_delete(node: Node) -> Any:
        site.ask(proxy, b"md a\r\n")
        return dial(node)

    client._endpoints[proxy.address]._dial = dial_after_a_delete
    assert client.get_many(["a", "b"]) == {"b": b"2" * 50}
    total = client.statistics().total
    assert (total.hits, total.misses, total.errors) == (1, 1, 0)


@pytest.mark.parametrize(
    "junk", [lambda piece: b"?" * len(piece) + b"\r\n", lambda piece: b"\r\n" * len(piece), lambda piece: b"HD\r\n" + piece]
)
def test_garbage_closes_the_connection(junk: Callable[[bytes], bytes], site: Site, proxy: FaultProxy) -> None:
    client = site.client([proxy])
    client.set("k", 1)
    proxy.replies.garble = junk
    with pytest.raises(DeleteFailed) as caught:
        client.delete("k")
    cause = caught.value.causes[proxy.address]
    assert isinstance(cause, BadReply)
    assert cause.node == proxy.address
    assert proxy.address in str(caught.value)
    proxy.replies.clear()
    assert client.set("k", 2)
    assert client.get("k") == 2
    assert client.statistics().total.errors == 1


def test_more_than_was_asked_for_closes_the_connection(site: Site, proxy: FaultProxy) -> None:
    client = site.client([proxy])
    client.set_many({"a": 1, "b": 2})
    proxy.replies.garble = lambda piece: piece + b"VALUE b 0 5\r\nwrong\r\nEND\r\n"
    assert client.get("a") is None
    proxy.replies.clear()
    assert client.get("b") == 2


# -- nodes that are not there


def test_a_node_that_refuses(site: Site) -> None:
    client, gone = site.client(), site.proxies[1]
    owned = keys_of(client, gone.address, 3)
    other = keys_of(client, site.proxies[0].address, 3)
    client.set_many(dict.fromkeys(owned + other, 1))
    gone.refuse()
    gone.cut()
    assert client.get(owned[0]) is None
    assert client.get_many(owned + other) == dict.fromkeys(other, 1)
    assert client.set(owned[0], 2) is False
    assert client.set(owned[0], 2, noreply=True) is False
    assert client.add(owned[0], 2) is False
    assert client.cas(owned[0], 2, 1) is False
    assert client.incr(owned[0], 2) is None
    assert client.touch(owned[0]) is False
    assert sorted(client.set_many(dict.fromkeys(owned + other, 3))) == owned
    counts = client.statistics().nodes[gone.address]
    assert (counts.hits, counts.misses) == (0, 4)
    assert counts.errors == 9
    assert client.statistics().nodes[site.proxies[0].address].errors == 0


def test_a_failed_delete_names_node_and_keys(site: Site) -> None:
    client, gone = site.client(), site.proxies[1]
    owned = keys_of(client, gone.address, 3)
    other = keys_of(client, site.proxies[0].address, 3)
    client.set_many(dict.fromkeys(owned + other, 1))
    gone.refuse()
    gone.cut()
    with pytest.raises(DeleteFailed) as caught:
        client.delete(owned[0])
    assert caught.value.keys == (owned[0],)
    assert caught.value.node == gone.address
    assert isinstance(caught.value.causes[gone.address], NodeUnreachable)
    with pytest.raises(DeleteFailed, match="3 keys may still be cached") as caught:
        client.delete_many([*other, *owned])
    assert sorted(caught.value.keys) == owned
    assert list(caught.value.causes) == [gone.address]
    assert isinstance(caught.value.causes[gone.address], NodeDown)
    assert client.get_many(other) == {}  # those were deleted
    with pytest.raises(DeleteFailed):
        del client[owned[0]]
    with pytest.raises(DeleteFailed):
        client.delete(owned[0], noreply=True)


@pytest.mark.parametrize("count", [1, 250])
@pytest.mark.parametrize(
    "read", [lambda c, k: c.get(k), lambda c, k: c.get_many([k]).get(k), lambda c, k: c.gets(k)[0], lambda c, k: c.gat(k)]
)
def test_a_missed_delete_reaches_the_node_before_it_serves_again(
    read: Callable[[Client, str], object], count: int, site: Site, proxy: FaultProxy
) -> None:
    client = site.client()
    owned = keys_of(client, proxy.address, count)
    client.set_many(dict.fromkeys(owned, "old"))
    proxy.requests.drop = True  # the node never hears of the delete
    with pytest.raises(DeleteFailed):
        client.delete_many(owned)
    proxy.requests.clear()
    assert f"{count} missed deletes" in repr(client)
    assert site.ask(proxy, b"mg %b v\r\n" % owned[-1].encode()).startswith(b"VA")
    let_pass(client, 60)
    assert read(client, owned[-1]) is None
    assert site.ask(proxy, b"".join(b"mg %b v\r\n" % key.encode() for key in owned)) == b"EN\r\n" * count
    assert " 0 missed deletes" in repr(client)
    assert client._endpoints[proxy.address].state.ready


def test_a_value_set_after_a_missed_delete_stays(site: Site, proxy: FaultProxy) -> None:
    client = site.client()
    key = keys_of(client, proxy.address, 1)[0]
    client.set(key, "old")
    proxy.requests.drop = True
    with pytest.raises(DeleteFailed):
        client.delete(key)
    proxy.requests.clear()
    assert client.set(key, "new")
    assert client.get(key) == "new"


def test_a_node_that_fails_again_during_the_replay_still_owes(site: Site, proxy: FaultProxy) -> None:
    client = site.client()
    key = keys_of(client, proxy.address, 1)[0]
    client.set(key, "old")
    proxy.requests.drop = True
    with pytest.raises(DeleteFailed):
        client.delete(key)
    for fault in (lambda: None, proxy.refuse):
        fault()
        proxy.cut()
        let_pass(client, 60)
        assert client.get(key) is None
    proxy.accept()
    proxy.requests.clear()
    proxy.replies.garble = lambda piece: b"?" * len(piece)
    let_pass(client, 120)
    assert client.get(key) is None
    assert client.get_many([key]) == {}
    proxy.replies.clear()
    let_pass(client, 240)
    assert client.get(key) is None
    assert site.ask(proxy, b"mg %b v\r\n" % key.encode()) == b"EN\r\n"


def test_one_probe_at_a_time(site: Site, proxy: FaultProxy) -> None:
    client = site.client()
    key = keys_of(client, proxy.address, 1)[0]
    proxy.refuse()
    assert client.get(key) is None
    proxy.accept()
    proxy.replies.stall()
    let_pass(client, 2)
    before = proxy.accepted
    threads = [threading.Thread(target=client.get, args=(key,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert proxy.accepted - before == 1


def test_a_node_that_comes_back_is_used_again(kv_nodes: NodeFactory) -> None:
    node = kv_nodes(1)[0]
    with Client(node.address, timeout=5, connect_timeout=5) as client:
        client.set("k", 1)
        node.kill()
        assert client.get("k") is None
        assert client.get("k") is None
        assert "down" in repr(client)
        node.restart()
        let_pass(client, 2)
        assert client.set("k", 2)
        assert client.get("k") == 2
        assert "up" in repr(client)


# -- connections that died while they were idle


@pytest.mark.parametrize("pool_size", [1, 4])
def test_a_restart_is_invisible_to_reads(pool_size: int, kv_nodes: NodeFactory) -> None:
    node = kv_nodes(1)[0]
    with Client(node.address, timeout=5, connect_timeout=5, pool_size=pool_size) as client:
        for read in (
            lambda: client.get("k"),
            lambda: client.get_many(["k"]).get("k"),
            lambda: client.gets("k")[0],
            lambda: client.gat("k"),
        ):
            client.set("k", 1)
            node.restart()
            assert read() is None
        assert client.statistics().total.errors == 0
        assert "1 connections, 1 idle" in repr(client)


@pytest.mark.parametrize("pool_size", [1, 4])
def test_connections_that_died_idle_are_invisible_to_reads(pool_size: int, site: Site) -> None:
    client = site.client(pool_size=pool_size, timeout=5)
    values = {f"{number}": "v" * 100 for number in range(8000)}  # so many that one request is larger than a socket's buffers
    few = dict(list(values.items())[:20])
    assert client.set_many(values) == []
    held = [client._endpoints[proxy.address].acquire() for proxy in site.proxies for _ in range(pool_size)]
    for connection in held:
        connection.exchange(client.planner.delete_many(["x"]).requests.popitem()[1], "")  # type: ignore[attr-defined]
        client._endpoints[connection.address].release(connection, completed=True)
    for read, expected in (
        (lambda: client.get_many(values), values),
        (lambda: client.get_many(few), few),
        (lambda: client.get("0"), values["0"]),
        (lambda: client.delete_many(values), True),
        (lambda: client.get_many(values), {}),
    ):
        for proxy in site.proxies:
            proxy.cut()
        assert read() == expected
    assert client.statistics().total.errors == 0
    assert repr(client).count(" up, 0 missed deletes>, 1 connections, 1 idle>") == 4


def test_a_write_over_a_connection_that_died_idle_says_false_once(site: Site, proxy: FaultProxy) -> None:
    client = site.client([proxy])
    client.set("k", 1)
    proxy.cut()
    results = [client.set("k", 2), client.set("k", 3)]
    assert results[1] is True
    assert client.get("k") == 3
    assert "up" in repr(client)


# -- nodes that are slow


def test_a_node_that_hangs(site: Site, proxy: FaultProxy) -> None:
    client = site.client()
    key = keys_of(client, proxy.address, 1)[0]
    client.set(key, 1)
    proxy.replies.stall()
    with within(BRIEF):
        assert client.get(key) is None
    with within(BRIEF):
        assert client.set(key, 2) is False
    with pytest.raises(DeleteFailed) as caught, within(0):  # down by now, so not even asked
        client.delete(key)
    assert isinstance(caught.value.causes[proxy.address], NodeDown)
    counts = client.statistics().nodes[proxy.address]
    assert (counts.misses, counts.errors) == (1, 3)


def test_a_process_that_is_stopped(kv_nodes: NodeFactory) -> None:
    nodes = kv_nodes(4)
    with Client([node.address for node in nodes], timeout=BRIEF, connect_timeout=BRIEF) as client:
        values = {f"{number}": number for number in range(100)}
        client.set_many(values)
        for node in nodes:
            node.pause()
        try:
            with within(2 * BRIEF):
                assert client.get_many(values) == {}
            with within(2 * BRIEF):
                assert sorted(client.set_many(values)) == sorted(values)
            with within(0):
                assert client.get_many(values) == {}
            assert repr(client).count("down") == 4
        finally:
            for node in nodes:
                node.resume()
        let_pass(client, 60)
        assert client.get_many(values) == values


def test_hung_nodes_do_not_take_the_others_with_them(site: Site) -> None:
    client, hung, well = site.client(), site.proxies[:2], site.proxies[2:]  # those that are read first use up all the time
    values = {f"{number}": b"%05d" % number * 40_000 for number in range(160)}  # more than sockets' buffers hold
    assert site.client(timeout=10).set_many(values) == []
    served = {proxy.address for proxy in well}
    expected = {key: value for key, value in values.items() if client.planner.address(key.encode()) in served}
    client.get_many(values)
    for proxy in hung:
        proxy.replies.stall()
    for _ in range(3):
        assert client.get_many(values) == expected
    assert all("down" in repr(client._endpoints[proxy.address]) for proxy in hung)
    assert [client.statistics().nodes[address].errors for address in served] == [0, 0]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(("slowest", "in_time"), [(1 << 20, True), (1 << 40, False)])
def test_large_values_that_move_are_not_late(
    slowest: int, in_time: bool, count: int, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (connection_module, exchange_module):
        monkeypatch.setattr(module, "SLOWEST", slowest)
    proxies = site.proxies[:count]
    client, values = site.client(proxies), {f"{number}": b"%05d" % number * 40_000 for number in range(20 * count)}
    client.get_many(values)
    for proxy in proxies:
        proxy.requests.delay = 0.02  # for every 64 KiB: 3 MiB a second
    assert (client.set_many(values) == []) is in_time
    for proxy in proxies:
        proxy.requests.clear()
    let_pass(client, 60)
    assert site.client(proxies, timeout=10).set_many(values) == []
    for proxy in proxies:
        proxy.replies.delay = 0.02
    assert (client.get_many(values) == values) is in_time


def test_nodes_that_were_not_asked_are_not_judged(site: Site) -> None:
    client = site.client()
    plan = client.planner.get_many([f"{number}" for number in range(100)])
    failures = exchange(client._endpoints, plan, -1.0)
    assert set(failures) == {proxy.address for proxy in site.proxies}
    assert {type(error) for error in failures.values()} == {NetworkError}
    assert repr(client).count(" up, ") == 4
    assert all(endpoint.state.ready for endpoint in client._endpoints.values())
    assert client.statistics().total.misses == 100


class Trickle:
    """A node that sends one byte now and then, and reads as slowly."""

    def __init__(self, reads: int = 1 << 16) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._reads = reads
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            stream, _ = self._listener.accept()
            if self._stop.is_set():
                stream.close()
                return
            thread = threading.Thread(target=self._serve, args=(stream,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, stream: socket.socket) -> None:
        with stream:
            stream.settimeout(0.02)
            while not self._stop.wait(BRIEF / 4):
                try:
                    if self._reads:
                        stream.recv(self._reads)
                except TimeoutError:
                    pass
                except OSError:
                    return
                try:
                    stream.send(b"V")
                except OSError:
                    return

    def __enter__(self) -> Trickle:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        with socket.create_connection(self._listener.getsockname()):
            for thread in self._threads:
                thread.join()
        self._listener.close()


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.get("k"),
        lambda c: c.set("k", b"small"),
        lambda c: c.set("k", b"large" * 200_000),
        lambda c: c.get_many([f"{number}" for number in range(10)]),
        lambda c: c.get_many([f"{number}" for number in range(20_000)]),
        lambda c: c.set_many({f"{number}": b"x" * 20_000 for number in range(200)}),
    ],
    ids=["get", "set", "large set", "get_many", "large get_many", "large set_many"],
)
@pytest.mark.parametrize("count", [1, 3])
def test_a_trickle_does_not_hold_a_caller(call: Callable[[Client], object], count: int) -> None:
    with Trickle(1) as first, Trickle(1) as second, Trickle(1) as third:
        addresses = [node.address for node in (first, second, third)][:count]
        with Client(addresses, timeout=BRIEF, connect_timeout=5) as client, within(3 * BRIEF):
            result = call(client)
            assert not result or len(result) == 200  # type: ignore[arg-type]
            assert client.statistics().total.errors >= count or count > 1


# -- crossed replies


class Interrupted(socket.socket):
    """A socket whose next receive is interrupted, after the node had time to answer."""

    armed: type[BaseException] | None = None

    def recv_into(self, *arguments: Any) -> int:
        if Interrupted.armed is not None:
            error, Interrupted.armed = Interrupted.armed, None
            super().recv(1, socket.MSG_PEEK)
            raise error
        return super().recv_into(*arguments)


def interruptible(client: Client) -> Client:
    def wrap(dial: Callable[[Node], Any]) -> Callable[[Node], Any]:
        return lambda node: Interrupted(fileno=dial(node).detach())

    for endpoint in client._endpoints.values():
        endpoint._dial = wrap(endpoint._dial)
    return client


CALLS: dict[str, Callable[[Client], object]] = {
    "get": lambda c: c.get("a"),
    "gets": lambda c: c.gets("a"),
    "get_many": lambda c: c.get_many(["a", "c", "d", "e"]),
    "gat": lambda c: c.gat("a", 60),
    "set": lambda c: c.set("x", 1),
    "large set": lambda c: c.set("x", b"x" * 500_000),
    "set_many": lambda c: c.set_many({"x": 1, "y": 2}),
    "large set_many": lambda c: c.set_many({f"x{number}": b"x" * 10_000 for number in range(200)}),
    "add": lambda c: c.add("x", 1),
    "append": lambda c: c.append("x", 1),
    "delete": lambda c: c.delete("x"),
    "incr": lambda c: c.incr("n", 1),
    "touch": lambda c: c.touch("a", 60),
    "after noreply": lambda c: c.set("x", 1, noreply=True) and c.get("x"),
}


@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeoutError, ConnectionResetError, MemoryError])
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("nodes", [1, 4])
def test_no_reply_crosses_after_an_interruption(name: str, error: type[BaseException], nodes: int, site: Site) -> None:
    client = interruptible(site.client(site.proxies[:nodes], timeout=5))
    values = {"a": "A", "b": "B", "c": "C", "d": "D", "e": "E"}
    client.set_many({**values, "n": 1})
    Interrupted.armed = error
    if issubclass(error, OSError):
        try:
            CALLS[name](client)
        except DeleteFailed:
            assert name == "delete"
    else:
        with pytest.raises(error):
            CALLS[name](client)
    assert Interrupted.armed is None
    assert [client.get(key) for key in values] == list(values.values())
    assert client.get_many(values) == values
    assert all(not endpoint._open - set(endpoint.idle) for endpoint in client._endpoints.values())


def test_no_reply_crosses_after_a_timeout(site: Site, proxy: FaultProxy) -> None:
    client = site.client([proxy])
    client.set_many({"a": "A", "b": "B"})
    for _ in range(3):
        proxy.replies.stall()
        assert client.get("a") is None
        proxy.replies.resume()
        assert answer(client, "b") == "B"
        assert answer(client, "a") == "A"


def answer(client: Client, key: str) -> Any:
    """The first value that comes; a busy machine may be late by more than the timeout."""
    return next(value for _ in range(100) if (value := client.get(key)) is not None)


def test_no_reply_crosses_after_a_signal(site: Site, proxy: FaultProxy) -> None:
    client = site.client([proxy], timeout=10)
    client.set_many({"a": "A", "b": "B"})

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        proxy.replies.stall()
        timer = threading.Timer(0.1, signal.pthread_kill, (threading.main_thread().ident, signal.SIGUSR1))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            client.get("a")
        timer.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
        proxy.replies.resume()
    assert (client.get("b"), client.get("a")) == ("B", "A")
    assert "1 connections, 1 idle" in repr(client)


def test_errors_say_which_node(site: Site, proxy: FaultProxy) -> None:
    client = site.client([proxy])
    endpoint = client._endpoints[proxy.address]
    client.get("k")
    proxy.replies.stall()
    error = endpoint.exchange(client.planner.get_many(["k"]).requests[proxy.address], "")
    assert isinstance(error, NodeTimeout)
    assert error.node == proxy.address
    assert str(error) == f"{proxy.address}: no answer within {BRIEF:g} s"


class SoftLimit(BaseException):
    """What a signal handler or gevent raises: no error of kvcluster's."""


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize(
    "places",
    [
        [(pool_module, "fast_exchange"), (exchange_module, "fast_scatter")],
        [(connection_module.Connection, "complete")],
    ],
    ids=["before", "after"],
)
def test_a_delete_that_was_interrupted_is_sent_before_the_next_read(
    site: Site, monkeypatch: pytest.MonkeyPatch, places: list[tuple[Any, str]], nodes: int
) -> None:
    client = site.client(site.proxies[:nodes])
    keys = [key for proxy in site.proxies[:nodes] for key in keys_of(client, proxy.address, 1)]
    assert client.set_many(dict.fromkeys(keys, "old")) == []

    def interrupt(*arguments: Any) -> None:
        raise SoftLimit

    with monkeypatch.context() as patch:
        for place in places:
            patch.setattr(*place, interrupt)
        with pytest.raises(SoftLimit):
            client.delete_many(keys)
    assert client.get_many(keys) == {}


EXTRA = b"VA 3 f16 c1\r\nbad\r\n"


@pytest.mark.parametrize("name", ["gat", "binary key"])
def test_a_reply_too_many_on_an_idle_connection_crosses_with_none(name: str, proxy: FaultProxy, site: Site) -> None:
    client = site.client([proxy], pool_size=1)
    assert client.set_many({"k": "value", "two words": "value"}) == []
    assert READS[name](client) == "value"
    _send_unasked(proxy, client, EXTRA)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client._endpoints[proxy.address].state, "judge", lambda error: None)
        assert READS[name](client) is None
        assert READS[name](client) == "value"


def test_a_confirmation_too_many_does_not_confirm_a_delete(proxy: FaultProxy, site: Site) -> None:
    client = site.client([proxy], pool_size=1)
    assert client.set("k", "value") is True
    _send_unasked(proxy, client, b"HD\r\n")
    with pytest.raises(DeleteFailed):
        client.delete("k")


def _send_unasked(proxy: FaultProxy, client: Client, reply: bytes) -> None:
    """Let a client's idle connection receive what nobody asked for."""
    for inside, _ in list(proxy._links):
        inside.sendall(reply)
    (connection,) = client._endpoints[proxy.address].idle
    assert connection_module.readable(connection.stream, GENEROUS)


def test_a_reply_too_many_gives_no_loader_another_keys_value(proxy: FaultProxy, site: Site) -> None:
    client = site.client([proxy], pool_size=1)
    cache = Cache("shifted", ttl=60, client=client)

    @cache.loader("k:{number}")
    def value(number: int) -> str:
        return f"value {number}"

    expected = [f"value {number}" for number in range(5)]
    assert [value(number) for number in range(5)] == expected
    _send_unasked(proxy, client, EXTRA)
    assert [value(number) for number in range(5)] == expected
