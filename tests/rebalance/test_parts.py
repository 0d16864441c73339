"""The small parts of a resize: pace, journal, lock, the order and room of what moves, and the comparison of a sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcluster.errors import ConfigurationError, ResizeLocked, ResizeStopped, SourceUnavailable
from kvcluster.protocol.hot import Reply
from kvcluster.rebalance import Rebalance
from kvcluster.rebalance.change import change
from kvcluster.rebalance.copy import BATCH
from kvcluster.rebalance.journal import Journal
from kvcluster.rebalance.lock import Lock
from kvcluster.rebalance.moves import BATCH_BYTES, Moves, coldest
from kvcluster.rebalance.pace import SAMPLE, Pace, percentile
from kvcluster.rebalance.running import Settings
from kvcluster.rebalance.sample import Reservoir, judged
from kvcluster.sources import FileSource
from kvcluster.topology import Document, Topology

# -- pace


@given(st.lists(st.tuples(st.integers(1, 100), st.integers(0, 10_000)), min_size=1, max_size=50))
def test_neither_limit_is_ever_exceeded(batches: list[tuple[int, int]]) -> None:
    pace, now = Pace(keys=1000, bytes=50_000), 10.0
    for keys, size in batches:
        now += pace.spend(keys, size, now)
    spent = [sum(column) for column in zip(*batches[:-1], strict=True)] if len(batches) > 1 else [0, 0]
    assert now - 10.0 >= max(spent[0] / 1000, spent[1] / 50_000) - 1e-9


def test_time_that_was_not_used_is_not_made_up_for() -> None:
    pace = Pace(keys=1000, bytes=1e9)
    assert pace.spend(100, 0, now=0.0) == 0
    assert pace.spend(100, 0, now=50.0) == 0
    assert pace.spend(100, 0, now=50.0) == pytest.approx(0.1)


def test_the_pace_falls_while_the_source_suffers_and_comes_back() -> None:
    pace = Pace(keys=1000, bytes=1e9)
    for _ in range(SAMPLE):
        pace.observe(0.001)
    pace.started()
    for _ in range(SAMPLE):
        pace.observe(0.0015)
    assert pace.factor == 1.0
    for _ in range(SAMPLE):
        pace.observe(0.02)
    low = pace.factor
    assert low < 0.1
    for _ in range(2 * SAMPLE):
        pace.observe(0.001)
    assert pace.factor > 10 * low


def test_what_one_node_bears_says_nothing_of_the_next() -> None:
    pace = Pace(keys=1000, bytes=1e9)
    pace.factor = 0.02
    pace.restarted()
    assert pace.factor == 1.0


def test_a_percentile_is_a_value_of_the_sample() -> None:
    assert percentile([1.0] * 98 + [5.0, 9.0]) == 5.0
    assert percentile([3.0]) == 3.0


# -- journal


def test_a_journal_is_taken_up_by_whoever_continues(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    first = Journal(path)
    first.open(3, 4, {"n:1": 100})
    first.add("a:1", [1, 2])
    first.add("b:1", [7])
    first.close()
    second = Journal(path)
    second.open(4, 5, {"n:1": 100})
    assert second.done("a:1") == {1, 2}
    assert second.done("b:1") == {7}
    assert second.done("c:1") == frozenset()
    second.add("a:1", [3])
    second.close()
    third = Journal(path)
    third.open(5, 6, {"n:1": 100})
    assert third.done("a:1") == {1, 2, 3}
    third.remove()
    assert not path.exists()


@pytest.mark.parametrize(("epoch", "started"), [(3, {"n:1": 100}), (4, {"n:1": 101}), (4, {})])
def test_a_journal_of_another_epoch_or_of_targets_that_restarted_is_not(
    tmp_path: Path, epoch: int, started: dict[str, int]
) -> None:
    path = tmp_path / "journal"
    first = Journal(path)
    first.open(3, 4, {"n:1": 100})
    first.add("a:1", [1])
    first.close()
    second = Journal(path)
    second.open(epoch, 9, started)
    assert second.done("a:1") == frozenset()
    second.close()


_HALF = '{"format": 1, "epoch": 4, "started": {"n:1": 100}}\na:1 12'  # of 123


@pytest.mark.parametrize(
    "text", ["", "{", '{"format": 99}\n', '{"format": 1, "epoch": 4, "started": {"n:1": 100}}\na:1 1 x\n', _HALF]
)
def test_a_journal_that_cannot_be_read_is_started_anew(tmp_path: Path, text: str) -> None:
    path = tmp_path / "journal"
    path.write_text(text)
    journal = Journal(path)
    journal.open(4, 5, {"n:1": 100})
    assert journal.done("a:1") == frozenset()
    journal.close()


def test_a_journal_that_cannot_be_written_says_where(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="missing"):
        Journal(tmp_path / "missing" / "journal").open(1, 2, {})


# -- lock


@pytest.fixture
def source(tmp_path: Path) -> FileSource:
    source = FileSource(tmp_path / "topology.toml")
    source.create(Document(Topology(["a", "b"]).nodes))
    return source


def lock_of(source: FileSource, owner: str, now: float) -> Lock:
    return Lock(source, source.read(), owner, 30.0, lambda: now)


def test_one_of_two_coordinators_gets_the_lock(source: FileSource) -> None:
    first, second = lock_of(source, "first", 100.0), lock_of(source, "second", 100.0)
    first.take()
    with pytest.raises(ResizeLocked, match="first") as raised:
        second.take()
    assert (raised.value.owner, raised.value.until) == ("first", 130.0)
    with pytest.raises(ResizeLocked):
        lock_of(source, "third", 120.0).require_free()
    lock_of(source, "third", 131.0).require_free()


def test_who_lost_the_lock_learns_of_it_at_the_next_write(source: FileSource) -> None:
    now = 100.0
    late = Lock(source, source.read(), "late", 30.0, lambda: now)
    late.take()
    now = 200.0
    taker = lock_of(source, "taker", 200.0)
    taker.take()
    with pytest.raises(ResizeStopped, match="taker has taken over"):
        late.renew()
    with pytest.raises(ResizeStopped):
        late.step(phase="drain", previous=late.document.nodes)
    late.release()
    assert source.read().owner == "taker"
    assert source.read().lease_until == 230.0


def test_a_lock_that_is_given_back_can_be_taken_at_once(source: FileSource) -> None:
    first = lock_of(source, "first", 100.0)
    first.take()
    first.release()
    second = lock_of(source, "second", 101.0)
    second.require_free()
    second.take()
    assert source.read().owner == "second"


def test_a_lock_is_renewed_when_half_of_its_time_is_over(source: FileSource) -> None:
    now = 100.0
    lock = Lock(source, source.read(), "me", 30.0, lambda: now)
    lock.take()
    now = 114.0
    lock.renew()
    assert source.read().lease_until == 130.0
    now = 116.0
    lock.renew()
    assert source.read().lease_until == 146.0


def test_a_source_that_cannot_be_written_is_tried_until_the_lock_ends(source: FileSource, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    lock = Lock(source, source.read(), "me", 30.0, lambda: now)
    lock.take()

    def fail(*args: object) -> bool:
        raise SourceUnavailable("disk full")

    monkeypatch.setattr(source, "replace", fail)
    now = 129.0
    lock.renew()
    now = 131.0
    with pytest.raises(ResizeStopped, match="disk full"):
        lock.renew()


# -- what moves


def lines(count: int, size: int = 100, accessed: int = 0) -> list[tuple[bytes, bytes]]:
    return [(b"key:%d" % n, b"exp=-1 la=%d cas=1 fetch=no cls=1 size=%d" % (accessed or 60 * n, size)) for n in range(count)]


def moves_of(keys: list[tuple[bytes, bytes]], **options: Any) -> Moves:
    moves = Moves(change(Topology(["a"]), Topology(["b", "c"])).router("a:11211"), **options)
    for start in range(0, len(keys), 700):
        moves.add(keys[start : start + 700])
    return moves


@pytest.mark.parametrize("held", [200_000, 500])
def test_every_key_is_in_one_batch_by_slot_and_the_hottest_of_a_slot_first(held: int) -> None:
    keys = lines(20_000)
    moves = moves_of(keys, held=held)
    works = list(moves.works())
    assert sorted(wire for work in works for wire in work.wires) == sorted(wire for wire, _ in keys)
    assert moves.keys.total() == 20_000
    assert max(len(work.wires) for work in works) == BATCH
    router = change(Topology(["a"]), Topology(["b", "c"])).router("a:11211")
    by_slot: dict[int, list[int]] = {}
    for work in works:
        for wire, slot in zip(work.wires, router.slots(work.wires), strict=True):
            by_slot.setdefault(slot, []).append(int(wire[4:]))
    assert all(numbers == sorted(numbers, reverse=True) for numbers in by_slot.values())
    finished = [slot for work in works for slot in work.slots]
    assert sorted(finished) == sorted(by_slot)
    assert list(moves.works()) == works  # may be asked for again
    moves.close()


def test_a_slot_is_done_with_its_last_key() -> None:
    moves = moves_of(lines(3000))
    router = change(Topology(["a"]), Topology(["b", "c"])).router("a:11211")
    left = {}
    for _, slots in [(work, router.slots(work.wires)) for work in moves.works()]:
        for slot in slots:
            left[slot] = left.get(slot, 0) + 1
    for work in moves.works():
        for slot in router.slots(work.wires):
            left[slot] -= 1
        assert all(left[slot] == 0 for slot in work.slots)


def test_slots_that_are_journalled_are_left_out_and_counted() -> None:
    moves = moves_of(lines(3000))
    some = [slot for work in list(moves.works())[:10] for slot in work.slots]
    rest = list(moves.works(frozenset(some)))
    assert sum(len(work.wires) for work in rest) + sum(work.journalled for work in rest) == 3000
    assert not set(some) & {slot for work in rest for slot in work.slots}


def test_where_there_is_no_room_the_coldest_stay() -> None:
    moves = moves_of(lines(3000))
    moves.fit({"b:11211": 50_000.0, "c:11211": 0.0})
    works = list(moves.works())
    copied = sorted((int(wire[4:]) for work in works for wire in work.wires), reverse=True)
    assert len(copied) == 500
    assert {work.target for work in works if work.wires} == {"b:11211"}
    assert sum(work.cold for work in works) == 2500
    router = change(Topology(["a"]), Topology(["b", "c"])).router("a:11211")
    goes_to_b = [n for n in range(2999, -1, -1) if router.moving([(b"key:%d" % n, b"")])[0][0] == 0]
    assert copied == goes_to_b[:500]


def test_large_values_make_small_batches() -> None:
    works = list(moves_of(lines(30, size=BATCH_BYTES // 2)).works())
    assert max(len(work.wires) for work in works) <= 2


@given(st.dictionaries(st.integers(1, 50), st.integers(1, 100), max_size=20), st.integers(0, 1000))
def test_what_fits_is_the_latest_and_as_much_of_it_as_there_is_room_for(heat: dict[int, int], room: int) -> None:
    minute, left = coldest(heat.items(), room)
    later = sum(size for at, size in heat.items() if at > minute)
    if minute >= 0:
        assert later + left == room
        assert later + heat[minute] > room
    else:
        assert later <= room


# -- the sample


def answer(**fields: object) -> Reply:
    made = Reply(str(fields.pop("status", "VA")))
    made.value = b"x"
    for name, value in fields.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        (answer(ttl=60), answer(ttl=59), "same"),
        (answer(ttl=60), answer(ttl=58), "ttl"),
        (answer(ttl=-1), answer(ttl=60), "ttl"),
        (answer(flags=1), answer(flags=2), "flags"),
        (answer(), answer(value=b"y"), "value"),
        (answer(), answer(status="EN", value=None), "missing"),
        (answer(), answer(stale=True), "missing"),
        (answer(), answer(value=b"", taken=True), "missing"),
        (answer(status="EN", value=None), answer(), "changed"),
        (answer(stale=True), answer(), "changed"),
    ],
)
def test_what_two_sides_say_of_a_key(old: Reply, new: Reply, what: str) -> None:
    sample = judged(b"k", "o:1", "n:1", old, new)
    found = [difference.what for difference in sample.differences] or [
        name for name, count in (("same", sample.compared), ("missing", sample.missing), ("changed", sample.changed)) if count
    ]
    assert found == [what]


def test_a_reservoir_keeps_what_it_may_and_shows_no_favour() -> None:
    reservoir = Reservoir(100)
    for number in range(1000):
        reservoir.show("n:1", [b"%d" % number])
    assert len(reservoir.kept) == 100
    assert sum(int(wire) >= 500 for _, wire in reservoir.kept) in range(20, 81)


def test_settings_that_make_no_sense_are_refused() -> None:
    for name in ("rate", "bytes_rate", "fill", "lease", "timeout"):
        with pytest.raises(ConfigurationError, match=name):
            Settings(**{name: 0})
    for name, value in [("patience", -1), ("patience", "x"), ("sample", -1), ("longest_ttl", -1), ("fill", 7), ("rate", True)]:
        with pytest.raises(ConfigurationError, match=name):
            Settings(**{name: value})  # type: ignore[arg-type]
    for name, other in [("lease", float("inf")), ("rate", float("nan")), ("owner", 5)]:
        with pytest.raises(ConfigurationError, match=name):
            Settings(**{name: other})  # type: ignore[arg-type]


def test_a_text_is_no_list_of_nodes(source: FileSource) -> None:
    with pytest.raises(ConfigurationError, match="list of nodes"):
        Rebalance(source, "127.0.0.1:1")
