"""One contract for every kind of client and node: a test that takes `cluster` or `client` runs once on each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from kvcluster.testing.plugin import NodeFactory
from tests.client.cluster import Cluster, embedded_addresses


@pytest.fixture(params=["real", "embedded"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Four nodes."""
    yield from _cluster(request, 4)


@pytest.fixture(params=["real", "embedded"])
def alone(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """One node, for tests that look at it from the outside."""
    yield from _cluster(request, 1)


def _cluster(request: pytest.FixtureRequest, count: int) -> Iterator[Cluster]:
    if request.param == "real":
        addresses = [node.address for node in request.getfixturevalue("kv_nodes")(count)]
    else:
        addresses = embedded_addresses(count)
    cluster = Cluster(addresses)
    yield cluster
    cluster.close()


@pytest.fixture
def client(cluster: Cluster) -> Any:
    """A client of four nodes."""
    return cluster.client()


@pytest.fixture
def real(kv_nodes: NodeFactory) -> Iterator[Cluster]:
    """Four real nodes."""
    cluster = Cluster([node.address for node in kv_nodes(4)])
    yield cluster
    cluster.close()
