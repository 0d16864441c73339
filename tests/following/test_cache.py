"""Reading through the cache while the cluster under it is resized."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvcluster import AsyncClient, Cache, Client
from kvcluster.testing.plugin import NodeFactory
from tests.following.stage import ORDER, Stage


class Shop:
    """A table of versions, and a cache of it that follows a resize; calls of either kind return their results."""

    def __init__(self, stage: Stage, kind: str, runner: asyncio.Runner) -> None:
        self.stage = stage
        self.rows: dict[str, int] = {}
        self.loads: list[str] = []
        self._run = runner.run if kind == "async" else lambda result: result
        self.client: Any = stage.client()
        self.cache = cache = Cache("shop", ttl=600, client=self.client)
        self.version: Any

        def load(name: str) -> int:
            self.loads.append(name)
            return self.rows.get(name, 0)

        async def load_async(name: str) -> int:
            return load(name)

        function = load if kind == "sync" else load_async
        self.version = cache.loader("version:{name}", stale_while_revalidate=60)(function)

    def read(self, name: str) -> int:
        return self._run(self.version(name))  # type: ignore[no-any-return, arg-type]

    def read_many(self, names: list[str]) -> dict[str, int]:
        return self._run(self.version.get_many(names))  # type: ignore[no-any-return, arg-type]

    def call(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return self._run(function(*args, **options))

    def moving(self, count: int) -> list[str]:
        """Names whose keys change owner."""
        names = (f"row{number}" for number in range(10_000))
        found = (name for name in names if len(set(self.stage.owners(f"shop:version:{name}"))) == 2)
        return [next(found) for _ in range(count)]


@pytest.fixture(params=["sync", "async"])
def shop(request: pytest.FixtureRequest, tmp_path: Path, kv_nodes: NodeFactory) -> Iterator[Shop]:
    addresses = [node.address for node in kv_nodes(3)]
    connect = Client.from_topology if request.param == "sync" else AsyncClient.from_topology
    with asyncio.Runner() as runner:
        stage = Stage(tmp_path, addresses, connect)
        shop = Shop(stage, request.param, runner)
        yield shop
        shop.call(shop.client.close)


def test_nothing_is_loaded_again_because_of_a_migration(shop: Shop) -> None:
    names = [*shop.moving(10), "x", "y", "z"]
    for name in names:
        assert shop.read(name) == 0
    assert len(shop.loads) == len(names)
    for phase in ("prepare", "migrate"):
        assert shop.stage.advance().phase == phase
        shop.call(shop.client.get, "warm")
        assert [shop.read(name) for name in names[:5]] == [0] * 5
        assert shop.read_many(names) == dict.fromkeys(names, 0)
    for phase in ("drain", "new", "old"):
        assert shop.stage.advance().phase == phase
        shop.call(shop.client.get, "warm")
        assert shop.read_many(names) == dict.fromkeys(names, 0)
        assert [shop.read(name) for name in names] == [0] * len(names)
    assert len(shop.loads) == len(names)


@pytest.mark.parametrize("phase", ORDER)
def test_an_invalidation_is_seen_in_every_phase(shop: Shop, phase: str) -> None:
    (name,) = shop.moving(1)
    assert shop.read(name) == 0
    while shop.stage.document.phase != phase:
        shop.stage.advance()
    shop.rows[name] = 1
    shop.call(shop.version.invalidate, name)
    assert shop.read(name) == 1
    assert shop.read_many([name, "other"]) == {name: 1, "other": 0}
    shop.rows[name] = 2
    shop.call(shop.version.invalidate, name, soft=True)
    deadline = time.monotonic() + 5
    while shop.read(name) != 2:  # the old value is served until one reader has refreshed it
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert shop.read_many([name]) == {name: 2}


def test_a_soft_invalidation_reaches_a_value_that_has_not_moved_yet(shop: Shop) -> None:
    (name,) = shop.moving(1)
    assert shop.read(name) == 0
    while shop.stage.advance().phase != "migrate":
        pass
    shop.call(shop.client.get, "warm")
    shop.rows[name] = 1
    shop.call(shop.version.invalidate, name, soft=True)
    assert shop.read(name) == 1, "what is stale is not copied"


def test_a_call_that_meets_the_change_is_answered_and_stores_nothing_wrong(shop: Shop) -> None:
    (name,) = shop.moving(1)
    key = f"shop:version:{name}"
    _o, n = shop.stage.owners(key)
    assert shop.read(name) == 0
    while shop.stage.advance().phase != "new":
        pass
    shop.rows[name] = 1
    assert shop.read(name) == 1, "what the old owner has counts no more"
    assert shop.stage.at(n, key) in (None, b"1")
    assert shop.read(name) == 1
    assert shop.read(name) == 1
    assert shop.stage.at(n, key) is not None
    assert len(shop.loads) <= 3


@pytest.mark.timeout(60)
def test_no_read_is_stale_while_the_cluster_is_resized(tmp_path: Path, kv_nodes: NodeFactory) -> None:
    """Readers and writers in threads of several clients, through all phases of two resizes' worth of keys."""
    stage = Stage(tmp_path, [node.address for node in kv_nodes(4)], Client.from_topology, replaced=2)
    rows = {str(number): 0 for number in range(8)}
    done = dict(rows)
    stale: list[str] = []
    reads = [0]
    over = threading.Event()
    errors: list[BaseException] = []

    def shop() -> Any:
        cache = Cache("shop", ttl=600, client=stage.client())
        return cache.loader("version:{name}")(lambda name: rows[name])

    def reader(version: Any) -> None:
        while not over.is_set():
            for name in rows:
                floor = done[name]
                found = version(name)
                reads[0] += 1
                if found < floor:
                    stale.append(f"{name}: {found} after {floor}, {stage.document.phase}")

    def writer(version: Any, names: list[str]) -> None:
        while not over.is_set():
            for name in names:
                rows[name] += 1
                written = rows[name]
                version.invalidate(name)
                done[name] = written

    def guarded(work: Callable[..., None], *args: Any) -> None:
        try:
            work(*args)
        except BaseException as error:
            errors.append(error)

    names = list(rows)
    threads = [threading.Thread(target=guarded, args=(reader, shop())) for _ in range(3)]
    threads += [threading.Thread(target=guarded, args=(writer, shop(), names[at::2])) for at in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            time.sleep(0.4)
            stage.advance()
        time.sleep(0.4)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    stage.close()
    assert not errors
    assert not stale
    assert reads[0] > 500
