"""What stands in for the fast path where it was not compiled: nothing is begun, for `pool` and `exchange` can do it all."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from kvcluster.protocol.hot import Reader
    from kvcluster.protocol.requests import Request
    from kvcluster.stats.counters import Counters
    from kvcluster.transport.connection import Connection
    from kvcluster.transport.pool import Endpoint
    from kvcluster.transport.state import NodeState


class ConnectionFields:
    """What the fast path knows of a `Connection`."""

    __slots__ = ("counters", "expired", "fd", "idle_since", "owed", "reader", "timeout", "used")

    reader: Reader
    fd: int
    owed: int
    counters: dict[str, Counters]
    used: bool
    expired: bool
    timeout: float
    idle_since: float


class EndpointFields:
    """What the fast path knows of an `Endpoint`."""

    __slots__ = ("clock", "idle", "state", "sweep_at", "waiters")

    state: NodeState
    idle: deque[Connection]
    waiters: deque[Any]
    clock: Callable[[], float]
    sweep_at: float


def fast_exchange(
    endpoint: Endpoint, request: Request, namespace: str, held: list[Connection]
) -> Literal[True] | int | Exception | None:
    """Exchange a request with one node. True where that is done, and None where nothing was begun; else how far it came: the number
    of bytes received, or an error.

    :param held: gets the connection of an exchange that is not done
    """
    return None


def fast_scatter(
    endpoints: Mapping[str, Endpoint],
    requests: Mapping[str, Request],
    namespace: str,
    held: dict[str, Connection],
    seconds: float,
    most: int,
) -> dict[str, int | Exception | None] | None:
    """Exchange small requests with several nodes: all are sent before any reply is read. None where nothing was sent; else how far
    those came that are not done, by address: the number of bytes received, None where nothing was, or an error.

    :param held: gets the connections that are taken, by address in the order of the addresses; those that are done leave it
    :param seconds: for all of it together; what could take longer is left to the caller
    :param most: bytes of a request that a socket's buffers take whole
    """
    return None
