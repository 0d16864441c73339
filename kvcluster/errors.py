"""Every error kvcluster raises, in one tree under pymemcache's ``MemcacheError``.

The three branches say whose fault it is, because that decides what to do about it:

- `CallerError`: an argument is wrong. Change the call; trying again cannot help.
- `NodeError`: a node answered, but with a refusal or with bytes that are not memcached's protocol.
- `NetworkError`: a node did not answer in time, or could not be reached. Trying again may help.

Errors of the last two carry ``.node``, the address of the node concerned.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from pymemcache.exceptions import (
    MemcacheClientError,
    MemcacheError,
    MemcacheIllegalInputError,
    MemcacheServerError,
    MemcacheUnexpectedCloseError,
    MemcacheUnknownError,
)


class KvclusterError(MemcacheError):
    """The root of every error raised by kvcluster."""

    node: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """By text and attributes: a subclass may be made of other arguments than the text they become."""
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[KvclusterError], args: tuple[Any, ...], attributes: dict[str, Any]) -> KvclusterError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(attributes)
    return error


class CallerError(KvclusterError, MemcacheClientError, ValueError):
    """An argument cannot be used; the message names it and the limit."""


class IllegalKey(CallerError, MemcacheIllegalInputError):
    """A key is empty, not ``str`` or ``bytes``, or forbidden by memcached where the caller asked for an error."""


class IllegalValue(CallerError, MemcacheIllegalInputError):
    """A value cannot be stored: it would not come back with its exact type, or it is too large for the node."""


class ConfigurationError(CallerError):
    """A node list, address, URL or setting cannot be used."""


class LoaderTimeout(KvclusterError, TimeoutError):
    """A loader did not come back within its ``hard_timeout``, and there is no stale value to serve instead."""


class MissingExtra(KvclusterError, ImportError):
    """An optional dependency is not installed; the message holds the command that installs it."""

    def __init__(self, extra: str, feature: str) -> None:
        super().__init__(f"{feature} needs an optional dependency: pip install 'kvcluster[{extra}]'")


class SourceUnavailable(KvclusterError, OSError):
    """The file or table that holds a cluster's topology cannot be read or written now."""


class ResizeRefused(KvclusterError):
    """A resize cannot begin or go on, and has changed nothing: the message says what to do first."""


class ResizeLocked(ResizeRefused):
    """Another coordinator is at work on the cluster.

    :param owner: who it is
    :param until: when its lock ends unless it is renewed, in seconds since 1970
    """

    def __init__(self, owner: str, until: float) -> None:
        when = datetime.fromtimestamp(until, UTC).strftime("%H:%M:%S UTC")
        super().__init__(f"{owner} is resizing this cluster; if it has died, its lock ends by itself at {when}")
        self.owner = owner
        self.until = until


class ResizeStopped(KvclusterError):
    """A resize stopped on its way. The cluster serves as it is, and the resize can be continued: the message says when."""


class NodeError(KvclusterError, MemcacheServerError):
    """A node answered, and the answer is an error.

    :param node: the node's address
    """

    def __init__(self, node: str, message: str) -> None:
        super().__init__(f"{node}: {message}")
        self.node = node


class CommandRefused(NodeError):
    """A node answered ``CLIENT_ERROR`` or ``SERVER_ERROR`` to a well-formed command.

    :param line: what it answered; shown escaped and shortened, for nobody knows what a node puts there
    """

    def __init__(self, node: str, line: str) -> None:
        super().__init__(node, f"{line!r:.200}")


class BadReply(NodeError, MemcacheUnknownError):
    """A node sent bytes that are not a memcached reply; the connection was closed."""


class NetworkError(KvclusterError, MemcacheServerError, OSError):
    """A node could not be asked.

    :param node: the node's address
    """

    def __init__(self, node: str, message: str) -> None:
        super().__init__(f"{node}: {message}")
        self.node = node


class NodeUnreachable(NetworkError, MemcacheUnexpectedCloseError, ConnectionError):
    """A node refused the connection, or closed it before its reply was whole."""


class NodeTimeout(NetworkError, TimeoutError):
    """A node did not answer within the time allowed."""


class NodeDown(NetworkError):
    """A node failed before and is left alone until its next probe."""


class PoolTimeout(NetworkError, TimeoutError):
    """All connections to a node stayed busy for the whole time allowed; the node itself may be well."""


class NodeBehind(NetworkError):
    """A node was cut off while the cluster was resized, and may hold what others have deleted since: flush it."""


class OutcomeUnknown(NetworkError):
    """A node was asked just as the cluster was resized: it may have changed a value that counts no more. Read, then decide."""


class DeleteFailed(NetworkError):
    """Keys that may still be cached, because their node could not be told to delete them.

    ``.keys`` are the caller's keys concerned and ``.causes`` the errors by node address. The client sends these deletes again
    before it reads from those nodes; other clients of the same nodes may see the old values until then.
    """

    def __init__(self, keys: Iterable[str | bytes], causes: Mapping[str, KvclusterError]) -> None:
        self.keys = tuple(keys)
        self.causes = dict(causes)
        reasons = "; ".join(str(cause) for cause in causes.values())
        MemcacheError.__init__(self, f"{len(self.keys)} keys may still be cached: {reasons}")
        self.node = next(iter(causes), None)
