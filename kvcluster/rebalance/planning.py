"""What is found out without changing anything: the plan of a resize, whether it may begin, and what a resize has left.

Dumps are read as a stream and only counted, so a plan takes the memory of a dump's bound, however many keys there are.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from typing import Final

from kvcluster.errors import NetworkError, ResizeRefused
from kvcluster.following.epochs import EPOCH_KEY
from kvcluster.placement import placement
from kvcluster.protocol import requests
from kvcluster.rebalance.change import Change, change, pinned
from kvcluster.rebalance.dump import DumpUnavailable, NodeBusy, details, dump
from kvcluster.rebalance.lanes import Figures, Lane, Lanes, figures, flush
from kvcluster.rebalance.reports import Flow, Plan, Report, Sample
from kvcluster.rebalance.running import Run, Settings, Times
from kvcluster.rebalance.sample import Reservoir, added, compared
from kvcluster.sources import SIGHTED, Sighting, TopologySource, sealed
from kvcluster.topology import Document, Node, Topology

PRESENT: Final = 3 * SIGHTED  # seconds after which a client that said nothing is taken to have ended
_MARK: Final = b"__kvc:mark"
_UNUSED_CLASS: Final = b"63"  # the last slab class, which holds nothing: asking for it tells whether a node can dump


def plan(source: TopologySource, document: Document, wanted: Topology, settings: Settings, times: Times) -> Plan:
    """See `kvcluster.rebalance.Rebalance.plan`."""
    found = change(document.topology, wanted)
    known, unreachable = ask(found.members, settings.timeout)
    clients = present(source, times)
    keys: Counter[tuple[str, str]] = Counter()
    size: Counter[tuple[str, str]] = Counter()
    held = {node.address: known[node.address].items for node in document.nodes if node.address in known}
    undumpable = []
    for node in found.sources:
        if node.address in known:
            try:
                held[node.address] = _count(found, node, settings, times, keys, size)
            except DumpUnavailable:
                undumpable.append(node.address)
    for node in found.dumped:
        if node.address in known and node not in found.sources:
            try:
                _require_dumps(node, settings, times)
            except ResizeRefused:
                undumpable.append(node.address)
    before, after = found.shares()
    hits, gets = sum(one.hits for one in known.values()), sum(one.hits + one.misses for one in known.values())
    rate = hits / gets if gets else None
    return Plan(
        present=document,
        wanted=sealed(document.step(nodes=wanted.nodes)),
        flows=tuple(Flow(*pair, slots, keys[pair], size[pair]) for pair, slots in sorted(found.moves.items())),
        shares_before=before,
        shares_after=after,
        keys_held=sum(held.values()),
        seconds=max(keys.total() / settings.rate, size.total() / settings.bytes_rate),
        hit_rate=rate,
        hit_rate_cold=None if rate is None else rate * (1 - keys.total() / max(sum(held.values()), 1)),
        clients=tuple(clients),
        lagging=tuple(one for one in clients if one.epoch < document.epoch),
        unreachable=unreachable,
        undumpable=tuple(undumpable),
        occupied=tuple(
            node.address for node in found.added if node.address in known and occupied(node, document.epoch, settings, times)
        ),
    )


def _count(
    found: Change, node: Node, settings: Settings, times: Times, keys: Counter[tuple[str, str]], size: Counter[tuple[str, str]]
) -> int:
    """Count the keys and bytes of one source that move, by pair of addresses, and all its keys."""
    router, seen = found.router(node.address), 0
    with dump(node, patience=settings.patience, sleep=times.sleep) as listing:
        for lines in listing.blocks():
            seen += len(lines)
            moving = router.moving(lines)
            for (number, _, _), (_, length) in zip(moving, details([rest for _, _, rest in moving]), strict=True):
                pair = (node.address, router.targets[number])
                keys[pair] += 1
                size[pair] += length
    return seen


def ask(nodes: Iterable[Node], timeout: float) -> tuple[dict[str, Figures], tuple[str, ...]]:
    """The figures of the nodes that answer, and the addresses of those that do not."""
    known: dict[str, Figures] = {}
    silent = []
    for node in nodes:
        try:
            known[node.address] = figures(node, timeout)
        except NetworkError:
            silent.append(node.address)
    return known, tuple(silent)


def present(source: TopologySource, times: Times) -> list[Sighting]:
    """The clients that are there, as far as anybody knows."""
    since = times.clock() - PRESENT
    return [one for one in source.sightings() if one.seen >= since]


def occupied(node: Node, epoch: int, settings: Settings, times: Times) -> bool:
    """Whether a node holds anything but this epoch or an earlier one. A later one is another cluster's, and no client would take
    the node for a member."""
    items = figures(node, settings.timeout).items
    if not items:
        return False
    told = _epoch(node, settings.timeout)
    if told > epoch or (told and items == 1):
        return told > epoch
    try:
        with dump(node, patience=settings.patience, sleep=times.sleep) as listing:
            return any(wire != EPOCH_KEY for lines in listing.blocks() for wire, _ in lines)
    except DumpUnavailable:
        return True


def _epoch(node: Node, timeout: float) -> int:
    """The epoch that a node was told; 0 for none."""
    with closing(Lane(node, timeout)) as lane:
        value = lane.ask(requests.meta_get(EPOCH_KEY, b"v")).value
    return int(value) if value is not None and value.isdigit() else 0


def require_ready(source: TopologySource, document: Document, run: Run) -> None:
    """Make sure that a resize may begin. Nodes that leave and do not answer are given up.

    :raises ResizeRefused: where it may not, and why
    """
    settings, found = run.settings, run.change
    for node in found.members:
        try:
            figures(node, settings.timeout)
        except NetworkError as error:
            if node not in found.removed:
                raise ResizeRefused(f"{error}; it is to be a member, so start it or leave it out") from error
            run.give_up(node, error)
    for node in found.dumped:
        if node.address not in run.dead and settings.longest_ttl is None:
            _require_dumps(node, settings, run.times)
    _require_new(run)
    if not settings.flush_new:
        _require_empty(run)
    _require_following(source, document, run)


def _require_new(run: Run) -> None:
    """Make sure that no new node is a member by another name: it would be emptied, and rid of its own keys.

    :raises ResizeRefused: where one is
    """
    token = secrets.token_hex(8).encode()
    for node in run.change.added:
        lane = run.lanes(node.address)
        lane.ask(requests.meta_set(_MARK, token, b"T60"))
        try:
            for other in run.change.members:
                if other is node or other.address in run.dead:
                    continue
                if run.lanes(other.address).ask(requests.meta_get(_MARK, b"v")).value == token:
                    raise ResizeRefused(f"{node.address} and {other.address} are one and the same node")
        finally:
            lane.ask(requests.meta_delete(_MARK))


def _require_dumps(node: Node, settings: Settings, times: Times) -> None:
    try:
        dump(node, what=_UNUSED_CLASS, patience=settings.patience, sleep=times.sleep).close()
    except DumpUnavailable as error:
        raise ResizeRefused(
            f"{error}: without dumps keys are moved by reads and cleared by their ttl alone, which takes the longest ttl in use: "
            "give it as longest_ttl (--longest-ttl)"
        ) from error
    except NodeBusy:
        pass  # so it can


def require_empty(run: Run) -> None:
    """Make sure that the new nodes are empty; flush them where that was asked for.

    :raises ResizeRefused: where one is not
    """
    if not run.settings.flush_new:
        _require_empty(run)
        return
    for node in run.change.added:
        flush(node, run.settings.timeout)


def _require_empty(run: Run) -> None:
    for node in run.change.added:
        if occupied(node, run.lock.document.epoch, run.settings, run.times):
            raise ResizeRefused(
                f"{node.address} is not empty, and what it holds, if only the epoch of another cluster, may be long outdated: "
                "flush it, or ask for that by flush_new (--flush-new)"
            )


def _require_following(source: TopologySource, document: Document, run: Run) -> None:
    """Wait until the clients that are there follow the document."""
    deadline = run.times.monotonic() + run.settings.patience
    run.doing("waiting for the clients to follow")
    while lagging := [one for one in present(source, run.times) if one.epoch < document.epoch]:
        if run.times.monotonic() >= deadline:
            names = ", ".join(f"{one.name} (kvcluster {one.version}, epoch {one.epoch})" for one in lagging)
            raise ResizeRefused(
                f"clients that do not follow epoch {document.epoch} would read and write at the wrong nodes: {names}. Restart "
                f"or stop them; a client that has ended is forgotten after {PRESENT:g} s"
            )
        run.wait(min(1.0, run.settings.patience))


def verify(document: Document, settings: Settings, times: Times) -> Report:
    """See `kvcluster.rebalance.Rebalance.verify`."""
    began = times.monotonic()
    sample = Sample()
    leftovers: dict[str, int] = {}
    lanes = Lanes(document.members, settings.timeout)
    try:
        if document.phase in ("migrate", "drain"):
            assert document.former is not None
            sample = _compare(change(document.former, document.topology), lanes, settings, times)
        else:
            owner = document.former if document.phase == "prepare" and document.former else document.topology
            leftovers = {node.address: _strangers(node, owner, settings, times) for node in document.members}
    finally:
        lanes.close()
    return Report(document, document.phase == "old", sample=sample, leftovers=leftovers, seconds=times.monotonic() - began)


def _compare(found: Change, lanes: Lanes, settings: Settings, times: Times) -> Sample:
    total = Sample()
    for source in found.sources:
        router, reservoir = found.router(source.address), Reservoir(settings.sample)
        with dump(source, patience=settings.patience, sleep=times.sleep) as listing:
            for lines in listing.blocks():
                for number, wire, _ in router.moving(lines):
                    reservoir.show(router.targets[number], (wire,))
        for target in found.targets:
            wires = [wire for address, wire in reservoir.kept if address == target.address]
            total = added(total, compared(wires, lanes(source.address), lanes(target.address)))
    return total


def _strangers(node: Node, topology: Topology, settings: Settings, times: Times) -> int:
    """How many keys a node holds without owning them."""
    owners = placement(topology.placement, topology.nodes, topology.slots)
    count = 0
    with dump(node, patience=settings.patience, sleep=times.sleep) as listing:
        for lines in listing.blocks():
            wires = [wire for wire, _ in lines if not pinned(wire)]
            count += sum(owners.nodes[owner].address != node.address for owner in owners.indexes(wires))
    return count
