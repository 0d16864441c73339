"""`Loader`: a function whose results are cached, called as the function is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

from kvcluster.cache.drive import drive, read
from kvcluster.cache.flights import LoadTimes
from kvcluster.cache.flows import read_many, refresh_one
from kvcluster.cache.keys import Template
from kvcluster.cache.leases import Source
from kvcluster.cache.policy import Policy
from kvcluster.errors import ConfigurationError
from kvcluster.plan import Invalidation

if TYPE_CHECKING:
    from kvcluster.aio import AsyncClient
    from kvcluster.cache import Cache
    from kvcluster.client import Client

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class LoaderBase(Generic[P, R]):
    """What `Loader` and `AsyncLoader` share: a function, its keys and its policy."""

    def __init__(self, cache: Cache, template: Template, function: Callable[P, Any], policy: Policy) -> None:
        functools.update_wrapper(self, function)  # type: ignore[arg-type]  # it is callable in both its kinds
        self._cache = cache
        self.template = template
        self._function: Callable[..., Any] = function
        self._policy = policy
        self._times = LoadTimes()
        self._bulk_times = LoadTimes()  # apart, because who waits for one key judges by how long one takes
        self._bulk: Callable[..., Any] | None = None
        self._sourced: Source | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._cache.namespace}:{self.template.text}>"

    @property
    def loads(self) -> int:
        """How often this process went to the source for it and came back with an answer; a bulk load is one."""
        return self._times.count + self._bulk_times.count

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """The key of a call, without the namespace.

        :raises IllegalKey: where an argument cannot be part of a key
        """
        return self.template.key(args, kwargs)

    def _wire(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
        return self._cache.planner.wire(self.template.key(args, kwargs))

    def _source(self, client: Client | AsyncClient) -> Source:
        planner = self._cache.planner_of(client)
        source = self._sourced
        if source is None or source.planner is not planner:
            self._sourced = source = self._cache.source(client, self._policy, self._times)
        return source

    def _wires(self, many: Iterable[Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[Any, bytes]:
        """The wire key of each argument of a call for many. Two arguments may share one: an Enum's member and its value."""
        self._require_arguments()
        return {argument: self._wire((argument, *args), kwargs) for argument in dict.fromkeys(many)}

    def _past(self, client: Client | AsyncClient, kwargs: Mapping[str, Any], *wires: bytes) -> bool:
        """Whether a call goes past the cache, and is counted: it has a session, which sees what it has not committed yet."""
        if not self.template.takes_session or kwargs.get("session") is None:
            return False
        self._cache.count_unstored(client, wires)
        return True

    def _require_arguments(self) -> None:
        if not self.template.many:
            raise ConfigurationError(f"loader {self.template.text!r} takes no arguments, so there are not many of it")


class Loader(LoaderBase[P, R]):
    """A cached function. Made by `Cache.loader`.

    Calling it reads through: a hit is one trip to one node; on a miss one caller over all processes runs the function, the others
    wait for its value.

    Where the function has a keyword-only ``session``, that is no part of the key. A call that passes one goes past the cache: it
    sees the session's own changes, and perhaps an older snapshot, and stores nothing.
    """

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        client = self._cache.client
        source = self._source(client)
        wire = source.planner.wire(self.template.key(args, kwargs))
        if kwargs and self._past(client, kwargs, wire):
            return self.uncached(*args, **kwargs)
        value: R = read(client, source, wire, lambda: self._function(*args, **kwargs))
        return value

    def uncached(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function itself; the cache is neither read nor changed."""
        value: R = self._function(*args, **kwargs)
        return value

    def get_many(self, many: Iterable[Any], *args: Any, **kwargs: Any) -> dict[Any, R]:
        """The results for many values of the first argument, by that argument; the other arguments are the same for all.

        All nodes are asked at once. What is missing is loaded by one call of the `bulk` function, where there is one.
        """
        wires = self._wires(many, args, kwargs)
        arguments = {wire: argument for argument, wire in wires.items()}

        def load_one(argument: Any) -> Any:
            return self._function(argument, *args, **kwargs)

        bulk = self._bulk
        load_many = None if bulk is None else lambda missing: bulk(missing, *args, **kwargs)
        client = self._cache.client
        source = self._source(client)
        values: Mapping[Any, Any] = {}
        if self._past(client, kwargs, *arguments):
            missing = list(arguments.values())
            values = {argument: load_one(argument) for argument in missing} if load_many is None else load_many(missing)
        elif arguments and load_many is not None:
            source = replace(source, times=self._bulk_times)
            values = drive(read_many(source, arguments, load_many), client)
        elif arguments:
            values = drive(read_many(source, arguments, None, load_one), client)
        return by_argument(wires, arguments, values)

    def list(self, many: Iterable[Any], *args: Any, **kwargs: Any) -> list[R]:
        """As `get_many`, as a list in the order asked, without those that are None."""
        order = [*many]
        return in_order(order, self.get_many(order, *args, **kwargs))

    def bulk(self, function: Callable[Concatenate[Sequence[Any], ...], Mapping[Any, R]]) -> Callable[..., Mapping[Any, R]]:
        """Decorate the function that loads many at once: called with a sequence of first arguments, and the others as they are.

        It returns a mapping by first argument; one that is absent has no value, and that is cached as None.
        """
        self._require_arguments()
        self._bulk = function
        return function

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Forget a result. A load that is under way will not be stored.

        :raises DeleteFailed: where its node could not be told; it is told before this client reads from it again
        """
        self._cache.invalidate(Invalidation((self._wire(args, kwargs),)))

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Load now whatever is cached, store the result, and return it."""
        client = self._cache.client
        wire = self._wire(args, kwargs)
        if self._past(client, kwargs, wire):
            return self.uncached(*args, **kwargs)
        flow = refresh_one(self._source(client), wire, lambda: self._function(*args, **kwargs))
        value: R = drive(flow, client)
        return value


def by_argument(wires: Mapping[Any, bytes], arguments: Mapping[bytes, Any], values: Mapping[Any, Any]) -> dict[Any, Any]:
    """The values for all arguments, by argument: of those that share a key, one was asked for."""
    return {argument: values.get(arguments[wire]) for argument, wire in wires.items()}


def in_order(order: Sequence[Any], found: Mapping[Any, T | None]) -> list[T]:
    """The values found, in the order asked, without those that are None."""
    return [value for argument in order if (value := found[argument]) is not None]
