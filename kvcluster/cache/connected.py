"""Where the nodes of a cache are: nothing at first, then a client for threads or for an event loop, or a URL that makes either."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from kvcluster.cache import fork
from kvcluster.cache.keys import checked_namespace
from kvcluster.client import Client
from kvcluster.cluster import Cluster, default_url, parse_url
from kvcluster.errors import ConfigurationError
from kvcluster.planner import Planner

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from kvcluster.aio import AsyncClient


class Connected:
    """A namespace, and the cluster that it is kept on. The base of `Cache`.

    :param namespace: see `Cache`
    :raises ConfigurationError: for a namespace that cannot be used
    """

    def __init__(self, namespace: str) -> None:
        self.namespace = checked_namespace(namespace)
        self._url: str | None = None
        self._client: Client | None = None
        self._async_client: AsyncClient | None = None
        self._async_clients: dict[AbstractEventLoop | None, AsyncClient] = {}  # made here; None: before any event loop
        self._planners: dict[Client | AsyncClient, tuple[Planner, Planner]] = {}  # by client: its planner, and the one for here
        fork.renewed(self)

    def renew(self) -> None:
        """Begin with a free lock; in a forked child too."""
        self._lock = threading.Lock()

    def connect(self, target: str | Client | AsyncClient | None = None) -> None:
        """Say where the nodes are.

        :param target: a URL as for `Client.from_url`, which serves functions and coroutine functions alike; or a `Client`, which
            serves functions, or an `AsyncClient`, which serves coroutine functions. Where None, the URL in ``KVCLUSTER_URL``
        :raises ConfigurationError: for anything else
        """
        self.disconnect()
        if target is None or isinstance(target, str):
            self._url = default_url() if target is None else target
            parse_url(self._url)  # what is wrong with it is said here
        elif not isinstance(target, Cluster):
            raise ConfigurationError(f"target must be a URL, a Client or an AsyncClient, not {target!r}")
        elif isinstance(target, Client):
            self._client = target
        else:
            self._async_client = target

    def disconnect(self) -> None:
        """Forget where the nodes are; a client that was passed stays open for whoever made it.

        What was made for a URL is closed; an `AsyncClient` only if its event loop runs, for nothing else can close it.
        """
        made = self._client if self._url is not None else None
        async_clients, self._async_clients = self._async_clients, {}
        self._url = self._client = self._async_client = None
        self._planners = {}
        if made is not None:
            made.close()
        for loop, client in async_clients.items():
            if loop is not None and loop.is_running():
                from asyncio import run_coroutine_threadsafe  # here, as below

                run_coroutine_threadsafe(client.close(), loop)

    @property
    def connected(self) -> bool:
        """Whether `connect` was called, and `disconnect` not since."""
        return any(target is not None for target in (self._url, self._client, self._async_client))

    @property
    def client(self) -> Client:
        """The cluster, for threads.

        :raises ConfigurationError: before `connect`
        """
        if self._client is None:
            with self._lock:
                if self._client is None:
                    self._client = Client.from_url(self._connected_url("a Client"))
        return self._client

    @property
    def async_client(self) -> AsyncClient:
        """The cluster, for asyncio: the client that was passed, or with a URL that of the running event loop; where none runs, the
        one that was made last.

        Its connections are to be closed in their event loop: ``async with cache.async_client: ...``.

        :raises ConfigurationError: before `connect`
        """
        if self._async_client is not None:
            return self._async_client
        url = self._connected_url("an AsyncClient")
        from asyncio import get_running_loop  # here, because few programs use both

        loop: AbstractEventLoop | None
        try:
            loop = get_running_loop()
        except RuntimeError:
            loop = next(reversed(self._async_clients), None)
        client = self._async_clients.get(loop)
        return self._client_of(loop, url) if client is None else client

    def _client_of(self, loop: AbstractEventLoop | None, url: str) -> AsyncClient:
        """A loop's client. It is taken over from a loop that has ended, if one has: it knows which deletes nodes are still owed."""
        from kvcluster.aio import AsyncClient

        with self._lock:
            ended = [other for other in self._async_clients if other is None or other.is_closed()]
            client = self._async_clients.pop(ended[0]) if ended else AsyncClient.from_url(url)
            self._async_clients[loop] = client
            return client

    def _connected_url(self, wanted: str) -> str:
        if self._url is not None:
            return self._url
        if self.connected:
            raise ConfigurationError(
                f"cache {self.namespace!r} was not connected with {wanted}: cache.connect(url) serves both kinds"
            )
        raise ConfigurationError(f"cache {self.namespace!r} is not connected: call cache.connect('memcached://host:port,…') first")

    @property
    def planner(self) -> Planner:
        """A planner for this namespace, of whichever client there is."""
        return self.planner_of(self.client if self._async_client is None else self._async_client)

    def planner_of(self, client: Client | AsyncClient) -> Planner:
        """A client's planner, for this namespace."""
        base = client.planner
        planners = self._planners.get(client)
        if planners is None or planners[0] is not base:
            prefix = base.prefix + self.namespace.encode() + b":"
            self._planners[client] = planners = (base, replace(base, prefix=prefix, namespace=self.namespace))
        return planners[1]
