"""The clients, each behind the same five methods.

They are used as their documentation says, with their defaults, except for two things that are the same for all: time limits,
where there are any, are `PATIENCE`, so that no client does less work by giving up; and values are bytes that travel as they
are, so nothing is compressed or pickled. Where a method's signature fits, it is the client's own bound method that is timed,
without a wrapper.

A client without a method for many keys gets the loop (or the ``gather``) that its user would write; ``loops`` says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

PATIENCE = 5.0  # seconds
THREADS = 8  # the most callers in threads, for clients with a pool


class Rival:
    """What a client is used by. It is imported when it is made, so that one that is not installed is a failure of its own."""

    distribution: str  # its name on PyPI
    asynchronous = False
    one_node = False  # knows a single node only
    own_per_thread = False  # not safe for threads: each needs its own
    loops: frozenset[str] = frozenset()  # many-key operations done key after key
    operations: frozenset[str] = frozenset({"get", "set", "get_many", "set_many", "delete_many"})

    get: Callable[[Any], Any]
    set: Callable[..., Any]
    get_many: Callable[[Any], Any]
    set_many: Callable[[Any], Any]
    delete_many: Callable[[Any], Any]

    def __init__(self, addresses: Sequence[str]) -> None:
        raise NotImplementedError

    def key(self, key: str) -> Any:
        """A key as this client wants it."""
        return key

    def argument(self, operation: str, items: Mapping[str, Any]) -> Any:
        """What a call is passed: the key, the keys, or keys with values; for ``set`` a (key, value) to be spread."""
        if operation == "place":
            return list(items)
        keys = [self.key(key) for key in items]
        if operation == "get":
            return keys[0]
        if operation.startswith("set"):
            pairs = dict(zip(keys, items.values(), strict=True))
            return pairs if operation == "set_many" else next(iter(pairs.items()))
        return keys

    def read(self, operation: str, argument: Any, answer: Any) -> dict[str, bytes]:
        """An answer to ``get`` or ``get_many`` as keys and values, to be compared."""
        if operation == "get":
            answer = {argument: answer}
        return {_text(key): self.value(value) for key, value in answer.items() if value is not None}

    def value(self, value: Any) -> bytes:
        """A value of an answer as bytes."""
        return value

    def place(self, keys: Sequence[str]) -> Any:
        """The owner of each key, by whatever this client uses itself."""
        raise NotImplementedError

    def close(self) -> Any:
        """Close the connections."""


def _text(key: Any) -> str:
    return key.decode() if isinstance(key, bytes) else str(key)


def host_port(address: str) -> tuple[str, int]:
    """An address in two parts."""
    host, _, port = address.rpartition(":")
    return host, int(port)


class Kvcluster(Rival):
    """This library. Compiled, pure or of another source tree: that is decided by the environment of the process."""

    distribution = "kvcluster"
    operations = Rival.operations | {"place"}

    def __init__(self, addresses: Sequence[str]) -> None:
        from kvcluster import Client

        client = Client(addresses, timeout=PATIENCE, connect_timeout=PATIENCE, pool_size=THREADS)
        self.get, self.set, self.close = client.get, client.set, client.close
        self.get_many, self.set_many, self.delete_many = client.get_many, client.set_many, client.delete_many
        self.place = client.planner.placement.owners


class AsyncKvcluster(Rival):
    """The same for asyncio."""

    distribution = "kvcluster"
    asynchronous = True

    def __init__(self, addresses: Sequence[str]) -> None:
        self.addresses = addresses

    async def open(self) -> None:
        from kvcluster import AsyncClient

        client = AsyncClient(self.addresses, timeout=PATIENCE, connect_timeout=PATIENCE)
        self.get, self.set, self.close = client.get, client.set, client.close
        self.get_many, self.set_many, self.delete_many = client.get_many, client.set_many, client.delete_many


class Pylibmc(Rival):
    """libmemcached by a C extension, with the two behaviours that its documentation recommends for a cluster."""

    distribution = "pylibmc"
    own_per_thread = True

    def __init__(self, addresses: Sequence[str]) -> None:
        import pylibmc

        client = pylibmc.Client(addresses, behaviors={"tcp_nodelay": True, "ketama": True})
        self.get, self.set, self.close = client.get, client.set, client.disconnect_all
        self.get_many, self.set_many, self.delete_many = client.get_multi, client.set_multi, client.delete_multi


class PymemcacheHash(Rival):
    """pymemcache's cluster client. Its set returns before the node answers, by default; here it waits, as all others do."""

    distribution = "pymemcache"
    own_per_thread = True
    operations = Rival.operations | {"place"}

    def __init__(self, addresses: Sequence[str]) -> None:
        from pymemcache import HashClient

        client = HashClient(list(addresses), default_noreply=False)
        self.get, self.set, self.close = client.get, client.set, client.close
        self.get_many, self.set_many, self.delete_many = client.get_many, client.set_many, client.delete_many
        self._owner = client.hasher.get_node

    def place(self, keys: Sequence[str]) -> Any:
        owner = self._owner
        return [owner(key) for key in keys]


