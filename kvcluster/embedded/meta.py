"""The meta commands: mg, ms, md, ma, me and mn.

A line is a key (for ms also a length) and flags of one letter, some with a token: ``mg user:1 v t N30``. All flags are read first,
which fixes what the command does; then the reply is put together in the order in which the flags were sent. Both halves follow
proto_text.c of memcached 1.6.18, described in protocol.txt, "Meta Commands".

Two marks on an item make leases and stale values work: `stale` (shown as X) says that the value was invalidated, `token_sent` (Z)
that some client was told to load it, which is what W in a reply means.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass

from kvcluster.embedded.answers import BAD_DATA_CHUNK, Answer, Command, Swallow, Upload, line
from kvcluster.embedded.classic import NON_NUMERIC
from kvcluster.embedded.items import Item, Mode, NotANumber, Outcome, Store
from kvcluster.embedded.parsing import Refusal, bad_line, checked_key, decoded_key, signed32, unsigned32, unsigned64

MAX_TOKENS = 19
OPAQUE_MAX_LENGTH = 32

_STORAGE_MODES = {b"E": Mode.ADD, b"A": Mode.APPEND, b"P": Mode.PREPEND, b"R": Mode.REPLACE, b"S": Mode.SET}
_ARITHMETIC_SIGNS = {b"I": 1, b"+": 1, b"D": -1, b"-": -1}
_OUTCOME_CODES = {Outcome.STORED: b"HD", Outcome.NOT_STORED: b"NS", Outcome.EXISTS: b"EX", Outcome.NOT_FOUND: b"NF"}
_KNOWN_FLAGS = frozenset(b"bcfhklqstuvCDFIJLMNOPRT")


@dataclass(slots=True)
class Flags:
    """What the flags of one line ask for. Times are seconds of the store's clock, as `Store.expiry` gives them."""

    key: bytes
    tokens: list[bytes]
    binary_key: bool = False
    quiet: bool = False
    value: bool = False
    no_update: bool = False
    invalidate: bool = False
    late_bump: bool = False
    cas: int | None = None
    exptime: int | None = None
    vivify: int | None = None
    recache: int = 0
    client_flags: int = 0
    mode: bytes = b""
    initial: int = 0
    delta: int = 1

    def echoes(self) -> Iterable[bytes]:
        """The key and the opaque token, where asked for, in the order of the line."""
        for token in self.tokens:
            if token[:1] == b"k":
                yield from key_words(self.key, self.binary_key)
            elif token[:1] == b"O":
                yield opaque(token)


def key_words(key: bytes, binary: bool) -> list[bytes]:
    return [b"k" + base64.b64encode(key), b"b"] if binary else [b"k" + key]


def opaque(token: bytes) -> bytes:
    if len(token) > OPAQUE_MAX_LENGTH:
        raise Refusal("CLIENT_ERROR opaque token too long")
    return token


def parse(store: Store, key: bytes, tokens: list[bytes]) -> Flags:
    """Read the flags of a line.

    :raises Refusal: at the first unknown or repeated flag, else for the last bad token
    """
    flags = Flags(key, tokens)
    error: Refusal | None = None
    seen = set()
    for token in tokens:
        letter = token[0]
        if letter >= 127 or letter in seen:
            raise Refusal("CLIENT_ERROR duplicate flag")
        seen.add(letter)
        if letter not in _KNOWN_FLAGS:
            raise Refusal("CLIENT_ERROR invalid flag")
        try:
            _read_flag(store, flags, chr(letter), token[1:])
        except _Unreadable:
            error = error or bad_line()
        except Refusal as refusal:
            error = refusal
    if error:
        raise error
    return flags


class _Unreadable(Exception):
    """A token is bad and memcached has no message of its own for it."""


def _read_flag(store: Store, flags: Flags, letter: str, token: bytes) -> None:
    match letter:
        case "b":
            flags.binary_key = True
            key = decoded_key(flags.key)
            if key is None:
                raise Refusal("CLIENT_ERROR error decoding key")
            flags.key = key
        case "N":
            flags.late_bump = True
            flags.vivify = _expiry(store, token)
        case "T":
            flags.late_bump = True
            flags.exptime = _expiry(store, token)
        case "R":
            flags.late_bump = True
            flags.recache = _expiry(store, token)
        case "h" | "l":
            flags.late_bump = True
        case "v":
            flags.value = True
        case "u":
            flags.no_update = True
        case "q":
            flags.quiet = True
        case "I":
            flags.invalidate = True
        case "F":
            client_flags = unsigned32(token)
            if client_flags is None:
                raise _Unreadable
            flags.client_flags = client_flags
        case "C":
            flags.cas = _number(token, "CLIENT_ERROR bad token in command line format")
        case "J":
            flags.initial = _number(token, "CLIENT_ERROR invalid numeric initial value")
        case "D":
            flags.delta = _number(token, "CLIENT_ERROR invalid numeric delta value")
        case "M":
            if len(token) != 1:
                raise Refusal("CLIENT_ERROR incorrect length for M token")
            flags.mode = token


