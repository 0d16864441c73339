import time

import pytest

from kvcluster.testing.clock import Clock


def test_time_passes_only_when_told() -> None:
    clock = Clock(1000)
    assert clock() == 1000.0 == clock()
    clock.advance(0.5)
    clock.advance(60)
    assert clock() == 1060.5


def test_starts_at_the_present() -> None:
    before = time.time()
    assert before <= Clock()() <= time.time()


def test_does_not_go_back() -> None:
    clock = Clock(1000)
    with pytest.raises(ValueError, match=r"seconds must not be negative, not -1"):
        clock.advance(-1)
    assert clock() == 1000
