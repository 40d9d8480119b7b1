"""Which rank speaks of a mistake that all make, and which waits for it."""

from collections.abc import Callable

import pytest

from resist_hvd.errors import UserError
from resist_hvd.guard import failure

MISTAKE = UserError("The launch is unsound", mend="Launch otherwise.", everywhere=True)


@pytest.fixture
def end_as(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, bool], list[str]]:
    """End as the rank of a number, with MPI started or not; returns what it did, in order."""

    def end(rank: int, started: bool) -> list[str]:
        acts: list[str] = []

        def leave(message: str, status: int) -> None:
            acts.append(f"left with {status} and {'a message' if message else 'none'}")
            raise SystemExit

        monkeypatch.setattr(failure, "launched_rank", lambda: rank)
        monkeypatch.setattr(failure, "_started_mpi", lambda: object() if started else None)
        monkeypatch.setattr(failure.time, "sleep", lambda seconds: acts.append(f"waited {seconds:g} s"))
        monkeypatch.setattr(failure, "leave", leave)
        with pytest.raises(SystemExit):
            failure.end_by(MISTAKE)
        return acts

    return end


def test_before_mpi_has_started_other_ranks_leave_it_to_rank_0(end_as: Callable[[int, bool], list[str]]) -> None:
    assert end_as(0, False) == ["left with 2 and a message"]
    assert end_as(3, False) == ["waited 30 s", "left with 2 and none"]


def test_ranks_that_have_agreed_end_at_once(end_as: Callable[[int, bool], list[str]]) -> None:
    assert end_as(0, True) == ["left with 2 and a message"]
    assert end_as(3, True) == ["left with 2 and none"]
