"""The command line of the demo: ``kvcluster demo`` and ``kvcluster demo resize``.

What a demo needs beyond the command line is imported when one is run, so that ``kvcluster --help`` works without the extra.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console

from kvcluster.errors import ConfigurationError, NodeUnreachable

app = typer.Typer(add_completion=False)


def _console() -> Console:
    console = Console()
    # A pipe has no width; 80 columns would wrap the tables.
    return console if console.is_terminal else Console(width=120)


@contextmanager
def _tidy() -> Iterator[None]:
    """Leave by an exception when told to end, as for Ctrl-C, so that nodes and files go too."""

    def leave(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@app.callback(invoke_without_command=True)
def demo(
    context: typer.Context,
    seconds: Annotated[float, typer.Option(min=4, help="How long the acts take together.")] = 72,
    nodes: Annotated[str, typer.Option(help="Your own nodes, as host:port,host:port; the last one joins in act 4.")] = "",
) -> None:
    """Show kvcluster beside what people run now: real cities, real nodes, everything counted live. About 90 seconds."""
    if context.invoked_subcommand is not None:
        return
    given = [address.strip() for address in nodes.split(",") if address.strip()]
    if len(given) == 1:
        raise typer.BadParameter("name at least two nodes", param_hint="--nodes")
    from kvcluster.cli.demo.show import show_demo

    try:
        with _tidy():
            show_demo(seconds, given, _console())
    except (ConfigurationError, NodeUnreachable) as error:
        raise typer.BadParameter(str(error), param_hint="--nodes") from error


@app.command()
def resize(seconds: Annotated[float, typer.Option(min=1, help="How long the three placements take together.")] = 15) -> None:
    """Show what a fifth node costs under modulo, ketama and slots: real cities, real nodes, real gets. About 20 seconds."""
    from kvcluster.cli.demo.resize import show_resize

    with _tidy():
        show_resize(seconds, _console())
