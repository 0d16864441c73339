"""What a memcached node says, byte by byte: one set of scripts, run against a real memcached and the embedded node.

A script is a dialogue of requests and the literal replies to them, on a node just started, so that CAS numbers are literal too. The
embedded node is sent each request once in whole and once byte by byte.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from kvcluster.embedded import EmbeddedNode
from tests.contract.wire import rounded

if TYPE_CHECKING:
    from tests.contract.conftest import RealNode

Script = list[tuple[bytes, bytes]]

LARGEST = 1048516  # bytes of a value under a key of one letter; one more is too large


def data(line: bytes, value: bytes) -> bytes:
    """A storage command: its line with {} for the length, and the value."""
    return line.replace(b"{}", b"%d" % len(value)) + b"\r\n" + value + b"\r\n"


SCRIPTS: dict[str, Script] = {
    "get returns what set stored, flags and all": [
        (b"get a\r\n", b"END\r\n"),
        (b"set a 7 0 5\r\nhello\r\n", b"STORED\r\n"),
        (b"get a\r\n", b"VALUE a 7 5\r\nhello\r\nEND\r\n"),
        (b"gets a\r\n", b"VALUE a 7 5 1\r\nhello\r\nEND\r\n"),
        (b"get x a y a\r\n", b"VALUE a 7 5\r\nhello\r\n" * 2 + b"END\r\n"),
        (b"set a 4294967295 0 0\r\n\r\nget a\r\n", b"STORED\r\nVALUE a 4294967295 0\r\n\r\nEND\r\n"),
    ],
    "a value may hold line breaks and commands": [
        (b"set a 0 0 13\r\nget a\r\nquit\r\n\r\nget a\r\n", b"STORED\r\nVALUE a 0 13\r\nget a\r\nquit\r\n\r\nEND\r\n"),
    ],
    "a multi-get may be longer than any other line": [
        (b"set a 0 0 1\r\n1\r\n", b"STORED\r\n"),
        (b"get " + b" ".join([b"k" * 200] * 100) + b" a\r\n", b"VALUE a 0 1\r\n1\r\nEND\r\n"),
        (b"gets " + b" ".join([b"k" * 200] * 100) + b" a\r\n", b"VALUE a 0 1 1\r\n1\r\nEND\r\n"),
    ],
    "add, replace, append and prepend look at what is there": [
        (b"replace a 0 0 1\r\n1\r\n", b"NOT_STORED\r\n"),
        (b"append a 0 0 1\r\n1\r\n", b"NOT_STORED\r\n"),
        (b"prepend a 0 0 1\r\n1\r\n", b"NOT_STORED\r\n"),
        (b"add a 5 0 1\r\n1\r\n", b"STORED\r\n"),
        (b"add a 0 0 1\r\n2\r\n", b"NOT_STORED\r\n"),
        (b"append a 9 0 1\r\n>\r\nprepend a 9 0 1\r\n<\r\n", b"STORED\r\nSTORED\r\n"),
        (b"gets a\r\n", b"VALUE a 5 3 3\r\n<1>\r\nEND\r\n"),
        (b"replace a 0 0 1\r\n2\r\nget a\r\n", b"STORED\r\nVALUE a 0 1\r\n2\r\nEND\r\n"),
    ],
    "cas stores only over the version it names": [
        (b"cas a 0 0 1 1\r\n1\r\n", b"NOT_FOUND\r\n"),
        (b"set a 0 0 1\r\n1\r\ngets a\r\n", b"STORED\r\nVALUE a 0 1 1\r\n1\r\nEND\r\n"),
        (b"touch a 0\r\ncas a 0 0 1 1\r\n2\r\n", b"TOUCHED\r\nSTORED\r\n"),
        (b"cas a 0 0 1 1\r\n3\r\ngets a\r\n", b"EXISTS\r\nVALUE a 0 1 2\r\n2\r\nEND\r\n"),
    ],
    "delete": [
        (b"delete a\r\nset a 0 0 1\r\n1\r\ndelete a\r\nget a\r\n", b"NOT_FOUND\r\nSTORED\r\nDELETED\r\nEND\r\n"),
        (b"delete a 0\r\ndelete noreply\r\n", b"NOT_FOUND\r\nNOT_FOUND\r\n"),
        (b"delete a 1\r\n", b"CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]\r\n"),
    ],
    "incr wraps at 64 bits, decr stops at 0 and pads": [
        (b"incr a 1\r\ndecr a 1\r\n", b"NOT_FOUND\r\nNOT_FOUND\r\n"),
        (b"set a 3 0 2\r\n10\r\n", b"STORED\r\n"),
        (b"decr a 1\r\n", b"9\r\n"),
        (b"gets a\r\n", b"VALUE a 3 2 2\r\n9 \r\nEND\r\n"),
        (b"decr a 100\r\n", b"0\r\n"),
        (b"incr a 18446744073709551615\r\nincr a 2\r\n", b"18446744073709551615\r\n1\r\n"),
        (b"incr a x\r\nincr a -1\r\n", b"CLIENT_ERROR invalid numeric delta argument\r\n" * 2),
        (b"set a 0 0 1\r\nx\r\nincr a 1\r\n", b"STORED\r\nCLIENT_ERROR cannot increment or decrement non-numeric value\r\n"),
        (b"set a 0 0 0\r\n\r\nincr a 1\r\n", b"STORED\r\nCLIENT_ERROR cannot increment or decrement non-numeric value\r\n"),
    ],
    "touch, gat and gats set the ttl": [
        (b"touch a 100\r\ngat 100 a\r\n", b"NOT_FOUND\r\nEND\r\n"),
        (b"set a 0 0 1\r\n1\r\nmg a t\r\n", b"STORED\r\nHD t-1\r\n"),
        (b"touch a 100\r\nmg a t\r\n", b"TOUCHED\r\nHD t100\r\n"),
        (b"gat 1000 a b\r\nmg a t\r\n", b"VALUE a 0 1\r\n1\r\nEND\r\nHD t1000\r\n"),
        (b"gats 0 a\r\nmg a t\r\n", b"VALUE a 0 1 1\r\n1\r\nEND\r\nHD t-1\r\n"),
        (b"touch a x\r\ngat x a\r\n", b"CLIENT_ERROR invalid exptime argument\r\n" * 2),
        (b"touch a -1\r\nget a\r\n", b"TOUCHED\r\nEND\r\n"),
    ],
    "a ttl over 30 days is an absolute time": [
        (b"set a 0 2592000 1\r\n1\r\nmg a t\r\n", b"STORED\r\nHD t2592000\r\n"),
        (b"set a 0 2592001 1\r\n1\r\nget a\r\n", b"STORED\r\nEND\r\n"),
        (b"set a 0 -1 1\r\n1\r\nget a\r\n", b"STORED\r\nEND\r\n"),
        (b"ms a 1 T-100\r\n1\r\nmg a\r\n", b"HD\r\nEN\r\n"),
    ],
    "noreply silences replies and errors": [
        (b"set a 0 0 1 noreply\r\n1\r\nget a\r\n", b"VALUE a 0 1\r\n1\r\nEND\r\n"),
        (b"add a 0 0 1 noreply\r\n1\r\ncas a 0 0 1 99 noreply\r\n1\r\nappend a 0 0 1 noreply\r\n2\r\n", b""),
        (b"incr a 1 noreply\r\ndecr a 2 noreply\r\ntouch a 100 noreply\r\ntouch a x noreply\r\nincr a x noreply\r\n", b""),
        (b"get a\r\ndelete a noreply\r\ndelete a 1 noreply\r\nget a\r\n", b"VALUE a 0 2\r\n11\r\nEND\r\nEND\r\n"),
        (b"flush_all noreply\r\nflush_all 0 noreply\r\nflush_all x noreply\r\nverbosity 1 noreply\r\n", b""),
        (b"set " + b"k" * 251 + b" 0 0 1 noreply\r\n", b""),
    ],
    "flush_all": [
        (b"set a 0 0 1\r\n1\r\nflush_all\r\nget a\r\n", b"STORED\r\nOK\r\nEND\r\n"),
        (b"set a 0 0 1\r\n1\r\ngets a\r\n", b"STORED\r\nVALUE a 0 1 3\r\n1\r\nEND\r\n"),
        (b"flush_all 1000\r\nget a\r\nflush_all 0\r\nget a\r\n", b"OK\r\nVALUE a 0 1\r\n1\r\nEND\r\nOK\r\nEND\r\n"),
        (b"flush_all 1\r\nset a 0 0 1\r\n1\r\nget a\r\n", b"OK\r\nSTORED\r\nEND\r\n"),
        (b"flush_all x\r\nflush_all 1 2 3\r\n", b"CLIENT_ERROR invalid exptime argument\r\nERROR\r\n"),
    ],
    "version and verbosity": [
        (b"version\r\nversion x\r\n", b"VERSION 1.6.18\r\n" * 2),
        (b"verbosity\r\nverbosity 0\r\nverbosity x\r\n", b"ERROR\r\nOK\r\nCLIENT_ERROR bad command line format\r\n"),
    ],
    "unknown and misshapen commands": [
        (b"\r\n\n \r\na\r\nGET a\r\nnope a\r\n", b"ERROR\r\n" * 6),
        (
            b"get\r\ngets\r\ngat\r\ntouch a\r\nincr a\r\ndelete\r\nset a 0 0\r\ncas a 0 0 1\r\nmg\r\nms\r\nmd\r\nma\r\nmx a\r\n",
            b"ERROR\r\n" * 13,
        ),
        (b"me\r\nms a\r\n", b"CLIENT_ERROR bad command line format\r\n" * 2),
        (b"gat 10\r\n", b"END\r\n"),
        (b"stats nope\r\nlru_crawler\r\nlru_crawler metadump\r\nlru_crawler metadump all x\r\n", b"ERROR\r\n" * 4),
        (b"get   a\nget a \r\n get a\r\nget a\0x x\r\n", b"END\r\n" * 4),
        (b"set a\0 0 0 1\r\n", b"ERROR\r\n"),
    ],
    "a bad number or length is refused, and the data is then read as a command": [
        (b"set a x 0 1\r\n1\r\n", b"CLIENT_ERROR bad command line format\r\nERROR\r\n"),
        (b"set a 0 x 1\r\n1\r\n", b"CLIENT_ERROR bad command line format\r\nERROR\r\n"),
        (b"set a 0 0 -1\r\n1\r\n", b"CLIENT_ERROR bad command line format\r\nERROR\r\n"),
        (b"cas a 0 0 1 x\r\n1\r\n", b"CLIENT_ERROR bad command line format\r\nERROR\r\n"),
        (
            b"ms a x\r\n1\r\nms a -1\r\n",
            b"CLIENT_ERROR bad command line format\r\nERROR\r\nCLIENT_ERROR bad command line format\r\n",
        ),
    ],
    "data longer than announced": [
        (b"set a 0 0 1\r\n1\r\n", b"STORED\r\n"),
        (b"set a 0 0 1\r\n123\r\n", b"CLIENT_ERROR bad data chunk\r\nERROR\r\n"),
        (b"set a 0 0 1 noreply\r\n123\r\n", b"ERROR\r\n"),
        (b"ms a 1 q\r\n123\r\n", b"CLIENT_ERROR bad data chunk\r\nERROR\r\n"),
        (b"get a\r\n", b"VALUE a 0 1\r\n1\r\nEND\r\n"),
    ],
    "keys have at most 250 bytes": [
        (data(b"set " + b"k" * 250 + b" 0 0 {}", b"1"), b"STORED\r\n"),
        (b"mg " + b"k" * 250 + b" v\r\n", b"VA 1\r\n1\r\n"),
        (b"get a " + b"k" * 251 + b"\r\ndelete " + b"k" * 251 + b"\r\n", b"CLIENT_ERROR bad command line format\r\n" * 2),
        (b"mg " + b"k" * 251 + b"\r\nmd " + b"k" * 251 + b"\r\n", b"CLIENT_ERROR bad command line format\r\n" * 2),
        (b"set " + b"k" * 251 + b" 0 0 1\r\n", b"CLIENT_ERROR bad command line format\r\n"),
    ],
    "a value too large removes what a set would have replaced": [
        (data(b"set a 0 0 {}", b"x" * LARGEST), b"STORED\r\n"),
        (data(b"set a 0 0 {}", b"x" * (LARGEST + 1)), b"SERVER_ERROR object too large for cache\r\n"),
        (b"get a\r\n", b"END\r\n"),
        (b"set a 0 0 1\r\n1\r\n", b"STORED\r\n"),
        (data(b"add a 0 0 {}", b"x" * (LARGEST + 1)), b"SERVER_ERROR object too large for cache\r\n"),
        (data(b"append a 0 0 {}", b"x" * LARGEST), b"NOT_STORED\r\n"),
        (b"get a\r\n", b"VALUE a 0 1\r\n1\r\nEND\r\n"),
        (data(b"set a 0 0 {} noreply", b"x" * (LARGEST + 1)), b""),
        (b"get a\r\n", b"END\r\n"),
    ],
    "an ms that is too large removes the item in every mode": [
        (b"set a 0 0 1\r\n1\r\n", b"STORED\r\n"),
        (data(b"ms a {} ME q", b"x" * (LARGEST + 1)), b"SERVER_ERROR object too large for cache\r\n"),
        (b"mg a\r\n", b"EN\r\n"),
    ],
    "quit ends the connection": [
        (b"set a 0 0 1\r\n1\r\nget a\r\nquit\r\nget a\r\n", b"STORED\r\nVALUE a 0 1\r\n1\r\nEND\r\n<closed>"),
        (b"get a\r\n", b"VALUE a 0 1\r\n1\r\nEND\r\n"),
    ],
    "a line that does not end is cut off": [
        (b"x" * 2047 + b"\r\n", b"ERROR\r\n"),
        (b"x" * 2049, b"<closed>"),
        (b"gat 1 " + b"k" * 5000, b"<closed>"),
    ],
    "mg returns what its flags ask for, in their order": [
        (b"mg a v\r\nmg a k O1 v\r\nmg a q\r\n", b"EN\r\nEN ka O1\r\n"),
        (b"set a 7 100 5\r\nhello\r\n", b"STORED\r\n"),
        (b"mg a\r\nmg a v\r\nmg a q\r\n", b"HD\r\nVA 5\r\nhello\r\nHD\r\n"),
        (b"mg a t s f c k Oxy v\r\n", b"VA 5 t100 s5 f7 c1 ka Oxy\r\nhello\r\n"),
        (b"mg a Oxy k c f s t\r\n", b"HD Oxy ka c1 f7 s5 t100\r\n"),
        (b"mg a T1000 t\r\nmg a t T0 Px Ly\r\nmg a t\r\n", b"HD t1000\r\nHD t1000\r\nHD t-1\r\n"),
        (
            b"mg a O" + b"x" * 31 + b"\r\nmg a O" + b"x" * 32 + b"\r\n",
            b"HD O" + b"x" * 31 + b"\r\nCLIENT_ERROR opaque token too long\r\n",
        ),
    ],
    "h and l tell how it was before, u leaves it so": [
        (b"set a 0 0 1\r\n1\r\nmg a u\r\nmg a h u\r\n", b"STORED\r\nHD\r\nHD h0\r\n"),
        (b"mg a h l\r\nmg a h l\r\n", b"HD h0 l0\r\nHD h1 l0\r\n"),
    ],
    "bad flags": [
        (
            b"mg a z\r\nmg a v v\r\nmg a vx v\r\nmg a \xff\r\n",
            b"CLIENT_ERROR invalid flag\r\n" + b"CLIENT_ERROR duplicate flag\r\n" * 3,
        ),
        (b"mg a N\r\nmg a Tx\r\nmg a R5x\r\n", b"CLIENT_ERROR bad token in command line format\r\n" * 3),
        (b"mg a z N\r\nmg a N z\r\n", b"CLIENT_ERROR invalid flag\r\n" * 2),
        (b"mg a" + b" t" * 17 + b"\r\n", b"CLIENT_ERROR duplicate flag\r\n"),
        (b"mg a" + b" t" * 18 + b"\r\n", b"CLIENT_ERROR options flags are too long\r\n"),
        (b"md a" + b" t" * 18 + b"\r\nma a" + b" t" * 18 + b"\r\n", b"CLIENT_ERROR options flags too long\r\n" * 2),
        (b"md a z\r\nma a v v\r\nma a Dx\r\nma a MII\r\n", b"CLIENT_ERROR invalid or duplicate flag\r\n" * 4),
        (b"ma a MS\r\n", b"CLIENT_ERROR invalid mode for ma M token\r\n"),
        (b"ms a 1 Me\r\n1\r\n", b"CLIENT_ERROR invalid mode for ms M token\r\n"),
        (b"ms a 1 M\r\n1\r\n", b"CLIENT_ERROR incorrect length for M token\r\n"),
        (b"ms a 1 Fx\r\n1\r\n", b"CLIENT_ERROR bad command line format\r\n"),
        (b"ms a 1 Tx Fx\r\n1\r\nms a 1 Fx Tx\r\n1\r\n", b"CLIENT_ERROR bad token in command line format\r\n" * 2),
        (b"ms a 1 S1\r\n1\r\n", b"CLIENT_ERROR invalid flag\r\n"),
        (b"ms a 1 Cx\r\n1\r\n", b"CLIENT_ERROR bad token in command line format\r\n"),
    ],
    "ms stores by mode, with flags and ttl": [
        (b"ms a 1 F7 T100 c k O1\r\n1\r\n", b"HD c1 ka O1\r\n"),
        (b"mg a f t v\r\n", b"VA 1 f7 t100\r\n1\r\n"),
        (b"ms a 1 q\r\n2\r\nms a 1 ME q k\r\n3\r\nms b 1 MR q\r\n3\r\n", b"NS ka\r\nNS\r\n"),
        (b"ms a 1 MA\r\n>\r\nms a 1 MP\r\n<\r\nms a 3 MR\r\nnew\r\nms b 1 MA\r\n>\r\n", b"HD\r\nHD\r\nHD\r\nNS\r\n"),
        (b"mg a v c\r\nms a 1 ME c\r\n1\r\n", b"VA 3 c5\r\nnew\r\nNS c0\r\n"),
        (b"ms a 2 MS\r\nhi\r\nmg a v\r\n", b"HD\r\nVA 2\r\nhi\r\n"),
    ],
    "ms with C compares": [
        (b"ms a 1 C1\r\n1\r\n", b"NF\r\n"),
        (b"ms a 1 c\r\n1\r\nms a 1 C99\r\n2\r\nms a 1 C0\r\n2\r\n", b"HD c1\r\nEX\r\nEX\r\n"),
        (b"ms a 1 C1 c\r\n2\r\n", b"HD c2\r\n"),
        (b"ms a 1 C1 I\r\nx\r\nmg a v c\r\n", b"HD\r\nVA 1 c3 X W\r\nx\r\n"),
        (b"ms a 1 C99 MA\r\n+\r\nms a 1 C3 MA\r\n+\r\nmg a v\r\n", b"EX\r\nHD\r\nVA 2\r\nx+\r\n"),
    ],
    "base64 keys": [
        (b"ms Zm9v 1 b k\r\n1\r\n", b"HD kZm9v b\r\n"),
        (b"mg foo v k\r\nmg Zm9v b v k\r\nget foo\r\n", b"VA 1 kZm9v b\r\n1\r\nVA 1 kZm9v b\r\n1\r\nVALUE foo 0 1\r\n1\r\nEND\r\n"),
        (b"mg c3BhIGNl b k\r\nmd Zm9v b k\r\nma Zm9v b k N0\r\n", b"EN kc3BhIGNl b\r\nHD kZm9v b\r\nHD kZm9v b\r\n"),
        (b"ms Zg==Zg== 0 b k\r\n\r\nms Z,m8= 0 b k\r\n\r\n", b"HD kZg== b\r\nHD kZm8= b\r\n"),
        (b"mg ==== b\r\n", b"CLIENT_ERROR error decoding key\r\n"),
        (b"mg Zm9 b\r\nms Zm9 1 b\r\n1\r\n", b"CLIENT_ERROR error decoding key\r\n" * 2),
    ],
    "N makes a lease: one winner, the others wait": [
        (b"mg a v N30 t c\r\n", b"VA 0 t30 c1 W\r\n\r\n"),
        (b"mg a v N30 c\r\nmg a\r\n", b"VA 0 c1 Z\r\n\r\nHD Z\r\n"),
        (b"get a\r\nadd a 0 0 1\r\n1\r\n", b"VALUE a 0 0\r\n\r\nEND\r\nNOT_STORED\r\n"),
        (b"ms a 5 C1 c\r\nvalue\r\nmg a v N30\r\n", b"HD c2\r\nVA 5\r\nvalue\r\n"),
    ],
    "a delete kills the lease, an invalidation outdates it": [
        (b"mg a N30 c\r\nmd a\r\nms a 1 C1\r\n1\r\n", b"HD c1 W\r\nHD\r\nNF\r\n"),
        (b"mg a N30 c\r\nmd a I\r\nms a 1 C2\r\n1\r\n", b"HD c2 W\r\nHD\r\nEX\r\n"),
        (b"mg a c\r\nmg a c\r\n", b"HD c3 X W\r\nHD c3 Z X\r\n"),
    ],
    "an invalidated value is stale, and one client wins its renewal": [
        (b"md a I\r\nset a 0 0 3\r\nold\r\nmd a I T30 k O1\r\n", b"NF\r\nSTORED\r\nHD ka O1\r\n"),
        (b"mg a v t c\r\nmg a v\r\nget a\r\n", b"VA 3 t30 c2 X W\r\nold\r\nVA 3 Z X\r\nold\r\nVALUE a 0 3\r\nold\r\nEND\r\n"),
        (b"md a I\r\nmg a v u\r\n", b"HD\r\nVA 3 X W\r\nold\r\n"),
        (b"ms a 3\r\nnew\r\nmg a v\r\n", b"HD\r\nVA 3\r\nnew\r\n"),
    ],
    "R wins a renewal shortly before the end": [
        (b"set a 0 100 1\r\n1\r\nmg a R30\r\nmg a R1000\r\nmg a R1000\r\n", b"STORED\r\nHD\r\nHD W\r\nHD Z\r\n"),
        (b"set a 0 0 1\r\n1\r\nmg a R1000\r\n", b"STORED\r\nHD\r\n"),
    ],
    "md compares, and is quiet only on success": [
        (b"set a 0 0 1\r\n1\r\nmd a C9\r\nmd a C0\r\nmd a C1\r\nmd a C1\r\n", b"STORED\r\nEX\r\nEX\r\nHD\r\nNF\r\n"),
        (b"set a 0 0 1\r\n1\r\nmd a q\r\nmd a q k\r\n", b"STORED\r\nNF ka\r\n"),
        (b"set a 0 100 1\r\n1\r\nmd a T1000 C99\r\nmg a t\r\n", b"STORED\r\nEX\r\nHD t100\r\n"),
    ],
    "ma counts": [
        (b"ma a\r\nma a q k\r\n", b"NF\r\nNF ka\r\n"),
        (b"ma a t N100 J5 v c\r\n", b"VA 1 t-1 c1\r\n5\r\n"),
        (b"ma a v t c O1 k\r\n", b"VA 1 t100 c2 O1 ka\r\n6\r\n"),
        (b"ma a MD D2 v\r\nma a M- D100 v\r\nma a M+ D9 v\r\nma a q\r\n", b"VA 1\r\n4\r\nVA 1\r\n0\r\nVA 1\r\n9\r\n"),
        (b"get a\r\nma a C99\r\nma a C6 T1000 t\r\n", b"VALUE a 0 2\r\n10\r\nEND\r\nEX\r\nHD t1000\r\n"),
        (b"set b 0 0 1\r\nx\r\nma b\r\n", b"STORED\r\nCLIENT_ERROR cannot increment or decrement non-numeric value\r\n"),
    ],
    "a ttl given with an increment is lost where the number grows longer": [
        (b"set a 0 0 2\r\n98\r\n", b"STORED\r\n"),
        (b"ma a T100 v\r\n", b"VA 2\r\n99\r\n"),
        (b"mg a t\r\n", b"HD t100\r\n"),
        (b"ma a T1000 t c\r\n", b"HD t1000 c3\r\n"),
        (b"mg a t c\r\n", b"HD t100 c3\r\n"),
    ],
    "me shows the item": [
        (b"me a\r\n", b"EN\r\n"),
        (b"set a 0 0 1\r\n1\r\nme a\r\n", b"STORED\r\nME a exp=-1 la=0 cas=1 fetch=no cls=1 size=61\r\n"),
        (b"set a 5 100 1000\r\n" + b"x" * 1000 + b"\r\nget a\r\n", b"STORED\r\nVALUE a 5 1000\r\n" + b"x" * 1000 + b"\r\nEND\r\n"),
        (b"me a\r\n", b"ME a exp=-100 la=0 cas=2 fetch=yes cls=12 size=1064\r\n"),
        (
            b"ms Zm9v 0 b\r\n\r\nme Zm9v b\r\nme Zm9 b\r\n",
            b"HD\r\nME Zm9v exp=-1 la=0 cas=3 fetch=no cls=1 size=62\r\nCLIENT_ERROR bad command line format\r\n",
        ),
    ],
    "mn ends a quiet pipeline": [
        (b"mg a q\r\nmg b q\r\nmn\r\n", b"MN\r\n"),
    ],
    "stats reset": [(b"stats reset\r\n", b"RESET\r\n")],
}


def pieces(request: bytes, size: int) -> Iterator[bytes]:
    return (request[start : start + size] for start in range(0, len(request), size))


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_a_real_node_says_this(script: Script, fresh_real_node: RealNode) -> None:
    for request, replies in script:
        assert rounded(fresh_real_node.ask(request, hangs_up=replies.endswith(b"<closed>"))) == rounded(replies), request[:100]


@pytest.mark.parametrize("cut", [1 << 30, 1], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_the_embedded_node_says_this(script: Script, cut: int) -> None:
    node = EmbeddedNode(clock=lambda: 1_700_000_000.5)
    session = node.session()
    for request, replies in script:
        size = cut if len(request) < 30_000 else max(cut, 4099)
        got = b"".join(session.receive(piece) for piece in pieces(request, size))
        if session.closed:
            got += b"<closed>"
            session = node.session()
        assert got == replies, request[:100]
