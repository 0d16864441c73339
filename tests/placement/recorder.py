"""A live oracle for clients that do not say which server they chose: servers that record the keys they are asked for.

Every server listens on a loopback address or a Unix socket, answers each ``get`` with a miss, and remembers the keys under the
address they arrived at. One thread serves all of them.
"""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import pylibmc

from kvcluster.topology import Node

KEYS = [b"user:%d" % i for i in range(15_000)] + [f"상품-{i}:{i * 7919 % 1000}".encode() for i in range(5_000)]


class Recorder:
    """Keys by the address of the server that was asked for them."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.asked: list[tuple[str, bytes]] = []
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        self._sockets = [self._wake, self._woken]

    def listen(self, address: str) -> str:
        """Serve at an address; port 0 takes a free one. Returns the address as `Node` writes it."""
        if address.startswith("unix:"):
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(address.removeprefix("unix:"))
            listener.listen()
        else:
            host, port = address.split(":")
            listener = socket.create_server((host, int(port)))
            address = f"{host}:{listener.getsockname()[1]}"
        listener.setblocking(False)
        self._sockets.append(listener)
        self.addresses.append(address)
        self._selector.register(listener, selectors.EVENT_READ, (self._accept, address))
        return address

    def run(self) -> None:
        while True:
            for ready, _ in self._selector.select():
                if ready.data is None:
                    return
                handle, address = ready.data
                handle(ready.fileobj, address)

    def stop(self) -> None:
        self._wake.send(b"x")

    def close(self) -> None:
        self._selector.close()
        for sock in self._sockets:
            sock.close()

    def owners(self, keys: Iterable[bytes], ask: Callable[[Sequence[bytes]], object]) -> list[str]:
        """The address at which each key arrives when ``ask`` is called with all of them."""
        keys = list(keys)
        self.asked.clear()
        ask(keys)
        arrived = list(self.asked)
        owner = {key: address for address, key in arrived}
        assert len(owner) == len(arrived) == len(keys), "every key must reach exactly one server, once"
        return [owner[key] for key in keys]

    def _accept(self, listener: socket.socket, address: str) -> None:
        connection, _ = listener.accept()
        connection.setblocking(False)
        self._sockets.append(connection)
        self._selector.register(connection, selectors.EVENT_READ, (_Session(self, connection), address))


class _Session:
    def __init__(self, recorder: Recorder, connection: socket.socket) -> None:
        self.recorder, self.connection, self.pending = recorder, connection, b""

    def __call__(self, connection: socket.socket, address: str) -> None:
        data = connection.recv(1 << 18)
        if not data:
            self.recorder._selector.unregister(connection)
            return
        *lines, self.pending = (self.pending + data).split(b"\r\n")
        for line in lines:
            command, *keys = line.split()
            if command == b"quit":
                return
            assert command in (b"get", b"gets"), f"unexpected command {line!r}"
            self.recorder.asked.extend((address, key) for key in keys)
            connection.send(b"END\r\n")


@contextmanager
def recording(addresses: Iterable[str]) -> Iterator[Recorder]:
    """A `Recorder` at these addresses; an OSError says that one cannot be had here."""
    recorder = Recorder()
    thread = threading.Thread(target=recorder.run, name="recorder")
    try:
        for address in addresses:
            recorder.listen(address)
        thread.start()
        yield recorder
    finally:
        if thread.ident is not None:
            recorder.stop()
            thread.join()
        recorder.close()


def nodes_at(addresses: Sequence[str], weights: Sequence[int]) -> list[Node]:
    return [Node(address, weight) for address, weight in zip(addresses, weights, strict=True)]


def pylibmc_owners(recorder: Recorder, nodes: Sequence[Node], keys: Sequence[bytes], behaviors: dict[str, bool]) -> list[str]:
    """The address at which each key arrives when pylibmc is asked for it."""
    # pylibmc takes no weight for a Unix socket.
    client = pylibmc.Client([node.socket_path or f"{node}:{node.weight}" for node in nodes], behaviors=behaviors)

    def ask(keys: Sequence[bytes]) -> None:
        for start in range(0, len(keys), 500):
            assert client.get_multi(keys[start : start + 500]) == {}

    try:
        return recorder.owners(keys, ask)
    finally:
        client.disconnect_all()
