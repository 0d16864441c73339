"""What the cache costs beside the bare client: ratios of calls that take turns in one process, on the same connections.

Each case is a group of calls that are compared with each other. In every round each runs one block, the next round starts one call
further on, and a figure is the median of the rounds' ratios, as in `run`. A call that cannot be prepared, or that raises, is left
out of its group, and why is written down.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.run import BLOCK, ratio
from kvcluster import Cache, Client

VALUE = bytes(range(100))
HIT = "client.get"

Call = Callable[[], object]


@dataclass
class Group:
    """Calls that are compared with each other: the seconds of one call in each round, by its name, and why there are none."""

    name: str
    base: str
    seconds: dict[str, list[float]] = field(default_factory=dict)
    troubles: dict[str, str] = field(default_factory=dict)

    def ratio(self, name: str) -> float | None:
        """The median of the rounds' ratios to the group's base."""
        return ratio(self.seconds.get(name), self.seconds.get(self.base))

    def middle(self, name: str) -> float | None:
        """The median of a call's seconds."""
        times = sorted(self.seconds.get(name, []))
        return times[len(times) // 2] if times else None


def interleaved(group: Group, calls: Mapping[str, Call], rounds: int, block: float = BLOCK) -> Group:
    """Let calls take turns for so many rounds, each in blocks of about so many seconds."""
    repeats = {}
    for name, call in calls.items():
        try:
            repeats[name] = _calibrated(call, block)
        except Exception as error:
            group.troubles[name] = f"{type(error).__name__}: {error}"[:160]
    lanes = list(repeats.items())
    for number in range(rounds):
        start = number % len(lanes) if lanes else 0
        for name, repeat in lanes[start:] + lanes[:start]:
            group.seconds.setdefault(name, []).append(_block(calls[name], repeat))
    return group


def _calibrated(call: Call, block: float) -> int:
    repeat = 1
    while (seconds := _timed(call, repeat)) < block / 2 and repeat < 1_000_000:
        repeat *= 2
    return max(1, round(block / seconds * repeat))


def _block(call: Call, repeat: int) -> float:
    gc.collect()
    gc.freeze()
    try:
        return _timed(call, repeat) / repeat
    finally:
        gc.unfreeze()


def _timed(call: Call, repeat: int) -> float:
    start = perf_counter()
    for _ in range(repeat):
        call()
    return perf_counter() - start


def prepared(group: Group, makers: Mapping[str, Callable[[], Call]]) -> dict[str, Call]:
    """The calls that can be prepared."""
    calls = {}
    for name, make in makers.items():
        try:
            calls[name] = make()
        except Exception as error:  # whatever it is, the report says so, and the others go on
            group.troubles[name] = f"{type(error).__name__}: {error}"[:160]
    return calls


def hits(addresses: Sequence[str], rounds: int) -> Group:
    """A value that is there: through the bare client, and through the cache in its kinds."""
    client = Client(addresses)
    cache = Cache("hits", ttl="1h", client=client)
    group = Group("hit", HIT)

    def bare() -> Call:
        client.set("bare:42", VALUE)
        return _checked(partial(client.get, "bare:42"))

    def through(name: str, **options: Any) -> Callable[[], Call]:
        def make() -> Call:
            @cache.loader(f"{name}:{{number}}", **options)
            def loaded(number: int) -> bytes:
                return VALUE

            loaded(42)
            return _checked(partial(loaded, 42))

        return make

    makers = {
        HIT: bare,
        "a hit": through("plain"),
        "a hit with two stamps": through("stamped", tags=["one", "two:{number}"]),
        "an L1 hit": through("near", l1="1h"),
    }
    with client:
        return interleaved(group, prepared(group, makers), rounds)


def _checked(call: Call) -> Call:
    """The call itself, for it gives the value."""
    if call() != VALUE:
        raise AssertionError("not the value that was stored")
    return call


def bulk(addresses: Sequence[str], keys: int, rounds: int) -> Group:
    """So many cold keys by one call, beside the raw get_many and set_many, with the same loader."""
    client = Client(addresses)
    cache = Cache("bulk", ttl="10m", client=client)
    raw = f"raw, {keys} keys"
    group = Group(f"bulk {keys}", raw)
    fresh = count()

    def load(missing: Sequence[Any]) -> dict[Any, bytes]:
        return dict.fromkeys(missing, VALUE)

    def by_hand() -> Call:
        def one() -> None:
            first = next(fresh) * keys
            wanted = [f"raw:{number}" for number in range(first, first + keys)]
            found = client.get_many(wanted)
            values = load([key for key in wanted if key not in found])
            client.set_many(values, expire=600)
            if len(found | values) != keys:
                raise AssertionError("not all values came")

        return one

    def through() -> Call:
        @cache.loader("item:{number}")
        def loaded(number: int) -> bytes:
            return VALUE

        loaded.bulk(load)

        def one() -> None:
            first = next(fresh) * keys
            if len(loaded.get_many(range(first, first + keys))) != keys:
                raise AssertionError("not all values came")

        return one

    with client:
        return interleaved(group, prepared(group, {raw: by_hand, f"cold, {keys} keys": through}), rounds)


def commits(addresses: Sequence[str], rounds: int) -> list[Group]:
    """A row changed and committed with and without an outbox, in each database that runs here; see `benchmarks.outbox`."""
    from benchmarks.outbox import TURN, measure
    from tests.databases import KINDS, Servers, describe

    groups = []
    servers = Servers()
    try:
        for kind in KINDS:
            group = Group(kind, f"{kind}: without outbox")
            groups.append(group)
            if (found := describe(kind)).startswith("no "):
                group.troubles[f"{kind}: with outbox"] = found
                continue
            with tempfile.TemporaryDirectory() as folder, servers.database(kind, Path(folder), durable=True) as database:
                seconds = measure(database, list(addresses), rounds)
            for name, times in seconds.items():
                turns = [times[at : at + TURN] for at in range(0, len(times), TURN)]
                group.seconds[f"{kind}: {name} outbox"] = [statistics.median(turn) for turn in turns]
    finally:
        servers.stop()
    return groups
