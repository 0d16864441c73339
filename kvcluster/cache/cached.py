"""What loaders and repositories have in common: a policy, measured loads, and what flows need to know of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Final

from kvcluster.cache.flights import LoadTimes
from kvcluster.cache.leases import Source, Stamps
from kvcluster.cache.policy import Policy
from kvcluster.cache.shapes import Shape
from kvcluster.cache.stamps import stamp_wire
from kvcluster.codec import Codec

if TYPE_CHECKING:
    from kvcluster.aio import AsyncClient
    from kvcluster.cache import Cache
    from kvcluster.client import Client
    from kvcluster.planner import Planner


MOST_STAMPS: Final = 4096


class Cached:
    """The base of loaders and repositories.

    :param label: what logs and errors call it
    :param shape: what its values are
    :param codec: makes the codec of its values from that of a client
    """

    def __init__(self, cache: Cache, policy: Policy, label: str, shape: Shape, codec: Callable[[Codec], Codec]) -> None:
        self._cache = cache
        self.policy = policy
        self._label = label
        self._shape = shape
        self._codec_of = codec
        self._times = LoadTimes()
        self._bulk_times = LoadTimes()  # apart, because who waits for one key judges by how long one takes
        self._sources: tuple[Planner, Source, Source] | None = None  # by the client's own planner
        self._stamp_wire: Callable[[str], bytes]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._label}>"

    @property
    def loads(self) -> int:
        """How often this process went to the source for it and came back with an answer; a bulk load is one."""
        return self._times.count + self._bulk_times.count

    def _source(self, client: Client | AsyncClient) -> Source:
        sources = self._sources
        if sources is None or sources[0] is not client.planner:
            sources = self._renewed(client)
        return sources[1]

    def _bulk_source(self, client: Client | AsyncClient) -> Source:
        sources = self._sources
        if sources is None or sources[0] is not client.planner:
            sources = self._renewed(client)
        return sources[2]

    def _renewed(self, client: Client | AsyncClient) -> tuple[Planner, Source, Source]:
        base = client.planner  # first: if it changes meanwhile, the next call sees that
        planner = self._cache.planner_of(client)
        codec = self._codec_of(planner.codec)
        one, many = (
            self._cache.source(client, self.policy, times, codec, self._shape, self._label)
            for times in (self._times, self._bulk_times)
        )
        self._stamp_wire = lru_cache(MOST_STAMPS)(partial(stamp_wire, planner))
        self._sources = sources = (base, one, many)
        return sources

    def _stamps(self, names: Iterable[str]) -> Stamps:
        """The wire keys of stamps, for whoever has a source."""
        return tuple(map(self._stamp_wire, names))
