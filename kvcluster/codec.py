"""Values to bytes and client flags, and back.

The flags are pymemcache's, so each client reads what the other wrote: 0 is bytes, 2 an int in decimal, 16 text in UTF-8.
Everything else is msgpack under a flag of our own, and only if it would come back equal *and of exactly the same types*: msgpack
would return a tuple as a list and a Decimal as a string without a word, so those raise instead. Pickle runs code when it is read,
so it is used only by `PickleCodec`, asked for by name.

Flags 0, 2 and 16 are fixed, since the compiled reader decodes them itself; a codec of your own sees the other values.
"""

from __future__ import annotations

import pickle
import zlib
from typing import Any, Final, Protocol

import msgspec.msgpack

from kvcluster.errors import ConfigurationError, IllegalValue, MissingExtra

BYTES: Final = 0
PICKLE: Final = 1
INTEGER: Final = 2
LONG: Final = 4  # written by old clients, read as INTEGER
ZLIB: Final = 8
TEXT: Final = 16
EMPTY: Final = 32  # bytes of length 0: flags and length 0 together are what a lease's placeholder looks like
MSGPACK: Final = 64
ZSTD: Final = 128

MAX_DECOMPRESSED: Final = 32 << 20

_SCALARS: Final = frozenset((type(None), bool, int, float, str, bytes))
_packer = msgspec.msgpack.Encoder()
_unpacker = msgspec.msgpack.Decoder()


class Undecodable(ValueError):
    """Stored bytes that are not a value of this codec. Reads count such a value as a miss."""


class Codec(Protocol):
    """How values become bytes. `StandardCodec` and `PickleCodec` are the two that come with kvcluster."""

    def encode(self, value: Any) -> tuple[bytes, int]:
        """The value's bytes and client flags.

        :raises IllegalValue: for a value that would not come back as it is
        """
        ...

    def decode(self, data: bytes, flags: int) -> Any:
        """The value. Whatever this raises makes the read a counted miss."""
        ...


class StandardCodec:
    """bytes, str and int as pymemcache writes them, msgpack for the rest; never pickle.

    :param zstd_above: compress encoded values of more than this many bytes, where it makes them smaller; None never does.
        It needs ``kvcluster[zstd]`` in every process that reads them
    :raises MissingExtra: where ``zstd_above`` is given and zstandard is not installed

    >>> StandardCodec().encode({"name": "Seoul", "tags": [1, 2.5, None]})[1]
    64
    """

    def __init__(self, zstd_above: int | None = None) -> None:
        if zstd_above is not None and zstd_above < 0:
            raise ConfigurationError(f"zstd_above must be at least 0 bytes, not {zstd_above}")
        self._zstd_above = zstd_above
        if zstd_above is not None:
            _zstandard()

    def encode(self, value: Any) -> tuple[bytes, int]:
        """The value's bytes and client flags; see `Codec.encode`."""
        if self._zstd_above is None:
            return self._encode(value)
        data, flags = self._encode(value)
        if len(data) > self._zstd_above:
            packed: bytes = _zstandard().ZstdCompressor().compress(data)
            if len(packed) < len(data):
                return packed, flags | ZSTD
        return data, flags

    def _encode(self, value: Any) -> tuple[bytes, int]:
        kind = type(value)
        if kind is bytes:
            return value, BYTES if value else EMPTY
        try:
            if kind is str:
                return value.encode(), TEXT
            if kind is int:
                return b"%d" % value, INTEGER
            packed = _packer.encode(value)  # first: it ends in an error where a value refers to itself
            refuse_inexact(value)
            return packed, MSGPACK
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            if isinstance(error, IllegalValue):
                raise
            raise IllegalValue(f"value cannot be stored: {error}") from None

    def decode(self, data: bytes, flags: int) -> Any:
        """The value; see `Codec.decode`."""
        if flags & ZSTD:
            data = _decompress_zstd(data)
        if flags & ZLIB:
            data = _decompress_zlib(data)
        if flags & TEXT:
            return data.decode()
        if flags & (INTEGER | LONG):
            return int(data)
        if flags & PICKLE:
            return self._decode_pickle(data)
        if flags & MSGPACK:
            return _unpacker.decode(data)
        return data

    def _decode_pickle(self, data: bytes) -> Any:
        raise Undecodable("the value is a pickle, and only codec=PickleCodec() reads pickles")


class PickleCodec(StandardCodec):
    """As `StandardCodec`, but with pickle for what is not bytes, str or int, as pymemcache's ``pickle_serde`` does.

    Reading a pickle runs whatever code its writer put there: use it only where everybody who can write to the nodes is trusted.
    """

    def _encode(self, value: Any) -> tuple[bytes, int]:
        if type(value) in (bytes, str, int):
            return super()._encode(value)
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL), PICKLE

    def _decode_pickle(self, data: bytes) -> Any:
        return pickle.loads(data)


def refuse_inexact(value: Any) -> None:
    """Raise for a value that msgpack would not give back equal and of the same types.

    :raises IllegalValue: naming the offending type
    """
    pending = [value]
    while pending:
        item = pending.pop()
        kind = type(item)
        if kind in _SCALARS:
            if kind is int and not -(1 << 63) <= item < 1 << 64:
                raise IllegalValue("value holds an int of more than 64 bits, which msgpack cannot store inside a container")
        elif kind is list:
            pending.extend(item)
        elif kind is dict:
            pending.extend(item)
            pending.extend(item.values())
        else:
            raise IllegalValue(
                f"value holds a {kind.__module__}.{kind.__qualname__}, which would not come back with its exact type; convert it, "
                "give the loader that returned it a return annotation, or the client codec=PickleCodec()"
            )


def _decompress_zlib(data: bytes) -> bytes:
    inflater = zlib.decompressobj()
    inflated = inflater.decompress(data, MAX_DECOMPRESSED)
    if not inflater.eof:
        raise Undecodable(f"a compressed value is cut, or larger than {MAX_DECOMPRESSED} bytes")
    return inflated


def _decompress_zstd(data: bytes) -> bytes:
    zstandard = _zstandard()
    size = zstandard.frame_content_size(data)
    if not 0 <= size <= MAX_DECOMPRESSED:
        raise Undecodable(f"a compressed value does not say its size, or is larger than {MAX_DECOMPRESSED} bytes")
    inflated: bytes = zstandard.ZstdDecompressor().decompress(data)
    return inflated


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise MissingExtra("zstd", "zstd compression") from None
    return zstandard