class PymemcacheClient(Rival):
    """pymemcache's client for one node."""

    distribution = "pymemcache"
    one_node = True
    own_per_thread = True

    def __init__(self, addresses: Sequence[str]) -> None:
        client = self._client(addresses[0])
        self.get, self.set, self.close = client.get, client.set, client.close
        self.get_many, self.set_many, self.delete_many = client.get_many, client.set_many, client.delete_many

    def _client(self, address: str) -> Any:
        from pymemcache import Client

        return Client(address, default_noreply=False)


class PymemcachePooled(PymemcacheClient):
    """The same behind a pool."""

    own_per_thread = False

    def _client(self, address: str) -> Any:
        from pymemcache import PooledClient

        return PooledClient(address, default_noreply=False, max_pool_size=THREADS)


class MetaMemcache(Rival):
    """Meta commands, parsed in Rust. It has no method that sets or deletes many keys.

    Its ``read_buffer_size`` is raised from the default of 4096 bytes, which is also the socket's receive buffer: with it a call for
    100 values stalls for seconds, and nothing else would be seen.
    """

    distribution = "meta-memcache"
    loops = frozenset({"set_many", "delete_many"})
    operations = Rival.operations | {"place"}

    def __init__(self, addresses: Sequence[str]) -> None:
        from meta_memcache import CacheClient, Key, ServerAddress, connection_pool_factory_builder

        client = CacheClient.cache_client_from_servers(
            [ServerAddress(*host_port(address)) for address in addresses],
            connection_pool_factory_builder(
                connection_timeout=PATIENCE, recv_timeout=PATIENCE, max_pool_size=THREADS, read_buffer_size=64 << 10
            ),
        )
        self.get, self.get_many = client.get, client.multi_get
        self._set, self._delete = client.set, client.delete
        self._owner, self._key = client.router.pool_provider.get_pool, Key

    def set(self, key: str, value: bytes) -> Any:
        return self._set(key, value, None)

    def set_many(self, values: Mapping[str, bytes]) -> None:
        store = self._set
        for key, value in values.items():
            store(key, value, None)

    def delete_many(self, keys: Sequence[str]) -> None:
        delete = self._delete
        for key in keys:
            delete(key)

    def read(self, operation: str, argument: Any, answer: Any) -> dict[str, bytes]:
        if operation == "get_many":
            answer = {getattr(key, "key", key): value for key, value in answer.items()}
        return super().read(operation, argument, answer)

    def place(self, keys: Sequence[str]) -> Any:
        owner, key_of = self._owner, self._key
        return [owner(key_of(key)) for key in keys]


class PythonMemcached(Rival):
    """The oldest. It reports nothing where a node does not answer in time."""

    distribution = "python-memcached"
    operations = Rival.operations | {"place"}

    def __init__(self, addresses: Sequence[str]) -> None:
        import memcache

        client = memcache.Client(list(addresses), socket_timeout=PATIENCE)
        self.get, self.set, self.close = client.get, client.set, client.disconnect_all
        self.get_many, self.set_many, self.delete_many = client.get_multi, client.set_multi, client.delete_multi
        self._owner = client._get_server

    def place(self, keys: Sequence[str]) -> Any:
        owner = self._owner
        return [owner(key.encode())[0] for key in keys]


class Bmemcached(Rival):
    """The binary protocol. It compresses by default, which is turned off."""

    distribution = "python-binary-memcached"
    operations = Rival.operations | {"place"}

    def __init__(self, addresses: Sequence[str]) -> None:
        from bmemcached import DistributedClient

        client = DistributedClient(addresses, socket_timeout=PATIENCE)
        self.get, self.close = client.get, client.disconnect_all
        self.get_many, self.delete_many = client.get_multi, client.delete_multi
        self._set, self._set_many, self._owner = client.set, client.set_multi, client._get_server

    def set(self, key: str, value: bytes) -> Any:
        return self._set(key, value, 0, 0)

    def set_many(self, values: Mapping[str, bytes]) -> Any:
        return self._set_many(values, 0, 0)

    def place(self, keys: Sequence[str]) -> Any:
        owner = self._owner
        return [owner(key) for key in keys]


class Emcache(Rival):
    """Cython and asyncio. Its automatic batches stay off, which is the default: with flags they hang for ever."""

    distribution = "emcache"
    asynchronous = True
    loops = frozenset({"set_many", "delete_many"})

    def __init__(self, addresses: Sequence[str]) -> None:
        self.addresses = addresses

    async def open(self) -> None:
        import emcache

        nodes = [emcache.MemcachedHostAddress(*host_port(address)) for address in self.addresses]
        client = await emcache.create_client(nodes, timeout=PATIENCE)
        self.get, self.set, self.get_many, self.close = client.get, client.set, client.get_many, client.close
        self._delete = client.delete

    def key(self, key: str) -> bytes:
        return key.encode()

    async def set_many(self, values: Mapping[bytes, bytes]) -> None:
        await asyncio.gather(*[self.set(key, value) for key, value in values.items()])

    async def delete_many(self, keys: Sequence[bytes]) -> None:
        await asyncio.gather(*[self._delete(key) for key in keys])

    def value(self, value: Any) -> bytes:
        return value.value


