"""The pytest plugin: `kv_nodes` gives a test real nodes, `kvcache` gives users a cache of their own for each test.

pytest loads this module in every project that has kvcluster installed, so it imports nothing that such a project may not need;
what a fixture takes is imported when a test asks for that fixture.

Nodes are started once per session and worker and handed from test to test, flushed and mended on the way: starting takes a while
in Docker, and a test that killed or paused a node must not be noticed by the next.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import pytest

if TYPE_CHECKING:
    from kvcluster.testing.kvcache import KvCache
    from kvcluster.testing.nodes import Kind, RunningNode

# What the tests of each package ran on, such as {"tests/client": {"memcached 1.6.18 (binary)"}}.
_ran_on = pytest.StashKey[defaultdict[str, set[str]]]()


class NodeFactory(Protocol):
    """What the fixture `kv_nodes` gives."""

    def __call__(
        self, count: int = 1, *, kind: Kind | None = None, memory: int = 64, threads: int = 1, arguments: Sequence[str] = ()
    ) -> list[RunningNode]:
        """Running, empty nodes, whose counters are at zero; each call in a test gives others.

        :param kind: for a test that is about one kind of node; else the option ``--kv-nodes`` decides
        :param memory: megabytes for items, per node
        :param threads: worker threads per node
        :param arguments: further options of memcached, such as ``["-I", "8m"]``
        """


class _Wanted(NamedTuple):
    kind: Kind
    memory: int
    threads: int
    arguments: tuple[str, ...]


class _Pool:
    """Nodes that no test uses now, by what was wanted of them."""

    def __init__(self, option: Kind | Literal["auto"]) -> None:
        self._option = option
        self._idle: defaultdict[_Wanted, list[RunningNode]] = defaultdict(list)

    @cached_property
    def default_kind(self) -> Kind:
        from kvcluster.testing.nodes import best_kind

        return best_kind() if self._option == "auto" else self._option

    def take(self, wanted: _Wanted) -> RunningNode:
        from kvcluster.testing.nodes import start_node

        if not self._idle[wanted]:
            return start_node(wanted.kind, memory=wanted.memory, threads=wanted.threads, arguments=wanted.arguments)
        node = self._idle[wanted].pop()
        _mend(node)
        return node

    def give_back(self, wanted: _Wanted, node: RunningNode) -> None:
        self._idle[wanted].append(node)

    def close(self) -> None:
        for nodes in self._idle.values():
            for node in nodes:
                node.stop()


def _mend(node: RunningNode) -> None:
    """Make a node that another test has used as good as new."""
    from pymemcache.client.base import Client
    from pymemcache.exceptions import MemcacheError

    node.resume()
    client = Client(node.address, connect_timeout=5, timeout=5)
    try:
        client.flush_all(noreply=False)
        client.raw_command(b"stats reset")
    except (OSError, MemcacheError):
        node.restart()
    finally:
        client.close()


def _describe(node: RunningNode) -> str:
    from kvcluster.stats.server import ask

    # An embedded node answers with the version that it imitates, which is not what the tests ran on.
    return "embedded nodes" if node.kind == "embedded" else f"memcached {ask(node.address).version} ({node.kind})"


@pytest.fixture(scope="session")
def _kv_node_pool(pytestconfig: pytest.Config) -> Iterator[_Pool]:
    pool = _Pool(pytestconfig.getoption("--kv-nodes"))
    yield pool
    pool.close()


@pytest.fixture
def kv_nodes(request: pytest.FixtureRequest, _kv_node_pool: _Pool) -> Iterator[NodeFactory]:
    """A factory of real nodes on this machine: ``first, second = kv_nodes(2)``. See `NodeFactory` for its parameters."""
    taken: list[tuple[_Wanted, RunningNode]] = []
    package = _package(request.node.path, request.config.rootpath)

    def start(
        count: int = 1, *, kind: Kind | None = None, memory: int = 64, threads: int = 1, arguments: Sequence[str] = ()
    ) -> list[RunningNode]:
        wanted = _Wanted(kind or _kv_node_pool.default_kind, memory, threads, tuple(arguments))
        first = len(taken)
        for _ in range(count):
            taken.append((wanted, _kv_node_pool.take(wanted)))
        nodes = [node for _, node in taken[first:]]
        request.config.stash[_ran_on][package].update(_describe(node) for node in nodes[:1])
        return nodes

    yield start
    for wanted, node in taken:
        _kv_node_pool.give_back(wanted, node)


@pytest.fixture
def kvcache(request: pytest.FixtureRequest) -> Iterator[KvCache]:
    """A node of this test's own in this process, a clock to advance, and counts of what loaders did. See `KvCache`."""
    from kvcluster.testing.kvcache import KvCache

    with KvCache(name=request.node.nodeid, worker=getattr(request.config, "workerinput", {}).get("workerid", "main")) as cache:
        yield cache


def _package(path: Any, root: Any) -> str:
    parent = path.parent
    return str(parent.relative_to(root) if parent.is_relative_to(root) else parent)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("kvcluster").addoption(
        "--kv-nodes",
        choices=("auto", "binary", "docker", "embedded"),
        default="auto",
        help="what the fixture kv_nodes starts: the memcached binary, memcached in Docker, embedded nodes, or (auto, the "
        "default) the first of these that can be had here",
    )


def pytest_configure(config: pytest.Config) -> None:
    ran_on: defaultdict[str, set[str]] = defaultdict(set)
    config.stash[_ran_on] = ran_on


def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        # execnet carries plain values only
        output["kvcluster_ran_on"] = {package: sorted(kinds) for package, kinds in session.config.stash[_ran_on].items()}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """A worker of pytest-xdist has ended: what it ran on belongs into the summary of the whole run."""
    for package, kinds in getattr(node, "workeroutput", {}).get("kvcluster_ran_on", {}).items():
        node.config.stash[_ran_on][package].update(kinds)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for package, kinds in sorted(config.stash[_ran_on].items()):
        terminalreporter.write_line(f"kvcluster nodes: {package} ran on {', '.join(sorted(kinds))}")
