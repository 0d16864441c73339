"""What stands around a cached value that says more of itself than its bytes do: the stamps it was loaded under, and its shape.

A value in an envelope has the client flag `ENVELOPE`. Its bytes are a header and then what the codec made of it:

    1 byte   the envelope's version, 1
    1 byte   the number n of stamps
    4 bytes  the fingerprint of its shape, zeros where it has none
    n x 8    the stamps
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from kvcluster.cache.shapes import UNTYPED
from kvcluster.codec import Undecodable
from kvcluster.errors import IllegalValue
from kvcluster.planner import STAMP_SIZE

ENVELOPE: Final = 256  # beside the codec's client flags
MAX_STAMPS: Final = 255

_VERSION: Final = 1
_FIXED: Final = 6


class Opened(NamedTuple):
    """What an envelope holds: the stamps in one string, the fingerprint, and the codec's bytes."""

    stamps: bytes
    fingerprint: bytes
    data: bytes


def sealed(data: bytes, stamps: Sequence[bytes] = (), fingerprint: bytes = UNTYPED) -> bytes:
    """A codec's bytes in an envelope.

    :param stamps: 8 bytes each
    :param fingerprint: 4 bytes
    :raises IllegalValue: for more than 255 stamps

    >>> sealed(b"data", [b"12345678"])
    b'\\x01\\x01\\x00\\x00\\x00\\x0012345678data'
    >>> opened(_)
    Opened(stamps=b'12345678', fingerprint=b'\\x00\\x00\\x00\\x00', data=b'data')
    """
    if len(stamps) > MAX_STAMPS:
        raise IllegalValue(f"a value can have {MAX_STAMPS} stamps (tags and watched tables), not {len(stamps)}")
    return b"".join([_head(len(stamps), fingerprint), *stamps, data])


def opened(data: bytes) -> Opened:
    """What is in an envelope.

    :raises Undecodable: for bytes that are none, or one of a later version
    """
    if len(data) < _FIXED or data[0] != _VERSION or len(data) < (start := _FIXED + STAMP_SIZE * data[1]):
        raise Undecodable("the value's envelope is cut, or of a version that this release does not know")
    return Opened(data[_FIXED:start], data[2:_FIXED], data[start:])


def bare(data: bytes, stamps: Sequence[bytes], fingerprint: bytes) -> bytes | None:
    """What is in an envelope that has exactly these stamps and this fingerprint; None where it is not known to have.

    >>> bare(sealed(b"data", [b"12345678"]), [b"12345678"], UNTYPED), bare(sealed(b"data"), [b""], UNTYPED)
    (b'data', None)
    """
    due = b"".join([_head(len(stamps), fingerprint), *stamps])
    return data[len(due) :] if data.startswith(due) and len(due) == _FIXED + STAMP_SIZE * len(stamps) else None


@lru_cache(1024)
def _head(stamps: int, fingerprint: bytes) -> bytes:
    return b"%c%c%b" % (_VERSION, stamps, fingerprint)
