"""Requests that bring their node's epoch, and how a node is told of one.

The epoch key is read after everything else in a request: what was done before it was done under that epoch or an earlier one. Meta
commands have one more at their end, a classic read one more key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, cast

from kvcluster.plan import Failures, Plan, Then
from kvcluster.protocol import requests
from kvcluster.protocol.requests import Commands, Deletes, Fetch, Request
from kvcluster.stats.counters import Counters

EPOCH_KEY: Final = b"__kvc:epoch"
_PROBE: Final = requests.meta_get(EPOCH_KEY, b"v")


class Watch(Commands):
    """Meta commands, and after them a look at the epoch, which is ``epoch``: None where the node has none."""

    __slots__ = ("inner", "repeatable")

    repeatable: bool

    def __init__(self, inner: Commands) -> None:
        self.inner = inner
        self.repeatable = inner.repeatable
        self.count = inner.count + 1
        self.owed = inner.owed
        self.deletes = inner.deletes
        self.opened_before = inner.opened_before
        self.opaque = inner.opaque
        self.replies = []

    @property
    def payload(self) -> bytes:  # type: ignore[override]
        """What is sent; the inner request may be another one when it is sent again."""
        return self.inner.payload + _PROBE

    @property
    def epoch(self) -> int | None:
        """The node's epoch, once it has answered."""
        return _epoch(self.replies[-1].value)

    @property
    def failure(self) -> tuple[bytes, Exception] | None:  # type: ignore[override]
        """The last value that could not be decoded."""
        return self.inner.failure

    @property
    def misplaced(self) -> bool:
        """Whether a reply among them answers another request."""
        self.inner.replies[:] = self.replies[:-1]
        return self.inner.misplaced

    def reset(self) -> None:
        """Forget what came, to be sent again."""
        super().reset()
        self.inner.reset()

    def settle(self, counters: Counters) -> None:
        """Count what the inner request's replies say."""
        self.inner.settle(counters)

    def fail(self, counters: Counters) -> None:
        """Count what the inner request did not do."""
        self.inner.fail(counters)


class WatchDeletes(Watch, Deletes):
    """Deletes, and a look at the epoch."""

    __slots__ = ()

    @property
    def refusal(self) -> str | None:
        """The first reply that does not confirm its delete."""
        self.inner.replies[:] = self.replies[:-1]
        return cast(Deletes, self.inner).refusal


class WatchFetch(Fetch):
    """A classic read whose last key is the epoch's."""

    __slots__ = ("epoch", "name")

    epoch: int | None

    def __init__(
        self,
        wires: Sequence[bytes],
        names: Sequence[Any],
        decode: Callable[[bytes, int], object],
        values: dict[Any, Any],
        tokens: bool = False,
    ) -> None:
        self.name = object()  # the values of several nodes are filed in one place
        self.epoch = None
        super().__init__((*wires, EPOCH_KEY), (*names, self.name), decode, values, tokens)

    def settle(self, counters: Counters) -> None:
        """Count what came; the epoch is none of the caller's keys."""
        super().settle(counters)
        found = self.values.pop(self.name, None)
        if found is None:
            counters.misses -= 1
        else:
            counters.hits -= 1
            self.epoch = _epoch(found[0] if self.tokens else found)

    def fail(self, counters: Counters) -> None:
        """Count what did not come."""
        super().fail(counters)
        counters.misses -= 1


def watch(request: Request) -> Watch | WatchFetch:
    """The same request, and a look at the epoch after it."""
    if isinstance(request, Fetch):
        return WatchFetch(request.wires, request.names, request.decode, request.values, request.tokens)
    return WatchDeletes(request) if isinstance(request, Deletes) else Watch(request)


def _epoch(data: bytes | None) -> int | None:
    return int(data) if data is not None and data.isdigit() else None


def tell_epoch(namespace: str, addresses: Iterable[str], epoch: int, attempts: int = 5) -> Plan[set[str]]:
    """Write the epoch key of these nodes, upward only: by ``add`` where it is absent, else by compare-and-set.

    The result is the addresses of the nodes that have this epoch now, or a later one.
    """
    asking = {address: Commands(requests.meta_get(EPOCH_KEY, b"v c"), 1) for address in addresses}
    return _Tell(namespace, asking, epoch, attempts, frozenset())


class _Tell(Plan["set[str]"]):
    """Ask nodes for their epochs, and write where they are less."""

    __slots__ = ("attempts", "epoch", "told")

    def __init__(self, namespace: str, asking: Mapping[str, Request], epoch: int, attempts: int, told: frozenset[str]) -> None:
        super().__init__(namespace, asking)
        self.epoch = epoch
        self.attempts = attempts
        self.told = told

    def finish(self, failures: Failures) -> set[str] | Plan[set[str]]:
        """The nodes that are told, or the writes that come next."""
        told, writes = set(self.told), {}
        for address, request in self.requests.items():
            if address in failures:
                continue
            assert isinstance(request, Commands)
            reply = request.replies[0]
            present = _epoch(reply.value)
            if present is not None and present >= self.epoch:
                told.add(address)
                continue
            condition = b"T0 ME" if reply.status == "EN" else b"T0 C%d" % reply.cas
            writes[address] = Commands(requests.meta_set(EPOCH_KEY, b"%d" % self.epoch, condition), 1)
        if not writes or not self.attempts:
            return told
        again = tell_epoch(self.namespace, writes, self.epoch, self.attempts - 1)
        assert isinstance(again, _Tell)
        again.told = frozenset(told)
        return Then(self.namespace, writes, again)
