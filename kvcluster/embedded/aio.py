"""An asyncio transport that reaches a node in this process. On its own, because few programs with such a node use asyncio."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvcluster.embedded.node import EmbeddedNode


class MemoryTransport(asyncio.Transport):
    """An asyncio transport to a node in this process, for a ``BufferedProtocol``. Replies arrive in a later turn of the loop."""

    def __init__(self, node: EmbeddedNode, protocol: asyncio.BufferedProtocol, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._session = node.session()
        self._protocol = protocol
        self._loop = loop
        self._replies = bytearray()
        self._lost = False
        protocol.connection_made(self)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing is ever buffered."""

    def get_write_buffer_size(self) -> int:
        """Nothing."""
        return 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Hand bytes to the node, which answers at once."""
        if not self._session.closed:
            self._replies += self._session.receive(bytes(data))
            self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        while self._replies and not self._lost:
            buffer = memoryview(self._protocol.get_buffer(len(self._replies)))
            size = min(len(buffer), len(self._replies))
            buffer[:size] = self._replies[:size]
            del self._replies[:size]
            self._protocol.buffer_updated(size)
        if self._session.closed and not self._lost:
            self._lost = True
            self._protocol.connection_lost(None)

    def abort(self) -> None:
        """Close the connection; replies that were not delivered are lost."""
        self._session.close()
        self._replies.clear()
        self._loop.call_soon(self._deliver)

    close = abort
