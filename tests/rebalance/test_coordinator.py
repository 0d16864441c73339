"""Whole resizes of real clusters: what is where afterwards, and what becomes of one that is disturbed."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from kvcluster import Client
from kvcluster.errors import ConfigurationError, ResizeLocked, ResizeRefused, ResizeStopped
from kvcluster.rebalance import Progress, Rebalance, Settings, copy
from kvcluster.rebalance.change import change
from kvcluster.rebalance.journal import Journal
from kvcluster.rebalance.lock import Lock
from kvcluster.rebalance.running import Run, SourceTally, Times
from kvcluster.sources import Sighting
from kvcluster.testing.nodes import RunningNode, find_memcached, start_node
from kvcluster.testing.proxy import FaultProxy
from kvcluster.topology import Node, Topology
from tests.client.cluster import ask
from tests.rebalance.conftest import QUICK, TTL, Town, at_once, forever

COUNT = 4000
Make = Callable[..., Town]


@pytest.mark.parametrize("kind", ["binary", "embedded"])
@pytest.mark.parametrize("what", ["grow", "shrink", "replace", "same id", "reweight"])
def test_every_key_is_at_its_new_owner_as_it_was(town: Make, what: str, kind: Any) -> None:
    place = town(3, 4, kind=kind)
    addresses = [node.address for node in place.nodes]
    values = place.fill(COUNT)
    wanted: dict[str, list[Any]] = {
        "grow": addresses,
        "shrink": addresses[:2],
        "replace": [*addresses[:2], addresses[3]],
        "same id": [*addresses[:2], Node(addresses[3], id=addresses[2])],
        "reweight": [Node(addresses[0], 3), *addresses[1:3]],
    }
    plan = place.rebalance(wanted[what]).plan()
    states: list[Progress] = []
    report = place.run(wanted[what], states.append)
    assert report.finished
    assert place.held() == values
    assert report.outcomes == {"stored": plan.keys}
    assert report.swept == report.dumped == plan.keys > COUNT / 10
    assert report.coverage == report.sample.coverage == 1.0
    assert report.sample.differences == ()
    assert report.sample.compared > 5
    ttls = place.ttls([f"user:{number}" for number in range(200)])
    assert all((ttl == -1) == forever(f"user:{number}") for number, ttl in enumerate(ttls))
    assert all(ttl == -1 or TTL - 60 < ttl <= TTL for ttl in ttls)
    assert place.rebalance(None).verify().leftovers == {node.address: 0 for node in report.document.nodes}
    phases = [state.phase for state in states if state.doing.startswith("epoch")]
    assert phases == ["old", "old", "prepare", "migrate", "drain", "new", "old"]  # as it was found, locked, and so on
    assert states[-1].keys == states[-1].keys_total == plan.keys
    for node in report.document.nodes:
        assert ask(node.address, b"mg __kvc:epoch v\r\n") == b"VA 1\r\n%d\r\n" % report.document.epoch


def test_a_plan_tells_what_a_run_will_do_and_does_nothing(town: Make) -> None:
    place = town(3, 4)
    place.fill(COUNT)
    addresses = [node.address for node in place.nodes]
    before = place.source.read()
    place.source.announce(Sighting("me", "1.0", before.epoch, time.time()))
    plan = Rebalance(place.source, addresses, Settings(rate=100.0)).plan()
    assert place.source.read() == plan.present == before
    assert plan.slots == sum(flow.slots for flow in plan.flows)
    assert {flow.target for flow in plan.flows} == {addresses[3]}
    assert plan.shares_after[addresses[3]] == pytest.approx(plan.slots / 16384)
    assert plan.seconds == pytest.approx(plan.keys / 100)
    assert plan.keys_held == COUNT
    assert plan.bytes / plan.keys == pytest.approx(80, abs=40)
    assert [client.name for client in plan.clients] == ["me"]
    assert (plan.lagging, plan.unreachable, plan.undumpable, plan.occupied) == ((), (), (), ())
    assert plan.hit_rate is None or 0 <= (plan.hit_rate_cold or 0) <= plan.hit_rate <= 1
    ask(addresses[3], b"ms x 1\r\ny\r\n")
    assert place.rebalance(addresses).plan().occupied == (addresses[3],)
    place.nodes[3].kill()
    assert place.rebalance(addresses).plan().unreachable == (addresses[3],)


# -- refused, with nothing changed


def refused(place: Town, wanted: list[Any] | None, match: str, **settings: Any) -> None:
    before = place.source.read()
    with pytest.raises((ResizeRefused, ConfigurationError), match=match):
        place.run(wanted, **{"patience": 0.0} | settings)
    now = place.source.read()
    assert (now.epoch, now.phase, now.nodes, now.owner) == (before.epoch, before.phase, before.nodes, before.owner)


def test_what_cannot_be_is_refused_and_changes_nothing(town: Make) -> None:
    place = town(2, 3)
    addresses = [node.address for node in place.nodes]
    refused(place, addresses[:2], "nothing to move")
    refused(place, [*addresses, addresses[0]], "of two")
    refused(place, None, "no resize is under way")
    ask(addresses[2], b"ms x 1\r\ny\r\n")
    refused(place, addresses, "not empty")
    ask(addresses[2], b"flush_all\r\n")
    place.source.announce(Sighting("web:1:0", "0.9", 0, time.time()))
    refused(place, addresses, r"web:1:0 \(kvcluster 0.9, epoch 0\)")
    place.source.announce(Sighting("web:1:0", "0.9", 1, time.time()))
    place.nodes[2].kill()
    refused(place, addresses, "start it or leave it out")
    place.nodes[2].restart()
    text = place.source.path.read_text()
    place.source.path.write_text(text.replace("table_crc = ", "table_crc = 1"))
    with pytest.raises(ConfigurationError, match="table_crc"):
        place.run(addresses)
    place.source.path.write_text(text)
    with pytest.raises(ResizeRefused, match="no resize is under way"):
        Rebalance.resume(place.source)
    assert place.run(addresses).finished


def test_a_client_that_was_there_yesterday_keeps_nobody_waiting(town: Make) -> None:
    place = town(1, 2)
    place.source.announce(Sighting("gone", "0.9", 0, time.time() - 3600))
    assert place.run([node.address for node in place.nodes]).finished


def test_a_new_node_is_flushed_where_that_is_asked_for(town: Make) -> None:
    place = town(2, 3)
    values = place.fill(COUNT)
    addresses = [node.address for node in place.nodes]
    stranger = place.client(addresses)
    stranger.set_many(dict.fromkeys(values, "outdated"))
    values = place.fill(COUNT)
    ask(addresses[2], b"ms app:__stamp:table:users 8\r\noutdated\r\n")
    assert place.run(addresses, flush_new=True).finished
    assert place.held() == values
    assert ask(addresses[2], b"mg app:__stamp:table:users v\r\n") == b"EN\r\n"


def test_a_new_node_with_the_epoch_of_another_cluster_is_refused(town: Make) -> None:
    place = town(2, 3)
    addresses = [node.address for node in place.nodes]
    ask(addresses[2], b"ms __kvc:epoch 2\r\n50\r\n")
    assert place.rebalance(addresses).plan().occupied == (addresses[2],)
    refused(place, addresses, "epoch of another cluster")
    assert place.run(addresses, flush_new=True).finished
    assert ask(addresses[2], b"mg __kvc:epoch v\r\n") == b"VA 1\r\n%d\r\n" % place.source.read().epoch


def test_a_node_that_gets_a_later_epoch_from_elsewhere_stops_the_resize(town: Make) -> None:
    place = town(2, 3)
    values = place.fill(COUNT)
    addresses = [node.address for node in place.nodes]
    tell = at_once("prepare", lambda: ask(addresses[2], b"ms __kvc:epoch 2\r\n50\r\n"))
    with pytest.raises(ResizeStopped, match="another cluster's"):
        place.run(addresses, tell)
    ask(addresses[2], b"flush_all\r\n")
    assert place.run(addresses).finished
    assert place.held() == values


@contextmanager
def fresh_node() -> Iterator[RunningNode]:
    """A node that was never used: what was flushed is an item until somebody looks for it."""
    node = start_node("binary" if find_memcached() else "embedded")
    try:
        yield node
    finally:
        node.stop()


def test_a_member_by_another_name_is_no_new_node(town: Make) -> None:
    place = town(2, 2)
    values = place.fill(COUNT)
    addresses = [node.address for node in place.nodes]
    host, port = addresses[0].rsplit(":", 1)
    other = f"localhost:{port}"
    with pytest.raises(ResizeRefused, match=f"{other} and {host}:{port} are one and the same node"):
        place.run([*addresses, other], flush_new=True)
    assert place.held() == values
    assert b"EN" in ask(addresses[0], b"mg __kvc:mark v\r\n")


def test_nodes_of_a_later_epoch_are_not_taken_for_a_resize_by_another(town: Make) -> None:
    place = town(2, 3)
    addresses = [node.address for node in place.nodes]
    for address in addresses[:2]:
        ask(address, b"ms __kvc:epoch 2\r\n20\r\n")
    with pytest.raises(ResizeStopped, match="holds epoch 20, which is another cluster's"):
        place.run(addresses)


def test_an_empty_new_node_that_cannot_dump_is_empty(town: Make) -> None:
    place = town(1, 1)
    values = place.fill(COUNT)
    with fresh_node() as new, FaultProxy(new.address) as proxy:
        proxy.replies.garble = lambda piece: b"ERROR\r\n" if piece.startswith((b"key=", b"END\r\n")) else piece
        assert place.run([place.nodes[0].address, proxy.address]).finished
        proxy.replies.garble = lambda piece: piece
        assert place.held() == values


def test_of_two_coordinators_one_works(town: Make) -> None:
    place = town(2, 3)
    place.fill(COUNT)
    addresses = [node.address for node in place.nodes]
    seen: list[Exception] = []

    def second() -> None:
        with pytest.raises(ResizeLocked, match="resizing this cluster") as raised:
            place.run(addresses)
        seen.append(raised.value)

    assert place.run(addresses, at_once("migrate", second, "copying")).finished
    assert len(seen) == 1


def test_another_resize_has_to_wait_until_the_one_under_way_is_continued(town: Make) -> None:
    place = town(2, 4)
    place.fill(COUNT)
    addresses = [node.address for node in place.nodes]
    rebalance = place.rebalance(addresses[:3], rate=2000.0)
    assert not rebalance.run(at_once("migrate", rebalance.stop, "copying")).finished
    refused(place, addresses, "under way, in phase migrate")
    with pytest.raises(ResizeRefused, match="under way"):
        place.rebalance(addresses).plan()
    assert Rebalance.resume(place.source, Settings(**QUICK)).run().finished
    assert place.run(addresses).finished


def test_what_a_new_owner_holds_from_long_ago_is_not_taken_for_newer(town: Make) -> None:
    place = town(3, 3)
    values = place.fill(COUNT)
    addresses = [node.address for node in place.nodes]
    for node in addresses[:2]:  # what clients of another topology left behind, years ago
        stray = place.client([node])
        planner = place.client().planner
        stray.set_many({key: "outdated" for key in values if planner.address(key.encode()) == addresses[2]})
    assert place.run(addresses[:2]).finished
    assert place.held() == values


# -- stopped and continued


@pytest.mark.parametrize("phase", ["old", "prepare", "migrate", "drain", "new"])
def test_what_was_stopped_in_any_phase_is_continued_from_there(town: Make, phase: str) -> None:
    place = town(3, 4)
    values = place.fill(COUNT)
    addresses = [node.address for node in place.nodes]
    rebalance = place.rebalance(addresses, rate=20_000.0)
    stopped = rebalance.run(at_once(phase, rebalance.stop, {"migrate": "copying", "new": "sweeping"}.get(phase, "")))
    assert not stopped.finished
    assert place.source.read().phase == stopped.document.phase == phase
    assert "run it again" in stopped.notes[0]
    report = place.run(addresses)
    assert report.finished
    assert place.held() == values
    assert place.rebalance(None).verify().leftovers == dict.fromkeys(addresses, 0)


def test_what_is_journalled_is_not_copied_again(town: Make) -> None:
    place = town(2, 3)
    values = place.fill(COUNT)
    addresses = [node.address for node in place.nodes]
    rebalance = place.rebalance(addresses, rate=2000.0)
    stop = lambda state: rebalance.stop() if state.outcomes.get("stored", 0) >= 500 else None  # noqa: E731
    first = rebalance.run(stop)
    journal = place.source.path.with_name("topology.toml.journal")
    assert journal.exists()
    second = place.run(addresses)
    assert second.outcomes["journalled"] > 0
    assert first.outcomes["stored"] + second.outcomes["stored"] >= second.dumped
    assert second.outcomes["journalled"] + second.outcomes["stored"] + second.outcomes.get("newer", 0) == second.dumped
    assert second.rate is not None
    assert second.rate * second.copying == pytest.approx(second.dumped - second.outcomes["journalled"])
    assert place.held() == values
    assert not journal.exists()


def test_hit_rates_leave_the_gets_of_the_copy_out(town: Make) -> None:
    place = town(1, 2)
    source, target = place.nodes
    now, states = [0.0], []
    document = place.source.read()
    found = change(document.topology, Topology([target.address]))
    lock = Lock(place.source, document, "me", 30.0, time.time)
    run = Run(Settings(), Times(monotonic=lambda: now[0]), found, lock, Journal(None), states.append, lambda: False)
    keys = [b"key:%d" % number for number in range(10)]
    for key in keys[:7]:
        ask(source.address, b"set %b 0 0 1\r\nx\r\n" % key)
    run.doing("before")
    for key in keys:
        run.lanes(target.address).ask(copy.reserve(key))
        run.lanes(source.address).ask(copy.read(key))
    run.tally.sources[source.address] = SourceTally(10, Counter(stored=7, gone=3, journalled=50))
    for key in keys[4:9]:
        ask(source.address, b"get %b\r\n" % key)
    now[0] = 10.0
    run.doing("after")
    assert (states[-1].hit_rate_sources, states[-1].hit_rate_targets) == (3 / 5, None)
    assert states[-1].rate == 1.0
    run.lanes.close()


def test_without_a_journal_everything_is_asked_for_again_and_nothing_is_lost(town: Make) -> None:
    place = town(2, 3)
    values = place.fill(COUNT)
    addresses = [node.address for node in place.nodes]
    rebalance = place.rebalance(addresses, rate=2000.0)
    rebalance.run(lambda state: rebalance.stop() if state.outcomes.get("stored", 0) >= 500 else None)
    place.source.path.with_name("topology.toml.journal").unlink()
    second = place.run(addresses)
    assert second.outcomes["newer"] >= 500
    assert place.held() == values


@pytest.mark.parametrize("phase", ["old", "prepare", "migrate", "drain", "new"])
def test_an_epoch_that_a_coordinator_died_before_telling_is_told_before_the_next(town: Make, phase: str) -> None:
    place = town(2, 3)
    place.fill(100)
    addresses = [node.address for node in place.nodes]
    rebalance = place.rebalance(addresses)
    rebalance.run(at_once(phase, rebalance.stop))
    document = place.source.read()
    assert place.source.replace(document.epoch, document.step(owner="dead", lease_until=0.0))  # and no node was told
    told: list[bytes] = []

    def look(state: Progress) -> None:
        if not told and place.source.read().epoch == document.epoch + 2:
            told.extend(ask(address, b"mg __kvc:epoch v\r\n").split()[-1] for address in addresses[:2])

    assert place.run(addresses, look).finished
    assert {int(epoch) for epoch in told} <= {document.epoch + 1, document.epoch + 2}


def test_who_is_thought_dead_and_is_not_stops(town: Make) -> None:
    place = town(2, 3)
    values = place.fill(COUNT)
    addresses = [node.address for node in place.nodes]

    def overtake() -> None:
        document = place.source.read()
        assert place.source.replace(document.epoch, document.step(owner="other", lease_until=0.0))

    with pytest.raises(ResizeStopped, match="other has taken over"):
        place.run(addresses, at_once("migrate", overtake, "copying"), lease=0.001)
    assert place.run(addresses).finished
    assert place.held() == values


@pytest.mark.parametrize("phase", ["migrate", "new"])
def test_who_lost_the_lock_without_knowing_copies_nothing_any_more(town: Make, phase: str) -> None:
    place = town(2, 2)
    values = place.fill(COUNT)
    overtaken: list[int] = []

    with fresh_node() as new:
        addresses = [*(node.address for node in place.nodes), new.address]

        def overtake(state: Progress) -> None:
            if state.doing == "copying" and not overtaken:
                document = place.source.read()
                assert place.source.replace(document.epoch, document.step(owner="other", phase=phase))
                for address in addresses:
                    ask(address, b"ms __kvc:epoch 1\r\n%d\r\n" % (document.epoch + 1))
                overtaken.append(document.epoch)

        with pytest.raises(ResizeStopped, match="other has taken over"):
            place.run(addresses, overtake, lease=3600.0)
        held = int(ask(new.address, b"stats\r\n").split(b"STAT curr_items ")[1].split()[0])
    assert held < 500 < len(values)


# -- disturbed


@pytest.mark.parametrize("phase", ["old", "prepare", "migrate", "drain", "new"])
@pytest.mark.parametrize("which", ["source", "target"])
def test_a_node_that_restarts_in_any_phase_is_told_again_and_filled_again(town: Make, phase: str, which: str) -> None:
    place = town(2, 3)
    values = place.fill(COUNT)
    addresses = [node.address for node in place.nodes]
    node = place.nodes[0 if which == "source" else 2]
    doing = {"migrate": "copying", "new": "sweeping"}.get(phase, "")
    report = place.run(addresses, at_once(phase, node.restart, doing), rate=20_000.0)
    assert report.finished
    held = place.held()
    assert held.items() <= values.items()
    if which == "target" and phase in ("old", "prepare", "migrate"):
        assert held == values
    assert ask(node.address, b"mg __kvc:epoch v\r\n") == b"VA 1\r\n%d\r\n" % report.document.epoch


def test_a_node_that_stays_dead_stops_the_resize_until_it_is_back(town: Make) -> None:
    place = town(2, 3)
    values = place.fill(COUNT)
    addresses = [node.address for node in place.nodes]
    with pytest.raises(ResizeStopped, match="bring it back"):
        place.run(addresses, at_once("migrate", place.nodes[2].kill, "copying"), patience=0.3, rate=5000.0)
    assert place.source.read().phase == "migrate"
    place.nodes[2].restart()
    assert place.run(addresses).finished
    assert place.held() == values


def test_where_a_new_node_died_for_good_the_resize_goes_back(town: Make) -> None:
    place = town(2, 3)
    values = place.fill(COUNT)
    addresses = [node.address for node in place.nodes]
    follower = Client.from_topology(place.source, timeout=1.0)
    place.source.patience = 0.01
    with pytest.raises(ResizeStopped, match="or abort the resize"):
        place.run(addresses, at_once("migrate", place.nodes[2].kill, "copying"), patience=0.3, rate=5000.0)
    changed = [f"user:{number}" for number in range(100)]
    stored = {key for key in changed if follower.set(key, "changed")}
    report = place.rebalance(None, patience=0.3).abort()
    assert report.finished
    assert report.given_up == (addresses[2],)
    document = place.source.read()
    assert (document.phase, document.previous, document.owner) == ("old", (), "")
    assert [node.address for node in document.nodes] == addresses[:2]
    assert not place.source.path.with_name("topology.toml.journal").exists()
    kept = values | dict.fromkeys(stored, "changed")
    lost = set(changed) - stored  # what the dead node was to store is nowhere, and not outdated at its old owner
    assert place.held() == follower.get_many(kept) == {key: value for key, value in kept.items() if key not in lost}
    assert 0 < len(lost) < len(changed)
    follower.close()


@pytest.mark.parametrize("what", ["grow", "reweight"])
@pytest.mark.parametrize("phase", ["prepare", "migrate"])
def test_a_resize_goes_back_whose_nodes_are_all_well(town: Make, phase: str, what: str) -> None:
    place = town(2, 3)
    values = place.fill(COUNT)
    addresses = [node.address for node in place.nodes]
    first = place.rebalance(addresses if what == "grow" else [Node(addresses[0], 3), addresses[1]], rate=5000.0)
    assert not first.run(at_once(phase, first.stop, "copying" if phase == "migrate" else "")).finished
    follower = Client.from_topology(place.source)
    follower.set_many({f"user:{number}": "changed" for number in range(100)})
    second = place.rebalance(None)
    stopped = second.abort(at_once("prepare", second.stop))
    assert (stopped.finished, place.source.read().phase) == (False, "prepare")
    assert "abort it again" in stopped.notes[0]
    report = place.rebalance(None).abort()
    assert report.finished
    values |= {f"user:{number}": "changed" for number in range(100)}
    assert place.held().items() <= values.items()  # of what was changed in migrate, some is missed and nothing is outdated
    assert len(place.held()) >= COUNT - 100
    assert place.rebalance(None).verify().leftovers == dict.fromkeys(addresses[:2], 0)
    assert follower.get_many(values) == place.held()
    for address in addresses[:2]:
        assert ask(address, b"mg __kvc:epoch v\r\n") == b"VA 1\r\n%d\r\n" % report.document.epoch
    follower.close()


@pytest.mark.parametrize("phase", ["old", "drain", "new"])
def test_there_is_no_way_back_where_nothing_is_to_be_undone_or_the_old_owners_serve_no_more(town: Make, phase: str) -> None:
    place = town(2, 3)
    addresses = [node.address for node in place.nodes]
    rebalance = place.rebalance(addresses)
    rebalance.run(at_once(phase, rebalance.stop))
    before = place.source.read()
    with pytest.raises(ResizeRefused, match="no resize is under way" if phase == "old" else f"no way back from phase {phase}"):
        place.rebalance(None).abort()
    assert place.source.read() == before


def test_a_source_that_is_dead_and_leaves_is_given_up(town: Make) -> None:
    place = town(3, 4)
    values = place.fill(COUNT)
    addresses = [node.address for node in place.nodes]
    dead = addresses[2]
    planner = place.client().planner
    owned = {key for key in values if planner.address(key.encode()) == dead}
    place.nodes[2].kill()
    place.source.patience = 0.01
    report = place.run([*addresses[:2], addresses[3]], patience=0.3)
    assert report.finished
    assert report.given_up == (dead,)
    assert dead in report.notes[0]
    held = place.held()
    assert held.items() <= values.items()
    assert set(values) - set(held) == owned


def test_a_source_that_leaves_and_dies_on_the_way_is_given_up(town: Make) -> None:
    place = town(3, 3)
    values = place.fill(COUNT)
    addresses = [node.address for node in place.nodes]
    place.source.patience = 0.01
    report = place.run(addresses[:2], at_once("migrate", place.nodes[2].kill, "copying"), patience=0.3, rate=5000.0)
    assert report.finished
    assert report.given_up == (addresses[2],)
    assert place.held().items() <= values.items()


def through_proxies(place: Town, count: int) -> list[FaultProxy]:
    return [FaultProxy(node.address) for node in place.nodes[:count]]


@pytest.mark.parametrize("line", [b"BUSY currently processing crawler request\r\n", b"ERROR locked try again later\r\n"])
def test_a_source_that_will_not_dump_now_is_asked_again(town: Make, line: bytes) -> None:
    place = town(1, 2)
    values = place.fill(COUNT)
    refusals = 3

    def garble(piece: bytes) -> bytes:
        nonlocal refusals
        if refusals and (piece.startswith((b"key=", b"OK", b"END"))):
            refusals -= 1
            return line
        return piece

    with FaultProxy(place.nodes[0].address) as proxy:
        place.source.path.unlink()
        place.source.create(place_document(proxy.address))
        proxy.replies.garble = garble
        assert place.run([proxy.address, place.nodes[1].address]).finished
        assert refusals == 0
        assert place.held() == values


def test_a_source_whose_dump_breaks_off_is_dumped_again(town: Make) -> None:
    place = town(1, 2)
    values = place.fill(COUNT)
    with FaultProxy(place.nodes[0].address) as proxy:
        place.source.path.unlink()
        place.source.create(place_document(proxy.address))
        cut = at_once("migrate", lambda: proxy.replies.cut_after(100_000), "dumping")
        assert place.run([proxy.address, place.nodes[1].address], cut).finished
        assert place.held() == values


def test_a_connection_that_breaks_while_keys_are_on_the_way_loses_none(town: Make) -> None:
    place = town(1, 2)
    values = place.fill(COUNT)
    with FaultProxy(place.nodes[0].address) as old, FaultProxy(place.nodes[1].address) as new:
        place.source.path.unlink()
        place.source.create(place_document(old.address))
        cuts = 0

        def cut(state: Progress) -> None:
            nonlocal cuts
            if state.doing == "copying" and cuts < 2:
                cuts += 1
                (old, new)[cuts % 2].replies.cut_after(3000)

        assert place.run([old.address, new.address], cut, rate=20_000.0).finished
        assert cuts == 2
        assert place.held() == values


def test_a_source_that_cannot_dump_is_resized_by_reads_alone(town: Make) -> None:
    place = town(1, 2)
    place.fill(100)
    with FaultProxy(place.nodes[0].address) as proxy:
        place.source.path.unlink()
        place.source.create(place_document(proxy.address))
        proxy.replies.garble = lambda piece: b"ERROR\r\n" if piece.startswith((b"key=", b"END")) else piece
        wanted = [proxy.address, place.nodes[1].address]
        assert place.rebalance(wanted).plan().undumpable == (proxy.address,)
        refused(place, wanted, "give it as longest_ttl")
        began = time.monotonic()
        report = place.run(wanted, longest_ttl=0.3)
        assert report.finished
        assert time.monotonic() - began >= 0.3
        assert any("reads alone" in note for note in report.notes)


def test_a_target_that_cannot_dump_is_cleared_by_the_ttl_of_what_it_holds(town: Make) -> None:
    place = town(2, 2)
    with FaultProxy(place.nodes[1].address) as proxy:
        place.source.path.unlink()
        place.source.create(place_document(place.nodes[0].address, proxy.address))
        proxy.replies.garble = lambda piece: b"ERROR\r\n" if piece.startswith((b"key=", b"END\r\n")) else piece
        grown = [place.source.read().nodes[0], Node(proxy.address, 3, "n1")]
        assert place.rebalance(grown).plan().undumpable == (proxy.address,)
        refused(place, grown, "--longest-ttl")
        planner, wanted = place.client().planner, place.client(grown).planner
        moving = next(
            f"k{number}"
            for number in range(9999)
            if planner.address(b"k%d" % number) != proxy.address == wanted.address(b"k%d" % number)
        )
        ask(proxy.address, b"ms %b 3 T1\r\nold\r\n" % moving.encode())  # what an earlier resize could not sweep
        place.client().set(moving, "new")
        report = place.run(grown, longest_ttl=2.1)
        assert report.finished
        assert place.client().get(moving) == "new"


def place_document(*addresses: str) -> Any:
    from kvcluster.topology import Document

    return Document(tuple(Node(address, id=f"n{number}") for number, address in enumerate(addresses)))


# -- stamps, memory, the lock while nothing else happens


def test_stamps_are_on_the_new_nodes_before_any_key_moves_and_are_never_swept(town: Make) -> None:
    place = town(2, 3)
    place.fill(500)
    addresses = [node.address for node in place.nodes]
    for node in addresses[:2]:
        ask(node, b"ms app:__stamp:table:users 8\r\nabcdefgh\r\n")
    seen: list[bytes] = []

    def look() -> None:
        seen.append(ask(addresses[2], b"mg app:__stamp:table:users v t\r\n"))

    assert place.run(addresses, at_once("migrate", look)).finished
    assert seen == [b"VA 8 t-1\r\nabcdefgh\r\n"]
    for node in addresses:
        assert ask(node, b"mg app:__stamp:table:users v\r\n") == b"VA 8\r\nabcdefgh\r\n"
    assert place.run(addresses[:2]).finished
    assert ask(addresses[2], b"mg app:__stamp:table:users v\r\n") == b"EN\r\n"
    assert ask(addresses[2], b"mg __kvc:epoch v\r\n").startswith(b"VA")


def test_a_stamp_that_the_new_node_has_already_is_kept(town: Make) -> None:
    place = town(1, 2)
    addresses = [node.address for node in place.nodes]
    ask(addresses[0], b"ms app:__stamp:tag:t 8\r\noldstamp\r\n")
    bump = at_once("prepare", lambda: ask(addresses[1], b"ms app:__stamp:tag:t 8\r\nnewstamp\r\n"))
    assert place.run(addresses, bump).finished
    assert ask(addresses[1], b"mg app:__stamp:tag:t v\r\n") == b"VA 8\r\nnewstamp\r\n"


def test_copying_stops_at_the_targets_share_of_memory(town: Make) -> None:
    place = town(1, 2, memory=8)
    addresses = [node.address for node in place.nodes]
    client = place.client()
    client.set_many({f"user:{number}": b"x" * 10_000 for number in range(600)})
    report = place.run([addresses[0], Node(addresses[1], 3)], fill=0.2)
    assert report.finished
    assert report.outcomes["cold"] > 50
    assert report.outcomes["stored"] > 50
    assert report.coverage == pytest.approx(1 - report.outcomes["cold"] / report.dumped)
    assert b"STAT evictions 0\r\n" in ask(addresses[1], b"stats\r\n")


def test_several_sources_share_the_room_of_a_target(town: Make) -> None:
    place = town(3, 4, memory=8)
    addresses = [node.address for node in place.nodes]
    place.client().set_many({f"user:{number}": b"x" * 5_000 for number in range(2400)})
    report = place.run(addresses, fill=0.2)
    assert report.outcomes["cold"] > 50
    limit = 0.2 * (8 << 20)
    held = int(ask(addresses[3], b"stats\r\n").split(b"STAT bytes ")[1].split()[0])
    assert 0.7 * limit < held <= 1.05 * limit  # the sources' parts of the room differ with what their addresses hash to


def test_the_lock_is_kept_while_the_copy_is_slow(town: Make) -> None:
    place = town(1, 2)
    place.fill(600)
    addresses = [node.address for node in place.nodes]
    rebalance = place.rebalance(addresses, rate=100.0, lease=1.0)
    outcome: list[Any] = []
    thread = threading.Thread(target=lambda: outcome.append(rebalance.run()))
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while place.source.read().phase != "migrate":
            assert time.monotonic() < deadline
        for _ in range(40):
            time.sleep(0.05)
            if (document := place.source.read()).phase == "migrate":
                assert document.lease_until > time.time()
    finally:
        rebalance.stop()
        thread.join()
    assert outcome
