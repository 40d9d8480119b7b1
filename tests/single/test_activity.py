"""What a watchdog is told of a rank: what it does, which call it waits in, and whether it may take its time."""

import pytest

from resist_hvd.comm.activity import Activity


def activity() -> Activity:
    found = Activity(phase="round 7, local training")
    found.round_took(1.0)
    return found


def test_a_step_that_reads_or_writes_files_has_time_until_it_is_done() -> None:
    a = activity()
    assert not a.has_long_limit
    with a.long_limit_for("writing the checkpoint"):
        assert a.has_long_limit
        assert a.words == "round 7, local training, writing the checkpoint"
        with a.long_limit_for("flushing the folder"):
            assert a.words == "round 7, local training, flushing the folder"
        assert a.has_long_limit
        assert a.words == "round 7, local training, writing the checkpoint"
    assert not a.has_long_limit
    assert a.words == "round 7, local training"


def test_a_step_that_fails_has_no_more_time() -> None:
    a = activity()
    with pytest.raises(OSError, match="no space"), a.long_limit_for("writing the checkpoint"):
        raise OSError("no space")
    assert not a.has_long_limit


def test_a_round_that_is_done_ends_the_half_hour_but_not_that_of_a_step() -> None:
    a = Activity()
    assert a.has_long_limit
    with a.long_limit_for("writing the checkpoint"):
        a.round_took(1.0)
        assert a.has_long_limit
    assert not a.has_long_limit


def test_waits_are_numbered() -> None:
    a = activity()
    for number in (1, 2):
        with a.waiting():
            assert (a.waits, a.wait) == (1, number)
    assert (a.waits, a.wait) == (0, 2)
