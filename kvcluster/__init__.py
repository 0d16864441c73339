"""Many memcached servers as one cache in front of a database.

`Client` and `AsyncClient` are the cluster, `Cache` reads through it to the database and keeps it true when the data changes.
Each is imported when it is first asked for, so that a program pays for asyncio or SQLAlchemy only where it uses them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvcluster.aio import AsyncClient
    from kvcluster.cache import Cache
    from kvcluster.client import Client
    from kvcluster.codec import PickleCodec, StandardCodec
    from kvcluster.stats.counters import Counts, Statistics
    from kvcluster.topology import Node, Topology

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "Cache",
    "Client",
    "Counts",
    "Node",
    "PickleCodec",
    "StandardCodec",
    "Statistics",
    "Topology",
    "__version__",
]

_HOMES = {
    "AsyncClient": "kvcluster.aio",
    "Cache": "kvcluster.cache",
    "Client": "kvcluster.client",
    "Counts": "kvcluster.stats.counters",
    "Node": "kvcluster.topology",
    "PickleCodec": "kvcluster.codec",
    "StandardCodec": "kvcluster.codec",
    "Statistics": "kvcluster.stats.counters",
    "Topology": "kvcluster.topology",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'kvcluster' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return __all__
