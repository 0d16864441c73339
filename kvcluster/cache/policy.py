"""How long values live and how loads are coordinated: one frozen value, inherited from a namespace by its loaders.

A value has two ages. Until its ``ttl`` is over it is fresh. Then it is *stale*: its node keeps it for `Policy.stale` seconds more,
during which it may be served while somebody refreshes it (``stale_while_revalidate``), or where refreshing fails
(``stale_if_error``). So a node's remaining ttl tells how old a value is: it is stale once no more than `Policy.stale` is left.
"""

from __future__ import annotations

import math
import random
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Final, TypeAlias, TypedDict

from kvcluster.errors import ConfigurationError
from kvcluster.planner import EXPTIME_MAX, RELATIVE_MAX

Duration: TypeAlias = float | timedelta | str

DEFAULT_LEASE: Final = 30.0
LEASE_MARGIN: Final = 2.0

_UNITS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_TEXT = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)").fullmatch


def seconds(duration: Duration, name: str = "duration") -> float:
    """A duration in seconds.

    :param duration: a number of seconds, a ``timedelta``, or text such as ``"90s"``, ``"10m"``, ``"1h"``, ``"1d"``
    :raises ConfigurationError: for anything else, or a negative one; the message names the argument

    >>> seconds("10m"), seconds(timedelta(days=1)), seconds(2.5)
    (600.0, 86400.0, 2.5)
    """
    number: float
    if isinstance(duration, str) and (match := _TEXT(duration)):
        number = float(match[1]) * _UNITS[match[2]]
    elif isinstance(duration, timedelta):
        number = duration.total_seconds()
    elif isinstance(duration, (int, float)) and not isinstance(duration, bool):
        number = float(duration)
    else:
        raise ConfigurationError(f"{name} must be a number of seconds, a timedelta, or text such as '10m', not {duration!r}")
    if not 0 <= number < 1e9:
        raise ConfigurationError(f"{name} must be from 0 seconds to 30 years, not {duration!r}")
    return number


class Settings(TypedDict, total=False):
    """What a namespace says for all its loaders and repositories, apart from the ttl; what is left out has its default.

    Durations are seconds, a ``timedelta`` or text such as ``"10m"``.
    """

    #: The share of the ttl that chance may take off, so that what was stored together does not expire together; 0.1 by default.
    jitter: float
    #: The ttl of "there is no such row", 10 s by default.
    negative: Duration
    #: How long past its ttl a value is served while it is refreshed in the background; 0, which is off, by default.
    stale_while_revalidate: Duration
    #: How long past its ttl a value is served where loading a new one fails or is slow; 0, which is off, by default.
    stale_if_error: Duration
    #: How eagerly a value is refreshed before its ttl is over, by chance and by how long loads take: beta in "Optimal
    #: Probabilistic Cache Stampede Prevention" (Vattani, Chierichetti and Lowenstein, VLDB 2015), where it is 1.0; 0, which is
    #: off, by default.
    xfetch: float
    #: How long a caller that could have a stale value waits for a new one; for ever by default.
    soft_timeout: Duration | None
    #: How long a caller waits at all before `LoaderTimeout` is raised; for ever by default.
    hard_timeout: Duration | None
    #: How long values are kept in the process itself, where no other process can invalidate them; 0, which is off, by default.
    l1: Duration
    #: How long a node keeps the place of a caller that is loading; by default 2 s more than ``hard_timeout``, or 30 s without one.
    lease: Duration | None
    #: How long others trust in a caller that is loading; by default twice the measured load time, and at least 50 ms.
    takeover: Duration | None
    #: A part of every key, to be raised where the same arguments are to have another result; None by default.
    version: int | None
    #: The versions that an invalidation deletes, for programs that run beside this one; ``version`` alone by default.
    versions: Iterable[int | None]


