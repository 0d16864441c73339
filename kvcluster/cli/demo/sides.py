"""The two programs that are compared. Each keeps cities in a cache in front of its database, in as few lines as its library allows.

The left one is what pymemcache's own documentation recommends ("Best Practices"): `HashClient` with both timeouts, `no_delay`,
`ignore_exc`, `get_many`, the pickle serde, and its defaults in everything else; `use_pooling` because threads share it. It reads
through by get, SELECT, set, and deletes after the commit. It stores plain dicts, which is less work than rebuilding mapped objects.

The right one is a kvcluster `Cache` with a repository and a bound sessionmaker, defaults in everything. Its client follows the
topology in a file, so that the nodes can be changed under way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pymemcache import serde
from pymemcache.client.hash import HashClient
from sqlalchemy import select

from kvcluster import Cache, Client
from kvcluster.cli.demo.world import City
from kvcluster.sources import FileSource
from kvcluster.topology import as_node

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, sessionmaker

TTL = 600
TIMEOUT = 0.25


class Side(Protocol):
    """What the load needs from a program: versions of what a reader was shown, by city."""

    def city(self, id: int) -> dict[int, int]:
        """One city as {id: edits}."""
        ...

    def page(self, ids: Sequence[int]) -> dict[int, int]:
        """A page of cities as {id: edits}."""
        ...

    def edit(self, id: int) -> int:
        """Change a city, commit, and see to it that the cache knows; the new count of edits is returned."""
        ...

    def join(self, address: str, nodes: Sequence[str]) -> None:
        """The node at ``address`` joins, empty; ``nodes`` are all from now on. Nothing is left to do for a side that follows."""
        ...

    def hits_and_misses(self) -> dict[str, tuple[int, int]]:
        """By the address of each node, where the program's library counts them."""
        ...

    def close(self) -> None: ...


def _edit(sessions: sessionmaker[Session], id: int) -> int:
    with sessions.begin() as session:
        city = session.get_one(City, id)
        city.population += 1
        city.edits += 1
        return city.edits


class Pymemcache:
    """What people run now."""

    def __init__(self, nodes: Sequence[str], topology: Path | None, sessions: sessionmaker[Session], namespace: str) -> None:
        self._sessions = sessions
        self._namespace = namespace
        self._client = HashClient(
            nodes,
            serde=serde.pickle_serde,
            connect_timeout=TIMEOUT,
            timeout=TIMEOUT,
            no_delay=True,
            ignore_exc=True,
            use_pooling=True,
        )

    def _key(self, id: int) -> str:
        return f"{self._namespace}:city:{id}"

    def city(self, id: int) -> dict[int, int]:
        row = self._client.get(self._key(id))
        if row is None:
            with self._sessions() as session:
                row = dict(session.execute(select(*City.__table__.c).where(City.id == id)).mappings().one())
            self._client.set(self._key(id), row, expire=TTL)
        return {row["id"]: row["edits"]}

    def page(self, ids: Sequence[int]) -> dict[int, int]:
        rows: dict[str, dict[str, Any]] = self._client.get_many([self._key(id) for id in ids])
        missing = [id for id in ids if self._key(id) not in rows]
        if missing:
            with self._sessions() as session:
                found = session.execute(select(*City.__table__.c).where(City.id.in_(missing))).mappings().all()
            loaded = {self._key(row["id"]): dict(row) for row in found}
            self._client.set_many(loaded, expire=TTL)
            rows |= loaded
        return {row["id"]: row["edits"] for row in rows.values()}

    def edit(self, id: int) -> int:
        edits = _edit(self._sessions, id)
        self._client.delete(self._key(id))
        return edits

    def join(self, address: str, nodes: Sequence[str]) -> None:
        node = as_node(address)
        self._client.add_server(node.socket_path or (node.host, node.port))

    def hits_and_misses(self) -> dict[str, tuple[int, int]]:
        return {}

    def close(self) -> None:
        self._client.close()


class Kvcluster:
    """The same with kvcluster."""

    def __init__(self, nodes: Sequence[str], topology: Path | None, sessions: sessionmaker[Session], namespace: str) -> None:
        self._sessions = sessions
        self._follows = topology is not None
        self._client = Client(nodes) if topology is None else Client.from_topology(FileSource(topology))
        cache = Cache(namespace, ttl=TTL)
        cache.connect(self._client)
        self._cities = cache.repository(City, sessions)
        cache.bind(sessions)

    def city(self, id: int) -> dict[int, int]:
        city = self._cities.get(id)
        return {city.id: city.edits} if city else {}

    def page(self, ids: Sequence[int]) -> dict[int, int]:
        return {city.id: city.edits for city in self._cities.list(ids)}

    def edit(self, id: int) -> int:
        return _edit(self._sessions, id)

    def join(self, address: str, nodes: Sequence[str]) -> None:
        if not self._follows:
            self._client.set_nodes(nodes)

    def hits_and_misses(self) -> dict[str, tuple[int, int]]:
        return {address: (counts.hits, counts.misses) for address, counts in self._client.statistics().nodes.items()}

    def close(self) -> None:
        self._client.close()


SIDES: dict[str, Callable[[Sequence[str], Path | None, sessionmaker[Session], str], Side]] = {
    "pymemcache": Pymemcache,
    "kvcluster": Kvcluster,
}
