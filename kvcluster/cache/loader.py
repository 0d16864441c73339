"""`Loader`: a function whose results are cached, called as the function is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, Generic, NamedTuple, ParamSpec, TypeVar, overload

from kvcluster.cache.cached import Cached
from kvcluster.cache.drive import drive, read
from kvcluster.cache.explain import Explanation, explain
from kvcluster.cache.flows import Loaders, read_many, refresh_one
from kvcluster.cache.keys import Template
from kvcluster.cache.leases import Source, Stamps
from kvcluster.cache.policy import Policy
from kvcluster.cache.shapes import codec_for, shape_of
from kvcluster.errors import ConfigurationError
from kvcluster.protocol.hot import plain_key

if TYPE_CHECKING:
    from kvcluster.aio import AsyncClient
    from kvcluster.cache import Cache
    from kvcluster.client import Client

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Places(NamedTuple):
    """Where many results are: the wire key of each argument, the argument of each wire key, and the stamps that some depend on.

    Two arguments may share a key: an Enum's member and its value.
    """

    wires: dict[Any, bytes]
    arguments: dict[bytes, Any]
    depends: dict[bytes, Stamps]


class LoaderBase(Cached, Generic[P, R]):
    """What `Loader` and `AsyncLoader` share: a function, its keys and its policy.

    ``stamps_of`` names the stamps that a result depends on, by the call's arguments; None where it depends on none.
    """

    def __init__(self, cache: Cache, template: Template, function: Callable[P, Any], policy: Policy) -> None:
        if "soft" in template.fields:
            raise ConfigurationError(f"loader {template.text!r}: 'soft' is an argument of invalidate(), which hides it")
        functools.update_wrapper(self, function)  # type: ignore[arg-type]  # it is callable in both its kinds
        shape = shape_of(function)
        super().__init__(cache, policy, f"{cache.namespace}:{template.text}", shape, partial(codec_for, shape))
        self.template = template
        self.stamps_of: Callable[[Mapping[str, Any]], Iterable[str]] | None = None
        self._function: Callable[..., Any] = function
        self._bulk: Callable[..., Any] | None = None

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """The key of a call, without the namespace.

        :raises IllegalKey: where an argument cannot be part of a key
        """
        return self.template.key(args, kwargs)

    def _place(self, source: Source, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[bytes, Stamps]:
        """The wire key of a call, and those of the stamps that its result depends on."""
        planner, key = source.planner, self.template.key(args, kwargs)
        wire = plain_key(key, planner.prefix) or planner.wire(key)
        if self.stamps_of is None:
            return wire, ()
        stamps = source.stamps.get(key)
        if stamps is None:
            stamps = source.remember(key, self._stamps(self.stamps_of(self.template.arguments(args, kwargs))))
        return wire, stamps

    def _places(self, source: Source, many: Iterable[Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Places:
        """The places of a call for many."""
        self._require_arguments()
        several = [*dict.fromkeys(many)]
        wires = source.planner.wires(self.template.keys(several, args, kwargs))
        depends: dict[bytes, Stamps] = {}
        if self.stamps_of is not None:
            of_arguments, stamps_of = self.template.arguments, self.stamps_of
            for argument, wire in zip(several, wires, strict=True):
                depends[wire] = self._stamps(stamps_of(of_arguments((argument, *args), kwargs)))
        return Places(dict(zip(several, wires, strict=True)), dict(zip(wires, several, strict=True)), depends)

    def _versions(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[bytes, ...]:
        """The wire keys that an invalidation deletes: of each version."""
        wire = self._cache.planner.wire
        return tuple([wire(key) for key in self.template.versions(self.template.key(args, kwargs))])

    def _require_arguments(self) -> None:
        if not self.template.many:
            raise ConfigurationError(f"loader {self.template.text!r} takes no arguments, so there are not many of it")

    def _take_bulk(self, function: Callable[..., Any]) -> None:
        """From now on a result may be None: what a bulk load does not find."""
        self._require_arguments()
        self._bulk = function
        self._shape = self._shape.optional()
        self._codec_of = partial(codec_for, self._shape)
        self._sources = None

    def _past(self, client: Client | AsyncClient, kwargs: Mapping[str, Any], *wires: bytes) -> bool:
        """Whether a call goes past the cache, and is counted: it has a session, which sees what it has not committed yet."""
        if not self.template.takes_session or kwargs.get("session") is None:
            return False
        self._cache.count_unstored(client, wires)
        return True


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
        wire, stamps = self._place(source, args, kwargs)
        if kwargs and self._past(client, kwargs, wire):
            return self.uncached(*args, **kwargs)
        value: R = read(client, source, wire, lambda: self._function(*args, **kwargs), stamps)
        return value

    def uncached(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function itself; the cache is neither read nor changed."""
        value: R = self._function(*args, **kwargs)
        return value

    def get_many(self, many: Iterable[Any], *args: Any, **kwargs: Any) -> dict[Any, R]:
        """The results for many values of the first argument, by that argument; the other arguments are the same for all.

        All nodes are asked at once. What is missing is loaded by one call of the `bulk` function, where there is one.
        """
        client = self._cache.client
        source = self._source(client) if self._bulk is None else self._bulk_source(client)
        places = self._places(source, many, args, kwargs)

        def load_one(argument: Any) -> Any:
            return self._function(argument, *args, **kwargs)

        bulk = self._bulk
        loaders = Loaders(None if bulk is None else lambda missing: bulk(missing, *args, **kwargs), load_one)
        values: Mapping[Any, Any] = {}
        if self._past(client, kwargs, *places.arguments):
            missing = list(places.arguments.values())
            values = {argument: load_one(argument) for argument in missing} if loaders.many is None else loaders.many(missing)
        elif places.arguments:
            values = drive(read_many(source, places.arguments, loaders, places.depends), client)
        return by_argument(places, values)

    def list(self, many: Iterable[Any], *args: Any, **kwargs: Any) -> list[R]:
        """As `get_many`, as a list in the order asked, without those that are None."""
        order = [*many]
        return in_order(order, self.get_many(order, *args, **kwargs))

    def bulk(self, function: Callable[Concatenate[Sequence[Any], ...], Mapping[Any, R]]) -> Callable[..., Mapping[Any, R]]:
        """Decorate the function that loads many at once: called with a sequence of first arguments, and the others as they are.

        It returns a mapping by first argument; one that is absent has no value, and that is cached as None.
        """
        self._take_bulk(function)
        return function

    @overload
    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None: ...

    @overload
    def invalidate(self, *args: Any, soft: bool, **kwargs: Any) -> None: ...

    def invalidate(  # type: ignore[misc]  # no signature of the function's own is refused
        self, *args: Any, soft: bool = False, **kwargs: Any
    ) -> None:
        """Forget a result, in each version of its key. A load that is under way will not be stored.

        :param soft: keep it as a stale one instead, which may be served while it is refreshed or where that fails, for as long as
            the policy says; where it says nothing of the kind, forget it
        :raises DeleteFailed: where its node could not be told; it is told before this client reads from it again
        """
        self._cache.invalidate_wires(self._versions(args, kwargs), self.policy.stale if soft else 0)

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Load now whatever is cached, store the result, and return it."""
        client = self._cache.client
        source = self._source(client)
        wire, stamps = self._place(source, args, kwargs)
        if self._past(client, kwargs, wire):
            return self.uncached(*args, **kwargs)
        value: R = drive(refresh_one(source, wire, lambda: self._function(*args, **kwargs), stamps), client)
        return value

    def explain(self, *args: P.args, **kwargs: P.kwargs) -> Explanation:
        """Where the result of a call would come from now, and why. It changes nothing."""
        client = self._cache.client
        source = self._source(client)
        return drive(explain(source, *self._place(source, args, kwargs)), client)


def by_argument(places: Places, values: Mapping[Any, Any]) -> dict[Any, Any]:
    """The values for all arguments, by argument: of those that share a key, one was asked for."""
    if len(places.wires) == len(places.arguments):
        return dict(zip(places.wires, map(values.get, places.wires), strict=True))
    return {argument: values.get(places.arguments[wire]) for argument, wire in places.wires.items()}


def in_order(order: Sequence[Any], found: Mapping[Any, T | None]) -> list[T]:
    """The values found, in the order asked, without those that are None."""
    return [value for argument in order if (value := found[argument]) is not None]
