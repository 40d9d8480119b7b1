"""Which rank is blamed when a world stands still: never one that only waits for others, or that gets on slowly."""

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resist_hvd.guard.judging import ENDING, LONG_LIMIT, ROUNDS, SHORTEST, RankState, limit_of, time_of, verdict

LIMIT = 60.0
NOW = 1_700_000_000.0


def state(rank: int, *, idle: float = 0.5, silent: float = 0.5, waiting: bool = False, **others: object) -> RankState:
    base = RankState(
        rank=rank,
        host=f"n{rank // 2}",
        words="round 7, local training",
        idle=idle,
        still=idle,
        silent=silent,
        waiting=waiting,
        long_limit=False,
    )
    return replace(base, **others)  # type: ignore[arg-type]


def all_wait(*, ranks: int = 3, idle: float = LIMIT + 1, **others: object) -> list[RankState]:
    return [state(rank, idle=idle, waiting=True, **others) for rank in range(ranks)]


def judged(*states: RankState, limit: float = LIMIT) -> str:
    return verdict(states, limit, size=len(states), now=NOW)


def test_a_limit_that_was_asked_for_holds() -> None:
    assert limit_of(5.0, [100.0] * 9) == 5.0


def test_the_default_limit_fits_the_rounds() -> None:
    assert limit_of(None, []) == SHORTEST
    assert limit_of(None, [0.1, 0.2, 0.3]) == SHORTEST
    assert limit_of(None, [20.0, 30.0, 4000.0]) == ROUNDS * 30.0


def test_a_rank_that_does_not_get_on_is_named_and_those_that_wait_for_it_are_not() -> None:
    words = "round 7, local training, waiting for a batch"
    said = judged(state(0, idle=70, waiting=True), state(1, idle=75, words=words), state(2, idle=74, waiting=True))
    since = time_of(NOW - 75)
    assert said == f"Rank 1 of 3 on n0 has made no progress for 75 s, since {since} [{words}]"
    assert since == time.strftime("%H:%M:%S", time.localtime(NOW - 75))


def test_a_rank_that_is_not_heard_of_is_named_even_where_it_waited_for_others() -> None:
    said = judged(state(0, idle=61, waiting=True), state(1, idle=64, silent=62, waiting=True))
    assert said == (
        f"Rank 1 of 2 on n0 has not been heard of for 62 s, since {time_of(NOW - 62)} [round 7, local training]: "
        "paused, or its host is down or cut off"
    )


def test_a_rank_that_was_not_heard_of_for_most_of_its_time_is_told_as_paused() -> None:
    said = judged(state(0, waiting=True), state(1, idle=61, silent=58))
    assert said.startswith("Rank 1 of 2 on n0 has not been heard of for 58 s, since ")
    assert "has made no progress" in judged(state(0, waiting=True), state(1, idle=61, silent=3))


def test_the_ranks_of_a_host_are_named_together() -> None:
    said = judged(*(state(rank, idle=70, silent=66 if rank > 1 else 0.2, waiting=True) for rank in range(4)))
    assert said.startswith("Ranks 2, 3 of 4 on n1 have not been heard of for 66 s, since ")


def test_nobody_is_blamed_while_a_rank_works() -> None:
    assert judged(state(0, idle=500, waiting=True), state(1, idle=20)) == ""


def test_loading_and_compiling_may_take_half_an_hour() -> None:
    compiling = state(1, idle=LONG_LIMIT - 1, long_limit=True)
    too_long = replace(compiling, idle=LONG_LIMIT + 1, still=LONG_LIMIT + 1)
    assert judged(state(0, idle=1700, waiting=True), compiling) == ""
    assert "Rank 1 of 2" in judged(state(0, idle=1700, waiting=True), too_long)
    assert "Rank 1 of 2" in judged(state(0, waiting=True), replace(compiling, silent=61))
    # Who asks for more than that gets it.
    assert judged(state(0, waiting=True), too_long, limit=7200) == ""


def test_all_that_wait_for_one_another_are_named() -> None:
    said = judged(*(state(rank, idle=61 + rank, waiting=True, words=f"step {rank}") for rank in range(6)))
    assert said.startswith("All 6 ranks wait for one another: rank 0 on n0 since ")
    assert "[step 3]; and 2 more. " in said
    assert judged(*(state(rank, idle=61 if rank else 59, waiting=True) for rank in range(6))) == ""


@pytest.mark.parametrize(
    ("states", "ended"),
    [
        pytest.param(all_wait(), True, id="nothing moves"),
        pytest.param(all_wait(idle=LIMIT - 1), False, id="within the limit"),
        pytest.param(all_wait(long_limit=True, idle=LONG_LIMIT - 1), False, id="before the first round"),
        pytest.param(all_wait(long_limit=True, idle=LONG_LIMIT + 1), True, id="half an hour before the first round"),
        pytest.param(all_wait(idle=900, still=0.5), False, id="bytes move, or all are starved"),
        pytest.param(
            all_wait(idle=LONG_LIMIT + 1, still=0.5), True, id="bytes move for half an hour, and no piece ends"
        ),
        pytest.param([*all_wait(), state(3, idle=900, still=5, waiting=True)], False, id="bytes move for one rank"),
        pytest.param([*all_wait(), state(3, idle=900, waiting=True, long_limit=True)], False, id="one has time"),
        pytest.param([*all_wait(), state(3, idle=30)], False, id="one works"),
    ],
)
def test_a_world_in_which_all_wait_is_ended_only_if_nothing_moves(states: list[RankState], ended: bool) -> None:
    assert bool(judged(*states)) == ended


