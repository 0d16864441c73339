"""metadump and stats of a real memcached and the embedded node, after the same dialogue."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import pytest

from kvcluster.embedded import EmbeddedNode, Session
from tests.contract.wire import rounded

if TYPE_CHECKING:
    from tests.contract.conftest import RealNode

DIALOGUE = [
    b"set plain 0 0 1\r\n1\r\nset flagged 5 100 1\r\n1\r\nget plain missing\r\n",
    b"ms c3AgYWNlL/8Ba2V5Cg== 3 b T1000\r\nbin\r\nset sp%20ace~_.- 0 0 0\r\n\r\n",
    b"set large 0 0 3000\r\n" + b"x" * 3000 + b"\r\n",
    b"set huge 0 0 600000\r\n" + b"x" * 600_000 + b"\r\n",
    b"mg lease N30 v\r\nmd flagged I\r\nset gone 0 -1 1\r\n1\r\n",
    b"incr plain 1\r\nincr missing 1\r\ndecr plain 1\r\nma plain\r\nma missing\r\ndecr missing 1\r\nma missing MD\r\n",
    b"touch plain 0\r\ntouch missing 0\r\ngat 0 plain missing\r\nmg plain T0\r\nmg missing T0\r\n",
    b"gets plain missing\r\nmg plain v\r\nmg missing v\r\nme plain\r\nme missing\r\n",
    b"delete missing\r\nset b 0 0 1\r\n1\r\ndelete b\r\nmd b\r\nset b 0 0 1\r\n1\r\nmd b C1\r\nmd b\r\n",
    b"cas missing 0 0 1 1\r\n1\r\ncas large 0 0 1 1\r\n1\r\nms plain 1 C1\r\n1\r\n",
    b"set b 0 0 1\r\n1\r\n",
    b"set big 0 0 1048577\r\n" + b"x" * 1048577 + b"\r\nadd b 0 0 1\r\n1\r\nget gone\r\n",
]

CLASSES = {b"all": range(1, 64), b"hash": range(1, 64), b"1": [1], b"39": [39], b"1,17": [1, 17], b"30": []}

COUNTED = [
    *("cmd_get", "cmd_set", "cmd_flush", "cmd_touch", "cmd_meta", "get_hits", "get_misses", "get_expired", "get_flushed"),
    *("delete_misses", "delete_hits", "incr_misses", "incr_hits", "decr_misses", "decr_hits", "cas_misses", "cas_hits"),
    *("cas_badval", "touch_hits", "touch_misses", "store_too_large", "store_no_memory", "limit_maxbytes"),
    *("bytes", "curr_items", "total_items", "evictions", "version", "pointer_size", "accepting_conns", "curr_connections"),
]


@pytest.fixture
def embedded() -> Session:
    return EmbeddedNode(clock=time.time).session()


def talk(real: RealNode, embedded: Session) -> None:
    for request in DIALOGUE:
        assert rounded(embedded.receive(request)) == rounded(real.ask(request)), request[:80]


def timeless(dump: bytes) -> list[bytes]:
    """The lines of a dump in an order of their own, with times as seconds from now to the nearest 50."""

    def from_now(match: re.Match[bytes]) -> bytes:
        return match[1] + b"%d" % round((int(match[2]) - time.time()) / 50)

    return sorted(re.sub(rb"( exp=| la=)(\d+)", from_now, dump).split(b"\n"))


def figures(report: bytes) -> dict[str, str]:
    return dict(line.split(" ", 2)[1:] for line in report.decode().split("\r\n") if line.startswith("STAT "))


@pytest.mark.parametrize("classes", CLASSES)
def test_metadump(classes: bytes, fresh_real_node: RealNode, embedded: Session) -> None:
    talk(fresh_real_node, embedded)
    request = b"lru_crawler metadump %b\r\n" % classes
    dump = embedded.receive(request)
    assert timeless(dump) == timeless(fresh_real_node.dump(request))
    shown = {int(number) for number in re.findall(rb"cls=(\d+)", dump)}
    assert shown == {1, 17, 39}.intersection(CLASSES[classes])


def test_metadump_is_literally_this() -> None:
    now = 1_795_332_623
    session = EmbeddedNode(clock=lambda: now).session()
    session.receive(b"ms c3AgYWNlL/8Ba2V5Cg== 2 b T50\r\nhi\r\nset b 1 0 0\r\n\r\nget b\r\nset gone 0 -1 0\r\n\r\n")
    assert session.receive(b"lru_crawler metadump hash\r\n") == (
        b"key=sp%20ace%2F%FF%01key%0A exp=1795332673 la=1795332623 cas=1 fetch=no cls=1 size=74\n"
        b"key=b exp=-1 la=1795332623 cas=2 fetch=yes cls=1 size=64\n"
        b"END\r\n"
    )


@pytest.mark.parametrize("classes", [b"0", b"64", b"x", b"1,x", b"-1"])
def test_metadump_of_no_such_class(classes: bytes, fresh_real_node: RealNode, embedded: Session) -> None:
    request = b"lru_crawler metadump %b\r\n" % classes
    assert embedded.receive(request) == fresh_real_node.ask(request) == b"BADCLASS invalid class id\r\n"


def test_stats_count_alike(fresh_real_node: RealNode, embedded: Session) -> None:
    talk(fresh_real_node, embedded)
    real, ours = figures(fresh_real_node.ask(b"stats\r\n")), figures(embedded.receive(b"stats\r\n"))
    # The question that the real node is asked to mark the end of replies is a miss of its own.
    asked = len(DIALOGUE)
    for name in ("cmd_get", "get_misses"):
        real[name] = str(int(real[name]) - asked)
    assert {name: ours[name] for name in COUNTED} == {name: real[name] for name in COUNTED}
    assert set(ours) <= set(real)


@pytest.mark.parametrize("kind", ["settings", "items", "slabs"])
def test_other_stats_say_nothing_else(kind: str, fresh_real_node: RealNode, embedded: Session) -> None:
    talk(fresh_real_node, embedded)
    request = f"stats {kind}\r\n".encode()
    real, ours = figures(fresh_real_node.ask(request)), figures(embedded.receive(request))
    assert len(ours) > 5
    for name, value in ours.items():
        # The real node keeps the pages that it took for items which are gone.
        if not name.endswith((":age", "free_chunks", "total_chunks", "_pages", "_malloced", "active_slabs")):
            assert real[name] == value, name


def test_stats_reset(fresh_real_node: RealNode, embedded: Session) -> None:
    talk(fresh_real_node, embedded)
    assert embedded.receive(b"stats reset\r\n") == fresh_real_node.ask(b"stats reset\r\n") == b"RESET\r\n"
    real, ours = figures(fresh_real_node.ask(b"stats\r\n")), figures(embedded.receive(b"stats\r\n"))
    for name in set(COUNTED) - {"cmd_get", "get_misses"}:
        assert real[name] == ours[name], name
