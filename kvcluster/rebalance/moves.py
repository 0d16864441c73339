"""The keys of one source that move, out of its dump: slot by slot, the most recently used of a slot first.

Records are collected by ranges of slots. Past a bound they go to temporary files, one for each range, and are read back one range
at a time: so memory is bounded by the bound and one range, however many keys a node holds.

Where a target has no room for all of them, the least recently used stay behind. Which those are is known before the first key is
copied: bytes are counted by minute of last access, and the latest minutes are taken, of the last one a part.
"""

from __future__ import annotations

import marshal
import tempfile
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby
from operator import itemgetter
from typing import IO, Final, NamedTuple, TypeAlias

from kvcluster.rebalance.change import Router
from kvcluster.rebalance.copy import BATCH
from kvcluster.rebalance.dump import details, wired

RANGES: Final = 64
HELD: Final = 200_000  # records that stay in memory, some 250 bytes each
BATCH_BYTES: Final = 1 << 20

Record: TypeAlias = tuple[int, int, int, int, bytes]  # number of the target, slot, minus the last access, bytes, key


class Work(NamedTuple):
    """Keys to copy to one target.

    ``slots`` are those that are done once these keys are, ``bytes`` what the dump says of them. ``cold`` and ``journalled`` say how
    many keys were left out on the way: because the target has no room for them, and because they are done.
    """

    target: str
    wires: list[bytes]
    bytes: int
    slots: tuple[int, ...] = ()
    cold: int = 0
    journalled: int = 0


class Moves:
    """The keys of one source that move.

    :param router: where its keys go
    :param held: records that stay in memory
    :ivar keys: how many keys go to each target, by its address
    :ivar bytes: and how many bytes, headers included
    :ivar seen: keys of the source, those that stay included
    """

    def __init__(self, router: Router, held: int = HELD) -> None:
        self.keys: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.seen = 0
        self._router = router
        self._held = held
        self._ranges: list[list[Record]] = [[] for _ in range(RANGES)]
        self._pending = 0
        self._files: dict[int, IO[bytes]] = {}
        self._heat: Counter[tuple[int, int]] = Counter()  # bytes by target and minute of last access
        self._coldest: Mapping[int, tuple[int, float]] = {}

    def add(self, lines: Sequence[tuple[bytes, bytes]]) -> None:
        """Take in some lines of a dump."""
        self.seen += len(lines)
        moving = self._router.moving(lines)
        slots = self._router.slots([wire for _, wire, _ in moving])
        for (number, wire, rest), slot in zip(moving, slots, strict=True):
            _, accessed, size = details(rest)
            self._ranges[slot * RANGES // self._router.size].append((number, slot, -accessed, size, bytes(wire)))
            self._heat[number, accessed // 60] += size
            target = self._router.targets[number]
            self.keys[target] += 1
            self.bytes[target] += size
        self._pending += len(moving)
        if self._pending > self._held:
            self._spill()

    def _spill(self) -> None:
        for number, records in enumerate(self._ranges):
            if records:
                file = self._files.get(number)
                if file is None:
                    self._files[number] = file = tempfile.TemporaryFile()  # noqa: SIM115
                marshal.dump(records, file)
                records.clear()
        self._pending = 0

    def fit(self, room: Mapping[str, float]) -> None:
        """Leave out what the targets have no room for, in bytes by address; a target that is not named has room for everything."""
        self._coldest = {
            number: coldest(((minute, size) for (owner, minute), size in self._heat.items() if owner == number), room[target])
            for number, target in enumerate(self._router.targets)
            if target in room
        }

    def works(self, done: Container[int] = ()) -> Iterator[Work]:
        """What is to be copied, in batches; may be asked for again.

        :param done: slots to leave out
        """
        # What fits into memory is one range, so that its batches are full.
        ranges = map(self._read, range(RANGES)) if self._files else [chain.from_iterable(self._ranges)]
        for found in ranges:
            for target, records in groupby(sorted(found), key=itemgetter(0)):
                yield from self._batches(target, records, done)

    def _batches(self, target: int, records: Iterable[Record], done: Container[int]) -> Iterator[Work]:
        address, (coldest, left) = self._router.targets[target], self._coldest.get(target, (-1, 0.0))
        wires: list[bytes] = []
        slots: list[int] = []
        size = cold = journalled = 0
        for slot, keys in groupby(records, key=itemgetter(1)):
            if slot in done:
                journalled += sum(1 for _ in keys)
                continue
            for _, _, accessed, bytes, wire in keys:
                if (minute := -accessed // 60) <= coldest:
                    if minute < coldest or bytes > left:
                        cold += 1
                        continue
                    left -= bytes
                if len(wires) == BATCH or size + bytes > BATCH_BYTES:
                    yield Work(address, wires, size, tuple(slots), cold, journalled)
                    wires, slots, size, cold, journalled = [], [], 0, 0, 0
                wires.append(wired(wire))
                size += bytes
            slots.append(slot)
        if wires or slots or cold or journalled:
            yield Work(address, wires, size, tuple(slots), cold, journalled)

    def _read(self, number: int) -> list[Record]:
        records = list(self._ranges[number])
        file = self._files.get(number)
        if file is not None:
            file.seek(0)
            while True:
                try:
                    records += marshal.load(file)
                except EOFError:
                    break
            file.seek(0, 2)
        return records

    def close(self) -> None:
        """Free its files."""
        for file in self._files.values():
            file.close()


def coldest(heat: Iterable[tuple[int, int]], room: float) -> tuple[int, float]:
    """The minute of last access of which only a part fits, of pairs of minute and bytes, and how many bytes of it do. What is later
    fits, what is earlier does not. The minute is -1 where all of them fit.

    >>> coldest([(10, 500), (11, 300), (12, 400)], 800), coldest([(10, 500)], 500), coldest([(10, 500)], 100)
    ((10, 100), (-1, 0.0), (10, 100))
    """
    for minute, size in sorted(heat, reverse=True):
        if size > room:
            return minute, room
        room -= size
    return -1, 0.0
