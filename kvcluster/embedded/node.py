"""A node and its sessions: bytes of any cut in, replies out.

A session is one client's connection without the connection: it collects bytes until a line, or the data block that a line
announced, is whole, and answers each command in turn. What comes out does not depend on how the input was cut. All sessions of a
node share its store under one lock, held for one `Session.receive`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock

from kvcluster.embedded import classic, meta, reports
from kvcluster.embedded.answers import Answer, Swallow, Upload
from kvcluster.embedded.items import Store
from kvcluster.embedded.parsing import Refusal, tokens_of
from kvcluster.errors import ConfigurationError

DEFAULT_MEMORY_LIMIT = 64 << 20
LINE_MAX_LENGTH = 2048

_COMMANDS = classic.COMMANDS | meta.COMMANDS | reports.COMMANDS


class EmbeddedNode:
    """A memcached-compatible node in this process. Any number of threads may use it, each through a session of its own.

    >>> session = EmbeddedNode().session()
    >>> session.receive(b"set k 0 0 5\\r\\nhello\\r\\nget k\\r\\n")
    b'STORED\\r\\nVALUE k 0 5\\r\\nhello\\r\\nEND\\r\\n'

    :param memory_limit: bytes for all items, each 60 above its key and value; beyond it the least recently used go
    :param clock: returns the time in seconds, since the epoch where absolute ttls are to be right
    :raises ConfigurationError: memory_limit is not positive
    """

    def __init__(self, memory_limit: int = DEFAULT_MEMORY_LIMIT, clock: Callable[[], float] = time.time) -> None:
        if memory_limit < 1:
            raise ConfigurationError(f"memory_limit must be at least 1 byte, not {memory_limit}")
        self._store = Store(memory_limit, clock)
        self._lock = Lock()

    def session(self) -> Session:
        """Open a connection to this node."""
        return Session(self._store, self._lock)

    def __repr__(self) -> str:
        with self._lock:
            store = self._store
            memory = f"{store.memory_used} of {store.memory_limit} bytes"
            return f"<EmbeddedNode {len(store)} items, {memory}, {store.connections} sessions>"


class Session:
    """One connection to an embedded node. Get it from `EmbeddedNode.session`; one thread at a time may use it.

    ``.closed`` is true after ``quit``, after a line that is too long, and after `close`.
    """

    def __init__(self, store: Store, lock: Lock) -> None:
        self._store = store
        self._lock = lock
        self._input = bytearray()
        self._pending: Upload | Swallow | None = None
        self.closed = False
        with lock:
            store.connections += 1
            store.count["total_connections"] += 1

    def receive(self, data: bytes | bytearray | memoryview) -> bytes:
        """Take the next bytes of the client, cut anywhere, and return the replies that are due now, often none.

        A closed session returns nothing.
        """
        replies = []
        with self._lock:
            self._store.count["bytes_read"] += len(data)
            self._input += data
            while not self.closed and (reply := self._next_reply()) is not None:
                replies.append(reply)
            output = b"".join(replies)
            self._store.count["bytes_written"] += len(output)
        return output

    def close(self) -> None:
        """End the session; what was received of an unfinished command is dropped."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if not self.closed:
            self.closed = True
            self._store.connections -= 1
            self._input.clear()

    def _next_reply(self) -> bytes | None:
        """Take one step: a line, or (part of) a data block. None means that more input is needed."""
        match self._pending:
            case None:
                return self._next_line()
            case Upload(size, finish):
                if len(self._input) < size:
                    return None
                self._pending = None
                return finish(self._take(size))
            case Swallow(size, reply):
                taken = min(size, len(self._input))
                del self._input[:taken]
                if taken < size:
                    self._pending = Swallow(size - taken, reply)
                    return None
                self._pending = None
                return reply

    def _next_line(self) -> bytes | None:
        end = self._input.find(b"\n")
        length = end if end >= 0 else len(self._input)
        if length > LINE_MAX_LENGTH and not self._input.lstrip(b" ").startswith((b"get ", b"gets ")):
            # As memcached: only a multi-get may be longer than any sound command. Anything else is not a client of ours.
            self._close()
            return b""
        if end < 0:
            return None
        answer = self._execute(tokens_of(self._take(end + 1)[:-1]))
        if isinstance(answer, bytes):
            return answer
        self._pending = answer
        return b""

    def _execute(self, tokens: list[bytes]) -> Answer:
        if tokens == [b"quit"]:
            self._close()
            return b""
        command, arity = _COMMANDS.get(tokens[0], (None, range(0))) if tokens else (None, range(0))
        if command is None or len(tokens) not in arity:
            return b"ERROR\r\n"
        try:
            return command(self._store, tokens)
        except Refusal as refusal:
            return refusal.reply

    def _take(self, size: int) -> bytes:
        taken = bytes(self._input[:size])
        del self._input[:size]
        return taken
