"""`kvcluster nodes` starts processes that outlive it, and ends those and no others."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kvcluster.cli import local
from kvcluster.stats.server import ask
from kvcluster.testing.nodes import KINDS, EmbeddedProcess, find_memcached

Cli = Callable[..., tuple[int, str, str]]
binary_only = pytest.mark.skipif(not find_memcached(), reason="no memcached binary here")
EMBEDDED = () if find_memcached() else ("--embedded",)


@pytest.fixture
def port() -> int:
    """The first of three ports in a row that are free; below those which systems give to clients."""
    while True:
        first = random.randrange(20000, 30000)
        with ExitStack() as probes:
            try:
                for number in range(first, first + 3):
                    probes.enter_context(socket.socket()).bind(("127.0.0.1", number))
            except OSError:
                continue
            return first


@pytest.fixture(autouse=True)
def _nothing_left(cli: Cli) -> Iterator[None]:
    yield
    for name, _ in list(local.clusters()):
        local.down(name)


@pytest.mark.parametrize("embedded", [pytest.param((), marks=binary_only), ("--embedded",)])
def test_up_list_stats_down(cli: Cli, port: int, embedded: tuple[str, ...]) -> None:
    addresses = [f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}"]

    code, out, err = cli("nodes", "up", "--count", "2", "--port", str(port), "--memory", "8", *embedded)
    assert (code, err) == (0, "")
    assert f"export KVCLUSTER_URL=memcached://{','.join(addresses)}\n" in out
    records = [ask(address) for address in addresses]
    assert [(record.error, record.limit) for record in records] == [(None, 8 << 20)] * 2

    kind = "embedded" if embedded else "memcached"
    code, out, _ = cli("nodes", "list")
    lines = [line.split() for line in out.splitlines()]
    assert code == 0
    assert lines == [
        ["cluster", "node", "pid", "kind", "state"],
        *(["default", record.address, str(record.pid), kind, "alive"] for record in records),
    ]

    code, out, _ = cli("stats", "--json")
    assert code == 0
    assert [node["address"] for node in json.loads(out)["nodes"]] == addresses

    code, out, _ = cli("nodes", "down")
    assert (code, out) == (0, "nodes ended in cluster default: 2\n")
    assert all(ask(address).error for address in addresses)
    assert cli("nodes", "list")[1] == "no clusters: kvcluster nodes up starts one\n"
    assert cli("nodes", "down")[1] == "nodes ended in cluster default: 0\n"


def test_a_cluster_that_is_up_is_not_started_again(cli: Cli, port: int) -> None:
    assert cli("nodes", "up", "--count", "1", "--port", str(port), *EMBEDDED)[0] == 0
    code, _, err = cli("nodes", "up", "--count", "1", "--port", str(port + 1), *EMBEDDED)
    assert code == 2
    assert err == "kvcluster: cluster 'default' is up already; kvcluster nodes down --name default ends it\n"
    assert cli("nodes", "up", "--count", "1", "--port", str(port + 1), "--name", "other", *EMBEDDED)[0] == 0
    assert local.running_addresses() == [f"127.0.0.1:{port}"]


def test_all_or_none(cli: Cli, port: int) -> None:
    with socket.create_server(("127.0.0.1", port + 1)):
        code, out, err = cli("nodes", "up", "--count", "3", "--port", str(port), *EMBEDDED)
    assert (code, out) == (1, "")
    assert err.startswith(f"kvcluster: 127.0.0.1:{port + 1}: ")
    assert err.count("\n") == 1
    assert ask(f"127.0.0.1:{port}").error
    assert list(local.clusters()) == []


def test_a_process_with_a_used_id_is_left_alone(cli: Cli) -> None:
    with EmbeddedProcess() as other:
        local.save("default", [local.LocalNode(other.address, other.pid, "some other time", "embedded")])
        assert "ended" in cli("nodes", "list")[1]
        assert cli("nodes", "down")[1] == "nodes ended in cluster default: 0\n"
        assert other.alive


def test_a_node_that_ignores_the_request_to_end_is_killed(cli: Cli, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cli("nodes", "up", "--count", "1", "--port", str(port), *EMBEDDED)
    (node,) = local.load("default")
    os.kill(node.pid, 19)  # SIGSTOP: SIGTERM waits
    monkeypatch.setattr(local, "STOP_TIMEOUT", 0.05)
    assert cli("nodes", "down")[0] == 0
    os.waitpid(node.pid, 0)
    assert not node.alive


@pytest.mark.parametrize("name", ["", "../x", ".hidden", "a b", "x" * 65])
def test_names_stay_inside_the_directory(cli: Cli, name: str, tmp_path: Path) -> None:
    code, _, err = cli("nodes", "down", "--name", name)
    assert code == 2
    assert "name" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--count", "0"), "'--count'"),
        (("--port", "65535", "--count", "2", "--embedded"), "2 nodes from port 65535 on end above 65535"),
    ],
)
def test_wrong_numbers(cli: Cli, arguments: tuple[str, ...], message: str) -> None:
    code, _, err = cli("nodes", "up", *arguments)
    assert code == 2
    assert message in err


def test_without_memcached_embedded_nodes_are_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "find_memcached", lambda: None)
    code, _, err = cli("nodes", "up")
    assert (code, err) == (2, "kvcluster: memcached is not installed; --embedded starts nodes in pure Python instead\n")


def test_a_state_file_of_another_release_is_named(cli: Cli, tmp_path: Path) -> None:
    local.save("default", [])
    (file,) = (tmp_path / "kvcluster").iterdir()
    file.write_text('{"format": 99}')
    code, _, err = cli("nodes", "list")
    assert code == 2
    assert f"{file} has format 99, this release reads 1" in err
    file.unlink()


def test_which_cluster_is_meant(cli: Cli) -> None:
    started = local.start_time(os.getpid())
    assert started is not None

    def alive(port: int) -> list[local.LocalNode]:
        return [local.LocalNode(f"127.0.0.1:{port}", os.getpid(), started, KINDS[0])]

    assert local.running_addresses() == []
    local.save("one", alive(1))
    assert local.running_addresses() == ["127.0.0.1:1"]
    local.save("two", alive(2))
    code, _, err = cli("stats")
    assert (code, err) == (2, "kvcluster: several clusters are up (one, two): say which nodes with --nodes\n")
    local.save("default", alive(3))
    assert local.running_addresses() == ["127.0.0.1:3"]
    for name in ("one", "two", "default"):  # or the fixture would end this very process
        local.save(name, [])


@pytest.mark.parametrize("proc", ["/proc", "/nowhere"])
def test_start_time_tells_processes_apart(proc: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path(proc).exists() and not shutil.which("ps"):
        pytest.skip("no ps here")
    monkeypatch.setattr(local, "PROC", Path(proc))
    child = subprocess.Popen(["sleep", "60"])
    first = local.start_time(child.pid)
    assert first is not None
    assert first == local.start_time(child.pid)
    assert first != local.start_time(1)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert local.start_time(child.pid) is None  # ended, and not yet forgotten by the system
    child.wait()
    assert local.start_time(child.pid) is None
