"""The demo from its first line to its last."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from kvcluster.cli.demo.acts import ACTS, Act
from kvcluster.cli.demo.load import WORKERS
from kvcluster.cli.demo.report import errors_line, nodes_table, sentences, snippet
from kvcluster.cli.demo.screen import LEFT, RIGHT, Screen, View, acts_table, screen_for
from kvcluster.cli.demo.stage import Result, Stage, open_stage
from kvcluster.cli.demo.world import DELAY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console


def show_demo(seconds: float, given: Sequence[str], console: Console) -> None:
    """Open the stage, play, and say what was seen.

    :param seconds: that the acts take together
    :param given: the user's own nodes, or none
    """
    console.print("Starting nodes, copying cities into two databases ...", highlight=False)
    with open_stage(given) as stage:
        results = play(stage, seconds, console)
        _close(stage, results, given, console)


def play(stage: Stage, seconds: float, console: Console) -> dict[str, Result]:
    """Play all acts that can be played on these nodes."""
    sizes = " + ".join(str(len(nodes) - 1) for nodes in stage.nodes.values())
    setting = (
        f"{len(stage.cities):,} real cities in SQLite, each SELECT made {DELAY * 1000:.0f} ms slower; nodes: {sizes}, "
        f"{stage.kind}; {WORKERS} processes a side, same seeds, same second, {os.cpu_count()} cores for all"
    )
    results: dict[str, Result] = {}
    with screen_for(console) as screen:
        screen.say(setting)
        for act in ACTS:
            if act.name == "hang" and not stage.can_hang:
                screen.say("Act 3 stops a node, which is not done to nodes of your own: left out")
                continue
            if act.warm:
                screen.say("Reading every city once on both sides, so that the next act starts with warm caches ...")
                stage.warm()
            stage.begin()
            done = [(each, results[each.name]) for each in ACTS if each.name in results]
            stage.on_tick = partial(_show, screen, stage, act, setting, done)
            results[act.name] = act.play(stage, act.share * seconds)
            stage.on_tick = lambda: None
            screen.end_act(act, results[act.name])
    return results


def _show(screen: Screen, stage: Stage, act: Act, setting: str, done: Sequence[tuple[Act, Result]]) -> None:
    screen.show(View(setting, act, stage.note, stage.figures(), stage.curves(), done))


def _close(stage: Stage, results: dict[str, Result], given: Sequence[str], console: Console) -> None:
    """What is left to read when the demo is over."""
    console.print()
    console.print(acts_table([(act, results[act.name]) for act in ACTS if act.name in results]))
    # On nodes that both sides share, only kvcluster's clients can tell which hits were theirs; pymemcache's count none.
    for side in (RIGHT,) if given else (LEFT, RIGHT):
        console.print(nodes_table(f"Nodes of {side}" + (", items of both" if given else ""), stage.node_stats(side)))
    console.print("What was seen", style="bold")
    for number, sentence in enumerate(sentences(results), 1):
        console.print(f"{number}. {sentence}", highlight=False, markup=False)
    if line := errors_line(stage.errors()):
        console.print(line, highlight=False, markup=False)
    console.print("\nOn your own nodes", style="bold")
    console.print("kvcluster demo --nodes host:port,host:port,...", highlight=False, markup=False)
    console.print("\nIn your own program", style="bold")
    console.print(snippet(given).rstrip(), highlight=False, markup=False, soft_wrap=True)
