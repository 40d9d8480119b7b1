"""One watchdog, not two: Horovod's own limit for collectives that stand still follows --watchdog."""

import os

import pytest

from resist_hvd.comm.launch import prepare_horovod
from resist_hvd.guard.judging import LONG_LIMIT
from resist_hvd.guard.watchdog import leave_stalls_to_watchdog

CHECK, SHUTDOWN, DISABLE = (
    f"HOROVOD_STALL_{name}" for name in ("CHECK_TIME_SECONDS", "SHUTDOWN_TIME_SECONDS", "CHECK_DISABLE")
)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {name: v for name, v in os.environ.items() if not name.startswith("HOROVOD_")})


def seconds() -> tuple[float, float]:
    prepare_horovod(on_gpus=False)
    return float(os.environ[CHECK]), float(os.environ[SHUTDOWN])


@pytest.mark.parametrize("asked", [None, 5.0, 7200.0])
def test_horovod_never_ends_what_the_watchdog_would_leave(asked: float | None) -> None:
    leave_stalls_to_watchdog(asked)
    check, shutdown = seconds()
    assert min(check, shutdown) > 2 * max(asked or 0.0, LONG_LIMIT)
    assert DISABLE not in os.environ


def test_without_a_watchdog_horovod_has_no_limit_either() -> None:
    leave_stalls_to_watchdog(0)
    assert os.environ[DISABLE] == "1"


def test_what_the_user_has_set_stays() -> None:
    os.environ[SHUTDOWN] = "77"
    leave_stalls_to_watchdog(None)
    assert seconds()[1] == 77


def test_programs_that_no_watchdog_looks_at_have_horovod_s_limit() -> None:
    assert seconds() == (60.0, 600.0)
