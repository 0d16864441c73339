"""Both kinds of client for one test: an AsyncClient whose calls are carried out before they return."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from kvcluster import AsyncClient, Client
from tests.aio.contract.conftest import Blocking


def connecting(kind: str) -> tuple[Callable[..., Any], Callable[[], None]]:
    """How to make a client of that kind, ``sync`` or ``async``, from a source; and what to do at the end."""
    if kind == "sync":
        return Client.from_topology, lambda: None
    runner = asyncio.Runner()
    return lambda source, **settings: Blocking(AsyncClient.from_topology(source, **settings), runner), runner.close
