"""The fixture `kvcache`: a cluster for one test, in its process, with time and loads under the test's control.

The node is one of this test alone, and its keys carry a prefix made of the test's name and the xdist worker, so that nothing is
shared even where a test connects by itself to nodes that others use. Nothing in it belongs to an event loop or to a thread.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from kvcluster import embedded
from kvcluster.cache import Cache
from kvcluster.client import Client
from kvcluster.testing.clock import Clock

if TYPE_CHECKING:
    from typing import Self

    from kvcluster.cache.loader import LoaderBase
    from kvcluster.cache.repository import RepositoryBase


class KvCache:
    """What the fixture gives.

    :ivar client: a `Client` of this test's node
    :ivar clock: the node's clock; ``clock.advance(60)`` lets a minute pass for every ttl and lease
    :ivar prefix: what every key of this test begins with
    :ivar url: where other clients of this process find the same node

        def test_profile_is_loaded_once(kvcache):
            kvcache.cache(shop)                     # connects your Cache until the test ends
            profile(42), profile(42)
            assert kvcache.loads(profile) == 1
            kvcache.clock.advance(601)              # its ttl
            profile(42)
            assert kvcache.loads(profile) == 2
    """

    def __init__(self, name: str, worker: str = "main") -> None:
        digest = hashlib.blake2s(f"{worker}\0{name}".encode(), digest_size=6).hexdigest()
        self._node = f"test-{digest}"
        self._caches: list[tuple[Cache, Client | None]] = []
        self._loads: dict[Any, int] = {}
        self.prefix = f"{digest}:"
        self.url = f"memory://{self._node}"
        self.clock = Clock()
        embedded.register(self._node, embedded.EmbeddedNode(clock=self.clock))
        self.client = Client.from_url(self.url, prefix=self.prefix)

    def cache(self, cache: Cache) -> Cache:
        """Connect a `Cache` to this test's node until the test ends, and count the loads of its loaders from now on."""
        self._caches.append((cache, cache.client if cache.connected else None))
        cache.connect(self.client)
        members: list[LoaderBase[..., Any] | RepositoryBase[Any]] = [
            *cache.loaders,
            *(each for group in cache.repositories.values() for each in group),
        ]
        self._loads.update((member, member.loads) for member in members)
        return cache

    def loads(self, loader: LoaderBase[..., Any] | RepositoryBase[Any]) -> int:
        """How often a loader or a repository went to the database since its cache was connected here; a bulk load is one."""
        return loader.loads - self._loads.get(loader, 0)

    def close(self) -> None:
        """Give each cache the client that it had before, and forget the node."""
        for cache, before in reversed(self._caches):
            cache.disconnect() if before is None else cache.connect(before)
        self.client.close()
        embedded.register(self._node, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
