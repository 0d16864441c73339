"""One client in a process of its own: `python -m benchmarks.worker`, told what to do by lines of JSON.

So each has a collector and a heap of its own, one that hangs can be ended, and two builds of one library can take turns.

- ``{"do": "open", "adapter": …, "name": …, "addresses": […]}``: connect
- ``{"do": "prepare", "case": {…}}``: make keys and values, check the client's answers, warm up; the answer has the seconds of
  one call
- ``{"do": "run", "case": {…}, "calls": n}``: the seconds that n calls take; the last answer is checked
- ``{"do": "memory", "clients": n}``: resident bytes and descriptors of one more idle client, each having asked every node once
- ``{"do": "crowd", "clients": n, "connected": m}``: what n clients cost that have a placement, and m of them that asked every
  node

The collector stays on, as it does in an application, but collects before each block and passes over what was there before it.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import cycle, islice
from time import perf_counter
from typing import Any

from benchmarks.cases import READS, Case, batches, items
from benchmarks.rivals import Contender, Rival

WARM_SECONDS = 0.05
WARM_CALLS = 20_000


class WrongAnswer(Exception):
    """A client returned what was not stored, or left what was deleted."""


class Lane:
    """One client in one case."""

    def __init__(self, rival: Rival, case: Case, owner: str, wait: Callable[[Any], Any], spare: Callable[[], Rival]) -> None:
        self.rival = rival
        self.case = case
        self.wait = wait  # runs a coroutine to its end; anything else it returns as it is
        self.items = items(case, owner)
        self.batches = batches(case, list(self.items))
        self.arguments = [rival.argument(case.operation, self._items(batch)) for batch in self.batches]
        self.position = 0  # of the next batch, so that successive blocks ask for different keys
        own = rival.own_per_thread and case.callers > 1 and not case.asyncio
        self.callers = [spare() for _ in range(case.callers)] if own else [rival] * case.callers
        # An argument of a client that is one thread's may hold that client's connection.
        self.arguments_of = [
            self.arguments if caller is rival else [caller.argument(case.operation, self._items(batch)) for batch in self.batches]
            for caller in self.callers
        ]

    def _items(self, keys: Iterable[str]) -> dict[str, bytes]:
        return {key: self.items[key] for key in keys}

    # -- checks

    def check(self) -> None:
        """Ask for everything once, and compare.

        :raises WrongAnswer: where something else comes back
        """
        operation = self.case.operation
        if operation == "place":
            owners = [str(owner) for argument in self.arguments for owner in self.rival.place(argument)]
            if len(owners) != sum(map(len, self.batches)) or len(set(owners)) != self.case.nodes:
                raise WrongAnswer(f"{len(owners)} owners, {len(set(owners))} different ones")
            return
        if operation in ("get", "get_many"):
            self._store(self.items)
            for batch, argument in zip(self.batches, self.arguments, strict=True):
                self._compare(batch, argument, self.wait(getattr(self.rival, operation)(argument)))
            return
        # What is stored first has other values, so that a set that does nothing is found out.
        self._store({key: value[::-1] for key, value in self.items.items()})
        for argument in self.arguments:
            self._call(argument)
        written = dict.fromkeys(key for batch in self.batches for key in batch)
        expected = {} if operation == "delete_many" else self._items(written)
        found = self._fetch({key: expected.get(key) for key in written})
        if found != expected:
            raise WrongAnswer(f"after {operation} {len(found)} of {len(expected)} keys were there, or with other values")

    def _compare(self, batch: Sequence[str], argument: Any, answer: Any) -> None:
        if self.rival.read(self.case.operation, argument, answer) != self._items(batch):
            raise WrongAnswer(f"{self.case.operation} returned something else than was stored")

    def _call(self, argument: Any) -> Any:
        call = getattr(self.rival, self.case.operation)
        return self.wait(call(*argument) if self._spread else call(argument))

    @property
    def _spread(self) -> bool:
        return self.case.operation == "set" and type(self.arguments[0]) is tuple and len(self.arguments[0]) == 2

    def _store(self, values: dict[str, bytes]) -> None:
        for chunk in _chunks(list(values.items()), self.case.value_bytes):
            self.wait(self.rival.set_many(self.rival.argument("set_many", dict(chunk))))

    def _fetch(self, expected: dict[str, bytes | None]) -> dict[str, bytes]:
        found = {}
        for chunk in _chunks(list(expected.items()), self.case.value_bytes):
            argument = self.rival.argument("get_many", dict(chunk))
            found.update(self.rival.read("get_many", argument, self.wait(self.rival.get_many(argument))))
        return found

    # -- the clock

    def run(self, calls: int) -> float:
        """Seconds that so many calls take, all callers together."""
        callers, first = self.case.callers, self.position % len(self.batches)
        calls = max(1, calls // callers) * callers
        if self.case.operation == "delete_many":
            calls = min(calls, len(self.batches))
            self._store(self._items(key for batch in islice(cycle(self.batches), first, first + calls) for key in batch))
        # The callers take turns at the list, so that those who call at the same time ask for different keys.
        at = [
            list(islice(cycle(arguments), first + caller, first + calls, callers))
            for caller, arguments in enumerate(self.arguments_of)
        ]
        self.position += calls
        gc.collect()
        gc.freeze()
        try:
            if self.case.asyncio:
                seconds, last = self.wait(self._run_tasks(at))
            elif self.case.callers > 1:
                seconds, last = self._run_threads(at), None
            else:
                seconds, last = self._run(self.rival, at[0])
        finally:
            gc.unfreeze()
        if last is not None and self.case.operation in READS:
            self._compare(self.batches[(self.position - callers) % len(self.batches)], at[0][-1], last)
        return seconds / calls

    def _run(self, rival: Rival, arguments: list[Any]) -> tuple[float, Any]:
        call, answer = getattr(rival, self.case.operation), None
        if self._spread:
            start = perf_counter()
            for key, value in arguments:
                answer = call(key, value)
        else:
            start = perf_counter()
            for argument in arguments:
                answer = call(argument)
        return perf_counter() - start, answer

    def _run_threads(self, arguments_of: list[list[Any]]) -> float:
        errors: list[BaseException] = []
        gate = threading.Barrier(len(arguments_of) + 1)

        def work(rival: Rival, arguments: list[Any]) -> None:
            gate.wait()
            try:
                self._run(rival, arguments)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=pair) for pair in zip(self.callers, arguments_of, strict=True)]
        for thread in threads:
            thread.start()
        gate.wait()
        start = perf_counter()
        for thread in threads:
            thread.join()
        seconds = perf_counter() - start
        if errors:
            raise errors[0]
        return seconds

    async def _run_tasks(self, arguments_of: list[list[Any]]) -> tuple[float, Any]:
        call, spread, answer = getattr(self.rival, self.case.operation), self._spread, None

        async def caller(arguments: list[Any]) -> Any:
            answer = None
            for argument in arguments:
                answer = await (call(*argument) if spread else call(argument))
            return answer

        if self.case.burst:
            start = perf_counter()
            for together in zip(*arguments_of, strict=True):
                answer, *_ = await asyncio.gather(*[call(argument) for argument in together])
        elif len(arguments_of) > 1:
            start = perf_counter()
            answer, *_ = await asyncio.gather(*map(caller, arguments_of))
        else:
            start = perf_counter()
            answer = await caller(arguments_of[0])
        return perf_counter() - start, answer

    def warm(self) -> float:
        """Call for a while; the seconds of one call."""
        calls = self.case.callers
        while True:
            seconds = self.run(calls)
            if seconds * calls >= WARM_SECONDS or calls >= WARM_CALLS:
                return seconds
            calls = min(WARM_CALLS, max(2, round(2 * WARM_SECONDS / seconds / calls)) * calls)


def _chunks(values: list[Any], value_bytes: int) -> Iterable[list[Any]]:
    step = max(1, min(100, (1 << 20) // value_bytes))
    return (values[at : at + step] for at in range(0, len(values), step))


class Worker:
    """The clients of this process, and what it is told to do with them."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self.runner = runner
        self.lanes: dict[Case, Lane] = {}

    def wait(self, outcome: Any) -> Any:
        """The result of an awaitable, or what is none as it is."""
        return self.runner.run(_await(outcome)) if isinstance(outcome, Awaitable) else outcome

    def open_one(self) -> Rival:
        """One more client."""
        rival = self.kind(self.addresses)
        if rival.asynchronous:
            self.wait(rival.open())  # type: ignore[attr-defined]
        return rival

    def open(self, adapter: str, name: str, addresses: list[str]) -> None:
        self.kind = Contender(name, adapter).rival
        self.owner, self.addresses = f"{name} {adapter}", addresses
        self.rival = self.open_one()

    def prepare(self, case: dict[str, Any]) -> float:
        lane = Lane(self.rival, Case(**case), self.owner, self.wait, self.open_one)
        lane.check()
        self.lanes[lane.case] = lane
        return lane.warm()

    def run(self, case: dict[str, Any], calls: int) -> float:
        return self.lanes[Case(**case)].run(calls)

    def forget(self) -> None:
        self.lanes.clear()

    def memory(self, clients: int) -> list[float]:
        argument = self.rival.argument("get_many", dict(islice(items(Case("get_many"), self.owner).items(), 40)))
        self.wait(self.rival.get_many(argument))
        gc.collect()
        before, open_before = resident(), descriptors()
        more = [self.open_one() for _ in range(clients)]
        for rival in more:
            self.wait(rival.get_many(argument))
        gc.collect()
        return [(resident() - before) / clients, (descriptors() - open_before) / clients]

    def crowd(self, clients: int, connected: int) -> dict[str, float]:
        keys = [f"{number:x}" for number in range(40 * len(self.addresses))]
        self.rival.place(keys)
        gc.collect()
        before, start = resident(), perf_counter()
        made = [self.open_one() for _ in range(clients)]
        for rival in made:
            rival.place(keys[:1])
        build, memory = perf_counter() - start, resident() - before
        gc.collect()
        before, open_before = resident(), descriptors()
        for rival in made[:connected]:
            rival.get_many(keys)
        opened = descriptors() - open_before
        return {
            "build": build / clients,
            "client": memory / clients,
            "connection": (resident() - before) / max(1, opened),
            "descriptors": opened / connected,
        }


async def _await(outcome: Awaitable[Any]) -> Any:
    return await outcome


def resident() -> int:
    """Resident bytes of this process (Linux)."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors() -> int:
    """Open files of this process (Linux)."""
    return len(os.listdir("/proc/self/fd"))


def main() -> None:
    """Answer line by line until there are no more."""
    # What a library prints must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with asyncio.Runner() as runner:
        worker = Worker(runner)
        for line in sys.stdin:
            task = json.loads(line)
            try:
                answer = {"answer": getattr(worker, task.pop("do"))(**task)}
            except Exception as error:  # whatever a rival raises is its result
                answer = {"error": f"{type(error).__name__}: {error}"[:300]}
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
