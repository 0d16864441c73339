"""The classic commands: get, set, delete, incr, touch, flush_all and their kin.

Each function reads the tokens of one line as proto_text.c of memcached 1.6.18 does, the order of its checks included, because the
order decides which error a bad line gets. ``noreply`` is the last token of a line; it silences errors as well.
"""

from __future__ import annotations

from kvcluster.embedded.answers import BAD_DATA_CHUNK, Answer, Command, Swallow, Upload, line
from kvcluster.embedded.items import Item, Mode, NotANumber, Outcome, Store
from kvcluster.embedded.parsing import Refusal, bad_line, checked_key, signed32, unsigned32, unsigned64

NON_NUMERIC = "CLIENT_ERROR cannot increment or decrement non-numeric value"


def honouring_noreply(command: Command) -> Command:
    """Let a command answer nothing where its line ends in ``noreply``."""

    def quiet(store: Store, tokens: list[bytes]) -> Answer:
        if tokens[-1] != b"noreply":
            return command(store, tokens)
        try:
            answer = command(store, tokens)
        except Refusal:
            return b""
        if isinstance(answer, bytes):
            return b""
        if isinstance(answer, Swallow):
            return Swallow(answer.size, b"")
        finish = answer.finish

        def finish_silently(block: bytes) -> bytes:
            finish(block)
            return b""

        return Upload(answer.size, finish_silently)

    return quiet


def retrieval(with_cas: bool, touch: bool) -> Command:
    """get, gets, and with a new ttl before the keys gat, gats."""

    def retrieve(store: Store, tokens: list[bytes]) -> bytes:
        keys = tokens[1:]
        exptime = 0
        if touch:
            ttl = signed32(keys.pop(0))
            if ttl is None:
                raise Refusal("CLIENT_ERROR invalid exptime argument")
            exptime = store.expiry(ttl)
        kind = "touch" if touch else "get"
        found = []
        for key in keys:
            item = store.lookup(checked_key(key), bump=True)
            store.count[f"cmd_{kind}"] += 1
            store.count[f"{kind}_misses" if item is None else f"{kind}_hits"] += 1
            if item is None:
                continue
            if touch:
                item.exptime = exptime
            suffix = b" %d" % item.cas if with_cas else b""
            found.append(b"VALUE %b %d %d%b\r\n%b\r\n" % (key, item.flags, len(item.value), suffix, item.value))
        return b"".join(found) + b"END\r\n"

    return retrieve


def storage(mode: Mode) -> Command:
    """set, add, replace, append, prepend and cas: one line, then a data block."""

    def store_item(store: Store, tokens: list[bytes]) -> Answer:
        key = checked_key(tokens[1])
        flags, ttl, length = unsigned32(tokens[2]), signed32(tokens[3]), signed32(tokens[4])
        cas = unsigned64(tokens[5]) if mode is Mode.CAS else 0
        if flags is None or ttl is None or length is None or cas is None or not 0 <= length <= (1 << 31) - 3:
            raise bad_line()
        item = Item(key, b"", flags, store.expiry(ttl))
        refusal = store.refusal(item, length)
        if refusal:
            # A set that fails must not leave the value that it was to replace.
            old = store.lookup(key) if mode is Mode.SET else None
            if old is not None:
                store.unlink(old)
            return Swallow(length + 2, line(refusal.encode()))

        def finish(block: bytes) -> bytes:
            store.count["cmd_set"] += 1
            if not block.endswith(b"\r\n"):
                return BAD_DATA_CHUNK
            item.value = block[:-2]
            return line(store.store(mode, item, cas).value.encode())

        return Upload(length + 2, finish)

    return honouring_noreply(store_item)


def arithmetic(sign: int) -> Command:
    """incr and decr."""
    misses = "incr_misses" if sign > 0 else "decr_misses"

    def change(store: Store, tokens: list[bytes]) -> bytes:
        key = checked_key(tokens[1])
        delta = unsigned64(tokens[2])
        if delta is None:
            raise Refusal("CLIENT_ERROR invalid numeric delta argument")
        try:
            changed = store.add_delta(key, delta, sign)
        except NotANumber:
            raise Refusal(NON_NUMERIC) from None
        if isinstance(changed, Outcome):
            store.count[misses] += 1
            return b"NOT_FOUND\r\n"
        return line(changed[1])

    return honouring_noreply(change)


def delete(store: Store, tokens: list[bytes]) -> bytes:
    if len(tokens) > 2 and tokens[2:] not in ([b"0"], [b"noreply"], [b"0", b"noreply"]):
        raise Refusal("CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]")
    item = store.lookup(checked_key(tokens[1]))
    store.count["delete_misses" if item is None else "delete_hits"] += 1
    if item is None:
        return b"NOT_FOUND\r\n"
    store.unlink(item)
    return b"DELETED\r\n"


def touch(store: Store, tokens: list[bytes]) -> bytes:
    key, ttl = checked_key(tokens[1]), signed32(tokens[2])
    if ttl is None:
        raise Refusal("CLIENT_ERROR invalid exptime argument")
    item = store.lookup(key, bump=True)
    store.count["cmd_touch"] += 1
    store.count["touch_misses" if item is None else "touch_hits"] += 1
    if item is None:
        return b"NOT_FOUND\r\n"
    item.exptime = store.expiry(ttl)
    return b"TOUCHED\r\n"


def flush_all(store: Store, tokens: list[bytes]) -> bytes:
    arguments = tokens[1:-1] if tokens[-1] == b"noreply" else tokens[1:]
    ttl = signed32(arguments[0]) if arguments else 0
    if ttl is None:
        raise Refusal("CLIENT_ERROR invalid exptime argument")
    store.flush(ttl)
    return b"OK\r\n"


def verbosity(store: Store, tokens: list[bytes]) -> bytes:
    level = unsigned32(tokens[1])
    if level is None:
        raise bad_line()
    store.verbosity = level
    return b"OK\r\n"


def version(store: Store, tokens: list[bytes]) -> bytes:
    return b"VERSION 1.6.18\r\n"


def _delete_only_noreply(store: Store, tokens: list[bytes]) -> Answer:
    # A key named "noreply" is still a key.
    return delete(store, tokens) if len(tokens) == 2 else honouring_noreply(delete)(store, tokens)


# name: the command, and how many tokens its line may have, itself included
COMMANDS: dict[bytes, tuple[Command, range]] = {
    b"get": (retrieval(with_cas=False, touch=False), range(2, 1 << 31)),
    b"gets": (retrieval(with_cas=True, touch=False), range(2, 1 << 31)),
    b"gat": (retrieval(with_cas=False, touch=True), range(2, 1 << 31)),
    b"gats": (retrieval(with_cas=True, touch=True), range(2, 1 << 31)),
    b"set": (storage(Mode.SET), range(5, 7)),
    b"add": (storage(Mode.ADD), range(5, 7)),
    b"replace": (storage(Mode.REPLACE), range(5, 7)),
    b"append": (storage(Mode.APPEND), range(5, 7)),
    b"prepend": (storage(Mode.PREPEND), range(5, 7)),
    b"cas": (storage(Mode.CAS), range(6, 8)),
    b"incr": (arithmetic(1), range(3, 5)),
    b"decr": (arithmetic(-1), range(3, 5)),
    b"delete": (_delete_only_noreply, range(2, 5)),
    b"touch": (honouring_noreply(touch), range(3, 5)),
    b"flush_all": (honouring_noreply(flush_all), range(1, 4)),
    b"verbosity": (honouring_noreply(verbosity), range(2, 4)),
    b"version": (version, range(1, 1 << 31)),
}
