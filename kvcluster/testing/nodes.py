"""Real nodes for tests: started in a moment, disturbed at will, and gone with the test.

There are three kinds behind one small protocol, `RunningNode`: the ``memcached`` binary, memcached in Docker, and kvcluster's
embedded node in a process of its own. All listen on loopback at an address that stays theirs through `restart`.

A free port cannot be reserved for another process, only guessed. So a port is picked, the node is started on it, and the node is
believed only when ``stats`` at that address names the very process that was started; otherwise it ends and another port is tried.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar

from kvcluster.errors import ConfigurationError, KvclusterError, MissingExtra
from kvcluster.stats import server

if TYPE_CHECKING:
    from typing import Self

Kind: TypeAlias = Literal["binary", "docker", "embedded"]
KINDS: tuple[Kind, ...] = ("binary", "docker", "embedded")
DOCKER_IMAGE = "memcached:1.6"
START_TIMEOUT = 10.0  # seconds; a node takes 20 ms, a container a second
START_ATTEMPTS = 5  # ports tried before the cause is taken to be something else

T = TypeVar("T")


class NodeDidNotStart(KvclusterError):
    """A node ended, or did not answer, while it was started."""


class RunningNode(Protocol):
    """A node on this machine that a test may disturb."""

    address: str
    kind: Kind

    @property
    def alive(self) -> bool:
        """Whether the process runs; a paused one does."""

    def pause(self) -> None:
        """Stop answering without closing anything: connections still open, requests still arrive."""

    def resume(self) -> None:
        """Answer again, first what arrived meanwhile. Without effect on a node that is not paused."""

    def kill(self) -> None:
        """End at once, as by a crash. Items are lost, and connections to the address are refused."""

    def restart(self) -> None:
        """End if still running, and start again at the same address, empty."""

    def stop(self) -> None:
        """End for good."""


def free_port() -> int:
    """A TCP port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def find_memcached() -> str | None:
    """The path of the ``memcached`` binary, or None."""
    return shutil.which("memcached")


def memcached_command(
    binary: str, port: int, *, memory: int = 64, threads: int = 1, socket_path: str | None = None, arguments: Sequence[str] = ()
) -> list[str]:
    """The command line of one node on loopback, or on a Unix socket alone.

    :param memory: megabytes for items
    :param threads: worker threads of the node
    :param arguments: further options of memcached, such as ``["-I", "8m"]``

    >>> memcached_command("memcached", 22122, memory=8)[:7]
    ['memcached', '-m', '8', '-t', '1', '-l', '127.0.0.1']
    """
    listen = ["-s", socket_path] if socket_path else ["-l", "127.0.0.1", "-p", str(port)]
    # memcached refuses to run as root unless that is asked for by name.
    user = ["-u", "root"] if os.geteuid() == 0 else []
    return [binary, "-m", str(memory), "-t", str(threads), *listen, *user, *arguments]


def embedded_command(port: int, *, memory: int = 64) -> list[str]:
    """The command line of an embedded node on loopback.

    :param memory: megabytes for items
    """
    return [sys.executable, "-m", "kvcluster.embedded", "--port", str(port), "--memory", str(memory)]


def wait_until_answering(address: str, ended: Callable[[], bool], is_ours: Callable[[server.NodeStats], bool]) -> server.NodeStats:
    """Ask until the node at `address` answers.

    :param ended: whether the node has given up; asked between attempts
    :param is_ours: whether the answer comes from the node that was started, not from one that had the port already
    :raises NodeDidNotStart: when it ended, did not answer in `START_TIMEOUT` seconds, or another one answers
    """
    deadline = time.monotonic() + START_TIMEOUT
    while not ended():
        record = server.ask(address, timeout=1.0)
        if record.error is None:
            if is_ours(record):
                return record
            raise NodeDidNotStart(f"{address}: another process answers there")
        if time.monotonic() > deadline:
            raise NodeDidNotStart(f"{address}: no answer within {START_TIMEOUT:g} s: {record.error}")
        time.sleep(0.005)
    raise NodeDidNotStart(f"{address}: the node ended while it started")


def on_free_port(start: Callable[[int], T]) -> T:
    """Call `start` with one free port after another until it does not raise `NodeDidNotStart`."""
    for _ in range(START_ATTEMPTS - 1):
        try:
            return start(free_port())
        except NodeDidNotStart:
            continue
    return start(free_port())


