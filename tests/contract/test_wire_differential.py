"""The same bytes to a real memcached and to the embedded node: every reply must be the same.

Hypothesis makes sequences of commands over few keys, well-formed and broken. CAS numbers are not normalised: the embedded node
starts each example at the real server's number and has to take as many as it does. Only what a second more changes is rounded.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvcluster.embedded import EmbeddedNode, Session
from tests.contract.wire import rounded

if TYPE_CHECKING:
    from tests.contract.conftest import RealNode

# One key is valid base64 for another, so that b and plain commands meet on an item.
KEYS = [b"a", b"n", b"foo", b"Zm9v"]
TTLS = [b"0", b"100", b"1000", b"2592000", b"-1", b"1000000000", b"4294967396"]
NUMBERS = [b"0", b"1", b"9", b"10", b"18446744073709551615"]
BAD_TOKENS = [b"", b"x", b"-1", b"+100", b"100x", b"100\t6", b"99999999999999999999", b"-18446744073709551615", b"4294967296"]
VALUES = [b"", b"0", b"5", b"99", b"100", b"18446744073709551615", b" 7", b"7 ", b"7\0z", b"-1", b"text", b"a\r\nb", b"12 -"]

# Stands for a CAS number that was seen before: the one this many replies ago, plus a difference.
CAS = [b"<%d%+d>" % (ago, difference) for ago in (0, 1, 2, 5) for difference in (0, -1, 1)]

keys = st.sampled_from(KEYS)
bad_keys = st.sampled_from([b"k" * 250, b"k" * 251, b"\xff\xfe", b"a\tb", b"====", b"Zm9", b"=AAA", b"Zm9vZg==", b"nul\0key"])
cas_tokens = st.sampled_from([*CAS, b"0", *BAD_TOKENS])


def mostly(usual: st.SearchStrategy[bytes], rare: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.integers(0, 20).flatmap(lambda die: rare if die == 20 else usual)


any_key = mostly(keys, bad_keys)
ttl_tokens = mostly(st.sampled_from(TTLS), st.sampled_from(BAD_TOKENS))
number_tokens = mostly(st.sampled_from(NUMBERS), st.sampled_from(BAD_TOKENS))
values = st.sampled_from(VALUES)
noreply = mostly(st.just(b""), st.sampled_from([b" noreply", b" noreply", b" 0", b" nope", b" 1 2 3"]))
opaques = st.sampled_from([b"O", b"O1", b"Oabc", b"O" + b"x" * 31, b"O" + b"x" * 32, b"Okc"])


def lines(*parts: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.tuples(*parts).map(b"".join)


def words(*parts: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.tuples(*parts).map(b" ".join)


def flag(letters: bytes, tokens: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return lines(st.sampled_from([letters[i : i + 1] for i in range(len(letters))]), tokens)


nothing = st.just(b"")
common_flags = st.one_of(flag(b"bkqOPL", nothing), opaques)
get_flags = st.one_of(common_flags, flag(b"cfhlstuv", nothing), flag(b"NRT", ttl_tokens))
storage_modes = st.sampled_from([b"E", b"A", b"P", b"R", b"S", b"e", b"", b"EE"])
set_flags = st.one_of(
    common_flags,
    flag(b"cI", nothing),
    flag(b"C", cas_tokens),
    flag(b"F", number_tokens),
    flag(b"T", ttl_tokens),
    flag(b"M", storage_modes),
)
delete_flags = st.one_of(common_flags, flag(b"I", nothing), flag(b"C", cas_tokens), flag(b"T", ttl_tokens))
number_flags = st.one_of(
    common_flags,
    flag(b"ctv", nothing),
    flag(b"NT", ttl_tokens),
    flag(b"JD", number_tokens),
    flag(b"C", cas_tokens),
    flag(b"M", st.sampled_from([b"I", b"D", b"+", b"-", b"E", b"", b"++"])),
)
any_flags = st.one_of(get_flags, set_flags, delete_flags, number_flags, flag(b"zSE\xff!", nothing))


def flagged(own: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    flags = st.lists(mostly(own, any_flags), max_size=6, unique_by=lambda flag: flag[:1])
    return lines(
        flags.map(lambda flags: b"".join(b" " + one for one in flags)),
        mostly(nothing, st.sampled_from([b" k k", b" t" * 17, b" t" * 18])),
    )


def with_data(line: st.SearchStrategy[tuple[bytes, bytes]]) -> st.SearchStrategy[bytes]:
    """A line with {} for the length and its data, sometimes longer than announced (a shorter one would leave the command open)."""
    return st.tuples(line, mostly(st.just(b""), st.sampled_from([b"x", b"\r\n", b"\r\nget a"]))).map(
        lambda made: made[0][0].replace(b"{}", b"%d" % len(made[0][1])) + b"\r\n" + made[0][1] + made[1] + b"\r\n"
    )


def rest(more: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.lists(more, max_size=3).map(lambda tokens: b"".join(b" " + token for token in tokens))


storage_names = st.sampled_from([b"set", b"set", b"add", b"replace", b"append", b"prepend"])
storage = st.one_of(
    st.tuples(lines(words(storage_names, any_key, number_tokens, ttl_tokens, st.just(b"{}")), noreply), values),
    st.tuples(lines(words(st.just(b"cas"), any_key, number_tokens, ttl_tokens, st.just(b"{}"), cas_tokens), noreply), values),
    st.tuples(lines(words(st.just(b"ms"), any_key, st.just(b"{}")), flagged(set_flags)), values),
    st.tuples(lines(words(st.just(b"ms"), any_key, st.just(b"{}")), flagged(set_flags)), values),
)
meta = st.one_of(
    lines(words(st.just(b"mg"), any_key), flagged(get_flags)),
    lines(words(st.just(b"md"), any_key), flagged(delete_flags)),
    lines(words(st.just(b"ma"), any_key), flagged(number_flags)),
    words(st.just(b"me"), any_key, st.sampled_from([b"", b"b", b"v"])),
)
classic = st.one_of(
    lines(words(st.sampled_from([b"get", b"gets"]), any_key), rest(any_key)),
    lines(words(st.sampled_from([b"gat", b"gats"]), ttl_tokens, any_key), rest(any_key)),
    lines(words(st.sampled_from([b"incr", b"decr"]), any_key, number_tokens), noreply),
    lines(words(st.just(b"delete"), any_key), noreply),
    lines(words(st.just(b"touch"), any_key, ttl_tokens), noreply),
    lines(st.sampled_from([b"flush_all", b"flush_all 0", b"flush_all -1", b"flush_all x"]), noreply),
    lines(st.sampled_from([b"verbosity", b"verbosity 0", b"verbosity x"]), noreply),
    st.sampled_from([b"", b"a", b"mn", b"mx a", b"version", b"GET a", b"stats nope", b"bad " * 30]),
    st.sampled_from([b"get", b"gat 10", b"touch a", b"mg", b"ms", b"ms a", b"me", b"lru_crawler", b"lru_crawler metadump"]),
)
commands = st.one_of(with_data(storage), *(plain.map(lambda line: line + b"\r\n") for plain in (meta, meta, classic)))


CAS_SHOWN = re.compile(rb"(?: c| cas=|VALUE \S+ \d+ \d+ )(\d+)")
CAS_WANTED = re.compile(rb"<(\d)([+-]\d)>")


@dataclass
class Nodes:
    """A real node and two embedded ones that are sent the same, one of them byte by byte, and have to say the same."""

    real: RealNode
    embedded: Session
    bytewise: Session
    cas_seen: list[int]

    def ask(self, command: bytes) -> None:
        request = CAS_WANTED.sub(self._cas, command)
        expected, got = self.real.ask(request), self.embedded.receive(request)
        assert rounded(got) == rounded(expected), request
        assert b"".join(self.bytewise.receive(bytes([byte])) for byte in request) == got, request
        self.cas_seen += [int(cas) for cas in CAS_SHOWN.findall(expected)]

    def _cas(self, match: re.Match[bytes]) -> bytes:
        seen = self.cas_seen[-1 - int(match[1]) :] or [1]
        return b"%d" % max(seen[0] + int(match[2]), 0)


def empty_nodes(real: RealNode) -> Nodes:
    real.ask(b"flush_all\r\n")
    cas = int(real.ask(b"ms first 0 c\r\n\r\ndelete first\r\n").split()[1].removeprefix(b"c"))
    now = time.time()
    nodes = [EmbeddedNode(clock=lambda: now) for _ in range(2)]
    for node in nodes:
        node._store._last_cas = cas  # the one thing that a client of the node cannot set
    return Nodes(real, nodes[0].session(), nodes[1].session(), [])


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(commands, min_size=1, max_size=25))
def test_both_nodes_answer_alike(real_node: RealNode, sequence: list[bytes]) -> None:
    nodes = empty_nodes(real_node)
    for command in [b"set a 7 100 4\r\ntext\r\n", b"set n 0 0 2\r\n99\r\n", b"ms Zm9v 3 b T1000 c\r\nfoo\r\n", *sequence]:
        nodes.ask(command)
    for key in KEYS:
        # What the commands left behind, in full.
        nodes.ask(b"me %b\r\nmg %b s v t c f h k u\r\n" % (key, key))
