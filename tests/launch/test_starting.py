"""Programs that are told to stop or stand still before there is a world, or at their end: a sentence, and no hang."""

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from . import runs

LOST, STOPPED = 69, 75

STOPS_ITSELF = """
import os, signal
from resist_hvd.guard import starting

starting.SHORTEST = 2.0
starting.NOTE = 1.0
if os.environ["OMPI_COMM_WORLD_RANK"] == "{rank}":
    os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_stopped_before_mpi_is_up_is_named(
    rank: int, tiny: list[str], tmp_path: Path, program: Callable[[str], list[str]]
) -> None:
    record = tmp_path / "outcome"
    record.touch()
    flags = [*tiny, "--watchdog=2", "--output", tmp_path / "run"]
    stops = program(STOPS_ITSELF.format(rank=rank))
    ended = runs.run(*flags, program=stops, RESIST_HVD_OUTCOME=str(record))
    assert ended.status == LOST, ended
    assert "Traceback" not in ended.stderr
    assert re.fullmatch(
        rf"MPI did not come up on all ranks within 2 s \[rank {1 - rank} on {runs.HOST}, starting MPI\]\. "
        rf"On {runs.HOST} rank {rank} \(process \d+\) is stopped by a signal\. Start again .*",
        ended.messages[-1],
    ), ended
    if rank == 1:  # rank 0 has told before whom it waits for
        assert ended.messages[0].startswith("Not all ranks have started MPI after 1 s. On ")
    assert f"{LOST} rank {1 - rank} on " in record.read_text()


IS_TOLD_WHILE_OTHERS_WAIT = """
import os, signal
from resist_hvd.comm.world import World

sound = World.join


def join(device):
    world = sound(device)
    if world.rank == {rank}:
        os.kill(os.getpid(), signal.{name})
    return world


World.join = join
"""


@pytest.mark.parametrize(("rank", "name", "status"), [(0, "SIGUSR2", STOPPED), (1, "SIGINT", 130)])
def test_a_rank_that_is_told_alone_while_the_others_wait_for_it_ends_all(
    rank: int, name: str, status: int, tiny: list[str], tmp_path: Path, program: Callable[[str], list[str]]
) -> None:
    told = program(IS_TOLD_WHILE_OTHERS_WAIT.format(rank=rank, name=name))
    ended = runs.run(*tiny, "--output", tmp_path / "run", program=told)
    assert ended.status == status, ended
    assert ended.mistake.startswith(f"Stopped by {name.removeprefix('SIG')} before anything was begun")


STOPS_AT_THE_END = """
import os, signal
from resist_hvd.guard import starting

starting.ENDING = 4.0
sound = starting.limit_end


def stop(status):
    if os.environ["OMPI_COMM_WORLD_RANK"] == "{rank}":
        os.kill(os.getpid(), signal.SIGSTOP)
    sound(status)


starting.limit_end = stop
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_stopped_once_all_is_done_does_not_keep_the_others(
    rank: int, tiny: list[str], tmp_path: Path, program: Callable[[str], list[str]]
) -> None:
    folder = tmp_path / "run"
    ended = runs.run(*tiny, "--output", folder, program=program(STOPS_AT_THE_END.format(rank=rank)))
    assert ended.status == LOST, ended
    assert "Traceback" not in ended.stderr
    assert re.fullmatch(
        rf"MPI did not end on all ranks within 4 s \[rank {1 - rank} on {runs.HOST}, ending\]\. "
        rf"On {runs.HOST} rank {rank} \(process \d+\) is stopped by a signal\. All that was to be written is written\.",
        ended.messages[0],  # the other goes on to be ended by the launcher, and says so
    ), ended
    assert (folder / "model.safetensors").exists()
    assert (folder / "summary.json").exists()
    assert not list(folder.glob("claim*"))


IMPORTS_FOR_LONG = """
import os, runpy, sys, types

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("importing", flush=True)
            import time
            time.sleep(100)

sys.meta_path.insert(0, Slow())
sys.argv[0] = "train"
runpy.run_module("resist_hvd.train", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR2, STOPPED)], ids=str
)
def test_told_while_modules_are_imported_it_ends_with_a_sentence(
    number: signal.Signals, status: int, tiny: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "program.py"
    path.write_text(IMPORTS_FOR_LONG)
    with runs.started(*tiny, launcher="none", program=[runs.PYTHON, path]) as running:
        running.wait_for("importing")
        running.process.send_signal(number)
        ended = running.end()
    assert ended.status == status, ended
    assert f"Stopped by {number.name.removeprefix('SIG')} before anything was begun" in ended.mistake


def test_a_terminal_that_is_closed_does_not_end_a_run(tiny: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with runs.started(*tiny, "--epochs=40", "--output", folder, launcher="none") as running:
        running.wait_for(r"round +2/")
        for _ in range(3):
            running.process.send_signal(signal.SIGHUP)
            time.sleep(0.1)
        ended = running.end()
    assert ended.status == 0, ended
    assert ended.stderr == ""
    assert (folder / "model.safetensors").exists()
