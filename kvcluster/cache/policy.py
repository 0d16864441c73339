"""How long values live and how loads are coordinated: one frozen value, inherited from a namespace by its loaders."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, TypeAlias

from kvcluster.errors import ConfigurationError

Duration: TypeAlias = float | timedelta | str

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


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings of a namespace or a loader; all times in seconds.

    ``ttl`` is how long a value lives, None for ever; ``jitter`` the share of it that chance may take off, so that what was stored
    together does not expire together. ``negative`` is the ttl of "there is no such row". ``lease`` is how long a node keeps a
    winner's place; ``takeover`` how long waiters trust a winner, by default twice the measured load time.
    """

    ttl: float | None
    negative: float = 10.0
    jitter: float = 0.1
    lease: float = 30.0
    takeover: float | None = None

    def __post_init__(self) -> None:
        for name in ("ttl", "negative", "lease"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"{name} must be at least 1 second, which is memcached's resolution, not {value:g}")
        if not 0 <= self.jitter < 1:
            raise ConfigurationError(f"jitter must be a share from 0 up to 1, not {self.jitter!r}")

    def expiry(self, absent: bool = False) -> float:
        """The ttl to store a value with now, in seconds as memcached takes it: 0 for no expiry.

        :param absent: whether the value says that there is none
        """
        ttl = self.negative if absent else self.ttl
        if ttl is None:
            return 0
        return max(1.0, ttl * (1 - random.random() * self.jitter))
