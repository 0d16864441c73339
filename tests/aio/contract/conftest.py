"""The contract of `tests.client`, kept by `AsyncClient`: the same tests, over clients whose calls run a loop."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from kvcluster import AsyncClient
from kvcluster.testing.plugin import NodeFactory
from tests.aio.loops import LOOPS
from tests.client.cluster import Cluster, embedded_addresses

KINDS = ["embedded-asyncio", "real-uvloop"]
# What an AsyncClient has not, shows in other words, or does in tasks instead of threads (see the tests beside this package).
NOT_ASYNC = ("dict access", "dict_access", "closed_client_opens_again", "repr_shows_the_state", "calls_under_way_notice")


class Blocking:
    """An AsyncClient whose calls are carried out before they return."""

    def __init__(self, client: AsyncClient, runner: asyncio.Runner) -> None:
        self._client = client
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._client, name)
        if not inspect.iscoroutinefunction(member):
            return member

        @wraps(member)
        def blocking(*args: Any, **keywords: Any) -> Any:
            return self._runner.run(member(*args, **keywords))

        return blocking


class AsyncCluster(Cluster):
    """Nodes, and clients of them that share a loop."""

    def __init__(self, addresses: list[str], loop: str) -> None:
        self._runner = asyncio.Runner(loop_factory=LOOPS[loop])
        super().__init__(addresses, lambda nodes, **settings: Blocking(AsyncClient(nodes, **settings), self._runner))

    def close(self) -> None:
        super().close()
        self._runner.close()


@pytest.fixture(params=KINDS)
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Four nodes."""
    yield from _cluster(request, 4)


@pytest.fixture(params=KINDS)
def alone(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """One node."""
    yield from _cluster(request, 1)


def _cluster(request: pytest.FixtureRequest, count: int) -> Iterator[Cluster]:
    nodes, loop = request.param.split("-")
    if nodes == "real":
        addresses = [node.address for node in request.getfixturevalue("kv_nodes")(count)]
    else:
        addresses = embedded_addresses(count)
    cluster = AsyncCluster(addresses, loop)
    yield cluster
    cluster.close()


@pytest.fixture
def client(cluster: Cluster) -> Any:
    """A client of four nodes."""
    return cluster.client()


@pytest.fixture
def real(kv_nodes: NodeFactory) -> Iterator[Cluster]:
    """Four real nodes."""
    cluster = AsyncCluster([node.address for node in kv_nodes(4)], "asyncio")
    yield cluster
    cluster.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    items[:] = [item for item in items if item.path.parent != here or not any(name in item.name for name in NOT_ASYNC)]
