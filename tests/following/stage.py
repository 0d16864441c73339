"""A cluster that is being resized: a source, nodes, and the coordinator's part played by the test."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kvcluster.following.epochs import EPOCH_KEY
from kvcluster.phases import after
from kvcluster.placement import placement
from kvcluster.sources import FileSource
from kvcluster.topology import Document, Node, Phase
from tests.client.cluster import PATIENT, ask

ORDER: tuple[Phase, ...] = ("old", "prepare", "migrate", "drain", "new")
_numbers = itertools.count()


class Stage:
    """A resize from all nodes but the last to all of them, or to others, and the clients that follow it.

    :param connect: makes a client of a source and settings
    :param phase: where the resize stands at the beginning
    :param replaced: how many of the nodes are only in the old topology; if half of them, every key moves
    """

    def __init__(
        self, directory: Path, addresses: Sequence[str], connect: Callable[..., Any], phase: Phase = "old", replaced: int = 0
    ) -> None:
        self.addresses = list(addresses)
        self._before = self.addresses[:replaced] or self.addresses[:-1]
        self._after = self.addresses[replaced:]
        self._old, self._new = placement("slots", self._before), placement("slots", self._after)
        self.source = FileSource(directory / f"topology-{next(_numbers)}.toml")
        self._connect = connect
        self._clients: list[Any] = []
        document = Document(tuple([Node(address) for address in self._before]))
        self.source.create(document)
        while self.document.phase != phase:
            self.advance()
        self.tell(*self.addresses)

    @property
    def document(self) -> Document:
        return self.source.read()

    def client(self, **settings: Any) -> Any:
        client = self._connect(self.source, **{"timeout": PATIENT, "connect_timeout": PATIENT} | settings)
        self._clients.append(client)
        return client

    def advance(self, tell: bool = True) -> Document:
        """Write the next phase, and tell all nodes of it."""
        before = self.document
        changes: dict[str, Any] = {"phase": after(before.phase)}
        if before.phase == "old":
            changes |= {"nodes": tuple([Node(address) for address in self._after]), "previous": before.nodes, "table_crc": None}
        if changes["phase"] == "old":
            changes |= {"previous": ()}
        following = before.step(**changes)
        assert self.source.replace(before.epoch, following)
        if tell:
            self.tell(*self.addresses)
        return following

    def tell(self, *addresses: str, epoch: int | None = None) -> None:
        """Write the epoch key of these nodes, as they are told or as the test pretends."""
        number = b"%d" % (self.document.epoch if epoch is None else epoch)
        for address in addresses:
            assert ask(address, b"ms %b %d T0\r\n%b\r\n" % (EPOCH_KEY, len(number), number)) == b"HD\r\n"

    def epoch(self, address: str) -> int | None:
        """The epoch that a node has."""
        reply = ask(address, b"mg %b v\r\n" % EPOCH_KEY)
        return int(reply.splitlines()[1]) if reply.startswith(b"VA") else None

    def owners(self, key: str) -> tuple[str, str]:
        """The addresses of a key's old and new owner."""
        return self._old.owner(key).address, self._new.owner(key).address

    def moving(self, count: int = 1) -> list[str]:
        """Keys whose owner changes."""
        return self._keys(2, count)

    def staying(self, count: int = 1) -> list[str]:
        """Keys whose owner stays."""
        return self._keys(1, count)

    def _keys(self, owners: int, count: int) -> list[str]:
        keys = map("key:{}".format, itertools.count())
        return list(itertools.islice((key for key in keys if len(set(self.owners(key))) == owners), count))

    def at(self, address: str, key: str) -> bytes | None:
        """The data that a node holds of a key."""
        reply = ask(address, b"mg %b v k\r\n" % key.encode())
        return reply.split(b"\r\n")[1] if reply.startswith(b"VA") else None

    def put(self, address: str, key: str, data: bytes, flags: bytes = b"F16 T0") -> None:
        """Write a key to one node."""
        assert ask(address, b"ms %b %d %b\r\n%b\r\n" % (key.encode(), len(data), flags, data)) == b"HD\r\n"

    def close(self) -> None:
        for client in self._clients:
            client.close()
