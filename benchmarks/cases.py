"""What is measured: one operation, how many keys, over how many nodes, with values how large, by how many callers.

Every client gets keys and values of the same shape, drawn from one seed. The keys themselves differ by a few characters at their
front that name the client, because all clients share the nodes and must not read what another has written with flags of its own.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal
from zlib import crc32

Operation = Literal["get", "set", "get_many", "set_many", "delete_many", "place"]

READS: tuple[Operation, ...] = ("get", "get_many")
KEYS = 1000  # a client's keys in one case, at least those of one call and at most what fits into POOL_BYTES
KEYS_TO_DELETE = 5000  # more, because each is deleted only once in a block
POOL_BYTES = 16 << 20
MAX_CALL_BYTES = 10 << 20
MAX_BATCHES = 100


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    :param keys: per call
    :param nodes: how many
    :param value_bytes: the size of each value
    :param callers: threads, or tasks of an event loop, that call at the same time
    :param burst: the callers are started anew for each call, all in one turn of the loop, instead of calling on and on
    """

    operation: Operation
    keys: int = 1
    nodes: int = 4
    value_bytes: int = 100
    callers: int = 1
    asyncio: bool = False
    burst: bool = False

    def __str__(self) -> str:
        if self.operation == "place":
            return f"placement of {self.keys} keys"
        name = self.operation if self.operation in ("get", "set") else f"{self.operation}({self.keys})"
        callers = "async " if self.asyncio else ""
        if self.callers > 1:
            callers += f"{self.callers} {('started' if self.burst else 'concurrent') if self.asyncio else 'threads'} "
        return f"{callers}{name}, {self.nodes} node{'s'[: self.nodes > 1]}, {size(self.value_bytes)}"

    @property
    def silly(self) -> bool:
        """Whether a call, or all callers' together, move more than `MAX_CALL_BYTES`: that measures memory bandwidth."""
        return self.keys * self.value_bytes * self.callers > MAX_CALL_BYTES

    @property
    def pool(self) -> int:
        """How many keys there are to choose from."""
        keys = KEYS_TO_DELETE if self.operation == "delete_many" else KEYS
        return max(self.keys, min(keys, POOL_BYTES // self.value_bytes))


def size(count: int) -> str:
    """Bytes as a person reads them.

    >>> size(100), size(4096), size(102400)
    ('100 B', '4 KB', '100 KB')
    """
    return f"{count} B" if count < 1024 else f"{count // 1024} KB"


def items(case: Case, owner: str) -> dict[str, bytes]:
    """A client's keys and values, equal in number and shape for all clients."""
    chance = random.Random(f"{owner} {case.value_bytes}")
    mark = f"{crc32(owner.encode()):08x}"
    return {f"{mark}:{chance.randbytes(10).hex()}": chance.randbytes(case.value_bytes) for _ in range(case.pool)}


def batches(case: Case, keys: list[str]) -> list[list[str]]:
    """The keys of successive calls: every key once in a while, in no order that a cache could learn.

    Deletes get each key only once, so that every one of them finds something to delete.
    """
    chance = random.Random(case.keys)
    if case.operation == "delete_many":
        shuffled = chance.sample(keys, len(keys))
        return [shuffled[at : at + case.keys] for at in range(0, len(keys) - case.keys + 1, case.keys)]
    if case.keys == 1:
        return [[key] for key in chance.sample(keys, len(keys))]
    return [chance.sample(keys, case.keys) for _ in range(min(MAX_BATCHES, max(4, 20_000 // case.keys)))]


def quick() -> Iterator[Case]:
    """What the marks are about, and one node for the clients that know only one."""
    yield Case("get")
    yield Case("get_many", 100)
    yield Case("get_many", 5000)
    yield Case("set")
    yield Case("set_many", 100)
    yield Case("delete_many", 100)
    yield Case("get", callers=50, asyncio=True)
    yield Case("get", callers=50, asyncio=True, burst=True)
    yield Case("get_many", 100, asyncio=True)
    yield Case("get", nodes=1)
    yield Case("get_many", 100, nodes=1)
    yield Case("get", nodes=1, callers=50, asyncio=True)
    yield Case("place", 100)


def full() -> Iterator[Case]:
    """The whole matrix, `quick` first, without the products that are silly."""
    cases = [*quick()]
    for nodes in (1, 4, 16):
        for value_bytes in (100, 4 << 10, 100 << 10):
            for operation in ("get", "set"):
                cases.append(Case(operation, 1, nodes, value_bytes))
                cases.extend(Case(operation, 1, nodes, value_bytes, callers, asyncio=True) for callers in (1, 50, 500))
            for keys in (10, 100, 1000):
                for operation in ("get_many", "set_many", "delete_many"):
                    cases.append(Case(operation, keys, nodes, value_bytes))
                    cases.append(Case(operation, keys, nodes, value_bytes, asyncio=True))
    for operation, keys in (("get", 1), ("set", 1), ("get_many", 100)):
        cases.extend(Case(operation, keys, value_bytes=value_bytes, callers=8) for value_bytes in (100, 4 << 10))
    yield from dict.fromkeys(case for case in cases if not case.silly)


def left_out() -> list[Case]:
    """What `full` leaves out as silly, so that the report can say so."""
    return [
        Case("get_many", keys, value_bytes=value_bytes)
        for keys in (10, 100, 1000)
        for value_bytes in (100, 4 << 10, 100 << 10)
        if Case("get_many", keys, value_bytes=value_bytes).silly
    ] + [Case("get", 1, 4, 100 << 10, 500, asyncio=True)]
