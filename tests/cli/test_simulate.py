"""`kvcluster simulate` as a person and as a program use it; what it computes is tested in tests/rebalance."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kvcluster.rebalance.simulate import simulate
from kvcluster.rebalance.workload import zipf
from kvcluster.topology import Node, Topology

Cli = Callable[..., tuple[int, str, str]]
SMALL = ("--keys", "1000", "--requests", "20000")


def rows(out: str) -> dict[str, list[str]]:
    """The cells of the table by scheme, without the bars."""
    return {
        line.split()[0]: re.findall(r"[\d,.]+(?: %)?", line.split(maxsplit=1)[-1])[:6] for line in out.splitlines() if "%" in line
    }


def test_the_table(cli: Cli) -> None:
    code, out, err = cli("simulate", *SMALL)
    assert (code, err) == (0, "")
    assert out.startswith("4 nodes to 5 nodes: 1,000 keys, Zipf 0.99, 20,000 gets")
    table = rows(out)
    costs = simulate(
        zipf(1_000, requests=20_000), Topology([f"node{n}" for n in range(4)]), Topology([f"node{n}" for n in range(5)])
    )
    for cost in costs:
        assert table[cost.scheme][0] == f"{100 * cost.moved_share:.1f} %"
        assert table[cost.scheme][-1] == f"{cost.extra_loads:,}"
    assert table["slots+live"][1:6] == ["100.0 %", "100.0 %", "100.0 %", "0", "0"]
    assert f"slots+live: {costs[-1].copied} keys were copied" in out


def test_json_has_every_figure(cli: Cli) -> None:
    code, out, _ = cli("simulate", *SMALL, "--from", "a,b", "--to", "a,b,c", "--schemes", "slots, ketama+live", "--json")
    document = json.loads(out)
    assert code == 0
    assert [node["id"] for node in document["to"]] == ["a", "b", "c"]
    assert (document["at"], document["memory"], document["window"]) == (0, None, 10_000)
    slots, ketama = document["schemes"]
    assert (slots["scheme"], ketama["scheme"]) == ("slots", "ketama+live")
    assert slots["extra_loads"] > 250
    assert (ketama["extra_loads"], ketama["finished"], len(ketama["rates"])) == (0, True, 2)


def test_topologies_in_files(cli: Cli, tmp_path: Path) -> None:
    before, after = tmp_path / "before.toml", tmp_path / "after.toml"
    before.write_text('slots = 1024\n[[nodes]]\naddress = "a"\n[[nodes]]\naddress = "b"\n')
    after.write_text('slots = 1024\n[[nodes]]\naddress = "a"\n[[nodes]]\nid = "b"\naddress = "c"\nweight = 3\n')
    code, out, _ = cli("simulate", *SMALL, "--from", str(before), "--to", str(after), "--schemes", "slots", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["to"][1] == {"id": "b", "address": "c:11211", "weight": 3}
    old, new = (Topology(["a", "b"], slots=1024), Topology(["a", Node("c", 3, "b")], slots=1024))
    (cost,) = simulate(zipf(1_000, requests=20_000), old, new, ["slots"])
    assert document["schemes"][0]["moved"] == cost.moved
    code, _, err = cli("simulate", "--from", str(tmp_path / "absent.toml"), "--to", "4")
    assert code == 2
    assert "absent.toml: there is no such file" in err
    assert cli("simulate", "--from", str(before), "--to", "4")[2].startswith("kvcluster: slots cannot change with a resize")


@pytest.mark.parametrize("replace", ["new-id", "same-id"])
def test_replace(cli: Cli, replace: str) -> None:
    code, out, _ = cli("simulate", *SMALL, "--from", "3", "--replace", replace, "--json", "--schemes", "slots")
    after = json.loads(out)["to"]
    assert code == 0
    assert [node["address"] for node in after] == ["node0:11211", "node1:11211", "replacement:11211"]
    assert after[2]["id"] == ("node2" if replace == "same-id" else "replacement")


def test_a_trace_is_resized_in_its_middle(cli: Cli, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("time,key,size,op\n" + "".join(f"{n / 10},key{n % 50},10,get\n" for n in range(400)))
    code, out, _ = cli("simulate", str(trace), "--json", "--schemes", "slots,slots+live", "--rate", "1000")
    document = json.loads(out)
    assert (code, document["at"]) == (0, 200)
    bare, live = document["schemes"]
    assert bare["extra_loads"] == bare["moved"] > 0
    assert live["extra_loads"] == 0


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_plot(cli: Cli, tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    pictures = [tmp_path / f"{name}{suffix}" for name in ("first", "second")]
    for picture in pictures:
        code, out, _ = cli("simulate", *SMALL, "--at", "10000", "--plot", str(picture))
        assert code == 0
        assert out.endswith(f"plot: {picture}\n")
    drawn = pictures[0].read_bytes()
    assert drawn == pictures[1].read_bytes()
    if suffix == ".svg":
        for text in (b"modulo", b"ketama", b"slots+live", b"hit rate"):
            assert text in drawn
    else:
        assert drawn.startswith(b"\x89PNG")


def test_a_plot_without_its_extra(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, err = cli("simulate", *SMALL, "--plot", str(tmp_path / "a.svg"))
    assert (code, out) == (2, "")
    assert err == "kvcluster: a plot needs an optional dependency: pip install 'kvcluster[plot]'\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--from", "0"), "--from must be from 1 to 1,000 nodes, not 0"),
        (("--to", "1001"), "--to must be from 1 to 1,000 nodes, not 1,001"),
        (("--from", "a,a"), "--from: nodes must differ"),
        (("--from", "4", "--to", "4"), "there is nothing to simulate"),
        (("--from", "a,b"), "say what the nodes become: --to, or --replace"),
        (("--to", "3", "--replace", "new-id"), "--to and --replace are two answers"),
        (("--schemes", "best"), "placement 'best' is unknown"),
        (("--schemes", "slots,"), "placement '' is unknown"),
        (("--keys", "0"), "keys must be from 1"),
        (("--size", "-1"), "size must be from 0"),
        (("--memory", "-1"), "--memory"),
        (("--rate", "0"), "rate must be above 0"),
        (("--plot", "a.pdf"), "plot a.pdf: the name must end with .svg or .png"),
        (("--plot", "absent/a.svg"), "there is no folder absent"),
        (("absent.csv",), "trace absent.csv: "),
        (("absent.csv", "--seed", "2"), "--seed describes a synthetic workload, and a trace was given"),
        (("absent.csv", "--requests-per-second", "2"), "--requests-per-second describes a synthetic workload"),
    ],
)
def test_mistakes_of_the_caller_are_one_line(cli: Cli, arguments: tuple[str, ...], message: str) -> None:
    small = () if "absent.csv" in arguments or "--keys" in arguments else SMALL
    code, out, err = cli("simulate", *arguments, *small)
    assert (code, out) == (2, "")
    assert err.startswith("kvcluster: ")
    assert err.count("\n") == 1
    assert message in err


def test_bars() -> None:
    bars = importlib.import_module("kvcluster.cli.simulate").bars
    assert bars([], 0, 1) == ""
    assert bars([1.0] * 100, 1.0, 1.0) == "█" * 24
    assert bars([0.0, None, 1.0], 0.0, 1.0) == "▁ █"
