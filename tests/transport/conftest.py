"""Real nodes behind proxies that misbehave on request, and time that passes for clients without a sleep."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from kvcluster import Client
from kvcluster.testing.plugin import NodeFactory
from kvcluster.testing.proxy import FaultProxy
from tests.client.cluster import ask

BRIEF = 0.2  # seconds: the timeout of clients in tests that wait for it to pass


class Site:
    """Four nodes, a proxy before each, and clients that reach them through the proxies."""

    def __init__(self, upstreams: list[str], proxies: list[FaultProxy], closing: ExitStack) -> None:
        self.upstreams = dict(zip((proxy.address for proxy in proxies), upstreams, strict=True))
        self.proxies = sorted(proxies, key=lambda proxy: proxy.address)  # the order in which a call takes them
        self._closing = closing

    def client(self, proxies: list[FaultProxy] | None = None, **settings: Any) -> Client:
        client = Client(
            [proxy.address for proxy in proxies or self.proxies], **{"timeout": BRIEF, "connect_timeout": 5.0} | settings
        )
        self._closing.callback(client.close)
        return client

    def ask(self, proxy: FaultProxy, request: bytes) -> bytes:
        """Send commands to the node behind a proxy, round the proxy."""
        return ask(self.upstreams[proxy.address], request)


@pytest.fixture
def site(kv_nodes: NodeFactory) -> Iterator[Site]:
    with ExitStack() as closing:
        upstreams = [node.address for node in kv_nodes(4)]
        yield Site(upstreams, [closing.enter_context(FaultProxy(address)) for address in upstreams], closing)


@pytest.fixture
def proxy(site: Site) -> FaultProxy:
    """The first of the site's proxies, for tests of one node."""
    return site.proxies[0]


def let_pass(client: Client, seconds: float) -> None:
    """Let time pass for what a client thinks of its nodes."""
    for endpoint in client._endpoints.values():
        endpoint.state._clock = lambda: time.monotonic() + seconds


def keys_of(client: Client, address: str, count: int, name: str = "key") -> list[str]:
    """Keys that a node owns."""
    owned: list[str] = []
    number = 0
    while len(owned) < count:
        key = f"{name}:{number}"
        if client.planner.address(client.planner.wire(key)) == address:
            owned.append(key)
        number += 1
    return sorted(owned)
