"""Telling the nodes what a commit invalidates, which never raises because of the cache, and repeating what failed.

What a signal handler raises, such as a task's time limit, goes on to the caller. Where it interrupts the telling, the nodes are
told once more before that. Where it lands between the commit and the telling, or a second one interrupts that too, nobody is told;
nor is anybody by a process that ends there. For programs with such limits there is the outbox.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING, Final

from kvcluster.cache import fork
from kvcluster.cache.watch import Names
from kvcluster.client import Client
from kvcluster.errors import DeleteFailed, KvclusterError

if TYPE_CHECKING:
    from kvcluster.aio import AsyncClient
    from kvcluster.cache import Cache

log = logging.getLogger("kvcluster")

_FIRST_RETRY: Final = 0.1
_LAST_RETRY: Final = 1.0


_NOT_INVALIDATED: Final = "after a commit: %d entries of cache %r were not invalidated"


def tell(cache: Cache, retries: Retries, names: Names) -> bool:
    """Invalidate what a commit changed; whether all nodes concerned know. What fails is logged, and repeated in the background.

    What a signal handler raises meanwhile is not the cache's and goes on to the caller.
    """
    try:
        return _tell(cache, retries, names)
    except BaseException:  # nobody knows which nodes were told
        _tell(cache, retries, names)
        raise


async def tell_async(cache: Cache, retries: Retries, names: Names) -> bool:
    """As `tell`."""
    try:
        return await _tell_async(cache, retries, names)
    except Exception:
        await _tell_async(cache, retries, names)
        raise


def _tell(cache: Cache, retries: Retries, names: Names) -> bool:
    try:
        cache.invalidate(names.invalidation(cache.planner_of(cache.client)))
        return True
    except DeleteFailed as error:
        retries.start(cache.client, error)
    except BaseException as error:
        if not _is_the_caches(error):
            if cache.client.missed_deletes:
                retries.start(cache.client, error)
            raise
        log.exception(_NOT_INVALIDATED, len(names), cache.namespace)
    return False


async def _tell_async(cache: Cache, retries: Retries, names: Names) -> bool:
    try:
        await cache.invalidate_async(names.invalidation(cache.planner_of(cache.async_client)))
        return True
    except DeleteFailed as error:
        retries.start_async(cache.async_client, error)
    except Exception as error:
        if not _is_the_caches(error):
            if cache.async_client.missed_deletes:
                retries.start_async(cache.async_client, error)
            raise
        log.exception(_NOT_INVALIDATED, len(names), cache.namespace)
    return False


def _is_the_caches(error: BaseException) -> bool:
    """Whether an error comes from the cache, or from a fault in it: then it is this library's, or one of Python's own.

    Signal handlers raise errors of other classes, or such that are no Exception.
    """
    return isinstance(error, KvclusterError) or (isinstance(error, Exception) and type(error).__module__ == "builtins")


class Retries:
    """Repeats clients' failed deletes in the background, in one daemon thread per client that ends when there are none left.

    It does so at once, and again at each further failure: what a hanging node finds in its socket's buffer when it wakes, it
    carries out before others read from it.
    """

    def __init__(self) -> None:
        self._tasks: dict[int, tuple[asyncio.Task[None], asyncio.Event]] = {}  # by client
        fork.renewed(self)

    def renew(self) -> None:
        """Begin without threads; in a forked child too, which has none of its parent's."""
        self._running: dict[int, threading.Event] = {}  # by client
        self._lock = threading.Lock()

    def start(self, client: Client, error: BaseException) -> None:
        """Repeat this client's failed deletes."""
        name = id(client)
        with self._lock:
            if name in self._running:
                self._running[name].set()
                return
            log.error("after a commit: %s; deletes are repeated until they succeed", error)
            failed_again = threading.Event()
            arguments = (client, name, failed_again)
            try:
                threading.Thread(target=self._repeat, args=arguments, name="kvcluster-retries", daemon=True).start()
            except RuntimeError as refused:  # the commit has succeeded all the same; this client reads from no such node before
                log.error("deletes are repeated after the next that fails, or before the next read from their node: %s", refused)
            else:
                self._running[name] = failed_again

    def _repeat(self, client: Client, name: int, failed_again: threading.Event) -> None:
        delay = _FIRST_RETRY
        try:
            while client.replay_deletes() or not self._finish(client, name):
                delay = _FIRST_RETRY if failed_again.wait(delay) else min(delay * 2, _LAST_RETRY)
                failed_again.clear()
        finally:
            with self._lock:
                if self._running.get(name) is failed_again:  # it raised
                    del self._running[name]
        _log_end(client)

    def _finish(self, client: Client, name: int) -> bool:
        """End, unless a commit failed just now that has seen this thread running."""
        with self._lock:
            if client.missed_deletes:
                return False
            self._running.pop(name, None)
            return True

    def start_async(self, client: AsyncClient, error: BaseException) -> None:
        """As `start`, in a task of the running loop, which ends with that."""
        loop = asyncio.get_running_loop()
        name = id(client)
        if name in self._tasks and self._tasks[name][0].get_loop() is loop:
            self._tasks[name][1].set()
            return
        log.error("after a commit: %s; deletes are repeated until they succeed", error)
        failed_again = asyncio.Event()
        self._tasks[name] = (loop.create_task(self._repeat_async(client, name, failed_again)), failed_again)

    async def _repeat_async(self, client: AsyncClient, name: int, failed_again: asyncio.Event) -> None:
        delay = _FIRST_RETRY
        try:
            while await client.replay_deletes():
                try:
                    await asyncio.wait_for(failed_again.wait(), delay)
                    delay = _FIRST_RETRY
                except TimeoutError:
                    delay = min(delay * 2, _LAST_RETRY)
                failed_again.clear()
        finally:
            if (running := self._tasks.get(name)) is not None and running[1] is failed_again:  # not another loop's
                del self._tasks[name]
        _log_end(client)


def _log_end(client: Client | AsyncClient) -> None:
    if not client.left_alone:  # else the node's state has logged what became of its deletes
        log.warning("all deletes that failed after a commit have succeeded")