def test_a_limit_that_was_asked_for_bounds_what_moves_without_end_ten_times_as_late() -> None:
    assert judged(*all_wait(idle=9 * 600, still=0.5), limit=600) == ""
    assert judged(*all_wait(idle=11 * 600, still=0.5), limit=600)


def test_a_rank_without_a_processor_is_not_stuck() -> None:
    assert judged(state(0, waiting=True), state(1, idle=600, still=20, starved=580)) == ""
    assert "Rank 1 of 2" in judged(state(0, waiting=True), state(1, idle=600, still=LIMIT + 1, starved=530))


@pytest.mark.parametrize(
    ("differ", "words"),
    [
        ({"wait": 17, "processors": 1.9}, ["wait 17", "1.9 processors", "lost"]),
        ({"wait": 17, "processors": 0.01}, ["wait 17", "0.01 processors", "sleep", "network"]),
        ({"wait": 17, "processors": 0.2, "starved": 50.0}, ["wait 17", "had none for 50 s", "lost"]),
        (
            {"wait": 17, "processors": 0.1, "starved": 2000.0, "idle": 2001.0, "still": 1},
            ["2000 s", "too many processes"],
        ),
        ({"wait": 17, "processors": 1.9, "idle": 2001.0, "still": 1}, ["bytes move"]),
    ],
)
def test_the_verdict_tells_what_it_looks_like(differ: dict[str, object], words: list[str]) -> None:
    said = judged(*all_wait(**differ))
    assert all(word in said for word in words), said


def test_the_verdict_tells_calls_that_came_out_of_order() -> None:
    said = judged(*all_wait(wait=17, processors=1.9), state(3, idle=LIMIT + 1, waiting=True, wait=18, processors=1.9))
    assert "rank 0 in its wait 17 and rank 3 in its wait 18" in said
    assert "lost" not in said


def test_one_rank_alone_waits_for_nobody() -> None:
    assert judged(state(0, idle=61, waiting=True)) == ""
    assert judged(state(0, idle=61)).startswith("Rank 0 of 1 on n0 has made no progress")


def test_many_that_are_lost_are_counted() -> None:
    said = judged(state(0), *(state(rank, silent=70, host=f"host{rank}") for rank in range(1, 8)))
    assert said.count("not been heard of") == 4
    assert said.endswith(". So have 3 more")


seconds = st.floats(0, 1e5)
any_sight = st.builds(
    state, st.integers(0, 63), idle=seconds, silent=seconds, waiting=st.booleans(), long_limit=st.booleans()
)


@given(st.lists(any_sight, min_size=1, max_size=6), st.floats(1, 1e4))
def test_nobody_is_blamed_within_the_limit(states: list[RankState], limit: float) -> None:
    within = [
        replace(each, idle=min(each.idle, limit), still=min(each.still, limit), silent=min(each.silent, limit))
        for each in states
    ]
    assert judged(*within, limit=limit) == ""


@given(st.lists(any_sight, min_size=1, max_size=6), any_sight)
def test_a_rank_that_is_silent_for_too_long_never_goes_unnoticed(states: list[RankState], lost: RankState) -> None:
    lost = replace(lost, silent=LIMIT + 1, host="lost")
    assert "on lost " in judged(lost, *states)


@pytest.mark.parametrize("waiting", [True, False])
def test_unheard_ranks_that_have_left_are_not_judged(waiting: bool) -> None:
    # Of 4 ranks, 2 have said goodbye: the others are no world that stands still.
    assert verdict([state(0, idle=61, waiting=True), state(1, idle=61, waiting=True)], LIMIT, size=4) == ""
    assert (verdict([state(0, idle=61, waiting=waiting)], LIMIT, size=4) == "") == waiting


def test_a_rank_whose_script_is_over_leaves_none_waiting() -> None:
    """Bytes of Horovod's own move all the time: they excuse nobody whose partner is gone."""
    gone = RankState(rank=1, host="b", words=ENDING, idle=90.0, still=0.0, waiting=True, wait=7)
    alone = RankState(rank=0, host="a", words="round 2", idle=80.0, still=0.0, waiting=True, wait=7)
    said = verdict([alone, gone], 60.0, size=2)
    assert "Rank 1 of 2 on b" in said
    assert "rank 0 waits" in said
    assert "round 2" in said
    for states in (
        [replace(alone, wait=6), gone],  # it may wait for somebody else
        [replace(alone, waiting=False), gone],
        [replace(alone, idle=50.0), gone],
        [replace(alone, words=ENDING), gone],
    ):
        assert not verdict(states, 60.0, size=2)