def _expiry(store: Store, token: bytes) -> int:
    ttl = signed32(token)
    if ttl is None:
        raise Refusal("CLIENT_ERROR bad token in command line format")
    return store.expiry(ttl)


def _number(token: bytes, error: str) -> int:
    number = unsigned64(token)
    if number is None:
        raise Refusal(error)
    return number


def _ttl(store: Store, item: Item) -> bytes:
    # An item that is expired by now, as by "T-1 t", shows a negative number as unsigned.
    return b"t-1" if item.exptime == 0 else b"t%d" % ((item.exptime - store.now()) % (1 << 32))


def _check_length(tokens: list[bytes], error: str = "CLIENT_ERROR options flags too long") -> None:
    if len(tokens) > MAX_TOKENS:
        raise Refusal(error)


def get(store: Store, tokens: list[bytes]) -> bytes:
    key = checked_key(tokens[1])
    _check_length(tokens, "CLIENT_ERROR options flags are too long")
    flags = parse(store, key, tokens[2:])
    item = store.lookup(flags.key, bump=not (flags.late_bump or flags.no_update))
    vivified = item is None and flags.vivify is not None
    if vivified:
        item = Item(flags.key, b"")
        store.link(item)
    kind = "get" if flags.exptime is None or item is None else "touch"
    store.count[f"cmd_{kind}"] += 1
    store.count[f"{kind}_misses" if item is None else f"{kind}_hits"] += 1
    if item is None:
        reply = line(b"EN", *flags.echoes())
        return b"" if flags.quiet else reply
    reply = _item_reply(store, item, flags, vivified)
    if flags.late_bump and not flags.no_update:
        # Only now, so that h and l could tell how it was before.
        store.bump(item)
    return reply


def _item_reply(store: Store, item: Item, flags: Flags, vivified: bool) -> bytes:
    words = [b"VA %d" % len(item.value) if flags.value else b"HD"]
    won = False
    for token in flags.tokens:
        match chr(token[0]):
            case "T":
                item.exptime = flags.exptime or 0
            case "N" if vivified:
                item.exptime = flags.vivify or 0
                won = True
            case "R":
                won = won or not (item.token_sent or vivified or item.exptime == 0 or item.exptime >= flags.recache)
            case "s":
                words.append(b"s%d" % len(item.value))
            case "t":
                words.append(_ttl(store, item))
            case "c":
                words.append(b"c%d" % item.cas)
            case "f":
                words.append(b"f%d" % item.flags)
            case "l":
                words.append(b"l%d" % (store.now() - item.last_access))
            case "h":
                words.append(b"h1" if item.fetched else b"h0")
            case "O":
                words.append(opaque(token))
            case "k":
                words += key_words(item.key, item.binary_key)
    if item.token_sent:
        words.append(b"Z")
    if item.stale:
        words.append(b"X")
        won = won or not item.token_sent
    if won:
        words.append(b"W")
        item.token_sent = True
    return line(*words) + (line(item.value) if flags.value else b"")


def set_(store: Store, tokens: list[bytes]) -> Answer:
    key = checked_key(tokens[1])
    if len(tokens) == 2:
        raise bad_line()
    _check_length(tokens)
    length = signed32(tokens[2])
    if length is None or not 0 <= length <= (1 << 31) - 3:
        raise bad_line()
    try:
        return _prepared_set(store, key, length, tokens[3:])
    except Refusal as refusal:
        return Swallow(length + 2, refusal.reply)


def _prepared_set(store: Store, key: bytes, length: int, tokens: list[bytes]) -> Upload:
    flags = parse(store, key, tokens)
    mode = _STORAGE_MODES.get(flags.mode or b"S")
    if mode is None:
        raise Refusal("CLIENT_ERROR invalid mode for ms M token")
    for token in tokens:
        if token[:1] == b"O":
            opaque(token)  # refused before the data
    if flags.cas is not None and mode in (Mode.SET, Mode.REPLACE):
        mode = Mode.CAS
    item = Item(flags.key, b"", flags.client_flags, flags.exptime or 0, binary_key=flags.binary_key)
    refusal = store.refusal(item, length)
    if refusal:
        # In every mode: the caller meant to change the item and could not, so the old value must not live on.
        old = store.lookup(flags.key)
        if old is not None:
            store.unlink(old)
        raise Refusal(refusal)

    def finish(block: bytes) -> bytes:
        store.count["cmd_set"] += 1
        if not block.endswith(b"\r\n"):
            return BAD_DATA_CHUNK
        item.value = block[:-2]
        outcome = store.store(mode, item, flags.cas or 0, flags.invalidate)
        if outcome is Outcome.STORED and flags.quiet:
            return b""
        return line(_OUTCOME_CODES[outcome], *_set_words(flags, item))

    return Upload(length + 2, finish)


