"""The limit on how long MPI may take to come up: it holds where no thread of Python can run, and only until then."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from resist_hvd.guard import reaper, start_limit, starting
from resist_hvd.guard.judging import LONG_LIMIT, SHORTEST

LIBRARY_CALL = "ctypes.PyDLL(None).sleep({seconds})"
"""Holds Python's lock, as MPI's start does."""


def rank_program(
    *lines: str, before: str = "", rank: int = 0, limit: float = 1.0, **variables: str
) -> subprocess.Popen[str]:
    """Start a process that takes itself for a rank, and has a limit of its own."""
    program = "\n".join(
        [
            "import ctypes, sys, time",
            "from resist_hvd.guard import starting",
            f"starting.limit_of = lambda _: {limit}",
            before,
            "with starting.limited():",
            *(f"    {line}" for line in lines[:1]),
            *lines[1:],
        ]
    )
    environment = os.environ | {"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_SIZE": "2"} | variables
    return subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, said = process.communicate(timeout=300)
    return process.returncode, said


def test_the_limit_is_what_was_asked_for_but_never_less_than_a_minute() -> None:
    assert starting.limit_of(None) == LONG_LIMIT
    assert starting.limit_of(0) == 0
    assert starting.limit_of(5) == SHORTEST
    assert starting.limit_of(7200) == 7200


def test_a_library_call_that_holds_python_s_lock_is_ended_and_told(tmp_path: Path) -> None:
    record = tmp_path / "outcome"
    record.write_text("started\n")
    status, said = ended(rank_program(LIBRARY_CALL.format(seconds=50), RESIST_HVD_OUTCOME=str(record)))
    assert status == 69
    assert "MPI did not come up on all ranks within 1 s [rank 0 on " in said
    assert said.count("\n") == 1
    assert record.read_text().startswith("started\n69 rank 0 on ")


def test_then_the_launcher_is_ended_too(tmp_path: Path) -> None:
    program, done = tmp_path / "end_launcher.py", tmp_path / "done"
    program.write_text("import pathlib, sys\npathlib.Path(sys.argv[1]).touch()\n")
    then = [str(program), str(done)]
    call = LIBRARY_CALL.format(seconds=50)
    status, _ = ended(rank_program(call, before=f"starting.reaper.arguments = lambda: {then}"))
    assert status == 69
    assert done.exists()


def test_what_comes_up_in_time_is_left_alone() -> None:
    status, said = ended(rank_program("pass", "time.sleep(4)", "sys.exit(5)", limit=3.0))
    assert (status, said) == (5, "")


def test_a_rank_that_ends_by_itself_takes_its_helper_along() -> None:
    process = rank_program("sys.exit(3)", limit=1000.0)
    # The helper has the same standard error: `communicate` returns once both have closed it.
    assert ended(process) == (3, "")


def test_a_rank_that_is_killed_takes_its_helper_along() -> None:
    process = rank_program("print('!', file=sys.stderr, flush=True); time.sleep(50)", limit=1000.0)
    assert process.stderr is not None
    process.stderr.read(1)
    process.kill()
    assert process.communicate(timeout=300)[1].strip() == ""


def test_without_a_launcher_there_is_nobody_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("OMPI_", "PMIX_", "PMI_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(starting, "ExitTimer", None)
    with starting.limited():
        pass


def test_0_is_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    monkeypatch.setattr(starting, "ExitTimer", None)
    with starting.limited(0):
        pass


@pytest.mark.parametrize(
    ("rank", "number", "speaks"),
    [(0, signal.SIGTERM, True), (1, signal.SIGTERM, False), (1, signal.SIGINT, True), (1, signal.SIGUSR2, True)],
    ids=str,
)
def test_a_rank_that_its_launcher_ends_while_it_starts_says_nothing_beside_the_one_that_failed(
    rank: int, number: signal.Signals, speaks: bool
) -> None:
    program = (
        "import time\nfrom resist_hvd.guard import starting\nstarting.TURN = 0.0\nstarting.begin()\n"
        "print(flush=True)\ntime.sleep(50)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env=os.environ | {"OMPI_COMM_WORLD_RANK": str(rank)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(number)
    _, said = process.communicate(timeout=300)
    assert process.returncode == (75 if number == signal.SIGUSR2 else 128 + number)
    assert (number.name.removeprefix("SIG") in said) == speaks


def test_libraries_are_imported_without_a_search_for_garbage_which_goes_on_afterwards() -> None:
    try:
        with starting.importing():
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_ranks_that_are_late_are_named_by_what_keeps_them() -> None:
    command = [sys.executable, "-c", "import time; print(flush=True); time.sleep(100)"]
    ranks = [
        subprocess.Popen(command, env=os.environ | {"OMPI_COMM_WORLD_RANK": str(rank)}, stdout=subprocess.PIPE)
        for rank in (3, 1)
    ]
    try:
        for process in ranks:
            assert process.stdout is not None
            process.stdout.readline()
        os.kill(ranks[0].pid, signal.SIGSTOP)
        end = time.monotonic() + 60
        while not (said := start_limit.late(os.getpid())) or "is stopped by a signal" not in said[-1]:
            assert time.monotonic() < end
            time.sleep(0.01)
        first, second = (ranks[1].pid, ranks[0].pid)
        assert said == [
            f"rank 1 (process {first}) has not loaded MPI yet",
            f"rank 3 (process {second}) is stopped by a signal",
        ]
        assert start_limit.seen_on("n1", os.getpid()).startswith("On n1 rank 1 (process ")
    finally:
        for process in ranks:
            process.kill()
            process.communicate()
    assert "other hosts" in start_limit.seen_on("n1", os.getpid())


def test_only_a_launcher_of_open_mpi_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reaper.arguments() == []
    monkeypatch.setattr(reaper, "name_and_start", lambda _: ("mpirun", "1"))
    monkeypatch.setenv(reaper.KILL_TIMEOUT, "5")
    assert reaper.arguments() == [reaper.__file__, str(os.getppid()), str(reaper.GRACE + 10)]


def test_ctrl_c_ends_a_program_that_is_one_process_without_a_traceback() -> None:
    program = (
        "import time\nfrom resist_hvd.errors import run_alone\nrun_alone(lambda: print(flush=True) or time.sleep(50))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert (process.returncode, said) == (128 + signal.SIGINT, "")


def test_time_in_which_a_job_is_suspended_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now, slices = 0.0, 0

    def select(_: list[int], __: list[int], ___: list[int], seconds: float) -> tuple[list[int], list[int], list[int]]:
        nonlocal now, slices
        slices += 1
        now += 5 * 3600 if slices == 4 else seconds
        return [], [], []

    monkeypatch.setattr(start_limit.select, "select", select)
    monkeypatch.setattr(start_limit.time, "monotonic", lambda: now)
    assert not start_limit.over(60)
    assert now > 5 * 3600 + 60 - 3 * start_limit.SLICE
    assert slices >= 60 / start_limit.SLICE - 2


def test_a_word_ends_a_process_whose_python_cannot_run_and_none_once_it_is_cancelled() -> None:
    program = """
import ctypes, os, sys, threading, time
from resist_hvd.guard.starting import ExitOnWord
if sys.argv[1] == "cancelled":
    word = ExitOnWord(69)
    word.cancel()
    os.write(word.pipe, b"!")
    time.sleep(0.5)
    sys.exit(5)
word = ExitOnWord(69)
if os.fork() == 0:
    time.sleep(0.2)
    os.write(word.pipe, b"!")
    os._exit(0)
ctypes.PyDLL(None).sleep(50)
"""
    for how, status in (("given", 69), ("cancelled", 5)):
        # Python warns of forks beside threads since 3.12.
        command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program, how]
        done = subprocess.run(command, timeout=300, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (status, "")
