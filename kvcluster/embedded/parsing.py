"""How memcached reads a line: tokens, C numbers and base64 keys, with its leniencies.

memcached parses numbers by strtol and strtoul: leading white space and a sign are accepted, parsing stops at white space or NUL,
and what does not fit is cut to the width of the field. Its base64 decoder skips every character outside the alphabet. Clients
meet these corners only with bad input, but a node that is stricter or laxer than the real one would hide a client's error.
"""

from __future__ import annotations

import base64
import re
import string

KEY_MAX_LENGTH = 250

_NUMBER = re.compile(rb"\s*([+-]?\d+)(?:[\s\0]|\Z)")
_BASE64_ALPHABET = (string.ascii_letters + string.digits + "+/=").encode()
_NOT_BASE64 = bytes(set(range(256)) - set(_BASE64_ALPHABET))


class Refusal(Exception):
    """A command is refused; ``.reply`` is the whole line to answer with."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.reply = message.encode() + b"\r\n"


def bad_line() -> Refusal:
    return Refusal("CLIENT_ERROR bad command line format")


def tokens_of(line: bytes) -> list[bytes]:
    """Split a command line, without its line feed, into tokens.

    >>> tokens_of(b"get  a b\\r")
    [b'get', b'a', b'b']
    """
    if len(line) > 1 and line.endswith(b"\r"):
        line = line[:-1]
    return [token for token in line.partition(b"\0")[0].split(b" ") if token]


def signed32(token: bytes) -> int | None:
    """Read a signed number as ``safe_strtol`` does, or None.

    >>> signed32(b"-5"), signed32(b"5x"), signed32(b"4294967297")
    (-5, None, 1)
    """
    match = _NUMBER.match(token)
    if match is None:
        return None
    number = int(match[1])
    if not -(1 << 63) <= number < 1 << 63:
        return None
    return (number + (1 << 31)) % (1 << 32) - (1 << 31)


def unsigned64(token: bytes) -> int | None:
    """Read an unsigned number as ``safe_strtoull`` does, or None.

    >>> unsigned64(b"18446744073709551615"), unsigned64(b"-1")
    (18446744073709551615, None)
    """
    match = _NUMBER.match(token)
    if match is None or abs(int(match[1])) >= 1 << 64:
        return None
    number = int(match[1]) % (1 << 64)
    # The sign is looked for only where the number looks negative, so -18446744073709551615 is 1.
    return None if number >> 63 and b"-" in token.partition(b"\0")[0] else number


def unsigned32(token: bytes) -> int | None:
    """Read an unsigned number as ``safe_strtoul`` does, cut to 32 bits, or None."""
    number = unsigned64(token)
    return None if number is None else number % (1 << 32)


def checked_key(key: bytes) -> bytes:
    """Return a key that is short enough.

    :raises Refusal: it has more than 250 bytes
    """
    if len(key) > KEY_MAX_LENGTH:
        raise bad_line()
    return key


def decoded_key(token: bytes) -> bytes | None:
    """Decode a base64 key as memcached does, or None.

    >>> decoded_key(b"Zm9v"), decoded_key(b"Zm8="), decoded_key(b"Zm9"), decoded_key(b"Z m-9v")
    (b'foo', b'fo', None, b'foo')
    """
    digits = token.translate(None, _NOT_BASE64)
    if not digits or len(digits) % 4:
        return None
    key = b""
    for start in range(0, len(digits), 4):
        block = digits[start : start + 4]
        padding = block.count(b"=")
        if padding > 2:
            return None
        key += base64.b64decode(block.replace(b"=", b"A"))[: 3 - padding]
        if padding:
            break
    return key
