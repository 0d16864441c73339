"""A memcached-compatible node in pure Python, for first runs and for tests. Never for production: it is one lock and one process.

It speaks the classic and the meta commands of memcached 1.6.18, and answers bad input as that server does; a contract suite holds
the two equal. Clients reach it in three ways:

- in the process: `node("name")` is the node behind ``memory://name``, and `MemorySocket` stands in for a socket to it;
- without any I/O: `EmbeddedNode.session` and `Session.receive`, bytes in and bytes out;
- over TCP: `kvcluster.embedded.server.serve`, or ``python -m kvcluster.embedded --port 11211``.

The parts, lowest first: `parsing` reads tokens as C does, `items` keeps what is cached, `answers` is what commands return,
`classic`, `meta` and `reports` are the commands, `node` cuts a stream of bytes into them, `memory` and `server` carry the bytes.
"""

from __future__ import annotations

from threading import Lock

from kvcluster.embedded.memory import MemorySocket, SocketModule
from kvcluster.embedded.node import EmbeddedNode, Session

__all__ = ["EmbeddedNode", "MemorySocket", "Session", "SocketModule", "node", "register"]

_nodes: dict[str, EmbeddedNode] = {}
_nodes_lock = Lock()


def node(name: str = "default") -> EmbeddedNode:
    """The node of this name in this process, made at its first use.

    >>> node("a") is node("a"), node("a") is node("b")
    (True, False)
    """
    with _nodes_lock:
        if name not in _nodes:
            _nodes[name] = EmbeddedNode()
        return _nodes[name]


def register(name: str, node: EmbeddedNode | None) -> None:
    """Put a node with a clock or a memory limit of its own behind ``memory://name``; None forgets the node there."""
    with _nodes_lock:
        if node is None:
            _nodes.pop(name, None)
        else:
            _nodes[name] = node