def _set_words(flags: Flags, item: Item) -> Iterable[bytes]:
    for token in flags.tokens:
        match chr(token[0]):
            case "O":
                yield token
            case "k":
                yield from key_words(flags.key, flags.binary_key)
            case "c":
                yield b"c%d" % item.cas


def delete(store: Store, tokens: list[bytes]) -> bytes:
    key = checked_key(tokens[1])
    _check_length(tokens)
    flags = _parse_strictly(store, key, tokens[2:])
    echoes = list(flags.echoes())
    item = store.lookup(flags.key)
    if item is None or flags.cas not in (None, item.cas):
        store.count["delete_misses"] += 1
        return line(b"NF" if item is None else b"EX", *echoes)
    if flags.invalidate:
        if flags.exptime is not None:
            item.exptime = flags.exptime
        item.stale, item.token_sent = True, False
        item.cas = store.next_cas()
    else:
        store.count["delete_hits"] += 1
        store.unlink(item)
    return b"" if flags.quiet else line(b"HD", *echoes)


def arithmetic(store: Store, tokens: list[bytes]) -> bytes:
    key = checked_key(tokens[1])
    _check_length(tokens)
    flags = _parse_strictly(store, key, tokens[2:])
    sign = _ARITHMETIC_SIGNS.get(flags.mode or b"I")
    if sign is None:
        raise Refusal("CLIENT_ERROR invalid mode for ma M token")
    try:
        changed = store.add_delta(flags.key, flags.delta, sign, flags.cas or 0)
    except NotANumber:
        raise Refusal(NON_NUMERIC) from None
    if not isinstance(changed, Outcome):
        item, digits = changed
        reply = _number_reply(store, item, digits, flags, vivified=False)
        return b"" if flags.quiet else reply
    if changed is Outcome.NOT_FOUND and flags.vivify is not None:
        item = Item(flags.key, b"%d" % flags.initial)
        store.link(item)
        return _number_reply(store, item, item.value, flags, vivified=True)
    if changed is Outcome.NOT_FOUND:
        store.count["incr_misses" if sign > 0 else "decr_misses"] += 1
    return line(_OUTCOME_CODES[changed], *flags.echoes())


def _number_reply(store: Store, item: Item, digits: bytes, flags: Flags, vivified: bool) -> bytes:
    words = [b"VA %d" % len(digits) if flags.value else b"HD"]
    for token in flags.tokens:
        match chr(token[0]):
            case "c":
                words.append(b"c%d" % item.cas)
            case "t":
                words.append(_ttl(store, item))
            case "T":
                item.exptime = flags.exptime or 0
            case "N" if vivified:
                item.exptime = flags.vivify or 0
            case "O":
                words.append(opaque(token))
            case "k":
                words += key_words(flags.key, flags.binary_key)
    return line(*words) + (line(digits) if flags.value else b"")


def _parse_strictly(store: Store, key: bytes, tokens: list[bytes]) -> Flags:
    """Flags of md and ma, which have one message for every bad flag."""
    try:
        return parse(store, key, tokens)
    except Refusal:
        raise Refusal("CLIENT_ERROR invalid or duplicate flag") from None


def debug(store: Store, tokens: list[bytes]) -> bytes:
    if len(tokens) < 2:
        raise bad_line()
    key: bytes | None = checked_key(tokens[1])
    if tokens[2:3] == [b"b"]:
        key = decoded_key(tokens[1])
    if key is None:
        raise bad_line()
    store.count["cmd_meta"] += 1
    item = store.lookup(key)
    if item is None:
        return b"EN\r\n"
    now = store.now()
    shown = base64.b64encode(item.key) if item.binary_key else item.key
    return b"ME %b exp=%d la=%d cas=%d fetch=%b cls=%d size=%d\r\n" % (
        shown,
        -1 if item.exptime == 0 else now - item.exptime,
        now - item.last_access,
        item.cas,
        b"yes" if item.fetched else b"no",
        item.slab_class,
        item.size,
    )


def no_op(store: Store, tokens: list[bytes]) -> bytes:
    return b"MN\r\n"


# name: the command, and how many tokens its line may have, itself included
COMMANDS: dict[bytes, tuple[Command, range]] = {
    b"mg": (get, range(2, 1 << 31)),
    b"ms": (set_, range(2, 1 << 31)),
    b"md": (delete, range(2, 1 << 31)),
    b"ma": (arithmetic, range(2, 1 << 31)),
    b"me": (debug, range(1, 1 << 31)),
    b"mn": (no_op, range(1, 1 << 31)),
}
