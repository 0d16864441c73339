from __future__ import annotations

import io
import sys

import pytest

from kvcluster.stats.report import duration, percent, show, size, text
from kvcluster.stats.server import NodeStats

UP = NodeStats(
    "127.0.0.1:22122",
    version="1.6.18",
    uptime=4000,
    items=123456,
    bytes=10 << 20,
    limit=64 << 20,
    gets=100,
    hits=93,
    misses=7,
    sets=5,
    evictions=1,
    connections=4,
)
DOWN = NodeStats("c2:11211", error="Connection refused")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_text() -> None:
    # the expected table is aligned by hand: widths follow the longest cell, figures stand to the right
    assert text([UP]) == (
        "node             version  uptime    items           memory  hit rate  gets  sets  evictions  conns\n"
        "127.0.0.1:22122   1.6.18   1h 6m  123,456  10.0 MiB 15.6 %    93.0 %   100     5          1      4\n"
        "total                             123,456  10.0 MiB 15.6 %    93.0 %   100     5          1      4"
    )


def test_a_node_that_did_not_answer_keeps_its_line() -> None:
    heading, up, down, total = text([UP, DOWN]).splitlines()
    assert heading.endswith("error")
    assert up.endswith("4")
    assert down.split() == ["c2:11211", *"-" * 9, "Connection", "refused"]
    assert total.split()[:2] == ["total", "123,456"]


def test_a_pipe_gets_plain_text() -> None:
    out = io.StringIO()
    show([UP, DOWN], out)
    assert out.getvalue() == text([UP, DOWN]) + "\n"


def test_a_terminal_gets_a_table_of_the_same_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    show([UP, DOWN], out)
    assert "\x1b[31m" in out.getvalue()
    assert out.getvalue() != text([UP, DOWN]) + "\n"
    for cell in (*text([UP]).split(), "Connection refused"):
        assert cell in out.getvalue()


def test_a_terminal_without_rich_gets_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name == "rich" or name.startswith("rich.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "rich", None)
    out = Terminal()
    show([UP], out)
    assert out.getvalue() == text([UP]) + "\n"


def test_markup_in_an_error_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    out = Terminal()
    show([NodeStats("a", error="[red]b'x'[/nope]")], out)
    assert "[red]b'x'[/nope]" in out.getvalue()


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1 << 30, "1.0 GiB"), (5 << 40, "5.0 TiB"), (1 << 60, "1,048,576.0 TiB")],
)
def test_size(value: int, shown: str) -> None:
    assert size(value) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0s"), (60, "1m 0s"), (3600, "1h 0m"), (86400, "1d 0h"), (90061, "1d 1h")])
def test_duration(seconds: int, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(("share", "shown"), [(0.0, "0.0 %"), (1.0, "100.0 %"), (None, "-")])
def test_percent(share: float | None, shown: str) -> None:
    assert percent(share) == shown
