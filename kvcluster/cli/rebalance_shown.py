"""Plans, progress and reports of a resize, as a person reads them and as JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kvcluster.rebalance import Plan, Progress, Report, Sample, Settings
from kvcluster.rebalance.simulate import expected_zipf_loads
from kvcluster.stats.report import duration, percent, size
from kvcluster.topology import Node

GETS = 1_000_000
"""Gets that the cost of a resize without migration is told for."""
BAR = 24
"""Characters of a node that owns everything."""
_EIGHTHS = " ▏▎▍▌▋▊▉"
SHOWN = 20
"""Differences that are shown."""


def plain(value: Any) -> Any:
    """What JSON can carry of a report: keys are text, nodes what a topology says of them.

    >>> plain((b"caf\\xc3\\xa9", b"\\xff", Node("a")))
    ['café', '\\\\xff', {'id': 'a', 'address': 'a:11211', 'weight': 1}]
    """
    if isinstance(value, Node):
        return {"id": value.id, "address": value.address, "weight": value.weight}
    if is_dataclass(value):
        found = {field.name: plain(getattr(value, field.name)) for field in fields(value)}
        extra = {Plan: ("keys", "bytes", "slots"), Report: ("coverage", "rate"), Sample: ("coverage",)}
        return found | {name: getattr(value, name) for name in extra.get(type(value), ())}
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(one) for one in value]
    return value


def bar(share: float) -> str:
    """A share from 0 to 1 as a bar, to an eighth of a character.

    >>> bar(0.25), bar(0.0), len(bar(1.0))
    ('██████', '', 24)
    """
    whole, eighths = divmod(round(share * BAR * 8), 8)
    return "█" * whole + _EIGHTHS[eighths].strip()


def show_plan(plan: Plan, console: Console) -> None:
    """What moves, the shares before and after, what it costs, and who follows."""
    for drawn in (flows(plan), shares(plan), clients(plan)):
        console.print(drawn)
    for line in estimates(plan):
        console.print(line, highlight=False, soft_wrap=True)


def flows(plan: Plan) -> Table:
    """One row for each pair of nodes, and their sum."""
    table = Table(title="What moves", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, justify in (("from", "left"), ("to", "left"), ("slots", "right"), ("keys", "right"), ("bytes", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for flow in plan.flows:
        known = flow.source not in (*plan.undumpable, *plan.unreachable)
        counts = (f"{flow.keys:,}", size(flow.bytes)) if known else ("?", "?")
        table.add_row(flow.source, flow.target, f"{flow.slots:,}", *counts, end_section=flow is plan.flows[-1])
    table.add_row("all", "", f"{plan.slots:,}", f"{plan.keys:,}", size(plan.bytes), style="bold")
    return table


def shares(plan: Plan) -> Table:
    """What each node owns of the key space, before and after."""
    table = Table(title="Share of the keys", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("node", no_wrap=True)
    for name in ("before", "after"):
        table.add_column(name, justify="right")
        table.add_column("", min_width=BAR // 2)
    for address in dict.fromkeys([*plan.shares_before, *plan.shares_after]):
        before, after = (shares.get(address) for shares in (plan.shares_before, plan.shares_after))
        table.add_row(address, percent(before), bar(before or 0), percent(after), bar(after or 0))
    return table


def clients(plan: Plan) -> Table:
    """Who follows the document."""
    table = Table(title=f"Clients seen, at epoch {plan.present.epoch}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("client", "kvcluster", "epoch", "seen"):
        table.add_column(name, justify="left" if name == "client" else "right")
    now = time.time()
    for client in plan.clients:
        behind = client in plan.lagging
        seen = f"{duration(max(0, int(now - client.seen)))} ago"
        table.add_row(
            client.name, client.version, f"{client.epoch}{' (behind)' if behind else ''}", seen, style="red" if behind else ""
        )
    if not plan.clients:
        table.add_row("none", "", "", "")
    return table


def estimates(plan: Plan) -> list[str]:
    """How long it takes, and what becomes of the hit rate with and without copying."""
    lines = [f"Copying takes {_seconds(plan.seconds)} at the given rate, sweeping the old owners as long again.", *_hit_rates(plan)]
    for addresses, what in (
        (plan.unreachable, "does not answer"),
        (plan.undumpable, "cannot be dumped: its keys are moved by reads and cleared by their ttl alone, and not counted here"),
        (plan.occupied, "is new and not empty: run refuses it without --flush-new"),
    ):
        lines += [f"{address} {what}." for address in addresses]
    return lines


def _hit_rates(plan: Plan) -> list[str]:
    if plan.hit_rate is None or not plan.keys:
        return []
    held = max(plan.keys_held, plan.keys)
    loads = plan.keys / held * expected_zipf_loads(held, GETS) * plan.hit_rate
    return [
        f"Hit rate now: at most {percent(plan.hit_rate)}, of all gets since the nodes started. Nodes count as a hit each look of a",
        "client at the epoch, too, and each lease on a key that they do not have; statistics of a client do not.",
        "With migration: it stays, as a key that moves is found at one of its two owners.",
        f"Without migration: at most {percent(plan.hit_rate_cold)} at first, and up to {loads:,.0f} more database loads in the",
        f"next {GETS:,} gets.",
        "Assumed: keys that move are asked for as often as those that stay. For the loads: nothing is evicted, and gets are spread",
        f"over {held:,} keys by Zipf 0.99; 'kvcluster simulate' takes a trace of yours instead.",
    ]


def obstacles(plan: Plan, settings: Settings) -> list[str]:
    """Why `Rebalance.run` would refuse to begin."""
    leaving = {node.address for node in plan.present.nodes} - {node.address for node in plan.wanted.nodes}
    found = [f"{address} does not answer" for address in plan.unreachable if address not in leaving]
    if settings.longest_ttl is None:
        found += [f"{address} cannot be dumped (see --longest-ttl)" for address in plan.undumpable]
    if not settings.flush_new:
        found += [f"{address} is not empty (see --flush-new)" for address in plan.occupied]
    return found + [f"client {client.name} is at epoch {client.epoch} and does not follow" for client in plan.lagging]


@contextmanager
def progress() -> Iterator[Callable[[Progress], None]]:
    """What `Rebalance.run` calls as it goes: a picture on a terminal, else a line for each step."""
    console = Console(stderr=True)
    if console.is_terminal:
        with Live(console=console, transient=True, auto_refresh=False) as live:
            yield lambda now: live.update(picture(now), refresh=True)
        return
    last = ""

    def tell(now: Progress) -> None:
        nonlocal last
        if (told := step(now)) != last:
            console.print(told, highlight=False, soft_wrap=True)
        last = told

    yield tell


def step(now: Progress) -> str:
    """What is being done.

    >>> step(Progress(7, "migrate", "copying", "cache1:11211"))
    'migrate: copying cache1:11211'
    """
    return f"{now.phase}: {now.doing} {now.source}".rstrip()


def picture(now: Progress) -> Group:
    """The step, a bar and what is known of the keys, and the hit rates of both sides."""
    told = Text(step(now), no_wrap=True, overflow="ellipsis")
    if not now.keys_total:
        return Group(told)
    line = Table.grid(padding=(0, 2))
    line.add_row(ProgressBar(now.keys_total, now.keys, width=30), Text(figures(now), no_wrap=True, overflow="ellipsis"))
    hits = f"hit rate of the sources at most {percent(now.hit_rate_sources)}, of the targets {percent(now.hit_rate_targets)}"
    return Group(told, line, Text(hits, no_wrap=True, overflow="ellipsis"))


def figures(now: Progress) -> str:
    """Keys, bytes, rate and time left.

    >>> figures(Progress(7, "migrate", "copying", keys=500, keys_total=2000, bytes=4096, rate=1000, seconds_left=1.5, throttle=0.5))
    '500 of 2,000 keys  4.0 KiB  1,000 keys/s (slowed to 50.0 %)  2s left'
    """
    slowed = f" (slowed to {percent(now.throttle)})" if now.throttle < 1 else ""
    left = "" if now.seconds_left is None else f"  {_seconds(now.seconds_left)} left"
    return f"{now.keys:,} of {now.keys_total:,} keys  {size(now.bytes)}  {now.rate:,.0f} keys/s{slowed}{left}"


def show_report(report: Report, console: Console) -> None:
    """What a resize did."""
    dealt = ", ".join(f"{name} {count:,}" for name, count in sorted(report.outcomes.items(), key=lambda item: -item[1]) if count)
    rate = "" if report.rate is None else f" at {report.rate:,.0f} keys/s"
    nodes = ", ".join(node.id for node in report.document.nodes)
    done = "Resized to" if report.finished else "On the way to"
    lines = [
        f"{done} {nodes} in {_seconds(report.seconds)}, epoch {report.document.epoch}.",
        f"Keys: {report.dumped:,} to move ({dealt or 'none yet'}), {size(report.bytes)}{rate}.",
        *compared(report.sample),
        *([f"Coverage: {percent(report.coverage)}.", f"Swept from old owners: {report.swept:,} keys."] if report.finished else ()),
        *report.notes,
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def show_aborted(report: Report, console: Console) -> None:
    """What going back to the nodes before a resize did."""
    nodes = ", ".join(node.id for node in report.document.previous or report.document.nodes)
    done = "Back to" if report.finished else "On the way back to"
    empty = "A node that was to join keeps what was copied to it: empty it (--flush-new) before it joins again."
    for line in (f"{done} {nodes} in {_seconds(report.seconds)}, epoch {report.document.epoch}.", empty, *report.notes):
        console.print(line, highlight=False, soft_wrap=True)


def show_verified(report: Report, console: Console) -> None:
    """What `Rebalance.verify` found."""
    nodes = ", ".join(node.id for node in report.document.nodes)
    lines = [f"Epoch {report.document.epoch}, phase {report.document.phase}: {nodes}."]
    if report.leftovers:
        lines += [f"{address} holds {count:,} keys that it does not own." for address, count in report.leftovers.items()]
    else:
        lines += compared(report.sample)
    for line in (*lines, *report.notes):
        console.print(line, highlight=False, soft_wrap=True)


def compared(sample: Sample) -> list[str]:
    """What a comparison of both sides found."""
    counts = f"Compared: {sample.compared:,} keys of a sample, {sample.missing:,} missing, {sample.changed:,} changed meanwhile"
    lines = [f"{counts}; coverage {percent(sample.coverage)}, differences {len(sample.differences)}."]
    for one in sample.differences[:SHOWN]:
        lines.append(f"{plain(one.key)}: another {one.what} at {one.target} than at {one.source}")
    return lines


def _seconds(seconds: float) -> str:
    return "less than a second" if seconds < 1 else duration(round(seconds))
