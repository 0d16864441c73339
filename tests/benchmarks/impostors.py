"""Clients that no benchmark must believe."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.rivals import Kvcluster


class Forgetful(Kvcluster):
    """Answers at once, from nowhere."""

    def __init__(self, addresses: Any) -> None:
        super().__init__(addresses)
        self.get = lambda key: b"something"
        self.get_many = lambda keys: dict.fromkeys(keys, b"something")


class Idle(Kvcluster):
    """Says that it has set and deleted, and has not."""

    def __init__(self, addresses: Any) -> None:
        super().__init__(addresses)
        self.set = lambda key, value: True
        self.delete_many = lambda keys: True


class Hanging(Kvcluster):
    """Never comes back."""

    def __init__(self, addresses: Any) -> None:
        super().__init__(addresses)
        self.get = lambda key: time.sleep(3600)


class Absent(Kvcluster):
    """Is not installed."""

    def __init__(self, addresses: Any) -> None:
        import no_such_library  # noqa: F401
