"""The asyncio face of reading through: the driver of flows for an event loop, and `AsyncLoader`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from contextvars import copy_context
from typing import Any, Concatenate, Final, ParamSpec, TypeVar, overload
from weakref import WeakKeyDictionary

from kvcluster.aio import AsyncClient
from kvcluster.cache.drive import count
from kvcluster.cache.explain import Explanation, explain
from kvcluster.cache.flights import LOADING
from kvcluster.cache.flows import Count, Detach, Each, Flow, Join, Load, Loaders, Sleep, read_many, read_on, refresh_one
from kvcluster.cache.leases import UNASKED, FirstGet, Source, Stamps
from kvcluster.cache.loader import LoaderBase, by_argument, in_order
from kvcluster.cache.near import ABSENT

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

#: The most refreshes that are under way at a time in an event loop; one more is left to a later reader.
MOST_REFRESHES: Final = 100


class AsyncLoader(LoaderBase[P, R]):
    """A cached coroutine function. Made by `Cache.loader`. As `Loader`, with calls that are awaited."""

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        client = self._cache.async_client
        source = self._source(client)
        wire, stamps = self._place(source, args, kwargs)
        if kwargs and self._past(client, kwargs, wire):
            return await self.uncached(*args, **kwargs)
        value: R = await read_async(client, source, wire, lambda: self._function(*args, **kwargs), stamps)
        return value

    async def uncached(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function itself; the cache is neither read nor changed."""
        value: R = await self._function(*args, **kwargs)
        return value

    async def get_many(self, many: Iterable[Any], *args: Any, **kwargs: Any) -> dict[Any, R]:
        """The results for many values of the first argument, by that argument; the other arguments are the same for all.

        All nodes are asked at once. What is missing is loaded by one call of the `bulk` function, where there is one, else at the
        same time.
        """
        client = self._cache.async_client
        source = self._source(client) if self._bulk is None else self._bulk_source(client)
        places = self._places(source, many, args, kwargs)

        def load_one(argument: Any) -> Any:
            return self._function(argument, *args, **kwargs)

        bulk = self._bulk
        loaders = Loaders(None if bulk is None else lambda missing: bulk(missing, *args, **kwargs), load_one)
        values: Mapping[Any, Any] = {}
        if self._past(client, kwargs, *places.arguments):
            missing = list(places.arguments.values())
            if loaders.many is None:
                values = dict(zip(missing, await _at_once([load_one(argument) for argument in missing]), strict=True))
            else:
                values = await loaders.many(missing)
        elif places.arguments:
            values = await drive_async(read_many(source, places.arguments, loaders, places.depends), client)
        return by_argument(places, values)

    async def list(self, many: Iterable[Any], *args: Any, **kwargs: Any) -> list[R]:
        """As `get_many`, as a list in the order asked, without those that are None."""
        order = [*many]
        return in_order(order, await self.get_many(order, *args, **kwargs))

    def bulk(
        self, function: Callable[Concatenate[Sequence[Any], ...], Awaitable[Mapping[Any, R]]]
    ) -> Callable[..., Awaitable[Mapping[Any, R]]]:
        """Decorate the coroutine function that loads many at once; see `Loader.bulk`."""
        self._take_bulk(function)
        return function

    @overload
    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None: ...

    @overload
    async def invalidate(self, *args: Any, soft: bool, **kwargs: Any) -> None: ...

    async def invalidate(  # type: ignore[misc]  # no signature of the function's own is refused
        self, *args: Any, soft: bool = False, **kwargs: Any
    ) -> None:
        """Forget a result, in each version of its key. A load that is under way will not be stored. Once begun, it is not undone by
        a cancellation.

        :param soft: keep it as a stale one instead, which may be served while it is refreshed or where that fails, for as long as
            the policy says; where it says nothing of the kind, forget it
        :raises DeleteFailed: where its node could not be told; it is told before this client reads from it again
        """
        await self._cache.invalidate_wires_async(self._versions(args, kwargs), self.policy.stale if soft else 0)

    async def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Load now whatever is cached, store the result, and return it."""
        client = self._cache.async_client
        source = self._source(client)
        wire, stamps = self._place(source, args, kwargs)
        if self._past(client, kwargs, wire):
            return await self.uncached(*args, **kwargs)
        value: R = await drive_async(refresh_one(source, wire, lambda: self._function(*args, **kwargs), stamps), client)
        return value

    async def explain(self, *args: P.args, **kwargs: P.kwargs) -> Explanation:
        """Where the result of a call would come from now, and why. It changes nothing."""
        client = self._cache.async_client
        source = self._source(client)
        return await drive_async(explain(source, *self._place(source, args, kwargs)), client)


async def read_async(client: AsyncClient, source: Source, wire: bytes, load: Callable[[], Any], stamps: Stamps = ()) -> Any:
    """Read one key through; see `flows.read_one`. ``load`` returns an awaitable."""
    near = source.near
    if near is not None and (held := near.get(wire, source.codec.decode)) is not ABSENT:
        return held
    asked = source.clock()
    asking = FirstGet(source, wire, stamps)
    failure = await client.exchange(source.planner.address(wire), asking, source.planner)
    if failure is None and asking.hit:
        return asking.value
    answer = asking.answers[0] if failure is None else UNASKED
    return await drive_async(read_on(source, wire, load, answer, asked, stamps), client)


async def drive_async(flow: Flow[T], client: AsyncClient) -> T:
    """As `drive.drive`. A caller cancelled while it loads gives its lease back before it ends, so that nobody waits for it."""
    try:
        need = next(flow)
        while True:
            result: Any = None
            try:
                if isinstance(need, Load):
                    result = await _load_async(need)
                elif isinstance(need, Sleep):
                    await asyncio.sleep(need.seconds)
                elif isinstance(need, Join):
                    result = await _landed(need)
                elif isinstance(need, Detach):
                    result = _detach(need, client)
                elif isinstance(need, Each):
                    await _at_once([drive_async(each, client) for each in need.flows])
                elif isinstance(need, Count):
                    count(need, client)
                else:
                    result = await client.run(need)
            except BaseException as error:
                need = flow.throw(error)
            else:
                need = flow.send(result)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


#: The tasks of detached flows, by event loop, which itself keeps no hold of them.
_beside: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, set[asyncio.Task[None]]]] = WeakKeyDictionary()


def beside() -> set[asyncio.Task[None]]:
    """The tasks of detached flows in the running event loop."""
    return _beside.setdefault(asyncio.get_running_loop(), set())


def _detach(need: Detach, client: AsyncClient) -> bool:
    """Carry out a flow in a task of its own, which the end of its event loop cancels."""
    tasks = beside()
    if not need.awaited and len(tasks) >= MOST_REFRESHES:
        return False
    context = copy_context()
    if not need.awaited:
        context.run(LOADING.set, ())
    task = asyncio.get_running_loop().create_task(_give_up_after(need.seconds, need.flow, client), context=context)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return True


async def _give_up_after(seconds: float | None, flow: Flow[None], client: AsyncClient) -> None:
    with suppress(TimeoutError):  # the flow has told whoever waits
        async with asyncio.timeout(seconds):
            await drive_async(flow, client)


async def _load_async(need: Load) -> Any:
    token = LOADING.set(LOADING.get() + need.keys)
    try:
        return await need.call()
    finally:
        LOADING.reset(token)


async def _at_once(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of calls made at the same time. The first that raises stops the others, and its error is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def to_the_end(call: Coroutine[Any, Any, T] | asyncio.Task[T]) -> T:
    """Make a call that is not undone by a cancellation of the caller, who is cancelled once it has ended."""
    task = asyncio.ensure_future(call)
    task.add_done_callback(_seen)
    try:
        await asyncio.wait((task,))
    except asyncio.CancelledError:
        await asyncio.wait((task,))  # a second cancellation gives this up, and the call goes on alone
        raise
    return task.result()


def _seen(task: asyncio.Task[Any]) -> None:
    """Look at a task's error, which a cancelled caller does not."""
    if not task.cancelled():
        task.exception()


async def _landed(need: Join) -> Any:
    """Wait for a flight, whichever thread or event loop leads it."""
    loop = asyncio.get_running_loop()
    landed = loop.create_future()

    def wake() -> None:
        if not landed.done():
            landed.set_result(None)

    def call_back() -> None:
        with suppress(RuntimeError):  # the loop is closed, so nobody waits
            loop.call_soon_threadsafe(wake)

    need.flight.when_landed(call_back)
    await asyncio.wait((landed,), timeout=need.seconds)
    return need.flight.outcome
