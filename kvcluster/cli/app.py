"""The commands and their options. What they do is done elsewhere; this is where it is said and shown.

Errors leave here as one line: exit code 2 where the call must change, 1 where a node or the network is at fault.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import typer

from kvcluster.cli import information, local, rebalance, simulate
from kvcluster.client import Client
from kvcluster.cluster import URL_VARIABLE, parse_url
from kvcluster.errors import CallerError, ConfigurationError, KvclusterError, MissingExtra
from kvcluster.placement import SCHEMES, placement
from kvcluster.protocol.requests import wire_key
from kvcluster.stats import report, server
from kvcluster.topology import DEFAULT_SLOTS, Node, Topology

# Wrong command lines are raised as subclasses of this; typer exports only one of them.
UsageError: Any = typer.BadParameter.__bases__[0]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
nodes_app = typer.Typer(help="Real memcached processes on this machine, or embedded nodes.")
app.add_typer(nodes_app, name="nodes")
app.add_typer(rebalance.app, name="rebalance")
app.command("simulate")(simulate.command)

Nodes = Annotated[
    str | None,
    typer.Option(help="host:port,host:port or a URL; by default KVCLUSTER_URL, else what 'kvcluster nodes up' started."),
]
Followed = Annotated[
    str | None,
    typer.Option("--topology", help="Instead of --nodes: the document that clients follow, a file or a database's URL."),
]
Name = Annotated[str, typer.Option(help="The name of the cluster.")]


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    try:
        code = app(args=list(arguments), prog_name="kvcluster", standalone_mode=False) or 0
        sys.stdout.flush()  # here, where a reader that has gone is no error
        return code
    except UsageError as error:
        return _fail(error.format_message(), 2)
    except (CallerError, MissingExtra) as error:
        return _fail(str(error), 2)
    except typer.Abort:
        return _fail("interrupted", 130)  # as a shell says of SIGINT
    except BrokenPipeError:
        # Whoever read the output has seen enough; the interpreter must not complain about what is left of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (KvclusterError, OSError) as error:
        return _fail(str(error), 1)


def _fail(message: str, code: int) -> int:
    print(f"kvcluster: {' '.join(message.split())}", file=sys.stderr)
    return code


class Cluster(NamedTuple):
    """The nodes that a command is about, and the prefix that their keys have."""

    topology: Topology
    prefix: bytes = b""


def _cluster(nodes: str | None, scheme: str | None = None, followed: str | None = None) -> Cluster:
    """From the first that is given: the document, the nodes, KVCLUSTER_URL, a cluster that is up. `scheme` wins over a URL's."""
    if followed is not None:
        if nodes is not None or scheme is not None:
            raise ConfigurationError(
                "--topology says which nodes there are and how keys are placed: leave --nodes and --placement out"
            )
        return Cluster(rebalance.source_of(followed).read().topology)
    given = nodes if nodes is not None else os.environ.get(URL_VARIABLE)
    if given and "://" in given:
        members, options = parse_url(given)
        topology = Topology(members, scheme or options.get("placement", "slots"), options.get("slots", DEFAULT_SLOTS))
        return Cluster(topology, options.get("prefix", "").encode())
    addresses = [address for part in (given or "").split(",") if (address := part.strip())] or local.running_addresses()
    if not addresses:
        raise ConfigurationError("no nodes: give --nodes or KVCLUSTER_URL, or start some by kvcluster nodes up")
    return Cluster(Topology(addresses, scheme or "slots"))


