"""The two twins of the hot half, and how tests feed a reader. Not tests themselves."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Iterator
from itertools import cycle
from types import ModuleType
from typing import Any

import pytest

from kvcluster.codec import StandardCodec
from kvcluster.protocol.requests import Commands, Fetch

NATIVE = importlib.util.find_spec("kvcluster.protocol._native") is not None
needs_native = pytest.mark.skipif(not NATIVE, reason="kvcluster.protocol._native is not built: only the pure twin was tested")
TWINS = ["_pure", pytest.param("_native", marks=needs_native)]


def twin(name: str) -> ModuleType:
    return importlib.import_module(f"kvcluster.protocol.{name}")


def fetch(wires: Iterable[bytes], *, tokens: bool = False) -> Fetch:
    """A read of these keys; a key's name is its text in capitals, so that the two cannot be mixed up."""
    asked = list(wires)
    # A compiled reader wants a compiled request; the pure one takes both.
    return twin("_native" if NATIVE else "_pure").Fetch(
        asked, [wire.decode("latin-1").upper() for wire in asked], StandardCodec().decode, {}, tokens
    )


def commands(count: int) -> Commands:
    return Commands(b"", count)


def cut(stream: bytes, sizes: Iterable[int]) -> Iterator[bytes]:
    """The stream in pieces of these sizes, over and over."""
    at = 0
    for size in cycle(sizes):
        if at >= len(stream):
            return
        yield stream[at : at + size]
        at += size


def receive(reader: Any, piece: bytes) -> tuple[bool, bytes]:
    """Put into the reader's buffer as much of a piece as it takes: whether the request is done, and the rest of the piece."""
    view = reader.buffer()
    count = min(len(view), len(piece))
    view[:count] = piece[:count]
    del view  # as a socket does, which keeps no reference
    return reader.received(count), piece[count:]


def feed(reader: Any, request: Fetch | Commands, pieces: Iterable[bytes]) -> bytes | None:
    """Feed pieces until the request has its replies: what was not fed any more, or None where it still waits."""
    reader.begin(request)
    left = iter(pieces)
    for piece in left:
        while piece:
            done, piece = receive(reader, piece)
            if done:
                return piece + b"".join(left)
    return None


def seen(request: Fetch | Commands) -> Any:
    """Everything that a reader has noted in a request, with the types of the values."""
    if not isinstance(request, Commands):
        values = [(name, type(value), value) for name, value in request.values.items()]
        return (
            values,
            request.found,
            request.doubtful,
            request.undecodable,
            request.failure and (request.failure[0], type(request.failure[1])),
            request.refusal,
        )
    return [
        (
            reply.status,
            reply.value,
            reply.flags,
            reply.cas,
            reply.ttl,
            reply.size,
            reply.won,
            reply.taken,
            reply.stale,
            reply.opaque,
        )
        for reply in request.replies
    ]
