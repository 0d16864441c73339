"""What a forked child makes anew: locks that a thread of the parent may have held, and what would wait for such a thread."""

from __future__ import annotations

import os
import weakref
from typing import Final, Protocol


class Renewable(Protocol):
    """What a forked child makes anew."""

    def renew(self) -> None:
        """Begin with free locks and nothing under way."""
        ...


_renewed: Final[weakref.WeakSet[Renewable]] = weakref.WeakSet()


def renewed(each: Renewable) -> None:
    """Renew something now, and again in every child that is forked while it lives."""
    each.renew()
    _renewed.add(each)


def _after_fork() -> None:
    for each in list(_renewed):
        each.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
