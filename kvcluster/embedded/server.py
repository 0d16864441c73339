"""A TCP server in front of a node. Apart from the package, because asyncio takes longer to import than all of the node."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvcluster.embedded.node import EmbeddedNode, Session


class _Connection(asyncio.Protocol):
    """A session behind a TCP connection. Reading pauses while the client does not take its replies."""

    def __init__(self, open_session: Callable[[], Session]) -> None:
        self._session = open_session()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport  # asyncio has set TCP_NODELAY on it

    def data_received(self, data: bytes) -> None:
        reply = self._session.receive(data)
        if reply:
            self._transport.write(reply)
        if self._session.closed:
            self._transport.close()

    def pause_writing(self) -> None:
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._session.close()


async def serve(host: str, port: int, node: EmbeddedNode) -> asyncio.Server:
    """Listen for clients of a node on the running event loop; close the returned server to end it.

    :param port: 0 lets the system choose one; ``server.sockets[0].getsockname()`` has it
    :raises OSError: the address cannot be listened on
    """
    return await asyncio.get_running_loop().create_server(lambda: _Connection(node.session), host, port)
