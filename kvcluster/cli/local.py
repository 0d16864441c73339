"""Clusters of nodes on this machine that outlive the command which started them.

Each cluster is one JSON file in the user's state directory. A process id alone does not say whose process it is: ids are used
again. So the file also holds each process's start time, and a process is taken for a node, or ended, only where both agree.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from kvcluster.errors import ConfigurationError
from kvcluster.testing.nodes import Kind, NodeDidNotStart, embedded_command, find_memcached, memcached_command, wait_until_answering

FORMAT = 1  # of the state file
STOP_TIMEOUT = 5.0  # seconds between SIGTERM and SIGKILL
HOST = "127.0.0.1"
PROC = Path("/proc")  # Linux; elsewhere `ps` is asked


@dataclass(frozen=True, slots=True)
class LocalNode:
    """A node that was started: its address and the identity of its process."""

    address: str
    pid: int
    started: str  # as `start_time` gave it
    kind: Kind

    @property
    def alive(self) -> bool:
        """Whether the very process that was started still runs."""
        return start_time(self.pid) == self.started


def start_time(pid: int) -> str | None:
    """When a process started, as text that only compares for equality; None where there is none, or only its remains."""
    if (PROC / "self" / "stat").exists():
        try:
            # The second field is the program's name in parentheses, and may hold anything.
            fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        state, ticks = fields[0], fields[19]
        boot = (PROC / "sys" / "kernel" / "random" / "boot_id").read_text().strip()
        return None if state == "Z" else f"{boot} {ticks}"
    found = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, started = found.stdout.strip().partition(" ")
    return None if not started or state.startswith("Z") else started.strip()


def state_directory() -> Path:
    """``$XDG_STATE_HOME/kvcluster``, by default ``~/.local/state/kvcluster``."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "kvcluster"


def _file(name: str) -> Path:
    if not re.fullmatch(r"[\w.-]{1,64}", name) or name.startswith("."):
        raise ConfigurationError(f"name {name!r} must be 1 to 64 letters, digits, '_', '-' or '.', and not begin with '.'")
    return state_directory() / f"{name}.json"


def load(name: str) -> list[LocalNode]:
    """The nodes of a cluster, alive or not; none for a cluster that was never started or was taken down."""
    try:
        state = json.loads(_file(name).read_text())
    except FileNotFoundError:
        return []
    if state.get("format") != FORMAT:
        raise ConfigurationError(f"{_file(name)} has format {state.get('format')!r}, this release reads {FORMAT}")
    return [LocalNode(**node) for node in state["nodes"]]


def save(name: str, nodes: Iterable[LocalNode]) -> None:
    """Write down the nodes of a cluster; a reader sees the file before or after, never between."""
    file = _file(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps({"format": FORMAT, "nodes": [asdict(node) for node in nodes]}, indent=2) + "\n")
    fresh.replace(file)


def clusters() -> Iterator[tuple[str, list[LocalNode]]]:
    """Every cluster that was started and not taken down, by name."""
    for file in sorted(state_directory().glob("*.json")):
        yield file.stem, load(file.stem)


def up(name: str, count: int, port: int, memory: int, embedded: bool) -> list[LocalNode]:
    """Start `count` nodes on ports from `port` on; all of them or none.

    :param memory: megabytes for items, per node
    :raises ConfigurationError: when the cluster is up already, or there is no memcached to start
    :raises NodeDidNotStart: when one cannot run; those already started are ended again
    """
    if any(node.alive for node in load(name)):
        raise ConfigurationError(f"cluster {name!r} is up already; kvcluster nodes down --name {name} ends it")
    if port + count - 1 > 65535:
        raise ConfigurationError(f"{count} nodes from port {port} on end above 65535")
    command = _command(memory, embedded)
    kind: Kind = "embedded" if embedded else "binary"
    nodes: list[LocalNode] = []
    try:
        for number in range(port, port + count):
            nodes.append(_start(command(number), f"{HOST}:{number}", kind))
        save(name, nodes)
    except BaseException:
        _end(nodes)
        raise
    return nodes


def _command(memory: int, embedded: bool) -> Callable[[int], list[str]]:
    if embedded:
        return lambda port: embedded_command(port, memory=memory)
    binary = find_memcached()
    if binary is None:
        raise ConfigurationError("memcached is not installed; --embedded starts nodes in pure Python instead")
    return lambda port: memcached_command(binary, port, memory=memory, threads=4)


def _start(command: list[str], address: str, kind: Kind) -> LocalNode:
    # A session of its own: neither Ctrl-C nor the end of the terminal reaches the node.
    process = subprocess.Popen(
        command, start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until_answering(address, lambda: process.poll() is not None, lambda record: record.pid == process.pid)
        started = start_time(process.pid)
        if started is None:
            raise NodeDidNotStart(f"{address}: the node ended at once")
    except BaseException:
        process.kill()
        process.wait()
        raise
    # The process is left to run, which its object would otherwise complain about when it is collected.
    process.returncode = 0
    return LocalNode(address, process.pid, started, kind)


def down(name: str) -> list[LocalNode]:
    """End the nodes of a cluster that still run, and forget the cluster; returns those that were ended."""
    running = [node for node in load(name) if node.alive]
    _end(running)
    _file(name).unlink(missing_ok=True)
    return running


def _end(nodes: Iterable[LocalNode]) -> None:
    running = [node for node in nodes if node.alive]
    for node in running:
        os.kill(node.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT
    while (running := [node for node in running if node.alive]) and time.monotonic() < deadline:
        time.sleep(0.01)
    for node in running:
        os.kill(node.pid, signal.SIGKILL)


def running_addresses() -> list[str]:
    """The addresses of the cluster named ``default`` where it is up, else of the only one that is; none where none is.

    :raises ConfigurationError: when several are up and none is the default
    """
    up_now = {name: [node.address for node in nodes] for name, nodes in clusters() if any(node.alive for node in nodes)}
    if "default" in up_now:
        return up_now["default"]
    if len(up_now) > 1:
        raise ConfigurationError(f"several clusters are up ({', '.join(up_now)}): say which nodes with --nodes")
    return next(iter(up_now.values()), [])
