"""The contract of `tests.client`, kept by clients that follow a topology: the same tests in every phase of a resize."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvcluster.testing.plugin import NodeFactory
from tests.client.cluster import embedded_addresses
from tests.following.blocking import connecting
from tests.following.stage import ORDER, Stage

KINDS = [*(f"sync-embedded-{phase}" for phase in ORDER), "sync-real-migrate", *(f"async-embedded-{phase}" for phase in ORDER[1:4])]
# What differs by design: a CAS token is no number, nodes are the source's. Or the test asks nodes itself, or is for threads alone.
DIFFERS = (
    "a_ttl_that_cannot_be",
    "cas_takes_what",
    "many_keys_over_all",
    "version_and_stats",
    "repr_shows",
    "noreply to what is absent",
)
NOT_ASYNC = ("closed_client_opens_again", "dict_access", "the_story_ends")


class Following:
    """As `tests.client.cluster.Cluster`, in one phase."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.addresses = stage.addresses

    def client(self, addresses: object = None, **settings: Any) -> Any:
        return self._stage.client(**settings)


def _following(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Following]:
    kind, nodes, phase = request.param.split("-")
    connect, end = connecting(kind)
    if nodes == "real":
        factory: NodeFactory = request.getfixturevalue("kv_nodes")
        addresses = [node.address for node in factory(4)]
    else:
        addresses = embedded_addresses(4)
    stage = Stage(tmp_path, addresses, connect, phase, replaced=2)
    yield Following(stage)
    stage.close()
    end()


@pytest.fixture(params=KINDS)
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Following]:
    """Two nodes, and the two that replace them."""
    yield from _following(request, tmp_path)


@pytest.fixture
def client(cluster: Following) -> Any:
    """A client of four nodes."""
    return cluster.client()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    items[:] = [
        item
        for item in items
        if item.path.parent != here
        or (
            not any(name in item.name for name in DIFFERS)
            and not ("async-" in item.name and any(name in item.name for name in NOT_ASYNC))
            and not {"alone", "real"}.intersection(getattr(item, "fixturenames", ()))
        )
    ]
