"""The slots that are copied, on disk, so that a coordinator that continues need not copy them again.

Losing it costs time and nothing else, because copying is idempotent; so it is not flushed to the disk's platter, and one that does
not fit is started anew. It fits a resize at the epoch it was last written for, and targets that have not restarted since.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, Final

from kvcluster.errors import ConfigurationError

FORMAT: Final = 1


class Journal:
    """Slots that are done, by the address of their source.

    :param path: the file; without one nothing outlives the process
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: IO[str] | None = None
        self._done: dict[str, set[int]] = {}

    def open(self, previous_epoch: int, epoch: int, started: Mapping[str, int]) -> None:
        """Take up what is there, where it is of the previous epoch and of targets that started when these did.

        :param epoch: what the journal is of from now on
        :param started: when each target started, in seconds since 1970
        :raises ConfigurationError: where the file cannot be written
        """
        self.close()
        self._done = {}
        header: dict[str, Any] = {"format": FORMAT, "epoch": epoch, "started": dict(started)}
        if self._path is None:
            return
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            first, *rest = self._path.read_text("utf-8").split("\n")
            if json.loads(first) == header | {"epoch": previous_epoch}:
                for line in rest[:-1]:  # what follows the last line feed is half a line, of a process that was killed
                    source, *slots = line.split(" ")
                    self._done.setdefault(source, set()).update([int(slot) for slot in slots])
        beside = self._path.with_name(f"{self._path.name}.{os.getpid()}.new")
        try:
            lines = [json.dumps(header), *(_line(source, sorted(slots)) for source, slots in self._done.items())]
            beside.write_text("\n".join(lines) + "\n", "utf-8")
            beside.replace(self._path)
            self._file = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(f"the journal {self._path} cannot be written: {error}") from None

    def done(self, source: str) -> frozenset[int]:
        """The slots of a source that are done."""
        return frozenset(self._done.get(source, ()))

    def add(self, source: str, slots: Iterable[int]) -> None:
        """Note slots of a source as done."""
        slots = list(slots)
        self._done.setdefault(source, set()).update(slots)
        if self._file is not None and slots:
            self._file.write(_line(source, slots) + "\n")
            self._file.flush()  # a process that is killed loses what it has not handed to the system

    def close(self) -> None:
        """Keep the file for whoever continues."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        """The resize is over."""
        self.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _line(source: str, slots: Iterable[int]) -> str:
    return " ".join([source, *map(str, slots)])
