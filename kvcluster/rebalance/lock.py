"""The lock of a resize, which is in the document itself: whoever writes the next epoch under its name holds it, until its lease
ends.

A holder that lost the lock learns of it at the next write, because its epoch is not the document's any more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from kvcluster.errors import ResizeLocked, ResizeStopped, SourceUnavailable
from kvcluster.sources import TopologySource
from kvcluster.topology import Document


class Lock:
    """The lock of one resize, and the document as its holder last wrote it.

    :param document: as it was read
    :param owner: who takes the lock
    :param lease: seconds that the lock lasts unless renewed
    :param clock: seconds since 1970
    """

    def __init__(self, source: TopologySource, document: Document, owner: str, lease: float, clock: Callable[[], float]) -> None:
        self.document = document
        self._source = source
        self._owner = owner
        self._lease = lease
        self._clock = clock

    @property
    def held(self) -> bool:
        """Whether it was taken, and not given back."""
        return self.document.owner == self._owner

    def require_free(self) -> None:
        """Make sure that nobody has it.

        :raises ResizeLocked: where somebody does
        """
        if self.document.owner and self.document.lease_until > self._clock():
            raise ResizeLocked(self.document.owner, self.document.lease_until)

    def take(self) -> None:
        """Take the lock, by the next epoch of the same phase.

        :raises ResizeLocked: where somebody was faster
        """
        if not self._write(self.document.step(owner=self._owner, lease_until=self._clock() + self._lease)):
            winner = self._source.read()
            raise ResizeLocked(winner.owner or "somebody", winner.lease_until)

    def step(self, **changes: Any) -> Document:
        """Write the document of the next epoch.

        :raises ResizeStopped: where the lock is lost
        """
        changes = {"lease_until": self._clock() + self._lease} | changes
        if not self._write(self.document.step(**changes)):
            raise self._lost()
        return self.document

    def renew(self) -> None:
        """Keep the lock; it is written once half of its time is over. A source that cannot be written is tried again until the end.

        :raises ResizeStopped: where the lock is lost
        """
        now = self._clock()
        if not self.held or self.document.lease_until - now > self._lease / 2:
            return
        try:
            kept = self._write(replace(self.document, lease_until=now + self._lease))
        except SourceUnavailable as error:
            if now < self.document.lease_until:
                return
            raise ResizeStopped(
                f"the lock could not be renewed, because {error}; continue once the source can be written"
            ) from error
        if not kept:
            raise self._lost()

    def confirm(self) -> None:
        """Make sure that it is still held, or nobody else's yet where it was not taken, whatever the clock says.

        :raises ResizeStopped: where it is lost
        :raises SourceUnavailable: where the source cannot be read
        """
        now = self._source.read()
        if (now.epoch, now.owner) != (self.document.epoch, self.document.owner):
            raise self._lost()

    def release(self) -> None:
        """Let somebody else continue at once. A lock that is lost, or cannot be given back, ends by itself."""
        with contextlib.suppress(SourceUnavailable):
            self._write(replace(self.document, lease_until=0.0))

    def _write(self, document: Document) -> bool:
        if not self._source.replace(self.document.epoch, document):
            return False
        self.document = document
        return True

    def _lost(self) -> ResizeStopped:
        winner = self._source.read()
        return ResizeStopped(
            f"{winner.owner or 'somebody'} has taken over this resize (epoch {winner.epoch}, phase {winner.phase}); "
            "nothing is lost, and nothing is to be done here"
        )
