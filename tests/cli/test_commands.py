"""What the other commands print, and how they fail."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
from pymemcache.client.base import Client

from kvcluster.placement import SCHEMES, placement
from kvcluster.placement import _hot as placement_twin
from kvcluster.protocol import hot as protocol_twin
from kvcluster.protocol.requests import wire_key
from kvcluster.testing.plugin import NodeFactory

Cli = Callable[..., tuple[int, str, str]]
NODES = "c1,c2:11311,c3"


def test_stats_json_is_what_the_nodes_say(cli: Cli, kv_nodes: NodeFactory) -> None:
    first, second = kv_nodes(2, memory=61)  # never used before: a node counts flushed items until it meets them
    for node, size in ((first, 1), (second, 3)):
        client = Client(node.address, default_noreply=False)
        client.set_many({f"key{number}": "value" for number in range(size)})
        client.get_many(["key0", "absent"])
        client.close()

    code, out, _ = cli("stats", "--json", "--nodes", f"{first.address}, {second.address}")
    document = json.loads(out)

    assert code == 0
    assert [node["address"] for node in document["nodes"]] == [first.address, second.address]
    assert [node["items"] for node in document["nodes"]] == [1, 3]
    assert {name: document["total"][name] for name in ("items", "gets", "hits", "misses", "sets", "hit_rate")} == {
        "items": 4, "gets": 4, "hits": 2, "misses": 2, "sets": 4, "hit_rate": 0.5,
    }  # fmt: skip


def test_stats_shows_a_node_that_does_not_answer_and_fails(cli: Cli, kv_nodes: NodeFactory) -> None:
    alive, dead = kv_nodes(2)
    dead.kill()
    code, out, err = cli("stats", "--nodes", f"{alive.address},{dead.address}")
    heading, first, second, total = out.splitlines()
    assert (code, err) == (1, "")
    assert heading.startswith("node ")
    assert first.startswith(alive.address)
    assert second.startswith(dead.address)
    assert second.endswith("Connection refused")
    assert total.startswith("total ")


def test_stats_takes_the_environment(cli: Cli, kv_nodes: NodeFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    (node,) = kv_nodes()
    monkeypatch.setenv("KVCLUSTER_URL", f"memcached://{node.address}?placement=ketama")
    code, out, _ = cli("stats")
    assert code == 0
    assert node.address in out


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_locate_is_the_placement(cli: Cli, scheme: str) -> None:
    keys = [f"user:{number}" for number in range(20)]
    code, out, _ = cli("locate", *keys, "--nodes", NODES, "--placement", scheme)
    assert code == 0
    owners = placement(scheme, NODES.split(",")).owners(keys)
    assert [line.split() for line in out.splitlines()] == [[key, owner.address] for key, owner in zip(keys, owners, strict=True)]


def test_locate_of_a_key_that_is_sent_as_a_digest(cli: Cli) -> None:
    key = "x" * 1000
    (owner,) = placement("slots", NODES.split(",")).indexes([wire_key(key)])
    assert cli("locate", key, "--nodes", NODES)[1].split() == [key, placement("slots", NODES.split(",")).nodes[owner].address]


def test_locate_takes_the_placement_of_the_url_unless_told(cli: Cli) -> None:
    keys = [f"user:{number}" for number in range(50)]
    url = f"memcached://{NODES}?placement=ketama"
    by_url = cli("locate", *keys, "--nodes", url)
    assert by_url == cli("locate", *keys, "--nodes", NODES, "--placement", "ketama")
    assert by_url != cli("locate", *keys, "--nodes", url, "--placement", "slots")


def test_locate_puts_the_prefix_of_the_url_before_the_key(cli: Cli) -> None:
    keys = [f"user:{number}" for number in range(50)]
    owners = [line.split()[1] for line in cli("locate", *keys, "--nodes", f"memcached://{NODES}?prefix=shop:")[1].splitlines()]
    assert owners == [owner.address for owner in placement("slots", NODES.split(",")).owners("shop:" + key for key in keys)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("locate", "key", "--nodes", "a,b", "--placement", "best"), "placement 'best' is unknown"),
        (("locate", "key", "--nodes", "a,a"), "nodes must differ"),
        (("locate", "key", "--nodes", "a:0"), "the port must be from 1 to 65535"),
        (("locate", "--nodes", "a"), "Missing argument"),
        (("locate", "", "--nodes", "a"), "key must not be empty"),
        (("stats", "--nodes", "a", "--timeout", "0"), "--timeout"),
        (("stats", "--nodes", "redis://a"), "redis://a"),
        (("stats",), "no nodes: give --nodes or KVCLUSTER_URL, or start some by kvcluster nodes up"),
        (("stats", "--nodes", "a", "--color"), "--color"),
        (("statistics",), "statistics"),
        (("nodes",), "Missing command"),
    ],
)
def test_mistakes_of_the_caller_are_one_line(cli: Cli, arguments: tuple[str, ...], message: str) -> None:
    code, out, err = cli(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("kvcluster: ")
    assert err.count("\n") == 1
    assert message in err


def test_no_command_shows_the_commands(cli: Cli) -> None:
    code, out, _ = cli()
    assert code == 0
    for command in ("nodes", "stats", "locate", "info", "demo"):
        assert command in out


def test_info(cli: Cli) -> None:
    code, out, _ = cli("info")
    facts = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert code == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+", facts["kvcluster"])
    assert facts["protocol"] == ("native" if protocol_twin.COMPILED else "pure Python")
    assert facts["placement"] == ("native" if placement_twin.COMPILED else "pure Python")
    assert {"cli", "testing"} <= set(facts["extras"].split(", "))


def test_a_closed_pipe_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    script = "from kvcluster.cli import main; import sys; sys.argv[1:] = ['info']; main()"
    done = subprocess.run([sys.executable, "-c", script], stdout=writer, stderr=subprocess.PIPE, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_without_its_extra_the_command_names_it() -> None:
    script = "import sys; sys.modules['typer'] = None; from kvcluster.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "kvcluster: the command kvcluster needs an optional dependency: pip install 'kvcluster[cli]'\n"
