"""The four acts. Each gives orders to the workers of a stage and, at set moments, does something to the nodes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvcluster.cli.demo.load import CALLERS, EDITORS, READERS, WORKERS, Storm, Traffic
from kvcluster.cli.demo.world import PAGE

if TYPE_CHECKING:
    from kvcluster.cli.demo.stage import Result, Stage


@dataclass(frozen=True)
class Act:
    """One act.

    :param story: one line for the audience
    :param share: of the demo's time
    :param play: plays it on a stage for so many seconds
    :param warm: whether it begins with every city cached
    """

    name: str
    title: str
    story: str
    share: float
    play: Callable[[Stage, float], Result]
    warm: bool = False


def play_cold(stage: Stage, seconds: float) -> Result:
    every = 1.0
    rounds = max(2, int(seconds / every))
    start = time.time() + 0.5
    stage.note = "callers get ready"
    stage.order(Storm(start, every, tuple(city["id"] for city in stage.cities[:rounds])))
    for round in range(rounds):
        stage.wait(start + round * every)
        stage.note = f"{CALLERS} callers ask for {stage.cities[round]['name']}"
    stage.wait(start + rounds * every)
    return stage.finish(rounds=rounds)


def _traffic(stage: Stage, seconds: float, seed: str, front: float, edits: float) -> float:
    """Begin traffic for so many seconds, with edits for a share of them; the time it began is returned."""
    start = time.time() + 0.2
    stage.order(Traffic(start, start + seconds, start + edits * seconds, seed, front))
    return start


def play_editors(stage: Stage, seconds: float) -> Result:
    stage.note = "editors and readers"
    start = _traffic(stage, seconds, "editors", front=0.2, edits=0.75)
    stage.wait(start + 0.75 * seconds + 0.2)
    stage.mark("the editors have stopped, the readers go on")
    stage.wait(start + seconds)
    return stage.finish()


def play_hang(stage: Stage, seconds: float) -> Result:
    stage.note = "editors and readers"
    start = _traffic(stage, seconds, "hang", front=0.2, edits=0.75)
    first = _hang(stage, 0, start + 0.1 * seconds, 0.07 * seconds)
    second = _hang(stage, 1, start + 0.4 * seconds, 0.3 * seconds)
    stage.wait(start + seconds)
    return stage.finish(first=first, second=second)


def _hang(stage: Stage, node: int, moment: float, seconds: float) -> float:
    stage.wait(moment)
    stage.mark(f"node {node + 1} hangs (SIGSTOP)")
    stage.pause(node)
    stage.wait(moment + seconds)
    stage.resume(node)
    stage.mark(f"node {node + 1} answers again (SIGCONT)")
    return seconds


def play_join(stage: Stage, seconds: float) -> Result:
    stage.note = "readers only"
    start = _traffic(stage, seconds, "join", front=0.0, edits=0.0)
    stage.wait(start + 0.15 * seconds)
    stage.mark("the new node joins, empty")
    resize = stage.join()
    stage.note = "the new node serves"
    stage.wait(start + seconds)
    return stage.finish(**({} if resize is None else {"copied": resize.outcomes.get("stored", 0), "seconds": resize.seconds}))


ACTS = (
    Act("cold", "A cold key", f"{CALLERS} callers at once ask for a city that is not cached", 0.1, play_cold),
    Act(
        "editors",
        "Editors",
        f"{EDITORS * WORKERS} editors change the {PAGE} largest cities while {READERS * WORKERS} readers check what they are shown",
        0.24,
        play_editors,
        warm=True,
    ),
    Act(
        "hang",
        "A node hangs",
        "a node stops answering, first briefly, then another for longer; edits and reads go on",
        0.4,
        play_hang,
    ),
    Act(
        "join",
        "A node joins",
        "one more node joins: empty on the left, by a live migration on the right; what does that cost the database?",
        0.26,
        play_join,
        warm=True,
    ),
)
