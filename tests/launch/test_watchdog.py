"""A rank that is paused or hangs: the others name it and end; ranks that are only slow are left alone."""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from . import runs

LOST = 69
STOPPED = 75
ENDLESS = ["--epochs=100000", "--evaluate_every=0", "--checkpoint_every=0"]

HANGS = """
import time
from resist_hvd.data.memory.resident import ResidentSource

sound = ResidentSource._augmented


def hang(self, first):
    if first >= 100 and self._shard.rank == {rank}:
        time.sleep(1000)
    return sound(self, first)


ResidentSource._augmented = hang
"""

LOSES = """
from resist_hvd.training import loop

sound = loop.LocalTraining.step


def waits_for_nothing(self):
    world = self.run.world
    if self.run.progress.round == 2:
        with world.activity.waiting():
            world.comm.recv(source=1 - world.rank, tag=12345)
    return sound(self)


loop.LocalTraining.step = waits_for_nothing
"""

SLOW = """
import time
from resist_hvd.training import evaluate, loop

step, input_moments = loop.LocalTraining.step, evaluate.input_moments
steps = 0


def slow_step(self):
    global steps
    steps += 1
    # A first step longer than the limit, as of a network that is compiled; then, on one rank, rounds longer than it.
    time.sleep(4 if steps == 1 else 1.6 * self.run.world.rank)
    return step(self)


def slow_moments(*arguments):
    time.sleep(0.25)
    return input_moments(*arguments)


loop.LocalTraining.step, evaluate.input_moments = slow_step, slow_moments
"""


@pytest.mark.parametrize(("rank", "ranks"), [(0, 3), (1, 2)])
def test_paused_rank_is_named(rank: int, ranks: int, tiny: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with runs.started(*tiny, *ENDLESS, "--watchdog=4", "--output", folder, ranks=ranks) as running:
        running.wait_for(r"round +4/")
        time.sleep(1.5)  # what ranks say of themselves is up to a second old
        running.signalled()
        os.kill(running.rank(rank), signal.SIGSTOP)
        ended = running.end()
    assert ended.status == LOST
    judges = "0" if rank else "12"  # rank 0 judges all, and all judge rank 0
    assert re.fullmatch(
        rf"Rank {rank} of {ranks} on {runs.HOST} has not been heard of for \d+ s, since \d\d:\d\d:\d\d "
        rf"\[round \d+, [^]]+\]: paused, or its host is down or cut off, "
        rf"says rank [{judges}] of {ranks} on {runs.HOST}\. Stacks: {folder}/stalled-rank\*\.txt\. "
        rf"Nothing was saved yet in {folder}: begin again, with --resume or another --output\.",
        ended.mistake,
    ), ended
    assert ended.seconds < runs.SOON
    written = {path.name for path in folder.glob("stalled-*")}
    # The launcher may wake the paused rank before it ends it.
    assert written >= {f"stalled-rank{other:04d}.txt" for other in range(ranks) if other != rank}
    assert "training/loop.py" in (folder / f"stalled-rank{judges[0]:0>4}.txt").read_text()


def test_told_to_stop_while_a_rank_is_silent_it_names_that_rank_and_stops_once_it_is_back(
    tiny: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with runs.started(*tiny, *ENDLESS, "--watchdog=100", "--output", folder, ranks=3) as running:
        running.wait_for(r"round +4/")
        time.sleep(1.5)
        os.kill(running.rank(1), signal.SIGSTOP)
        time.sleep(5)
        os.kill(running.rank(0), signal.SIGTERM)  # as Open MPI's launcher does once it has lost a host
        running.wait_for("has not been heard of", running.err)
        os.kill(running.rank(1), signal.SIGCONT)
        ended = running.end()
    assert ended.status == STOPPED, ended
    named, stopped = ended.messages
    assert re.fullmatch(
        r"Told to stop by TERM \[round \d+, [^]]+\], and the round cannot be ended without all ranks\. "
        rf"Rank 1 of 3 on {runs.HOST} has not been heard of for \d+ s, since \d\d:\d\d:\d\d "
        r"\[round \d+, [^]]+\]: paused, or its host is down or cut off\. "
        rf"Nothing was saved yet in {folder}: begin again, with --resume or another --output\.",
        named,
    ), ended
    assert stopped.startswith("Stopped by TERM after round ")


def test_rank_whose_data_do_not_come_is_named(
    tiny: list[str], tmp_path: Path, program: Callable[[str], list[str]]
) -> None:
    folder = tmp_path / "run"
    flags = [*tiny, *ENDLESS, "--watchdog=3", "--output", folder]
    ended = runs.run(*flags, ranks=2, program=program(HANGS.format(rank=1)))
    assert ended.status == LOST
    assert re.fullmatch(
        rf"Rank 1 of 2 on {runs.HOST} has made no progress for \d+ s, since \d\d:\d\d:\d\d "
        rf"\[round 4, local training, waiting for a batch\], says rank 0 of 2 on {runs.HOST}\. "
        rf"Stacks: {folder}/stalled-rank\*\.txt\. "
        rf"Nothing was saved yet in {folder}: begin again, with --resume or another --output\.",
        ended.mistake,
    ), ended
    assert " in hang" in (folder / "stalled-rank0001.txt").read_text()


def test_ranks_that_wait_for_a_message_that_never_comes_end_and_tell_where(
    tiny: list[str], tmp_path: Path, program: Callable[[str], list[str]]
) -> None:
    folder = tmp_path / "run"
    ended = runs.run(*tiny, *ENDLESS, "--watchdog=3", "--output", folder, program=program(LOSES))
    assert ended.status == LOST
    found = re.search(
        r"All 2 ranks wait for one another: .*\[round 3, local training\]\. All are in wait (\d+) ", ended.mistake
    )
    assert found, ended
    for rank in range(2):
        text = (folder / f"stalled-rank{rank:04d}.txt").read_text()
        assert f"wait {found[1]}" in text
        assert " in waits_for_nothing" in text


def test_one_worker_that_hangs_ends_itself(
    tiny: list[str], tmp_path: Path, program: Callable[[str], list[str]]
) -> None:
    flags = [*tiny, *ENDLESS, "--watchdog=3", "--output", tmp_path / "run"]
    ended = runs.run(*flags, launcher="none", program=program(HANGS.format(rank=0)))
    assert ended.status == LOST
    assert ended.mistake.startswith(f"Rank 0 of 1 on {runs.HOST} has made no progress for ")


def test_slow_is_not_lost(tiny: list[str], tmp_path: Path, program: Callable[[str], list[str]]) -> None:
    flags = [*tiny, "--max_rounds=2", "--watchdog=3", "--output", tmp_path / "run"]
    ended = runs.run(*flags, program=program(SLOW))
    assert ended.status == 0, ended
    assert ended.stderr == ""


def test_launcher_that_cannot_end_is_ended(tiny: list[str], tmp_path: Path) -> None:
    flags = [*tiny, *ENDLESS, "--watchdog=4", "--output", tmp_path / "run"]
    with runs.started(*flags) as running:
        running.wait_for(r"round +4/")
        running.signalled()
        # As if other hosts, which do not answer, had both the rank and the launcher wait.
        running.process.send_signal(signal.SIGSTOP)
        os.kill(running.rank(1), signal.SIGSTOP)
        ended = running.end()
    assert ended.status == -signal.SIGKILL
    assert ended.seconds < 2 * runs.SOON
