"""What kvcluster set out to reach: ratios that the quick profile measures, each with the most it may be.

All on 4 real nodes on loopback with values of 100 bytes, as medians of interleaved rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.cases import Case
from benchmarks.rivals import FLOOR
from benchmarks.run import Row, ratio

GET, GET_MANY, SET_MANY = Case("get"), Case("get_many", 100), Case("set_many", 100)
CONCURRENT, STARTED, ASYNC_GET_MANY = (
    Case("get", callers=50, asyncio=True),
    Case("get", callers=50, asyncio=True, burst=True),
    Case("get_many", 100, asyncio=True),
)
LARGE, PLACE = Case("get_many", 5000), Case("place", 100)
OWN = "kvcluster"
PURE = "kvcluster pure"


@dataclass(frozen=True)
class Mark:
    """A ratio that must not be above a limit.

    :param case: what kvcluster does
    :param against: the name of whom it is compared with, or the case of its own whose time it is compared with
    :param most: the limit
    :param times: how many calls of ``against`` make one of ``case``
    """

    case: Case
    against: str | Case
    most: float
    times: int = 1

    @property
    def other(self) -> str:
        """Whom it is compared with, for a table."""
        return (
            self.against
            if isinstance(self.against, str)
            else f"its own {self.against.operation}({self.against.keys}) x {self.times}"
        )

    def measured(self, rows: Sequence[Row], name: str = OWN) -> float | None:
        """The ratio that came out, or None where it was not measured."""
        by_case = {row.case: row.seconds for row in rows}
        mine = by_case.get(self.case, {}).get(name)
        if isinstance(self.against, Case):
            others = by_case.get(self.against, {}).get(name)
        else:
            others = by_case.get(self.case, {}).get(self.against)
        found = ratio(mine, others)
        return None if found is None else found / self.times


MARKS = (
    Mark(GET, FLOOR, 1.15),
    Mark(GET, "pylibmc", 1.0),
    Mark(GET, "pymemcache HashClient", 0.7),
    Mark(GET_MANY, FLOOR, 1.15),
    Mark(GET_MANY, "pylibmc", 1.0),
    Mark(GET_MANY, "pymemcache HashClient", 1 / 15),
    Mark(SET_MANY, "pylibmc", 1 / 8),
    Mark(SET_MANY, "pymemcache HashClient", 1 / 8),
    Mark(CONCURRENT, "emcache", 1 / 4),
    Mark(STARTED, "emcache", 1 / 4),
    Mark(ASYNC_GET_MANY, "emcache", 1 / 2),
    Mark(PLACE, "uhashring", 1 / 10),
    Mark(LARGE, GET_MANY, 1.0, times=50),
)
