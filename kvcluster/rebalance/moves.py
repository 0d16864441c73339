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
from itertools import groupby
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
        loads = {number: _Load(target, *self._coldest.get(number, (-1, 0.0))) for number, target in enumerate(self._router.targets)}
        for number in range(RANGES):
            for (target, slot), records in groupby(sorted(self._read(number)), key=itemgetter(0, 1)):
                load = loads[target]
                if slot in done:
                    load.journalled += sum(1 for _ in records)
                    continue
                for _, _, accessed, size, wire in records:
                    if load.full(size):
                        yield load.work()
                    load.take(-accessed // 60, size, wire)
                load.slots.append(slot)
        yield from [load.work() for load in loads.values() if load.wires or load.slots or load.cold or load.journalled]

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


class _Load:
    """The batch that is being made for one target.

    :param coldest: the minute of last access of which only ``room`` bytes may go
    """

    __slots__ = ("bytes", "cold", "coldest", "journalled", "room", "slots", "target", "wires")

    def __init__(self, target: str, coldest: int, room: float) -> None:
        self.target = target
        self.coldest = coldest
        self.room = room
        self._clear()

    def _clear(self) -> None:
        self.wires: list[bytes] = []
        self.slots: list[int] = []
        self.bytes = self.cold = self.journalled = 0

    def full(self, size: int) -> bool:
        """Whether a key of so many bytes belongs to the next batch."""
        return len(self.wires) == BATCH or (self.bytes + size > BATCH_BYTES and bool(self.wires))

    def take(self, minute: int, size: int, wire: bytes) -> None:
        """Take a key, unless there is no room for it."""
        if minute <= self.coldest:
            if minute < self.coldest or size > self.room:
                self.cold += 1
                return
            self.room -= size
        self.wires.append(wired(wire))
        self.bytes += size

    def work(self) -> Work:
        """The batch; another one begins."""
        made = Work(self.target, self.wires, self.bytes, tuple(self.slots), self.cold, self.journalled)
        self._clear()
        return made


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
