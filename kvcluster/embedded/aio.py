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
        protocol.connection_made(self)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing is ever buffered."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Hand bytes to the node, which answers at once."""
        if not self._replies:
            self._loop.call_soon(self._deliver)
        self._replies += self._session.receive(bytes(data))

    def _deliver(self) -> None:
        replies, self._replies = self._replies, bytearray()
        with memoryview(replies) as view:
            start = 0
            while start < len(view) and not self._session.closed:
                buffer = memoryview(self._protocol.get_buffer(len(view) - start))
                size = min(len(buffer), len(view) - start)
                buffer[:size] = view[start : start + size]
                self._protocol.buffer_updated(size)
                start += size
        if self._session.closed:
            self._protocol.connection_lost(None)

    def abort(self) -> None:
        """Close the connection; replies that were not delivered are lost."""
        self._session.close()
        self._replies.clear()

    close = abort
