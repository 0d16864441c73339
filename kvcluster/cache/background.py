"""Threads for loads that nobody waits for, or not for ever: refreshes, and loaders with a timeout.

They are daemons, because a loader that hangs must not keep its process from ending, and a bounded number, because each holds a
connection to the database. Work that finds all of them busy waits for one if somebody waits for its result, and is refused
otherwise.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from kvcluster.cache import fork

log = logging.getLogger("kvcluster")

MOST_THREADS: Final = 32
_IDLE: Final = 10.0  # seconds


class Workers:
    """A bounded number of daemon threads, started when they are needed. Empty in a forked child.

    :param most: the most threads
    """

    def __init__(self, most: int = MOST_THREADS) -> None:
        self.most = most
        fork.renewed(self)

    def renew(self) -> None:
        """Begin without threads; in a forked child too, which has none of its parent's."""
        self._work: deque[Callable[[], object]] = deque()
        self._changed = threading.Condition()
        self._threads = 0
        self._idle = 0
        self._ours = threading.local()

    @property
    def inside(self) -> bool:
        """Whether the caller is one of the threads."""
        return getattr(self._ours, "yes", False)

    def begin(self, work: Callable[[], object], awaited: bool) -> bool:
        """Have something done; False where it is refused.

        :param awaited: whether somebody waits for it, so that it is better begun late than never
        """
        with self._changed:
            if not awaited and len(self._work) >= self._idle and self._threads >= self.most:
                return False
            self._work.append(work)
            if len(self._work) <= self._idle:
                self._changed.notify()
            elif self._threads < self.most:
                self._threads += 1
                threading.Thread(target=self._run, name="kvcluster-loads", daemon=True).start()
            return True

    def _run(self) -> None:
        self._ours.yes = True
        while (work := self._next()) is not None:
            try:
                work()
            except BaseException:  # a loader may raise SystemExit; the thread is not its own to end
                log.exception("a load in the background failed")

    def _next(self) -> Callable[[], object] | None:
        with self._changed:
            self._idle += 1
            if not self._work:
                self._changed.wait_for(lambda: self._work, _IDLE)
            self._idle -= 1
            if self._work:
                return self._work.popleft()
            self._threads -= 1
            return None


#: This process's threads, whatever their caches: what they are to spare is one database.
WORKERS: Final = Workers()
