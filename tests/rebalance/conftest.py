"""A cluster with a document in a file, filled with keys whose values can be checked afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from kvcluster import Client
from kvcluster.rebalance import Progress, Rebalance, Report, Settings
from kvcluster.sources import FileSource
from kvcluster.testing.nodes import RunningNode
from kvcluster.testing.plugin import NodeFactory
from kvcluster.topology import Document, NodeSpec, as_node

QUICK: dict[str, Any] = {"rate": 1e6, "bytes_rate": 1e9, "patience": 5.0, "timeout": 5.0, "sample": 200}
TTL = 5000  # seconds


class Town:
    """Running nodes, the first of which are members, and the file that says so."""

    def __init__(self, nodes: Sequence[RunningNode], members: Sequence[NodeSpec], path: Path, closing: ExitStack) -> None:
        self.nodes = nodes
        self.by_address = {node.address: node for node in nodes}
        self.source = FileSource(path)
        self.source.create(Document(tuple(as_node(member) for member in members)))
        self._closing = closing

    def client(self, nodes: Sequence[NodeSpec] | None = None) -> Client:
        """A client of the members as they are now, or of these nodes."""
        client = Client(nodes or self.source.read().nodes, timeout=10.0, connect_timeout=10.0)
        self._closing.callback(client.close)
        return client

    def fill(self, count: int, name: str = "user") -> dict[str, Any]:
        """Store values of all kinds at their owners."""
        values: dict[str, Any] = {f"{name}:{number}": _value(number) for number in range(count)}
        client = self.client()
        names = list(values)
        for start in range(0, count, 500):
            some = {key: values[key] for key in names[start : start + 500]}
            client.set_many({key: value for key, value in some.items() if not forever(key)}, expire=TTL)
            client.set_many({key: value for key, value in some.items() if forever(key)})
        return values

    def rebalance(self, wanted: Sequence[NodeSpec] | None, **settings: Any) -> Rebalance:
        return Rebalance(self.source, wanted, Settings(**QUICK | settings))

    def run(self, wanted: Sequence[NodeSpec] | None, progress: Callable[[Progress], None] | None = None, **settings: Any) -> Report:
        return self.rebalance(wanted, **settings).run(progress)

    def held(self) -> dict[str, Any]:
        """What a client of the present members finds of 10,000 users."""
        return self.client().get_many([f"user:{number}" for number in range(10_000)])

    def ttls(self, keys: Sequence[str]) -> list[int]:
        """What is left of each key's ttl at its owner, in seconds; -1 for no expiry."""
        client = self.client()
        found = []
        for key in keys:
            wire = client.planner.wire(key)
            from tests.client.cluster import ask

            reply = ask(client.planner.address(wire), b"mg %b t\r\n" % wire)
            found.append(int(reply.split(b"t")[1]))
        return found


def forever(key: str) -> bool:
    """Whether a key was stored without expiry."""
    return key.endswith("7")


def _value(number: int) -> Any:
    kinds: list[Any] = [b"bytes:%d" % number, f"té:{number}", number, {"n": number}, b"\r\n" * (number % 50)]
    return kinds[number % len(kinds)]


@pytest.fixture
def town(kv_nodes: NodeFactory, tmp_path: Path) -> Iterator[Callable[..., Town]]:
    """Makes a town of ``running`` nodes, of which the first ``members`` are members."""
    with ExitStack() as closing:

        def make(members: int, running: int, **options: Any) -> Town:
            nodes = kv_nodes(running, **options)
            return Town(nodes, [node.address for node in nodes[:members]], tmp_path / "topology.toml", closing)

        yield make


def at_once(phase: str, action: Callable[[], Any], doing: str = "") -> Callable[[Progress], None]:
    """A progress that acts once, when a phase (and a step of it) begins."""
    done: list[bool] = []

    def progress(state: Progress) -> None:
        if not done and state.phase == phase and state.doing.startswith(doing):
            done.append(True)
            action()

    return progress
