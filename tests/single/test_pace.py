"""The time that is left: from recent rounds, and from what came between rounds."""

import pytest

from resist_hvd.training.pace import RECENT, Pace
from resist_hvd.units import remaining


def test_nothing_is_said_of_what_is_not_known() -> None:
    pace = Pace()
    assert pace.left(10) is None
    # The first round of a start, in which everything is made, is no guide.
    pace.round_done(100.0, now=100.0)
    assert pace.left(10) is None
    pace.round_done(2.0, now=102.0)
    assert pace.left(10) == pytest.approx(20.0)


def test_a_run_that_has_become_faster_is_foretold_by_its_recent_rounds() -> None:
    pace, now = Pace(), 0.0
    for seconds in [50.0, *[4.0] * 30, *[1.0] * RECENT]:
        now += seconds
        pace.round_done(seconds, now)
    assert pace.left(7) == pytest.approx(7.0)


def test_what_comes_between_rounds_is_counted() -> None:
    pace, now = Pace(), 0.0
    for number in range(41):
        now += 2.0
        pace.round_done(2.0, now)
        now += 30.0 if number % 10 == 9 else 0.0
    # Four evaluations of 30 s in 40 rounds: 3 s a round besides its own 2.
    assert pace.left(100) == pytest.approx(500.0)


def test_times_are_told_no_more_exactly_than_they_are_known() -> None:
    seconds = (0.2, 41.4, 99.4, 99.6, 750, 5990, 15_000, 172_700, 277_000)
    told = ["0 s", "41 s", "99 s", "2 min", "12 min", "1 h 40 min", "4 h 10 min", "47 h 58 min", "3 d 4 h"]
    assert [remaining(value) for value in seconds] == told
