"""The keys of one source that move, out of its dump: slot by slot, the most recently used of a slot first.

Records are collected by ranges of slots. Past a bound they go to temporary files, one for each range, and are read back one range
at a time: so memory is bounded by the bound and one range, however many keys a node holds.

Where a target has no room for all of them, the least recently used stay behind. Which those are is known before the first key is
copied: bytes are counted by minute of last access, and the latest minutes are taken, of the last one a part.
"""

from __future__ import annotations

import marshal
import tempfile
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from operator import itemgetter
from typing import IO, Final, NamedTuple, TypeAlias

from kvcluster.rebalance.change import Router
from kvcluster.rebalance.copy import BATCH
from kvcluster.rebalance.dump import all_wired, details

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
    """

    def __init__(self, router: Router, held: int = HELD) -> None:
        self.keys: Counter[str] = Counter()
        self._router = router
        self._held = held
        self._ranges: list[list[Record]] = [[] for _ in range(RANGES)]
        self._pending = 0
        self._files: dict[int, IO[bytes]] = {}
        self._heat: Counter[tuple[int, int]] = Counter()  # bytes by target and minute of last access
        self._coldest: Mapping[int, tuple[int, float]] = {}

    def add(self, lines: Sequence[tuple[bytes, bytes]]) -> None:
        """Take in some lines of a dump."""
        moving = self._router.moving(lines)
        slots = self._router.slots([wire for _, wire, _ in moving])
        told = details([rest for _, _, rest in moving])
        ranges, wide, heat = self._ranges, self._router.size // RANGES, self._heat
        for (number, wire, _), slot, (accessed, size) in zip(moving, slots, told, strict=True):
            ranges[slot // wide].append((number, slot, -accessed, size, bytes(wire)))
            heat[number, accessed // 60] += size
        for number, keys in Counter([number for number, _, _ in moving]).items():
            self.keys[self._router.targets[number]] += keys
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
        loads = [_Load(target, *self._coldest.get(number, (-1, 0.0))) for number, target in enumerate(self._router.targets)]
        for number in range(RANGES):
            records = self._read(number)
            for column in (2, 1, 0):  # stable, and a quarter of the time that comparing whole records takes
                records.sort(key=itemgetter(column))
            ends = [bisect_left(records, (target,)) for target in range(1, len(loads) + 1)]
            for load, (begin, end) in zip(loads, pairwise((0, *ends)), strict=True):
                yield from load.take(records[begin:end], done)
        for load in loads:
            yield from load.rest()

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
    """What goes to one target, on its way into batches. These are full, whatever ranges their keys come from.

    :param coldest: the minute of last access of which only ``room`` bytes may go
    """

    __slots__ = ("_cold", "_coldest", "_journalled", "_last", "_room", "_target")

    def __init__(self, target: str, coldest: int, room: float) -> None:
        self._target = target
        self._coldest = coldest
        self._room = room
        self._last: list[Record] = []  # the batch that more can be added to
        self._cold = self._journalled = 0

    def take(self, records: list[Record], done: Container[int]) -> Iterator[Work]:
        """The batches that are full with these records of whole slots, in their order."""
        if done:
            present = len(records)
            records = [record for record in records if record[1] not in done]
            self._journalled += present - len(records)
        if self._coldest >= 0:
            present = len(records)
            records = [record for record in records if self._fits(-record[2] // 60, record[3])]
            self._cold += present - len(records)
        *full, self._last = batches(self._last + records)
        for batch, following in pairwise([*full, self._last]):
            yield self._work(batch, following[0][1])

    def rest(self) -> Iterator[Work]:
        """The last batch, where there is anything to say of it."""
        if self._last or self._cold or self._journalled:
            yield self._work(self._last)

    def _fits(self, minute: int, size: int) -> bool:
        """Whether there is room for a key, which takes it."""
        if minute != self._coldest:
            return minute > self._coldest
        fits = size <= self._room
        self._room -= size if fits else 0
        return fits

    def _work(self, batch: list[Record], unfinished: int = -1) -> Work:
        """A batch; the slot that the next one begins with is not done yet."""
        _, slots, _, sizes, wires = zip(*batch, strict=True) if batch else ((),) * 5
        ended = tuple([slot for slot in dict.fromkeys(slots) if slot != unfinished])
        made = Work(self._target, all_wired(wires), sum(sizes), ended, self._cold, self._journalled)
        self._cold = self._journalled = 0
        return made


def batches(records: list[Record]) -> Iterator[list[Record]]:
    """Records in batches of at most `BATCH` keys, and of `BATCH_BYTES` where one key alone has no more; at least one batch."""
    begin = 0
    while True:
        batch = records[begin : begin + BATCH]
        if sum([record[3] for record in batch]) > BATCH_BYTES:
            fitting = bisect_right([*accumulate([record[3] for record in batch])], BATCH_BYTES)
            batch = batch[: max(1, fitting)]
        yield batch
        begin += len(batch)
        if begin >= len(records):
            return


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
