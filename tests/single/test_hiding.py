"""The choice of steps beside a synchronisation."""

from dataclasses import replace

import pytest

from resist_hvd.records import RankSeconds, RoundRecord
from resist_hvd.training.hiding import DEAR, LOST, MEASURED, SKIPPED, Chooser, choose, is_free

# 1 and 2 of 10 are dear, 3 of 20 are free, and 4 of 20 are not; of 50 nobody knows but 8.
TABLE = {(10, 1): 1.0, (10, 2): 2.7, (20, 3): 0.3, (20, 4): 0.31, (50, 8): -0.1}


@pytest.mark.parametrize(
    ("iterations", "overlap", "free"),
    [
        pytest.param(20, 3, True, id="measured"),
        pytest.param(20, 2, True, id="fewer-steps"),
        pytest.param(30, 3, True, id="longer-rounds"),
        pytest.param(20, 4, False, id="measured-to-be-dear"),
        pytest.param(19, 3, False, id="shorter-rounds"),
        pytest.param(20, 5, False, id="more-steps-than-were-dear"),
        pytest.param(10, 1, False, id="short-rounds"),
        pytest.param(40, 5, False, id="unknown"),
        pytest.param(100, 8, True, id="longer-than-any"),
        pytest.param(100, 9, False, id="more-than-any"),
    ],
)
def test_known_to_be_free(iterations: int, overlap: int, free: bool) -> None:
    assert is_free(iterations, overlap, TABLE) == free


def test_dear_where_another_that_should_be_dearer_was_free() -> None:
    # Chance has the second seem free; the first says that it cannot be.
    assert not is_free(10, 1, {(10, 1): 1.0, (10, 2): 0.1})


@pytest.mark.parametrize(
    ("iterations", "step", "sync", "overlap"),
    [
        pytest.param(20, 1.0, 2.5, 3, id="hides-all"),
        pytest.param(20, 1.0, 2.0, 2, id="the-least-that-does"),
        pytest.param(20, 1.0, 9.0, 3, id="no-more-than-is-free"),
        pytest.param(10, 1.0, 9.0, 0, id="nothing-is-free"),
        pytest.param(50, 1.0, 0.9, 0, id="little-to-hide"),
        pytest.param(50, 1.0, 1.1, 2, id="enough-to-hide"),
        pytest.param(50, 1e-9, 1e9, 8, id="hardly-any-arithmetic"),
        pytest.param(50, 0.0, 1.0, 8, id="no-arithmetic"),
        pytest.param(50, 0.0, 0.0, 0, id="no-time-at-all"),
        pytest.param(1, 1.0, 9.0, 0, id="rounds-of-one-step"),
        pytest.param(3, 1.0, 9.0, 0, id="short-rounds"),
    ],
)
def test_choice(iterations: int, step: float, sync: float, overlap: int) -> None:
    choice = choose(iterations, step, sync, TABLE)
    assert choice.overlap == overlap < iterations
    assert f"T = {overlap} " in choice.sentence


def test_why_it_hides_no_more() -> None:
    assert "4 of 20 steps costs 0.31 points" in choose(20, 1.0, 9.0, TABLE).why
    assert "9 of 50 steps is not known to cost less than 0.3 points" in choose(50, 1.0, 30.0, TABLE).why
    assert "points" not in choose(20, 1.0, 2.5, TABLE).why


def test_the_table_is_of_rounds_that_there_can_be() -> None:
    assert all(0 < overlap < iterations for iterations, overlap in LOST)
    for iterations in range(1, 200):
        chosen = choose(iterations, 1.0, 1e6, LOST).overlap
        assert LOST.get((iterations, chosen), 0.0) <= DEAR


RECORD = RoundRecord(
    round=0,
    iterations=20,
    loss=1.0,
    lr=0.1,
    seconds_compute=1.0,
    seconds_data=0.0,
    seconds_sync=1.0,
    bytes_sent=0,
    bytes_trunk=0,
    bytes_blocks=0,
    partition=((0,), (1,)),
)


def record(*, trained: tuple[float, float], sync: tuple[float, float], iterations: int = 20) -> RoundRecord:
    """A round of two ranks."""
    nothing = (0.0, 0.0)
    ranks = RankSeconds(
        seconds_compute=trained, seconds_data=nothing, seconds_sync=sync, seconds_trunk=nothing, seconds_blocks=nothing
    )
    return replace(RECORD, iterations=iterations, ranks=ranks)


def test_the_rank_that_came_last_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resist_hvd.training.hiding.LOST", TABLE)
    chooser = Chooser(20)
    slow = record(trained=(20.0, 22.0), sync=(4.0, 2.0))  # rank 0 waited for rank 1, too
    connecting = record(trained=(20.0, 20.0), sync=(90.0, 90.0))
    assert [chooser.take(each) for each in (connecting,) * SKIPPED + (slow,) * (MEASURED - 1)] == [None] * MEASURED
    choice = chooser.take(record(trained=(10.0, 11.0), sync=(99.0, 99.0), iterations=10))
    assert choice is not None
    assert choice.overlap == 2
    assert "takes 2 s, and a step 1.1" in choice.why
