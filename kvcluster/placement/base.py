"""What every placement has in common.

A placement is a pure function from keys to nodes, bound to one immutable list of nodes. A scheme supplies the hot pair `index` and
`indexes` over wire keys, and its exact shares; what a person calls (`owner`, `owners`, str keys) is derived from them here, once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar

from kvcluster.errors import IllegalKey

if TYPE_CHECKING:
    from kvcluster.topology import Node


def wire_key(key: str | bytes) -> bytes:
    """The bytes that are hashed and sent: str is UTF-8, so both forms of a key have one owner.

    :raises IllegalKey: for another type, or a str that UTF-8 cannot carry (a lone surrogate)
    """
    if isinstance(key, bytes):
        return key
    if not isinstance(key, str):
        raise IllegalKey(f"key must be str or bytes, not {key!r}")
    try:
        return key.encode()
    except UnicodeEncodeError as error:
        raise IllegalKey(f"key {key!r} is not valid Unicode: {error.reason}") from None


class Placement(ABC):
    """Which of ``.nodes`` owns a key, or which of their ``.addresses``.

    The same nodes and weights give the same owners in every process and release.

    :param nodes: at least one node, no two with one id; `kvcluster.placement.placement` checks this
    """

    name: ClassVar[str]

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes: tuple[Node, ...] = tuple(nodes)
        self.addresses: tuple[str, ...] = tuple([node.address for node in self.nodes])

    @abstractmethod
    def index(self, key: bytes) -> int:
        """The owner of a wire key, as an index into ``.nodes``."""

    @abstractmethod
    def indexes(self, keys: Iterable[bytes]) -> list[int]:
        """`index` of each key, in order; faster than one call per key."""

    def hash_table(self) -> tuple[bytes | tuple[int, ...], int] | None:
        """A table and a shift such that ``index(key)`` is ``table[murmur3(key) >> shift]``, for compiled code to do the same.

        None where the scheme has no such table.
        """
        return None

    @abstractmethod
    def shares(self) -> list[float]:
        """The exact share of the key space that each of ``.nodes`` owns; they sum to 1."""

    def owner(self, key: str | bytes) -> Node:
        """The node that owns a key.

        :raises IllegalKey: for a key that is neither bytes nor a str that UTF-8 can carry
        """
        return self.nodes[self.index(wire_key(key))]

    def owners(self, keys: Iterable[str | bytes]) -> list[Node]:
        """`owner` of each key, in order."""
        given = keys if isinstance(keys, list) else [*keys]
        try:
            wires = [key.encode() if type(key) is str else wire_key(key) for key in given]
        except UnicodeEncodeError:
            wires = [wire_key(key) for key in given]  # raises, and says which
        return [*map(self.nodes.__getitem__, self.indexes(wires))]

    def exact_move(self, after: Placement) -> float | None:
        """The exact share of the key space whose owner differs in ``after``; None where this pair has no closed form."""
        return None

    def __repr__(self) -> str:
        return f"<{self.name} placement of {len(self.nodes)} nodes: {', '.join(node.id for node in self.nodes)}>"