class Aiomcache(Rival):
    """asyncio, one node."""

    distribution = "aiomcache"
    asynchronous = True
    one_node = True
    loops = frozenset({"set_many", "delete_many"})

    def __init__(self, addresses: Sequence[str]) -> None:
        self.address = addresses[0]

    async def open(self) -> None:
        from aiomcache import Client

        client = Client(*host_port(self.address))
        self.get, self.set, self.close = client.get, client.set, client.close
        self._get_many, self._delete = client.multi_get, client.delete

    def key(self, key: str) -> bytes:
        return key.encode()

    async def get_many(self, keys: Sequence[bytes]) -> Any:
        return await self._get_many(*keys)

    async def set_many(self, values: Mapping[bytes, bytes]) -> None:
        await asyncio.gather(*[self.set(key, value) for key, value in values.items()])

    async def delete_many(self, keys: Sequence[bytes]) -> None:
        await asyncio.gather(*[self._delete(key) for key in keys])

    def read(self, operation: str, argument: Any, answer: Any) -> dict[str, bytes]:
        if operation == "get_many":
            answer = dict(zip(argument, answer, strict=True))
        return super().read(operation, argument, answer)


class Memcachio(Rival):
    """asyncio with pipelines. Its get takes any number of keys and returns a dict."""

    distribution = "memcachio"
    asynchronous = True
    loops = frozenset({"set_many", "delete_many"})

    def __init__(self, addresses: Sequence[str]) -> None:
        self.addresses = addresses

    async def open(self) -> None:
        from memcachio import Client, TCPEndpoint

        client = Client([TCPEndpoint(*host_port(address)) for address in self.addresses])
        self.get, self.set = client.get, client.set
        self._get, self._delete, self._pool = client.get, client.delete, client.connection_pool

    async def get_many(self, keys: Sequence[str]) -> Any:
        return await self._get(*keys)

    async def set_many(self, values: Mapping[str, bytes]) -> None:
        await asyncio.gather(*[self.set(key, value) for key, value in values.items()])

    async def delete_many(self, keys: Sequence[str]) -> None:
        await asyncio.gather(*[self._delete(key) for key in keys])

    def read(self, operation: str, argument: Any, answer: Any) -> dict[str, bytes]:
        return super().read("get_many", argument, answer)

    def value(self, value: Any) -> bytes:
        return value.value

    async def close(self) -> None:
        self._pool.close()


class Uhashring(Rival):
    """The ring that meta-memcache and bmemcached place keys with. No client."""

    distribution = "uhashring"
    operations = frozenset({"place"})

    def __init__(self, addresses: Sequence[str]) -> None:
        from uhashring import HashRing

        self._owner = HashRing(list(addresses)).get_node

    def place(self, keys: Sequence[str]) -> Any:
        owner = self._owner
        return [owner(key) for key in keys]


@dataclass(frozen=True)
class Contender:
    """A client in the race.

    :param name: as the tables show it
    :param adapter: its class, as ``module:name``
    :param environment: what its process has beside the usual
    """

    name: str
    adapter: str
    environment: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def rival(self) -> type[Rival]:
        """The class of its adapter."""
        from importlib import import_module

        module, _, name = self.adapter.partition(":")
        return getattr(import_module(module), name)


PURE = {"KVCLUSTER_PURE": "1"}
FLOOR = "floor"

SYNC = (
    Contender(FLOOR, "benchmarks.floor:Floor"),
    Contender("kvcluster", "benchmarks.rivals:Kvcluster"),
    Contender("kvcluster pure", "benchmarks.rivals:Kvcluster", PURE),
    Contender("pylibmc", "benchmarks.rivals:Pylibmc"),
    Contender("pymemcache HashClient", "benchmarks.rivals:PymemcacheHash"),
    Contender("pymemcache Client", "benchmarks.rivals:PymemcacheClient"),
    Contender("pymemcache PooledClient", "benchmarks.rivals:PymemcachePooled"),
    Contender("meta-memcache", "benchmarks.rivals:MetaMemcache"),
    Contender("python-memcached", "benchmarks.rivals:PythonMemcached"),
    Contender("bmemcached", "benchmarks.rivals:Bmemcached"),
    Contender("uhashring", "benchmarks.rivals:Uhashring"),
)
ASYNC = (
    Contender(FLOOR, "benchmarks.floor:AsyncFloor"),
    Contender("kvcluster", "benchmarks.rivals:AsyncKvcluster"),
    Contender("kvcluster pure", "benchmarks.rivals:AsyncKvcluster", PURE),
    Contender("emcache", "benchmarks.rivals:Emcache"),
    Contender("memcachio", "benchmarks.rivals:Memcachio"),
    Contender("aiomcache", "benchmarks.rivals:Aiomcache"),
)