class ProcessNode:
    """A node that is a child process; see `MemcachedProcess` and `EmbeddedProcess`.

    :param command: the command line for a port
    :param socket_path: the Unix socket it listens on, instead of a port
    """

    def __init__(self, kind: Kind, command: Callable[[int], list[str]], socket_path: str | None = None) -> None:
        self.kind: Kind = kind
        self._command = command
        self._socket_path = socket_path
        self._port = 0
        self.address = f"unix:{socket_path}"
        self._paused = False
        self._process: subprocess.Popen[bytes]
        if socket_path:
            self._start(0)
        else:
            on_free_port(self._start)

    def _start(self, port: int) -> None:
        if not self._socket_path:
            self._port, self.address = port, f"127.0.0.1:{port}"
        with tempfile.TemporaryFile() as complaints:
            process = subprocess.Popen(self._command(port), stdin=subprocess.DEVNULL, stdout=complaints, stderr=complaints)
            self._process, self._paused = process, False
            try:
                wait_until_answering(self.address, lambda: process.poll() is not None, lambda record: record.pid == process.pid)
            except BaseException as error:
                self.kill()
                complaints.seek(0)
                error.add_note(complaints.read().decode(errors="replace").strip())
                raise

    @property
    def pid(self) -> int:
        """The process id of the node."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def pause(self) -> None:
        if self._paused or not self.alive:
            return
        self._process.send_signal(signal.SIGSTOP)
        # The signal takes effect in its own time; a test that asks at once must find the node silent.
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        self._paused = os.WIFSTOPPED(status)
        if not self._paused:
            self._process.returncode = os.waitstatus_to_exitcode(status)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)
        self._paused = False

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        self.kill()
        self._start(self._port)

    def stop(self) -> None:
        self.kill()
        if self._socket_path and os.path.exists(self._socket_path):
            os.unlink(self._socket_path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.address} pid {self.pid} {'alive' if self.alive else 'ended'}>"


class MemcachedProcess(ProcessNode):
    """A memcached process from the installed binary.

    :param memory: megabytes for items
    :param threads: its worker threads
    :param socket_path: listen on this Unix socket instead of a port
    :param arguments: further options of memcached, such as ``["-I", "8m"]``
    :raises NodeDidNotStart: when it cannot run, as with an option that it does not know
    """

    def __init__(
        self, *, memory: int = 64, threads: int = 1, socket_path: str | None = None, arguments: Sequence[str] = ()
    ) -> None:
        binary = find_memcached()
        if binary is None:
            raise ConfigurationError("there is no memcached on the PATH")

        def command(port: int) -> list[str]:
            return memcached_command(binary, port, memory=memory, threads=threads, socket_path=socket_path, arguments=arguments)

        super().__init__("binary", command, socket_path)


class EmbeddedProcess(ProcessNode):
    """kvcluster's embedded node in a process of its own, so that it can be paused and killed like the others.

    :param memory: megabytes for items
    """

    def __init__(self, *, memory: int = 64) -> None:
        super().__init__("embedded", lambda port: embedded_command(port, memory=memory))


class DockerNode:
    """memcached in a container, by testcontainers.

    :param memory: megabytes for items
    :param threads: worker threads of the node
    :param arguments: further options of memcached, such as ``["-I", "8m"]``
    :raises MissingExtra: without the extra ``testing``
    """

    kind: Kind = "docker"

    def __init__(self, *, memory: int = 64, threads: int = 1, arguments: Sequence[str] = ()) -> None:
        self._arguments = ["memcached", "-m", str(memory), "-t", str(threads), *arguments]
        self._container: Any
        on_free_port(self._start)

    def _start(self, port: int) -> None:
        self.address = f"127.0.0.1:{port}"
        # The port is named, because Docker would give the container another one at every restart.
        container = _memcached_container()(DOCKER_IMAGE).with_bind_ports(11211, port).with_command(self._arguments)
        self._container = container
        try:
            container.start()
            self._wait()
        except Exception as error:
            container.stop()
            raise NodeDidNotStart(f"{self.address}: {error}") from error

    def _wait(self) -> None:
        wait_until_answering(self.address, lambda: not self.alive, lambda record: True)

    @property
    def _handle(self) -> Any:
        return self._container.get_wrapped_container()

    @property
    def alive(self) -> bool:
        self._handle.reload()
        return self._handle.status in ("running", "paused")

    def pause(self) -> None:
        self._handle.reload()
        if self._handle.status == "running":
            self._handle.pause()

    def resume(self) -> None:
        self._handle.reload()
        if self._handle.status == "paused":
            self._handle.unpause()

    def kill(self) -> None:
        if self.alive:
            self._handle.kill()

    def restart(self) -> None:
        self.kill()
        self._handle.start()
        self._wait()

    def stop(self) -> None:
        self._container.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<DockerNode {self.address}>"


def _memcached_container() -> Any:
    try:
        with warnings.catch_warnings():
            # testcontainers decorates its own class by a function that it calls deprecated.
            warnings.simplefilter("ignore", DeprecationWarning)
            from testcontainers.community.memcached import MemcachedContainer
    except ImportError as error:
        raise MissingExtra("testing", "a node in Docker") from error
    return MemcachedContainer


@cache
def docker_answers() -> bool:
    """Whether a Docker engine can be used from here, by testcontainers; asked once per process."""
    # In a process of its own: where no engine listens, its client leaks a socket, which would be a warning in somebody's test.
    script = "import docker, testcontainers.core; docker.from_env(timeout=5).ping()"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0


def best_kind() -> Kind:
    """The first kind of node that can be had here: the binary, then Docker, then embedded."""
    if find_memcached():
        return "binary"
    return "docker" if docker_answers() else "embedded"


def start_node(
    kind: Kind | Literal["auto"] = "auto", *, memory: int = 64, threads: int = 1, arguments: Sequence[str] = ()
) -> RunningNode:
    """Start one node.

    :param kind: ``"auto"`` takes the first that can be had here: the binary, then Docker, then embedded
    :param memory: megabytes for items
    :param threads: worker threads; an embedded node has none to choose
    :param arguments: further options of memcached; not for an embedded node
    :raises NodeDidNotStart: when it cannot run
    :raises ConfigurationError: for a kind that does not exist or is not to be had here
    """
    match best_kind() if kind == "auto" else kind:
        case "binary":
            return MemcachedProcess(memory=memory, threads=threads, arguments=arguments)
        case "docker":
            return DockerNode(memory=memory, threads=threads, arguments=arguments)
        case "embedded":
            if arguments:
                raise ConfigurationError(f"an embedded node takes no options of memcached, such as {arguments[0]!r}")
            return EmbeddedProcess(memory=memory)
        case other:
            raise ConfigurationError(f"kind of node must be auto, binary, docker or embedded, not {other!r}")
