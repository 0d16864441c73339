"""A TCP proxy that misbehaves on request, to put between a client and a node.

Two threads per connection copy bytes, one for each direction. Before a piece is passed on, the direction's `Faults` are asked what
becomes of it; they may be changed at any time, from any thread, and hold for all connections. Faults of the connection itself
(refused, closed) belong to the proxy.

    with FaultProxy(node.address) as proxy:
        client = Client([proxy.address])
        proxy.replies.cut_after(10)         # the reply breaks off after 10 bytes
        proxy.requests.stall()              # nothing reaches the node until .resume()
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from kvcluster.topology import as_node

if TYPE_CHECKING:
    from typing import Self

CHUNK = 65536  # bytes read at a time


class Faults:
    """What happens to the bytes of one direction. As made, they pass.

    :ivar delay: seconds that each piece waits before it is passed on
    :ivar garble: changes each piece, for example ``lambda piece: b"?" * len(piece)``; None for no change
    :ivar drop: whether bytes vanish while the connection stays open
    :ivar passed: bytes that were passed on so far
    """

    def __init__(self) -> None:
        self.delay = 0.0
        self.garble: Callable[[bytes], bytes] | None = None
        self.drop = False
        self.passed = 0
        self._budget: int | None = None
        self._lock = threading.Lock()
        self._flowing = threading.Event()
        self._closed = threading.Event()
        self._flowing.set()

    def stall(self) -> None:
        """Hold everything back, without closing, until `resume`."""
        self._flowing.clear()

    def resume(self) -> None:
        """Pass on what was held back, and what follows."""
        self._flowing.set()

    def cut_after(self, size: int) -> None:
        """Pass on `size` more bytes, then close the connection whose turn it is. Happens once; with 0, at the next byte."""
        with self._lock:
            self._budget = size

    def clear(self) -> None:
        """Let bytes pass again as they are."""
        with self._lock:
            self._budget = None
        self.delay, self.garble, self.drop = 0.0, None, False
        self.resume()

    def apply(self, piece: bytes) -> tuple[bytes, bool]:
        """What is passed on of `piece`, and whether the connection is closed after it. Waits where that is the fault."""
        if self.delay:
            self._closed.wait(self.delay)
        self._flowing.wait()
        if self.drop:
            return b"", False
        if self.garble is not None:
            piece = self.garble(piece)
        with self._lock:
            cut = self._budget is not None and len(piece) > self._budget
            if cut:
                piece, self._budget = piece[: self._budget], None
            elif self._budget is not None:
                self._budget -= len(piece)
            self.passed += len(piece)
        return piece, cut

    def _close(self) -> None:
        self._closed.set()
        self._flowing.set()


class FaultProxy:
    """A proxy on a free loopback port in front of the node at `upstream`. Where the node refuses, connections are closed at once.

    :param upstream: the node's address
    :ivar address: where clients connect
    :ivar requests: faults of the bytes towards the node
    :ivar replies: faults of the bytes towards the client
    :ivar accepted: connections accepted so far
    """

    def __init__(self, upstream: str) -> None:
        self._upstream = as_node(upstream)
        self.requests = Faults()
        self.replies = Faults()
        self.accepted = 0
        self._lock = threading.Lock()
        self._links: set[tuple[socket.socket, socket.socket]] = set()
        self._threads: list[threading.Thread] = []
        self._listener = self._bind(0)
        self._port: int = self._listener.getsockname()[1]
        self.address = f"127.0.0.1:{self._port}"
        self._listen()

    @property
    def open(self) -> int:
        """Connections that are open now."""
        with self._lock:
            return len(self._links)

    def refuse(self) -> None:
        """Refuse new connections until `accept`; those that are open stay."""
        self._stop_listening()
        # Bound and not listening: connections are refused, and nobody else can take the port.
        self._listener = self._bind(self._port)

    def accept(self) -> None:
        """Accept connections again after `refuse`."""
        if not self._acceptor.is_alive():
            self._listen()

    def cut(self) -> None:
        """Close all open connections now; new ones are accepted."""
        with self._lock:
            links = list(self._links)
        for link in links:
            _shut(*link)

    def close(self) -> None:
        """End the proxy and every connection through it."""
        self._stop_listening()
        self.requests._close()
        self.replies._close()
        self.cut()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<FaultProxy {self.address} to {self._upstream.address}, {self.open} open>"

    def _bind(self, port: int) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        return listener

    def _listen(self) -> None:
        self._listener.listen()
        # accept() in one thread is not woken by close() in another; a byte through this pair is what ends the wait.
        self._wake, woken = socket.socketpair()
        self._acceptor = threading.Thread(target=self._accept_all, args=(self._listener, woken), daemon=True)
        self._acceptor.start()

    def _stop_listening(self) -> None:
        self._wake.close()
        self._acceptor.join()
        self._listener.close()

    def _accept_all(self, listener: socket.socket, woken: socket.socket) -> None:
        with woken:
            while woken not in select.select([listener, woken], [], [])[0]:
                client, _ = listener.accept()
                self.accepted += 1
                self._connect(client)

    def _connect(self, client: socket.socket) -> None:
        try:
            node = self._dial()
        except OSError:
            client.close()
            return
        link = (client, node)
        with self._lock:
            self._links.add(link)
        ended = threading.Barrier(2, action=lambda: self._forget(link))
        for source, sink, faults in ((client, node, self.requests), (node, client, self.replies)):
            thread = threading.Thread(target=_copy, args=(source, sink, faults, ended), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _dial(self) -> socket.socket:
        if self._upstream.socket_path is None:
            return socket.create_connection((self._upstream.host, self._upstream.port))
        node = socket.socket(socket.AF_UNIX)
        node.connect(self._upstream.socket_path)
        return node

    def _forget(self, link: tuple[socket.socket, socket.socket]) -> None:
        """Close a connection that both its threads are done with: before, its numbers could become someone else's under them."""
        with self._lock:
            self._links.discard(link)
        for end in link:
            end.close()


def _copy(source: socket.socket, sink: socket.socket, faults: Faults, ended: threading.Barrier) -> None:
    try:
        with contextlib.suppress(OSError):
            cut = False
            while not cut and (piece := source.recv(CHUNK)):
                piece, cut = faults.apply(piece)
                sink.sendall(piece)
    finally:
        _shut(source, sink)
        ended.wait()


def _shut(*ends: socket.socket) -> None:
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
