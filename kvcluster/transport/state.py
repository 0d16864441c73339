"""What a client knows of one node apart from its connections: whether it is well, which deletes it was not told, and its counters.

``ready`` is all that a call looks at on a good day. It is False from the first failure until the node has answered again and has
been sent every delete that did not reach it: before that it would serve values that were deleted. Sync and async clients share
this code; it does no I/O, and takes a lock only on bad days.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Final

from mmh3 import mmh3_32_uintdigest

from kvcluster.errors import BadReply, KvclusterError, NodeDown, NodeTimeout, NodeUnreachable
from kvcluster.protocol.requests import Deletes, Request
from kvcluster.stats.counters import Counters
from kvcluster.transport.health import Health

log = logging.getLogger("kvcluster")

MAX_MISSED_DELETES: Final = 65_536
WARN_SECONDS: Final = 60.0  # between two warnings of undecodable values of one namespace
_REPLAY_BATCH: Final = 100


_warned: dict[str, float] = {}  # until when that was enough, by namespace


def warn_undecodable(
    address: str, namespace: str, failure: tuple[bytes, Exception], clock: Callable[[], float] = time.monotonic
) -> None:
    """Log that a value could not be decoded, now and then: one deployment with another codec makes many of them.

    What may be private stays out of it: the key is told by its hash, the error by its type.

    :param failure: the wire key, and what the codec raised
    """
    wire, error = failure
    now = clock()
    if now < _warned.get(namespace, now):
        return
    _warned[namespace] = now + WARN_SECONDS  # of threads that come here at once each may warn
    log.warning(
        "a value of namespace %r on node %s cannot be decoded (%s) and counts as a miss; its key has the murmur3 hash %08x. "
        "More of them are counted, and not logged for %.0f s",
        namespace,
        address,
        type(error).__name__,
        mmh3_32_uintdigest(wire),
        WARN_SECONDS,
    )


class NodeState:
    """One node as one client sees it.

    :param address: the node's
    :param clock: seconds, monotonic
    """

    def __init__(self, address: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.address = address
        self.ready = True
        self._clock = clock
        self._health = Health()
        self._missed: dict[bytes, int] = {}  # wire keys, oldest first, and the number of the failure that put them here
        self._failures = 0
        self._overflowed = False
        self._counters: dict[str, Counters] = {}  # by namespace: of closed connections, and of what happened without one
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<{self.address} {'up' if self._health.up else 'down'}, {len(self._missed)} missed deletes>"

    def after_fork(self) -> None:
        """In a forked child: count anew, and forget a lock that a thread of the parent may have held."""
        self._lock = threading.Lock()
        self._counters = {}

    # -- before an exchange

    def admit(self) -> None:
        """Let a caller through to a node that is not ready: any to one that is up, one at a time to one that is down.

        :raises NodeDown: while the node is left alone
        """
        with self._lock:
            if self._overflowed:
                raise NodeDown(
                    self.address,
                    f"left alone for good, because more than {MAX_MISSED_DELETES} deletes did not reach it: "
                    "flush the node, then make a new client",
                )
            now = self._clock()
            if not self._health.up and not self._health.claim_probe(now):
                raise NodeDown(self.address, f"is down, next probe in {self._health.seconds_to_probe(now):.1f} s")

    @property
    def missed_deletes(self) -> int:
        """How many deletes the node is still owed."""
        return len(self._missed)

    @property
    def overflowed(self) -> bool:
        """Whether the node is left alone for good, because it is owed too many deletes."""
        return self._overflowed

    def missed_batch(self, most: int = _REPLAY_BATCH) -> tuple[Deletes, int] | None:
        """The next deletes to send before anything else, and the number that `replayed` wants; or None."""
        with self._lock:
            wires = list(islice(self._missed, most))
            if not wires:
                return None
            return Deletes.of(wires), self._failures

    def replayed(self, wires: Iterable[bytes], number: int) -> None:
        """Note that these deletes have reached the node. One that failed again meanwhile stays."""
        with self._lock:
            for wire in wires:
                if self._missed.get(wire, number + 1) <= number:
                    del self._missed[wire]

    # -- after an exchange

    def answered(self) -> None:
        """Note that an exchange completed."""
        with self._lock:
            came_up = self._health.answered()
            self.ready = not self._missed and not self._overflowed
        if came_up:
            log.warning("node %s is up again and serves this client", self.address)

    def failed(self, error: KvclusterError, request: Request, namespace: str) -> None:
        """Count a failed exchange, keep its deletes for later, and judge the node by it."""
        self.failed_call(request, namespace)
        self.judge(error)

    def failed_call(self, request: Request, namespace: str) -> None:
        """Count a failed exchange that says nothing about the node, and keep its deletes for later."""
        with self._lock:
            counters = self._tally(namespace)
            counters.errors += 1
            request.fail(counters)
            self._miss(request.deletes)
            self.ready = self.ready and not self._missed and not self._overflowed

    def judge(self, error: KvclusterError) -> None:
        """Draw the consequence of a failure for the node: one for a whole connection, however many calls it carried."""
        with self._lock:
            now = self._clock()
            if isinstance(error, NodeTimeout | BadReply):
                went_down = self._health.timed_out(now)
            elif isinstance(error, NodeUnreachable):
                went_down = self._health.refused(now)
            else:
                return
            self.ready = False
            probe = self._health.seconds_to_probe(now)
        if went_down:
            log.warning("node %s is down (%s): its keys miss for this client, next probe in %.1f s", self.address, error, probe)

    def _miss(self, wires: Sequence[bytes]) -> None:
        if self._overflowed:
            return  # the node serves this client no more, so it need not be told
        self._failures += 1
        for wire in wires:
            self._missed[wire] = self._failures
        if len(self._missed) > MAX_MISSED_DELETES:
            self._overflowed = True
            self._missed.clear()
            log.error(
                "node %s is left alone for good: more than %d deletes did not reach it. Flush it, then make a new client",
                self.address,
                MAX_MISSED_DELETES,
            )

    # -- counters

    def retire(self, counters: dict[str, Counters]) -> None:
        """Keep the counters of a connection that was closed."""
        with self._lock:
            for namespace, its in counters.items():
                self._tally(namespace).add(its)

    def totals(self, connections: Iterable[dict[str, Counters]]) -> dict[str, Counters]:
        """What was counted by namespace, these connections' counters included."""
        totals: dict[str, Counters] = {}
        with self._lock:
            for counters in (self._counters, *connections):
                for namespace, its in list(counters.items()):
                    totals.setdefault(namespace, Counters()).add(its)
        return totals

    def _tally(self, namespace: str) -> Counters:
        return self._counters.setdefault(namespace, Counters())
