"""A node that answers every connection by what a test wrote down, in the pieces given."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self

Answer = Sequence[bytes]


class Scripted:
    """Listens on loopback. The n-th connection gets the n-th answer after its first line, the last answer for all that come later.

    :param hold: leave the connection open after the answer, instead of closing it
    :ivar asked: the first line of each connection
    """

    def __init__(self, *answers: Answer, hold: bool = True) -> None:
        self._answers = answers
        self._hold = hold
        self.asked: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open.append(client)
                with contextlib.suppress(OSError):
                    self.asked.append(client.recv(4096))
                    for piece in self._answers[min(len(self.asked), len(self._answers)) - 1]:
                        client.sendall(piece)
                    if not self._hold:
                        client.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for client in self._open:
            client.close()
