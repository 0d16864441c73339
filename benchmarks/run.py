"""Takes the times: who may run a case, in which order, for how long, and who is stopped.

In each round every client runs one block of calls of about `BLOCK` seconds, and the next round starts one client further on, so
that nobody always follows the same neighbour. A client that raises, answers wrongly or does not come back in time is out of
that case, and why is written down.
"""

from __future__ import annotations

import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from benchmarks.cases import Case
from benchmarks.rivals import ASYNC, FLOOR, PURE, SYNC, Contender
from kvcluster.testing.nodes import RunningNode, start_node

ROOT = Path(__file__).resolve().parent.parent
BLOCK = 0.03  # seconds
PREPARE_LIMIT = 10.0  # seconds for connecting, checking and warming up
BLOCK_LIMIT = 10.0  # seconds for one block
NODE_MEMORY = 1024  # megabytes that a node may use; what it is not given it does not take


class Stopped(Exception):
    """A client failed, or was ended because it took too long."""


class Process:
    """A `benchmarks.worker`."""

    def __init__(self, contender: Contender) -> None:
        self.complaints = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        # A choice of twin made for the parent must not make all contenders the same one.
        inherited = {name: value for name, value in os.environ.items() if name not in PURE}
        path = os.pathsep.join([*filter(None, [contender.environment.get("PYTHONPATH")]), str(ROOT)])
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "benchmarks.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.complaints,
            env={**inherited, **contender.environment, "PYTHONPATH": path},
        )

    def ask(self, do: str, limit: float, **task: Any) -> Any:
        """Have something done.

        :param limit: seconds
        :raises Stopped: where it failed or took longer, after which the process is no more
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **task}).encode() + b"\n")
            self.process.stdin.flush()
            if not select.select([self.process.stdout], [], [], limit)[0]:
                raise Stopped(f"no end within {limit:g} s")
            line = self.process.stdout.readline()
            if not line:
                self.complaints.seek(0)
                last = self.complaints.read().decode(errors="replace").strip().splitlines()[-1:]
                raise Stopped(f"its process ended: {' '.join(last)}")
        except (Stopped, BrokenPipeError) as error:
            self.close()
            raise error if isinstance(error, Stopped) else Stopped("its process ended") from None
        answer = json.loads(line)
        if "error" in answer:
            raise Stopped(answer["error"])
        return answer["answer"]

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.complaints):
            assert stream is not None
            with suppress(BrokenPipeError):  # what was still to be written to it
                stream.close()


@dataclass
class Row:
    """What came out of one case: for each client by name the seconds of one call in each round, or why there are none."""

    case: Case
    seconds: dict[str, list[float]] = field(default_factory=dict)
    troubles: dict[str, str] = field(default_factory=dict)
    loops: set[str] = field(default_factory=set)

    def ratio(self, name: str, base: str = FLOOR) -> float | None:
        """The median of the rounds' ratios, or None where one of the two is missing."""
        return ratio(self.seconds.get(name), self.seconds.get(base))

    @property
    def base(self) -> str:
        """What the others are compared with."""
        return "uhashring" if self.case.operation == "place" else FLOOR


def ratio(times: Sequence[float] | None, others: Sequence[float] | None) -> float | None:
    """The median of the ratios of two series taken in the same rounds."""
    if not times or not others:
        return None
    return statistics.median(a / b for a, b in zip(times, others, strict=True))


class Bench:
    """The nodes and the clients' processes, kept from case to case.

    :param contenders: who may take part, sync and asyncio ones
    :param rounds: how many times each runs a block
    :param block: seconds of a block
    """

    def __init__(self, contenders: Iterable[Contender] = SYNC + ASYNC, rounds: int = 15, block: float = BLOCK) -> None:
        self.contenders = list(contenders)
        self.rounds = rounds
        self.block = block
        self.nodes: list[RunningNode] = []
        self.processes: dict[tuple[Contender, int, int], Process] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self.processes.values():
            process.close()
        for node in self.nodes:
            node.stop()

    def addresses(self, count: int) -> list[str]:
        """The addresses of so many nodes."""
        while len(self.nodes) < count:
            self.nodes.append(start_node(memory=NODE_MEMORY))
        return [node.address for node in self.nodes[:count]]

    def entitled(self, case: Case) -> list[Contender]:
        """Who can run a case at all."""
        return [
            contender
            for contender in self.contenders
            if (rival := contender.rival).asynchronous == case.asyncio
            and case.operation in rival.operations
            and (case.nodes == 1 or not rival.one_node)
        ]

    def process(self, contender: Contender, nodes: int, number: int = 0) -> Process:
        """A client's process that is connected to so many nodes; another for each number, so that one case cannot end another."""
        process = self.processes.get((contender, nodes, number))
        if process is None or process.process.returncode is not None:
            process = Process(contender)
            self.processes[contender, nodes, number] = process
            try:
                process.ask("open", PREPARE_LIMIT, adapter=contender.adapter, name=contender.name, addresses=self.addresses(nodes))
            except Stopped:
                process.close()
                raise
        return process

    def measure(self, cases: Sequence[Case], tell: Callable[[str], object] = lambda text: None) -> list[Row]:
        """Run cases together, interleaved: a row for each."""
        rows = [Row(case) for case in cases]
        lanes: list[tuple[Row, Contender, Process, int]] = []
        for at, row in enumerate(rows):
            for contender in self.entitled(row.case):
                tell(f"{row.case}: {contender.name} is checked")
                if row.case.operation in contender.rival.loops:
                    row.loops.add(contender.name)
                try:
                    process = self.process(contender, row.case.nodes, at)
                    seconds = process.ask("prepare", PREPARE_LIMIT, case=asdict(row.case))
                except Stopped as error:
                    row.troubles[contender.name] = str(error)
                else:
                    lanes.append((row, contender, process, max(1, round(self.block / seconds))))
        for number in range(self.rounds):
            tell(f"{rows[0].case}: round {number + 1} of {self.rounds}")
            start = number % len(lanes) if lanes else 0
            for row, contender, process, calls in lanes[start:] + lanes[:start]:
                if contender.name in row.troubles:
                    continue
                try:
                    seconds = process.ask("run", BLOCK_LIMIT, case=asdict(row.case), calls=calls)
                except Stopped as error:
                    row.troubles[contender.name] = str(error)
                    row.seconds.pop(contender.name, None)
                else:
                    row.seconds.setdefault(contender.name, []).append(seconds)
        for process in self.processes.values():
            if process.process.returncode is None:
                process.ask("forget", BLOCK_LIMIT)
        return rows


def together(cases: Iterable[Case]) -> list[list[Case]]:
    """Cases that are compared with each other, and so run in the same rounds: reads of many keys at different sizes."""
    groups: dict[Any, list[Case]] = {}
    for case in cases:
        key = (
            (case.nodes, case.value_bytes)
            if case.operation == "get_many" and case.keys in (100, 5000) and not case.asyncio
            else case
        )
        groups.setdefault(key, []).append(case)
    return list(groups.values())


def versions(contenders: Iterable[Contender]) -> Mapping[str, str]:
    """The version of each client, by its distribution's name, or why there is none."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for contender in contenders:
        name = contender.rival.distribution
        if name:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                found[name] = "not installed"
    return dict(sorted(found.items()))
