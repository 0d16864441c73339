"""What a client knows of its source, and when it asks again.

A client asks at once where a node's answer tells of a newer epoch. Besides, its commands have a thread look now and then whether
there is something new, and say that the client is there. No command waits for that thread, but for the first after a while without
any: a node that has left the cluster tells of no newer epoch, and whoever was idle would go on reading it.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from kvcluster.errors import KvclusterError, SourceUnavailable
from kvcluster.following.planner import FollowingPlanner
from kvcluster.following.plans import Refetch
from kvcluster.sources import SIGHTED, Sighting, TopologySource
from kvcluster.topology import Document

log = logging.getLogger("kvcluster")

#: Seconds to wait before each reading of a source that is older than what a node has told.
PATIENCE: Final = (0.0, 0.005, 0.01, 0.02, 0.04, 0.08)

#: After how many times the source's patience without a look a command waits for one.
IDLE: Final = 3


class Follower:
    """One client's view of its source.

    :param clock: seconds, monotonic
    """

    def __init__(self, source: TopologySource, clock: Callable[[], float] = time.monotonic) -> None:
        self.source = source
        self.document = source.read()
        self.news: Document | None = None  # read in the background, for the client to take over
        self._clock = clock
        self._mark = secrets.token_hex(4)  # containers may have one name for their hosts, and a process 1 each
        self._stamp: object = None
        self._look_at = self._announce_at = 0.0
        self._looked = clock()  # when the last look ended, or nobody waits for it any more
        self._process = 0
        self._looking = threading.Lock()

    @property
    def due(self) -> bool:
        """Whether there is something to do: a document to take over, or time for a look."""
        return self.news is not None or self._clock() >= min(self._look_at, self._idle_at)

    @property
    def overdue(self) -> bool:
        """Whether nobody has looked for so long that a command has to wait for it."""
        return self._clock() >= self._idle_at

    @property
    def _idle_at(self) -> float:
        return self._looked + IDLE * self.source.patience

    def catch_up(self) -> None:
        """Look for something new, and wait for that, but not for longer than the source's patience."""
        self.look()
        if self._looking.acquire(timeout=self.source.patience):
            self._looking.release()
        else:
            log.warning("the topology's source: no answer; this client stays at epoch %d", self.document.epoch)
            self._looked = self._clock()

    def look(self) -> None:
        """Look for something new, in the background."""
        now = self._clock()
        if now < self._look_at:
            return
        if self._process != os.getpid():  # a forked child has none of its parent's threads, and may have their lock
            self._process = os.getpid()
            self._looking = threading.Lock()
            self._announce_at = 0.0
        if self._looking.acquire(blocking=False):
            self._look_at = now + self.source.patience
            threading.Thread(target=self._look, name="kvcluster-follower", daemon=True).start()

    def _look(self) -> None:
        try:
            stamp = self.source.stamp()
            if stamp != self._stamp:
                self.news, self._stamp = self.source.read(), stamp
            if self._clock() >= self._announce_at:
                self._announce_at = self._clock() + SIGHTED
                self.source.announce(self.sighting)
        except KvclusterError as error:
            log.warning("the topology's source: %s; this client stays at epoch %d", error, self.document.epoch)
        finally:
            self._looked = self._clock()
            self._looking.release()

    def withdraw(self) -> None:
        """Say that this client has ended, so that no resize waits for it. One that is used again says that it is there."""
        self._announce_at = 0.0
        with suppress(KvclusterError):  # it is forgotten by itself, only later
            self.source.withdraw(self.sighting)

    @property
    def sighting(self) -> Sighting:
        """What this client says of itself."""
        try:
            release = version("kvcluster")
        except PackageNotFoundError:
            release = "unknown"
        name = f"{socket.gethostname()}-{os.getpid()}-{self._mark}"
        return Sighting(name, release, self.document.epoch, time.time())

    def accept(self, document: Document) -> bool:
        """Take a document over, unless it is older than the one there is."""
        if document.epoch < self.document.epoch:
            return False
        if document.epoch > self.document.epoch:
            log.warning("the cluster has epoch %d, phase %r: this client follows", document.epoch, document.phase)
            self._announce_at = 0.0
        self.document = document
        return True

    def refetch(
        self, plan: Refetch[Any], planner: Callable[[], FollowingPlanner], accept: Callable[[Document], object]
    ) -> Generator[Callable[[], object], Any, KvclusterError | None]:
        """Read the source until it is as new as what a node has told; returns why it could not be had, if it could not.

        Yields what may block, for the shell to call, and is sent what that returned.

        :param planner: the client's planner now; another call may have been faster
        :param accept: makes the client follow a document
        """
        trouble: KvclusterError | None = None
        if not plan.urgent:  # a node that is down is not a reason to read the source for each call
            self.look()
            return None
        for seconds in PATIENCE:
            yield partial(time.sleep, seconds)
            if planner().epoch > plan.epoch:
                return None
            try:
                accept((yield self.source.read))
                trouble = None
            except KvclusterError as error:
                trouble = error
            if planner().epoch > plan.epoch or (trouble is None and not plan.late):
                return None
        return trouble or SourceUnavailable(f"{self.source!r}: has epoch {plan.epoch} still, and a node a later one")
