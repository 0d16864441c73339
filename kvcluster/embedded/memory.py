"""A socket-like object that reaches a node in this process."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvcluster.embedded.node import EmbeddedNode


class MemorySocket:
    """The part of a socket that a client needs, connected to a node in this process.

    >>> from kvcluster.embedded import EmbeddedNode
    >>> sock, buffer = MemorySocket(EmbeddedNode()), bytearray(64)
    >>> sock.sendall(b"version\\r\\n")
    >>> bytes(buffer[: sock.recv_into(buffer)])
    b'VERSION 1.6.18\\r\\n'
    """

    def __init__(self, node: EmbeddedNode) -> None:
        self._session = node.session()
        self._replies = bytearray()

    def sendall(self, data: bytes | bytearray | memoryview) -> None:
        """Hand bytes to the node, which answers at once.

        :raises BrokenPipeError: the connection is closed
        """
        if self._session.closed:
            raise BrokenPipeError("the embedded node closed this connection")
        self._replies += self._session.receive(data)

    def sendmsg(self, buffers: Iterable[bytes | bytearray | memoryview]) -> int:
        """Hand several buffers to the node and return how many bytes they had, always all.

        :raises BrokenPipeError: the connection is closed
        """
        data = b"".join(buffers)
        self.sendall(data)
        return len(data)

    def recv_into(self, buffer: bytearray | memoryview, nbytes: int = 0) -> int:
        """Move reply bytes into a buffer, at most ``nbytes`` where that is not 0, and return how many; 0 means closed.

        :raises TimeoutError: no reply is due on an open connection, so none can ever arrive
        """
        with memoryview(buffer) as view:
            room = min(nbytes, len(view)) if nbytes else len(view)
            size = min(room, len(self._replies))
            view[:size] = self._replies[:size]
        del self._replies[:size]
        if room and not size and not self._session.closed:
            raise TimeoutError("the embedded node has no reply due")
        return size

    def close(self) -> None:
        """Close the connection. Replies that were not read are lost."""
        self._session.close()
        self._replies.clear()


class SocketModule:
    """Stands in for the ``socket`` module in pymemcache's ``Client(path, socket_module=...)``; any path leads to one node."""

    AF_UNIX = SOCK_STREAM = 0

    def __init__(self, node: EmbeddedNode) -> None:
        self._node = node

    def socket(self, family: int, kind: int) -> _PymemcacheSocket:
        """A new connection to the node."""
        return _PymemcacheSocket(self._node)


class _PymemcacheSocket(MemorySocket):
    """What pymemcache calls on a socket beyond `MemorySocket`."""

    def settimeout(self, seconds: float | None) -> None:
        """An embedded node answers at once."""

    def connect(self, address: object) -> None:
        """It is connected already."""

    def recv(self, size: int) -> bytes:
        """Reply bytes, at most so many."""
        buffer = bytearray(size)
        return bytes(buffer[: self.recv_into(buffer)])