@app.callback(invoke_without_command=True)
def root(context: typer.Context) -> None:
    """Many memcached servers as one cache in front of a database."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@nodes_app.command("up")
def nodes_up(
    count: Annotated[int, typer.Option(min=1, max=100, help="How many nodes.")] = 4,
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port of the first; the others follow.")] = 22122,
    memory: Annotated[int, typer.Option(min=1, help="Megabytes for items, per node.")] = 64,
    embedded: Annotated[bool, typer.Option("--embedded", help="Pure Python instead of memcached; not for production.")] = False,
    name: Name = "default",
) -> None:
    """Start nodes on this machine and leave them running."""
    started = local.up(name, count, port, memory, embedded)
    for node in started:
        print(f"{node.address}  pid {node.pid}  {_kind(node)}")
    print(f"\nexport KVCLUSTER_URL=memcached://{','.join(node.address for node in started)}")


@nodes_app.command("down")
def nodes_down(name: Name = "default") -> None:
    """End the nodes that 'nodes up' started, and no other process."""
    ended = local.down(name)
    print(f"nodes ended in cluster {name}: {len(ended)}")


@nodes_app.command("list")
def nodes_list() -> None:
    """Show the clusters that were started here."""
    lines = [
        (name, node.address, str(node.pid), _kind(node), "alive" if node.alive else "ended")
        for name, members in local.clusters()
        for node in members
    ]
    if not lines:
        print("no clusters: kvcluster nodes up starts one")
        return
    heading = ("cluster", "node", "pid", "kind", "state")
    widths = [max(map(len, column)) for column in zip(heading, *lines, strict=True)]
    for line in (heading, *lines):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _kind(node: local.LocalNode) -> str:
    return "memcached" if node.kind == "binary" else node.kind


@app.command()
def stats(
    nodes: Nodes = None,
    followed: Followed = None,
    as_json: Annotated[bool, typer.Option("--json", help="Every figure, for programs.")] = False,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds that a node has to answer.")] = 1.0,
) -> None:
    """Show what each node says about itself, and the total. Exits with 1 when a node does not answer."""
    records = server.collect(_cluster(nodes, followed=followed).topology.nodes, timeout)
    if as_json:
        document = {"nodes": [record.as_dict() for record in records], "total": server.total(records).as_dict()}
        print(json.dumps(document, indent=2))
    else:
        report.show(records)
    if any(record.error is not None for record in records):
        raise typer.Exit(1)


@app.command()
def locate(
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="Keys; a prefix in the URL is put before each.")],
    nodes: Nodes = None,
    followed: Followed = None,
    scheme: Annotated[str | None, typer.Option("--placement", help=f"{', '.join(SCHEMES)}; by default the URL's.")] = None,
) -> None:
    """Show which node owns each key. No node is asked."""
    topology, prefix = _cluster(nodes, scheme, followed)
    bound = placement(topology.placement, topology.nodes, topology.slots)
    width = max(map(len, keys))
    # By the bytes that a client would send, so that a key which is carried by a digest is found where it is.
    owners = bound.indexes([wire_key(key, prefix) for key in keys])
    for key, owner in zip(keys, owners, strict=True):
        print(f"{key.ljust(width)}  {_name(bound.nodes[owner])}")


def _name(node: Node) -> str:
    return node.address if node.id in (node.address, node.address.removesuffix(":11211")) else f"{node.address} (id {node.id})"


@app.command()
def info() -> None:
    """Show versions, the extras that are installed, and whether the compiled or the pure twins run."""
    facts = information.facts()
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name.ljust(width)}  {value}")


@app.command()
def worker(
    database: Annotated[str, typer.Option(envvar="KVCLUSTER_DATABASE", help="SQLAlchemy's URL of the database.", show_envvar=True)],
    nodes: Nodes = None,
    followed: Followed = None,
    table: Annotated[str, typer.Option(help="The outbox.")] = "kvcluster_outbox",
    once: Annotated[bool, typer.Option("--once", help="Go over the table once; exits with 1 when old rows are left.")] = False,
) -> None:
    """Carry out the invalidations that their writers left in an outbox, until it is told to end. Several may run at once.

    It must place keys as the programs do: where those follow a topology, so must the worker.
    """
    try:
        import sqlalchemy  # noqa: F401
    except ImportError:
        raise MissingExtra("sql", "kvcluster worker") from None
    from kvcluster.cli.worker import engine_of, work  # here, because it takes an extra of its own

    engine = engine_of(database)
    given = nodes if nodes is not None else os.environ.get(URL_VARIABLE, "")
    if followed is not None:
        _cluster(nodes, followed=followed)  # what is wrong with the options is said here
        client: Client = Client.from_topology(rebalance.source_of(followed))
    else:
        client = Client.from_url(given) if "://" in given else Client(_cluster(nodes).topology.nodes)
    raise typer.Exit(work(client, engine, table, once))


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def demo(context: typer.Context) -> None:
    """The main job on real cities, beside what people run now; 'demo resize' for what a new node costs."""
    # Imported here: it takes an extra of its own, and half a second.
    from kvcluster.cli.demo.command import app as demo_app

    demo_app(args=context.args, prog_name="kvcluster demo", standalone_mode=False)