class Options(Settings, total=False):
    """What a loader or a repository says otherwise than its namespace: as `Settings`, and its ttl."""

    #: How long values live, None for ever.
    ttl: Duration | None


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings of a namespace, a loader or a repository, as `Options` describes them; all times in seconds.

    ``stale`` is how long a node keeps a value past its ttl, and ``lease_time`` the lease that is meant.
    """

    ttl: float | None
    negative: float = 10.0
    jitter: float = 0.1
    stale_while_revalidate: float = 0.0
    stale_if_error: float = 0.0
    xfetch: float = 0.0
    soft_timeout: float | None = None
    hard_timeout: float | None = None
    l1: float = 0.0
    lease: float | None = None
    takeover: float | None = None
    version: int | None = None
    versions: tuple[int | None, ...] | None = None
    stale: int = field(init=False)
    lease_time: int = field(init=False)

    def __post_init__(self) -> None:
        for name in ("ttl", "negative", "lease"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"{name} must be at least 1 second, which is memcached's resolution, not {value:g}")
        for name in ("stale_while_revalidate", "stale_if_error"):
            if 0 < getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be 0 (off) or at least 1 second, not {getattr(self, name):g}")
        for name in ("soft_timeout", "hard_timeout", "takeover"):
            if getattr(self, name) == 0:
                raise ConfigurationError(f"{name} must be more than 0 seconds, or None")
        if self.soft_timeout is not None and self.hard_timeout is not None and self.soft_timeout > self.hard_timeout:
            raise ConfigurationError(
                f"soft_timeout must not be longer than hard_timeout, and {self.soft_timeout:g} is longer than {self.hard_timeout:g}"
            )
        if not _is_number(self.jitter) or not 0 <= self.jitter < 1:
            raise ConfigurationError(f"jitter must be a share from 0 up to 1, not {self.jitter!r}")
        if not _is_number(self.xfetch) or not 0 <= self.xfetch <= 100:
            raise ConfigurationError(f"xfetch must be a number from 0 (off) to 100, not {self.xfetch!r}")
        for version in (self.version, *(self.versions or ())):
            if version is not None and (type(version) is not int or version < 0):
                raise ConfigurationError(f"version must be a whole number from 0, not {version!r}")
        if self.versions is not None and self.version not in self.versions:
            raise ConfigurationError(f"versions must hold the version in use, {self.version!r}, and {self.versions!r} does not")
        lease = self.lease or (DEFAULT_LEASE if self.hard_timeout is None else self.hard_timeout + LEASE_MARGIN)
        object.__setattr__(self, "stale", math.ceil(max(self.stale_while_revalidate, self.stale_if_error)))
        object.__setattr__(self, "lease_time", math.ceil(lease))
        for name, ttl in (("ttl", self.ttl or 0), ("negative", self.negative)):
            if time.time() + ttl + self.stale > EXPTIME_MAX:
                raise ConfigurationError(
                    f"{name} must be over, with its stale time, by {EXPTIME_MAX} (2038-01-19), the last second memcached knows"
                )

    def but(self, options: Mapping[str, Any]) -> Policy:
        """This policy with what a loader says otherwise.

        :param options: as `Options` describes them
        :raises ConfigurationError: for one that cannot be used; the message names it
        :raises TypeError: for one that there is not
        """
        changed: dict[str, Any] = {}
        for name, value in options.items():
            if name not in Options.__annotations__:
                raise TypeError(f"there is no option {name!r}: the options are {', '.join(Options.__annotations__)}")
            if name in _DURATIONS and (value is not None or name not in _OPTIONAL):
                value = seconds(value, name)
            elif name == "versions":
                value = _several(value)
            changed[name] = value
        if "version" in changed:
            changed.setdefault("versions", None)  # those that were named go with the version that was
        return replace(self, **changed)

    @property
    def prefix(self) -> str:
        """What the version puts before a key."""
        return _prefix(self.version)

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What the versions that an invalidation deletes put before a key, the one in use first."""
        others = [version for version in self.versions or () if version != self.version]
        return tuple(map(_prefix, dict.fromkeys((self.version, *others))))

    def expiry(self, absent: bool = False) -> float:
        """The ttl to store a value with now, in seconds as memcached takes it: 0 for no expiry.

        :param absent: whether the value says that there is none
        """
        ttl = self.negative if absent else self.ttl
        if ttl is None:
            return 0
        ttl -= ttl * self.jitter * random.random()
        return (max(1.0, ttl)) + self.stale

    def expiries(self, absent: Sequence[bool], told: Callable[[float], int]) -> list[int]:
        """`expiry` of several values, as memcached is told it.

        :param absent: of each value, whether it says that there is none
        :param told: what memcached is told for a ttl of any length
        """
        ttl = self.ttl or 0.0
        spread = ttl * self.jitter
        if True in absent or not 1 <= ttl - spread <= RELATIVE_MAX - self.stale - spread:
            return [told(self.expiry(each)) for each in absent]
        most, draw = ttl + self.stale, random.random
        return [int(most - spread * draw()) for _ in absent]

    def early(self, load_time: float | None) -> int:
        """The remaining ttl below which a reader is to refresh a value, in seconds; 0 where none is to.

        :param load_time: how long loads take, None where that is not known yet
        """
        early = 0
        if self.xfetch and load_time is not None:
            # Rounded by chance: rounded to the nearest, nearly every draw of a fast loader would be nothing.
            early = int(-math.log(1 - random.random()) * load_time * self.xfetch + random.random())
        early += self.stale
        return early + 1 if early else 0  # a node compares by "less than", and what has expired has 0 left

    def servable(self, ttl: int) -> bool:
        """Whether a value may be served while it is refreshed, by its remaining ttl in seconds (-1: no expiry)."""
        return ttl < 0 or ttl > self.stale or self.stale - ttl < self.stale_while_revalidate

    def spare(self, ttl: int) -> bool:
        """Whether a value may be served where loading a new one fails, by its remaining ttl in seconds (-1: no expiry)."""
        return self.stale_if_error > 0 and (ttl < 0 or self.stale - ttl < self.stale_if_error)


_DURATIONS: Final = Options.__annotations__.keys() - {"jitter", "xfetch", "version", "versions"}
_OPTIONAL: Final = frozenset(("ttl", "soft_timeout", "hard_timeout", "lease", "takeover"))


def _several(versions: object) -> tuple[Any, ...] | None:
    if versions is None:
        return None
    if isinstance(versions, str) or not isinstance(versions, Iterable):
        raise ConfigurationError(f"versions must be several versions, such as (2, 1), not {versions!r}")
    return tuple(versions)


def _prefix(version: int | None) -> str:
    return "" if version is None else f"v{version}:"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
