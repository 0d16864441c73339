"""`kvcluster rebalance` as a person uses it, on real nodes."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pymemcache.client.base import Client
from rich.console import Console

from kvcluster import Client as KvClient
from kvcluster import __version__ as version
from kvcluster.cli import rebalance as commands
from kvcluster.cli import rebalance_shown as shown
from kvcluster.cli.rebalance import app as rebalance_app
from kvcluster.errors import ResizeStopped
from kvcluster.placement import placement
from kvcluster.rebalance import Difference, Progress, Rebalance, Report, Sample, Settings
from kvcluster.sources import FileSource, Sighting, TableSource
from kvcluster.testing.nodes import RunningNode
from kvcluster.testing.plugin import NodeFactory
from kvcluster.topology import Document, Node, Topology
from tests.addresses import refusing_address

Cli = Callable[..., tuple[int, str, str]]
KEYS = 400
MEMORY = 62  # megabytes of these nodes, so that they are nobody else's


class Town:
    """A cluster in a file, its nodes, and `KEYS` keys on them."""

    def __init__(self, folder: Path, nodes: Sequence[RunningNode], members: int) -> None:
        self.addresses = [node.address for node in nodes]
        self.file = folder / "topology.toml"
        self.source = FileSource(self.file)
        self.wanted = folder / "wanted.toml"
        write(self.file, self.addresses[:members])
        write(self.wanted, self.addresses)
        self.keys = [f"key:{number}" for number in range(KEYS)]
        for address, keys in self.owned(self.addresses[:members]).items():
            with_node(address, lambda client, keys=keys: client.set_many({key: f"value of {key}" for key in keys}, expire=600))

    def owned(self, nodes: Sequence[str | Node]) -> dict[str, list[str]]:
        owned: dict[str, list[str]] = {}
        for key, owner in zip(self.keys, placement("slots", nodes).owners(self.keys), strict=True):
            owned.setdefault(owner.address, []).append(key)
        return owned

    def check(self, nodes: Sequence[str | Node] | None = None) -> None:
        """Every key is at its owner and nowhere else, and the file says so."""
        nodes = self.addresses if nodes is None else nodes
        owned = self.owned(nodes)
        for address in self.addresses:
            held = with_node(address, lambda client: client.get_many(self.keys))
            assert held == {key: f"value of {key}".encode() for key in owned.get(address, [])}
        document = self.source.read()
        assert (document.phase, {*document.nodes}) == ("old", {*Topology(nodes).nodes})


def write(file: Path, nodes: Sequence[str]) -> None:
    file.write_text("".join(f'[[nodes]]\naddress = "{node}"\n' for node in nodes))


def with_node(address: str, do: Callable[[Client], Any]) -> Any:
    client = Client(address, default_noreply=False)
    try:
        return do(client)
    finally:
        client.close()


@pytest.fixture
def town(kv_nodes: NodeFactory, tmp_path: Path) -> Town:
    """Two nodes in the file, a third that is empty."""
    return Town(tmp_path, kv_nodes(3, memory=MEMORY), members=2)


def words(out: str) -> str:
    return " ".join(out.split())


@pytest.mark.parametrize("where", ["{0}/topology.toml", "sqlite:///{0}/shop.db"])
def test_init_writes_the_first_document_and_no_other(cli: Cli, tmp_path: Path, where: str) -> None:
    if "://" in where:
        pytest.importorskip("sqlalchemy")
    topology = where.format(tmp_path)
    assert cli("rebalance", "init", "cache1", "cache2:11212=3", "--slots", "65536", "--topology", topology) == (
        0,
        f"{topology} has cache1, cache2:11212, epoch 1\n",
        "",
    )
    document = commands.source_of(topology).read()
    assert (document.epoch, document.phase, document.slots) == (1, "old", 65536)
    assert document.nodes == (Node("cache1"), Node("cache2:11212", weight=3))
    code, _, err = cli("rebalance", "init", "cache9", "--topology", topology)
    assert code != 0
    assert "there is a topology already" in err
    assert commands.source_of(topology).read() == document


def test_plan_counts_what_moves(cli: Cli, town: Town) -> None:
    moved: Counter[tuple[str, str]] = Counter()
    before, after = (placement("slots", nodes).owners(town.keys) for nodes in (town.addresses[:2], town.addresses))
    moved.update((old.address, new.address) for old, new in zip(before, after, strict=True) if old != new)
    arguments = ("rebalance", "plan", "--topology", str(town.file), "--wanted", str(town.wanted))

    code, out, err = cli(*arguments)
    assert (code, err) == (0, "")
    for (old, new), count in moved.items():
        assert re.search(rf"{old} +{new} +[\d,]+ +{count} +[\d.]+ KiB", out)
    assert re.search(rf"all +[\d,]+ +{moved.total()} ", out)
    assert re.search(rf"{town.addresses[2]} +- +3\d\.\d % +█", out)

    code, out, _ = cli(*arguments, "--json")
    document = json.loads(out)
    assert code == 0
    assert {(flow["source"], flow["target"]): flow["keys"] for flow in document["flows"]} == moved
    assert document["keys"] == moved.total()
    assert [node["address"] for node in document["wanted"]["nodes"]] == town.addresses
    town.check(town.addresses[:2])  # nothing was changed


def test_plan_says_what_its_hit_rates_are(cli: Cli, town: Town) -> None:
    first = town.addresses[0]
    keys = town.owned(town.addresses[:2])[first][:9]
    with_node(first, lambda client: [client.get(key) for key in ("nothing", *keys)])
    _, out, _ = cli("rebalance", "plan", "--topology", str(town.file), "--wanted", str(town.wanted))
    assert "Hit rate now: at most 90.0 %" in out
    assert re.search(r"Without migration: at most [5-7]\d\.\d % at first", out)


def test_plan_shows_the_clients(cli: Cli, town: Town) -> None:
    town.source.announce(Sighting("web-1", "0.1.0", 1, time.time()))
    town.source.announce(Sighting("web-2", "0.1.0", 0, time.time() - 20))
    arguments = ("--topology", str(town.file), "--wanted", str(town.wanted))
    _, out, _ = cli("rebalance", "plan", *arguments)
    assert re.search(r"web-1 +0\.1\.0 +1 +\ds ago", out)
    assert re.search(r"web-2 +0\.1\.0 +0 \(behind\) +2\ds ago", out)
    code, _, err = cli("rebalance", "run", *arguments, "--dry-run")
    assert code == 1
    assert err == "kvcluster: could not begin: client web-2 is at epoch 0 and does not follow\n"


def test_run_and_verify(cli: Cli, town: Town) -> None:
    arguments = ("--topology", str(town.file), "--wanted", str(town.wanted))
    assert cli("rebalance", "run", *arguments, "--dry-run")[0] == 0
    town.check(town.addresses[:2])

    code, out, err = cli("rebalance", "run", *arguments)
    assert code == 0
    assert out.startswith("Resized to ")
    assert "Coverage: 100.0 %." in out
    assert "differences 0." in out
    assert f"migrate: copying {town.addresses[0]}" in err
    town.check()

    code, out, _ = cli("rebalance", "verify", *arguments)
    assert code == 0
    assert out.count(" holds 0 keys that it does not own.") == 3

    lost = town.owned(town.addresses)[town.addresses[2]][0]
    with_node(town.addresses[0], lambda client: client.set(lost, "left behind", expire=60))
    code, out, _ = cli("rebalance", "verify", *arguments, "--json")
    assert code == 1
    assert json.loads(out)["leftovers"] == dict(zip(town.addresses, (1, 0, 0), strict=True))

    code, _, err = cli("rebalance", "run", *arguments)
    assert code == 2
    assert "the wanted topology is the present one" in err


def test_a_client_that_follows_is_seen_and_served(cli: Cli, town: Town) -> None:
    arguments = ("--topology", str(town.file), "--wanted", str(town.wanted))
    with KvClient.from_topology(town.source) as client:
        values = {key: f"value of {key}".encode() for key in town.keys}
        assert client.get_many(town.keys) == values
        code, out, _ = cli("rebalance", "plan", *arguments)
        assert code == 0
        assert re.search(rf"\w +{re.escape(version)} +1 +\ds ago", out)
        assert cli("rebalance", "run", *arguments)[0] == 0
        assert client.get_many(town.keys) == values
        assert {node.address for node in client.topology.nodes} == {*town.addresses}


def test_run_as_json(cli: Cli, town: Town) -> None:
    code, out, _ = cli("rebalance", "run", "--topology", str(town.file), "--wanted", str(town.wanted), "--json")
    document = json.loads(out)
    assert code == 0
    assert (document["finished"], document["coverage"], document["sample"]["differences"]) == (True, 1.0, [])
    assert document["outcomes"]["stored"] == document["dumped"] == document["swept"]


@pytest.mark.parametrize(
    ("arguments", "weights"),
    [
        (("add", "{2}"), {0: 1, 1: 1, 2: 1}),
        (("add", "{2}", "--weight", "2"), {0: 1, 1: 1, 2: 2}),
        (("remove", "{0}"), {1: 1}),
        (("reweight", "{0}=3"), {0: 3, 1: 1}),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_commands_for_people(cli: Cli, town: Town, arguments: tuple[str, ...], weights: dict[int, int]) -> None:
    given = [argument.format(*town.addresses) for argument in arguments]
    code, out, _ = cli("rebalance", *given, "--topology", str(town.file), "--yes")
    assert code == 0
    assert out.index("What moves") < out.index("Resized to")
    town.check([Node(town.addresses[at], weight) for at, weight in weights.items()])


def test_replace_keeps_the_id(cli: Cli, town: Town) -> None:
    first, second, third = town.addresses
    code, _, _ = cli("rebalance", "replace", second, third, "--topology", str(town.file), "--yes")
    assert code == 0
    town.check([Node(first), Node(third, id=second)])
    code, _, _ = cli("rebalance", "replace", second, second, "--topology", str(town.file), "--yes", "--new-id")
    assert code == 0
    town.check([Node(first), Node(second)])


def test_people_are_asked(cli: Cli, town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("rebalance", "add", town.addresses[2], "--topology", str(town.file))
    code, out, err = cli(*arguments)
    assert (code, out) == (2, "")
    assert err == "kvcluster: nobody is here to be asked: give --yes, or --dry-run to see the plan\n"
    answers = [False, True]
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(commands.typer, "confirm", lambda _: answers.pop(0))
    code, out, _ = cli(*arguments)
    assert code == 1
    assert out.endswith("nothing was changed\n")
    with monkeypatch.context() as patch:
        patch.setattr(commands.typer, "confirm", _interrupted)
        code, _, err = cli(*arguments)
        assert (code, err) == (130, "kvcluster: interrupted\n")
    town.check(town.addresses[:2])
    assert cli(*arguments)[0] == 0
    town.check()


def _interrupted(_: str) -> bool:
    raise commands.typer.Abort  # as typer does on Ctrl-C at a prompt


@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM])
def test_stop_and_resume(cli: Cli, town: Town, told: signal.Signals) -> None:
    script = "from kvcluster.cli import main; main()"
    arguments = ("rebalance", "run", "--topology", str(town.file), "--wanted", str(town.wanted), "--rate", "50")
    running = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # A shell's background job, which the tests may be, ignores SIGINT and hands that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert running.stderr is not None
    for line in running.stderr:
        if line.startswith("migrate: copying"):
            break
    running.send_signal(told)
    out, err = running.communicate(timeout=60)
    resume = f"To continue: kvcluster rebalance run --topology {town.file} --resume\n"
    assert running.returncode == 128 + told
    assert out.startswith("On the way to ")
    assert err.endswith(f"kvcluster: stopped in phase migrate; nothing is lost. {resume}")
    assert "Traceback" not in err

    code, _, err = cli("rebalance", "add", "127.0.0.1:1", "--topology", str(town.file), "--yes")
    assert code == 1
    assert err == f"kvcluster: a resize is under way in {town.file}, in phase migrate. {resume}"
    code, out, _ = cli("rebalance", "verify", "--topology", str(town.file))
    assert code == 0
    assert "phase migrate" in out
    assert "Compared: " in out
    code, out, _ = cli("rebalance", "run", "--topology", str(town.file), "--resume", "--dry-run")
    assert (code, out) == (0, f"would continue the resize to {', '.join(town.addresses)}, from phase migrate\n")
    assert cli("rebalance", "run", "--topology", str(town.file), "--resume")[0] == 0
    town.check()
    code, _, err = cli("rebalance", "run", "--topology", str(town.file), "--resume")
    assert code == 1
    assert "no resize is under way" in err


def test_a_resize_that_cannot_go_on_says_how_to_continue(cli: Cli, town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Rebalance, progress: object) -> Report:
        document = self.source.read()
        self.source.replace(document.epoch, document.step(phase="migrate", previous=document.nodes, owner="me"))
        raise ResizeStopped("c1:11211: connection refused; bring it back")

    monkeypatch.setattr(Rebalance, "run", fails)
    code, _, err = cli("rebalance", "run", "--topology", str(town.file), "--wanted", str(town.wanted))
    assert code == 1
    assert err == (
        "kvcluster: c1:11211: connection refused; bring it back. "
        f"To continue: kvcluster rebalance run --topology {town.file} --resume\n"
    )


def test_copies_that_differ_are_a_failure(cli: Cli, town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = Sample(compared=9, missing=1, differences=(Difference(b"caf\xc3\xa9", "c1:11211", "c2:11211", "ttl"),))
    for name in ("run", "verify"):
        monkeypatch.setattr(Rebalance, name, lambda self, *_: Report(self.source.read(), sample=sample))
        code, out, _ = cli(
            "rebalance", name, "--topology", str(town.file), *(("--wanted", str(town.wanted)) if name == "run" else ())
        )
        assert code == 1
        assert "coverage 90.0 %, differences 1." in out
        assert "café: another ttl at c2:11211 than at c1:11211" in out


def test_a_new_node_that_is_not_empty(cli: Cli, town: Town) -> None:
    with_node(town.addresses[2], lambda client: client.set("old", "1"))
    arguments = ("rebalance", "add", town.addresses[2], "--topology", str(town.file))
    for more in (("--dry-run",), ("--yes",)):
        code, _, err = cli(*arguments, *more)
        assert code == 1
        assert f"{town.addresses[2]} is not empty" in err
    assert cli(*arguments, "--dry-run", "--flush-new")[0] == 0
    assert cli(*arguments, "--yes", "--flush-new")[0] == 0
    assert with_node(town.addresses[2], lambda client: client.get("old")) is None
    town.check()


def test_a_new_node_that_is_not_there(cli: Cli, town: Town) -> None:
    with refusing_address() as absent:
        code, out, err = cli("rebalance", "add", absent, "--topology", str(town.file), "--dry-run")
    assert code == 1
    assert f"{absent} does not answer." in out
    assert err == f"kvcluster: could not begin: {absent} does not answer\n"
    code, _, err = cli("rebalance", "add", absent, "--topology", str(town.file), "--yes")
    assert code == 1
    assert absent in err
    town.check(town.addresses[:2])


def test_a_resize_whose_new_node_is_dead_is_aborted(cli: Cli, town: Town) -> None:
    document = town.source.read()
    with refusing_address() as absent:
        nodes = (*document.nodes, Node(absent))
        assert town.source.replace(1, document.step(phase="prepare", nodes=nodes, previous=document.nodes))
        town.source.patience = 0.01
        resize = Rebalance.resume(town.source, Settings(patience=0.1))
        with pytest.raises(ResizeStopped, match=f"{absent}.*or abort the resize"):
            resize.run()
        assert resize.abort().given_up == (absent,)
    town.check(town.addresses[:2])

    code, out, err = cli("rebalance", "abort", "--topology", str(town.file))
    assert (code, out) == (1, "")
    assert "no resize is under way (epoch " in err
    document = town.source.read()
    nodes = (*document.nodes, Node(town.addresses[2]))
    assert town.source.replace(document.epoch, document.step(phase="migrate", nodes=nodes, previous=document.nodes))
    code, out, err = cli("rebalance", "abort", "--topology", str(town.file))
    assert (code, out.split(" in ")[0]) == (0, f"Back to {', '.join(town.addresses[:2])}")
    assert "prepare: clearing" not in err  # a new node is none afterwards
    town.check(town.addresses[:2])


def test_a_topology_in_a_database(cli: Cli, town: Town, tmp_path: Path) -> None:
    sqlalchemy = pytest.importorskip("sqlalchemy")
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    engine = sqlalchemy.create_engine(url)
    source = TableSource(engine)
    source.create(Document(town.source.read().nodes))
    code, _, _ = cli("rebalance", "run", "--topology", url, "--wanted", str(town.wanted))
    assert code == 0
    assert source.read().phase == "old"
    assert [node.address for node in source.read().nodes] == town.addresses
    engine.dispose()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plan", "--topology", "{0}", "--wanted", "{0}"), "the wanted topology is the present one"),
        (("plan", "--topology", "absent.toml", "--wanted", "{0}"), "absent.toml: there is no such file"),
        (("plan", "--topology", "{0}", "--wanted", "absent.toml"), "absent.toml: there is no such file"),
        (("init", "cache1=x", "--topology", "{0}"), "'cache1=x' must be a node and its weight, as in cache1=2"),
        (("init", "cache1", "--topology", "{0}"), "there is a topology already"),
        (("plan", "--topology", "{0}"), "--wanted"),
        (("run", "--topology", "{0}"), "say what is wanted"),
        (("run", "--topology", "{0}", "--wanted", "{1}", "--resume"), "say what is wanted"),
        (("run", "--topology", "{0}", "--wanted", "{1}", "--rate", "0"), "rate must be a number above 0"),
        (("run", "--topology", "base://x", "--resume"), "--topology base://x: "),
        (("run", "--topology", "base://me:secret@x", "--resume"), "--topology ***@x: "),
        (("add", "cache1", "--topology", "{0}", "--yes"), "nodes must differ, but 'cache1' is the id of two"),
        (("add", "cache9:x", "--topology", "{0}", "--yes"), "address 'cache9:x'"),
        (("add", "cache9", "--weight", "0", "--topology", "{0}", "--yes"), "weight of node 'cache9'"),
        (("add", "--topology", "{0}"), "Missing argument"),
        (("remove", "cache9", "--topology", "{0}", "--yes"), "no node is 'cache9': there are cache1, cache2"),
        (("remove", "cache1", "cache2", "--topology", "{0}", "--yes"), "nodes must name at least one node"),
        (("replace", "cache1", "cache2", "--topology", "{0}", "--yes"), "nodes must differ"),
        (("reweight", "cache1", "--topology", "{0}", "--yes"), "'cache1' must be a node and its weight, as in cache1=2"),
        (("reweight", "cache1=101", "--topology", "{0}", "--yes"), "weight of node 'cache1:11211'"),
        (("reweight", "cache1=1", "--topology", "{0}", "--yes"), "the wanted topology is the present one"),
    ],
)
def test_mistakes_of_the_caller_are_one_line(cli: Cli, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    files = [tmp_path / "topology.toml", tmp_path / "wanted.toml"]
    write(files[0], ["cache1", "cache2"])
    write(files[1], ["cache1", "cache2", "cache3"])
    written = files[0].read_text()
    code, out, err = cli("rebalance", *(argument.format(*files) for argument in arguments))
    assert (code, out) == (2, "")
    assert err.startswith("kvcluster: ")
    assert err.count("\n") == 1
    assert message in err
    assert files[0].read_text() == written


def test_verify_of_other_nodes(cli: Cli, town: Town) -> None:
    code, _, err = cli("rebalance", "verify", "--topology", str(town.file), "--wanted", str(town.wanted))
    assert code == 1
    assert err.startswith(f"kvcluster: {town.file} does not have the nodes of {town.wanted}")


def test_the_picture_on_a_terminal() -> None:
    console = Console(width=130, force_terminal=True, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    now = Progress(
        9, "migrate", "copying", "c1:11211", keys=1500, keys_total=6000, bytes=1 << 20, rate=1000, seconds_left=4.5,
        hit_rate_sources=0.5, hit_rate_targets=0.981,
    )  # fmt: skip
    console.print(shown.picture(now))
    first, second, third = console.export_text().splitlines()
    assert first.rstrip() == "migrate: copying c1:11211"
    assert "1,500 of 6,000 keys  1.0 MiB  1,000 keys/s  4s left" in second
    assert third.rstrip() == "hit rate of the sources at most 50.0 %, of the targets 98.1 %"
    console.print(shown.picture(Progress(8, "prepare", "copying stamps")))
    assert console.export_text().rstrip() == "prepare: copying stamps"
    console.file.close()


@pytest.mark.parametrize("command", ["run", "add", "remove", "replace", "reweight"])
def test_each_command_takes_the_option_that_its_messages_ask_for(command: str) -> None:
    (found,) = [one for one in rebalance_app.registered_commands if one.callback is not None and one.callback.__name__ == command]
    assert "longest_ttl" in inspect.signature(found.callback).parameters  # type: ignore[arg-type]
