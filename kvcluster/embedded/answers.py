"""What a command answers with: bytes, or the wish for the data block that follows its line.

A command is a function of the store and the tokens of its line. It never waits: where a data block follows, it says how long the
block is and what to do with it, and the session collects it. So commands know nothing of how bytes arrive.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from kvcluster.embedded.items import Store

LINE_END = b"\r\n"
BAD_DATA_CHUNK = b"CLIENT_ERROR bad data chunk\r\n"


@dataclass(frozen=True, slots=True)
class Upload:
    """Collect ``size`` bytes, the line end of the data block included, and answer with ``finish`` of them."""

    size: int
    finish: Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Swallow:
    """Throw away the next ``size`` bytes and answer with ``reply``."""

    size: int
    reply: bytes


Answer: TypeAlias = bytes | Upload | Swallow
Command: TypeAlias = Callable[[Store, list[bytes]], Answer]


def line(*parts: bytes) -> bytes:
    """A reply line of some words.

    >>> line(b"HD", b"c5")
    b'HD c5\\r\\n'
    """
    return b" ".join(parts) + LINE_END
