"""The asyncio face of reading through: the driver of flows for an event loop, and `AsyncLoader`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Concatenate, ParamSpec, TypeVar

from kvcluster.aio import AsyncClient
from kvcluster.cache.flights import LOADING, Outcome
from kvcluster.cache.flows import Flow, Join, Load, Sleep, read_many, read_missed, refresh_one
from kvcluster.cache.leases import UNASKED, Source
from kvcluster.cache.loader import LoaderBase, by_argument, in_order
from kvcluster.plan import Invalidation

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class AsyncLoader(LoaderBase[P, R]):
    """A cached coroutine function. Made by `Cache.loader`. As `Loader`, with calls that are awaited."""

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        client = self._cache.async_client
        source = self._source(client)
        wire = source.planner.wire(self.template.key(args, kwargs))
        if kwargs and self._past(client, kwargs, wire):
            return await self.uncached(*args, **kwargs)
        value: R = await read_async(client, source, wire, lambda: self._function(*args, **kwargs))
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
        wires = self._wires(many, args, kwargs)
        arguments = {wire: argument for argument, wire in wires.items()}

        async def load_many(missing: Sequence[Any]) -> Mapping[Any, Any]:
            if self._bulk is not None:
                loaded: Mapping[Any, Any] = await self._bulk(missing, *args, **kwargs)
                return loaded
            calls = [self._function(argument, *args, **kwargs) for argument in missing]
            return dict(zip(missing, await _at_once(calls), strict=True))

        client = self._cache.async_client
        values: Mapping[Any, Any] = {}
        if self._past(client, kwargs, *arguments):
            values = await load_many(list(arguments.values()))
        elif arguments:
            source = replace(self._source(client), times=self._bulk_times)
            values = await drive_async(read_many(source, arguments, load_many), client)
        return by_argument(wires, arguments, values)

    async def list(self, many: Iterable[Any], *args: Any, **kwargs: Any) -> list[R]:
        """As `get_many`, as a list in the order asked, without those that are None."""
        order = [*many]
        return in_order(order, await self.get_many(order, *args, **kwargs))

    def bulk(
        self, function: Callable[Concatenate[Sequence[Any], ...], Awaitable[Mapping[Any, R]]]
    ) -> Callable[..., Awaitable[Mapping[Any, R]]]:
        """Decorate the coroutine function that loads many at once; see `Loader.bulk`."""
        self._require_arguments()
        self._bulk = function
        return function

    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Forget a result. A load that is under way will not be stored. Once begun, it is not undone by a cancellation.

        :raises DeleteFailed: where its node could not be told; it is told before this client reads from it again
        """
        await self._cache.invalidate_async(Invalidation((self._wire(args, kwargs),)))

    async def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Load now whatever is cached, store the result, and return it."""
        client = self._cache.async_client
        wire = self._wire(args, kwargs)
        if self._past(client, kwargs, wire):
            return await self.uncached(*args, **kwargs)
        flow = refresh_one(self._source(client), wire, lambda: self._function(*args, **kwargs))
        value: R = await drive_async(flow, client)
        return value


async def read_async(client: AsyncClient, source: Source, wire: bytes, load: Callable[[], Any]) -> Any:
    """Read one key through; see `flows.read_one`. ``load`` returns an awaitable."""
    asked = source.clock()
    asking = source.asking(wire)
    failure = await client.exchange(source.planner.address(wire), asking, source.planner.namespace)
    answer = asking.answers[0] if failure is None else UNASKED
    return answer.value if answer.found else await drive_async(read_missed(source, wire, load, answer, asked), client)


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
                else:
                    result = await client.run(need)
            except BaseException as error:
                need = flow.throw(error)
            else:
                need = flow.send(result)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


async def _load_async(need: Load) -> Any:
    token = LOADING.set(LOADING.get() | need.keys)
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


async def _landed(need: Join) -> Outcome | None:
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
