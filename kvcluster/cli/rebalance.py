"""``kvcluster rebalance``: resize a cluster while it serves. The arguments, the signals and the exit codes.

Exit codes are those of every command, and 128 plus the signal's number where one stopped a resize.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from kvcluster.cli import rebalance_shown as shown
from kvcluster.errors import CallerError, ConfigurationError, KvclusterError, MissingExtra, ResizeRefused, ResizeStopped
from kvcluster.rebalance import Rebalance, Settings, wanted
from kvcluster.sources import FileSource, TableSource, TopologySource
from kvcluster.topology import DEFAULT_SLOTS, Document, Node, Topology, redacted

app = typer.Typer(help="Resize a cluster while it serves: no cold cache, no stale read.")
DEFAULTS = Settings()

Source = Annotated[
    str, typer.Option("--topology", help="The cluster's document: its .toml file, or the URL of the database whose table has it.")
]
WANTED = typer.Option("--wanted", help="A .toml file with the nodes as they are to be.")
Rate = Annotated[float, typer.Option(help="Keys copied a second, at most.")]
BytesRate = Annotated[float, typer.Option(help="Bytes copied a second, at most.")]
FlushNew = Annotated[bool, typer.Option("--flush-new", help="Empty new nodes that are not empty, instead of refusing them.")]
LongestTtl = Annotated[
    float | None, typer.Option(help="For a node that cannot be dumped: the longest ttl in use, in seconds; reads move its keys.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only tell what would be done, and whether it could begin.")]
AsJson = Annotated[bool, typer.Option("--json", help="Every figure, for programs.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask before it begins.")]
Names = Annotated[list[str], typer.Argument(metavar="NODE...", help="Addresses or ids.")]


@app.command()
def init(
    nodes: Annotated[list[str], typer.Argument(metavar="ADDRESS[=WEIGHT]...", help="Where the nodes listen.")],
    topology: Source,
    slots: Annotated[int, typer.Option(help="Never changed afterwards: 16384 suits up to 30 nodes, 65536 more.")] = DEFAULT_SLOTS,
) -> None:
    """Write the first document of a cluster, for its clients to follow. Asks nothing of the nodes."""
    members = Topology([Node(*_weighted(node)) if "=" in node else node for node in nodes], slots=slots).nodes
    source_of(topology).create(Document(members, slots=slots))
    print(f"{redacted(topology)} has {', '.join(node.id for node in members)}, epoch 1")


@app.command()
def plan(
    topology: Source,
    wanted_file: Annotated[Path, WANTED],
    rate: Rate = DEFAULTS.rate,
    bytes_rate: BytesRate = DEFAULTS.bytes_rate,
    as_json: AsJson = False,
) -> None:
    """Tell what a resize would move, for how long, and what it would save. Changes nothing."""
    found = Rebalance(source_of(topology), _nodes_in(wanted_file), Settings(rate=rate, bytes_rate=bytes_rate)).plan()
    if as_json:
        print(json.dumps(shown.plain(found), indent=2))
    else:
        shown.show_plan(found, _console())


@app.command()
def run(
    topology: Source,
    wanted_file: Annotated[Path | None, WANTED] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the resize that is under way, whichever it is.")] = False,
    rate: Rate = DEFAULTS.rate,
    bytes_rate: BytesRate = DEFAULTS.bytes_rate,
    flush_new: FlushNew = False,
    longest_ttl: LongestTtl = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Resize the cluster, or continue to. Ctrl-C stops it where it can be continued."""
    source = source_of(topology)
    settings = Settings(rate=rate, bytes_rate=bytes_rate, flush_new=flush_new, longest_ttl=longest_ttl)
    if resume is (wanted_file is not None):
        raise ConfigurationError("say what is wanted: either --wanted FILE, or --resume for the resize that is under way")
    nodes = None if wanted_file is None else _nodes_in(wanted_file)
    rebalance = Rebalance.resume(source, settings) if nodes is None else Rebalance(source, nodes, settings)
    if dry_run:
        _dry_run(rebalance, as_json)
    else:
        _run(rebalance, topology, as_json)


