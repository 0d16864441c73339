"""A resize on real nodes, and clients of both kinds that follow it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvcluster.testing.plugin import NodeFactory
from tests.following.blocking import connecting
from tests.following.stage import Stage


@pytest.fixture(params=["sync", "async"])
def staged(request: pytest.FixtureRequest, tmp_path: Path, kv_nodes: NodeFactory) -> Iterator[Callable[..., Stage]]:
    """Makes a stage of real nodes, or of the addresses given."""
    connect, end = connecting(request.param)
    stages: list[Stage] = []

    def make(phase: Any = "old", addresses: list[str] | None = None, replaced: int = 0) -> Stage:
        stages.append(Stage(tmp_path, addresses or [node.address for node in kv_nodes(3)], connect, phase, replaced))
        return stages[-1]

    yield make
    for stage in stages:
        stage.close()
    end()
