"""What is not a call: the time of an import, the memory of an idle client, and what a thousand nodes cost.

Each figure comes from fresh processes. Times are medians of interleaved ones, as everywhere; memory is resident memory as Linux
has it.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.rivals import FLOOR, Contender
from benchmarks.run import PREPARE_LIMIT, ROOT, Bench, Process, Stopped
from kvcluster.testing.nodes import MemcachedProcess, find_memcached

LINUX = sys.platform == "linux"
IDLE_CLIENTS = 50
MANY_CLIENTS = 100
BIG = (10, 100, 1000)  # nodes
MOST_CONNECTIONS = 2000
IMPORTS = {
    "kvcluster": "from kvcluster import Client",
    "kvcluster (asyncio)": "from kvcluster import AsyncClient",
    "pylibmc": "from pylibmc import Client",
    "pymemcache": "from pymemcache import HashClient",
    "meta-memcache": "from meta_memcache import CacheClient",
    "python-memcached": "from memcache import Client",
    "bmemcached": "from bmemcached import DistributedClient",
    "emcache (asyncio)": "from emcache import create_client",
    "memcachio (asyncio)": "from memcachio import Client",
    "aiomcache (asyncio)": "from aiomcache import Client",
}


def imports(rounds: int) -> dict[str, float | str]:
    """Seconds that importing each library's client adds to starting Python, or why it cannot be imported."""
    statements = {"": "pass", **IMPORTS}
    times: dict[str, list[float]] = {name: [] for name in statements}
    troubles: dict[str, str] = {}
    for _ in range(rounds + 1):
        for name, statement in statements.items():
            start = time.perf_counter()
            ended = subprocess.run([sys.executable, "-c", statement], cwd=ROOT, capture_output=True, text=True, check=False)
            times[name].append(time.perf_counter() - start)
            if ended.returncode:
                troubles[name] = ended.stderr.strip().splitlines()[-1]
    # The first round compiles and reads from disk.
    cost = {
        name: statistics.median(mine - bare for mine, bare in zip(times[name][1:], times[""][1:], strict=True)) for name in IMPORTS
    }
    return {**cost, **troubles}


def idle_clients(bench: Bench, contenders: Iterable[Contender]) -> dict[str, tuple[float, float] | str]:
    """Resident bytes and open descriptors of one more client with open connections to 4 nodes, or why that is not known."""
    found: dict[str, tuple[float, float] | str] = {}
    for contender in contenders:
        rival = contender.rival
        name = f"{contender.name}{' (asyncio)' if rival.asynchronous else ''}"
        if "get_many" not in rival.operations or contender.name == FLOOR:
            continue
        process = Process(contender)
        try:
            addresses = bench.addresses(1 if rival.one_node else 4)
            process.ask("open", PREPARE_LIMIT, adapter=contender.adapter, name=contender.name, addresses=addresses)
            found[name] = tuple(process.ask("memory", PREPARE_LIMIT, clients=IDLE_CLIENTS))
        except Stopped as error:
            found[name] = str(error)
        finally:
            if process.process.returncode is None:
                process.close()
    return found


@dataclass(frozen=True)
class Big:
    """What many clients of many nodes cost in one process.

    - ``build``: seconds until a new client has its placement
    - ``client``: resident bytes of one more client that has asked nobody
    - ``connection``: resident bytes of one more connection, and ``descriptors`` that a client holds which has asked every node
    """

    nodes: int
    clients: int
    connected: int
    build: float
    client: float
    connection: float
    descriptors: float


def big_clusters(
    contender: Contender, sizes: Sequence[int] = BIG, clients: int = MANY_CLIENTS, limit: float = 60.0
) -> list[Big | str]:
    """So many clients of clusters of these sizes in one process. All nodes are one real process at as many loopback addresses."""
    if not LINUX or find_memcached() is None:
        return ["left out: it takes memcached and the loopback addresses of Linux"]
    found: list[Big | str] = []
    addresses = [f"127.1.{number // 250}.{number % 250 + 1}" for number in range(max(sizes))]
    with many_faces(addresses) as port:
        for count in sizes:
            # No more connections than usual limits on descriptors leave room for.
            connected = max(1, min(clients, MOST_CONNECTIONS // count))
            process = Process(contender)
            try:
                nodes = [f"{address}:{port}" for address in addresses[:count]]
                process.ask("open", limit, adapter=contender.adapter, name=contender.name, addresses=nodes)
                found.append(Big(count, clients, connected, **process.ask("crowd", limit, clients=clients, connected=connected)))
            except Stopped as error:
                found.append(f"{count} nodes, {clients} clients: {error}")
            finally:
                if process.process.returncode is None:
                    process.close()
    return found


@contextmanager
def many_faces(addresses: Sequence[str]) -> Any:
    """One memcached that listens at many addresses of loopback; its port."""
    # `-l` is cumulative, so loopback itself, which the starter asks for, stays among them.
    with MemcachedProcess(arguments=["-l", ",".join(addresses), "-c", "8000"]) as node:
        yield int(node.address.rpartition(":")[2])