@app.command()
def abort(topology: Source, as_json: AsJson = False) -> None:
    """Go back to the nodes before a resize that has begun, as where a new node died for good. What was written to new nodes since
    then is missed, and loaded anew."""
    _run(Rebalance.resume(source_of(topology)), topology, as_json, back=True)


@app.command()
def verify(topology: Source, wanted_file: Annotated[Path | None, WANTED] = None, as_json: AsJson = False) -> None:
    """During a resize, compare a sample on both sides; else, count what nodes hold without owning it. Changes nothing.

    Exits with 1 where copies differ or something was left behind.
    """
    source = source_of(topology)
    document = source.read()
    if wanted_file is not None and {*_nodes_in(wanted_file).nodes} != {*document.nodes}:
        raise ResizeRefused(f"{topology} does not have the nodes of {wanted_file}, and no resize to them is under way")
    found = Rebalance(source, document.topology).verify()
    if as_json:
        print(json.dumps(shown.plain(found), indent=2))
    else:
        shown.show_verified(found, _console())
    if found.sample.differences or any(found.leftovers.values()):
        raise typer.Exit(1)


@app.command()
def add(
    nodes: Annotated[list[str], typer.Argument(metavar="ADDRESS...", help="Where the new nodes listen.")],
    topology: Source,
    weight: Annotated[int, typer.Option(help="Of each new node.")] = 1,
    rate: Rate = DEFAULTS.rate,
    bytes_rate: BytesRate = DEFAULTS.bytes_rate,
    flush_new: FlushNew = False,
    longest_ttl: LongestTtl = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Add nodes: show the plan, ask, and resize."""
    source = source_of(topology)
    settings = Settings(rate=rate, bytes_rate=bytes_rate, flush_new=flush_new, longest_ttl=longest_ttl)
    _change(source, wanted.add(_present(source, topology), nodes, weight), settings, topology, dry_run, yes)


@app.command()
def remove(
    nodes: Names,
    topology: Source,
    rate: Rate = DEFAULTS.rate,
    bytes_rate: BytesRate = DEFAULTS.bytes_rate,
    longest_ttl: LongestTtl = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Remove nodes, dead or alive: show the plan, ask, and resize."""
    source = source_of(topology)
    settings = Settings(rate=rate, bytes_rate=bytes_rate, longest_ttl=longest_ttl)
    _change(source, wanted.remove(_present(source, topology), nodes), settings, topology, dry_run, yes)


@app.command()
def replace(
    node: Annotated[str, typer.Argument(help="The address or id of the node that goes.")],
    address: Annotated[str, typer.Argument(help="Where the machine listens that takes its place.")],
    topology: Source,
    new_id: Annotated[bool, typer.Option("--new-id", help="Do not keep the node's id; then other nodes' keys move, too.")] = False,
    rate: Rate = DEFAULTS.rate,
    bytes_rate: BytesRate = DEFAULTS.bytes_rate,
    flush_new: FlushNew = False,
    longest_ttl: LongestTtl = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Put another machine in the place of a node, dead or alive: show the plan, ask, and resize."""
    source = source_of(topology)
    settings = Settings(rate=rate, bytes_rate=bytes_rate, flush_new=flush_new, longest_ttl=longest_ttl)
    nodes = wanted.exchange(_present(source, topology), node, address, new_id=new_id)
    _change(source, nodes, settings, topology, dry_run, yes)


@app.command()
def reweight(
    nodes: Annotated[list[str], typer.Argument(metavar="NODE=WEIGHT...", help="Addresses or ids, each with its new weight.")],
    topology: Source,
    rate: Rate = DEFAULTS.rate,
    bytes_rate: BytesRate = DEFAULTS.bytes_rate,
    longest_ttl: LongestTtl = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Give nodes another share of the keys: show the plan, ask, and resize."""
    source = source_of(topology)
    settings = Settings(rate=rate, bytes_rate=bytes_rate, longest_ttl=longest_ttl)
    present, weights = _present(source, topology), [*map(_weighted, nodes)]
    if len({wanted.find(present, name) for name, _ in weights}) < len(weights):
        raise ConfigurationError(f"a node is named twice: {' '.join(nodes)}")
    _change(source, wanted.reweight(present, dict(weights)), settings, topology, dry_run, yes)


def source_of(text: str) -> FileSource | TableSource:
    """Where the document is that ``--topology`` names.

    :raises ConfigurationError: for a URL that names no database
    :raises MissingExtra: for one, without the extra ``sql``
    """
    if "://" not in text:
        return FileSource(text)
    try:
        import sqlalchemy
    except ImportError as error:
        raise MissingExtra("sql", "a topology in a database") from error
    try:
        return TableSource(sqlalchemy.create_engine(text))
    except (sqlalchemy.exc.ArgumentError, ImportError) as error:
        raise ConfigurationError(f"--topology {redacted(text)}: {error}") from None


def _nodes_in(file: Path) -> Topology:
    return FileSource(file).read().topology


def _weighted(text: str) -> tuple[str, int]:
    name, equals, weight = text.rpartition("=")
    if not equals or not weight.isdecimal():
        raise ConfigurationError(f"{text!r} must be a node and its weight, as in cache1=2")
    return name, int(weight)


def _present(source: TopologySource, name: str) -> Topology:
    document = source.read()
    if document.phase != "old":
        raise ResizeRefused(f"a resize is under way in {redacted(name)}, in phase {document.phase}. {_how_to_resume(name)}")
    return document.topology


def _how_to_resume(topology: str, back: bool = False) -> str:
    where = f"--topology {redacted(topology)}"
    return f"To continue: kvcluster rebalance {f'abort {where}' if back else f'run {where} --resume'}"


def _change(source: TopologySource, nodes: Topology, settings: Settings, topology: str, dry_run: bool, yes: bool) -> None:
    """What the commands for people do once it is clear which nodes are wanted."""
    rebalance = Rebalance(source, nodes, settings)
    if dry_run:
        _dry_run(rebalance, as_json=False)
        return
    if not yes and not sys.stdin.isatty():
        raise ConfigurationError("nobody is here to be asked: give --yes, or --dry-run to see the plan")
    shown.show_plan(rebalance.plan(), _console())
    if not yes and not typer.confirm("Begin?"):
        print("nothing was changed")
        raise typer.Exit(1)
    _run(rebalance, topology, as_json=False)


def _dry_run(rebalance: Rebalance, as_json: bool) -> None:
    document = rebalance.source.read()
    if document.phase != "old":
        nodes = ", ".join(node.id for node in document.nodes)
        print(f"would continue the resize to {nodes}, from phase {document.phase}")
        return
    found = rebalance.plan()
    obstacles = shown.obstacles(found, rebalance.settings)
    if as_json:
        print(json.dumps(shown.plain(found) | {"obstacles": obstacles}, indent=2))
    else:
        shown.show_plan(found, _console())
    if obstacles:
        raise ResizeRefused(f"could not begin: {'; '.join(obstacles)}")


def _run(rebalance: Rebalance, topology: str, as_json: bool, back: bool = False) -> None:
    with _stoppable(rebalance) as signals, shown.progress() as progress:
        try:
            report = rebalance.abort(progress) if back else rebalance.run(progress)
        except (CallerError, ResizeRefused):
            raise
        except KvclusterError as error:
            if rebalance.source.read().phase == "old":
                raise
            raise ResizeStopped(f"{error}. {_how_to_resume(topology, back)}") from error
    if as_json:
        print(json.dumps(shown.plain(report), indent=2))
    else:
        (shown.show_aborted if back else shown.show_report)(report, _console())
    if not report.finished:
        if report.document.phase == "old":
            told = "stopped before it began; nothing was changed"
        else:
            told = f"stopped in phase {report.document.phase}; nothing is lost. {_how_to_resume(topology, back)}"
        print(f"kvcluster: {told}", file=sys.stderr)
        raise typer.Exit(128 + signals[0] if signals else 1)
    if report.sample.differences:
        raise typer.Exit(1)


@contextmanager
def _stoppable(rebalance: Rebalance) -> Iterator[list[int]]:
    """Make the first Ctrl-C or SIGTERM stop the resize at its next safe point, and a second one end it at once, as a crash does.

    :return: the signals that came
    """
    came: list[int] = []

    def stop(number: int, _frame: object) -> None:
        if came:
            sys.exit(128 + number)
        came.append(number)
        rebalance.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=120)  # a pipe has no width
