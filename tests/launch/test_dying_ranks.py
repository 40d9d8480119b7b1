"""A rank that dies or raises, a job that is cancelled, a loss that is not finite: all ranks end, and one tells why."""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from . import runs

ENDLESS = ["--epochs=100000", "--evaluate_every=0", "--checkpoint_every=0"]
# Open MPI's launcher kills ranks a second after it has sent TERM. A longer odls_base_sigkill_timeout is no remedy here:
# meanwhile the launcher reads no output, and lines of rounds as short as these fill what lies between.


def going_on(folder: Path) -> str:
    """Return what is advised as long as the cut run's checkpoint is the last one."""
    return f"Go on from {folder}/checkpoints/round-000002 with --resume --output {folder}."


@pytest.fixture
def checkpoint(copy_of_cut: Path) -> Path:
    """The last good checkpoint of the run that goes wrong."""
    return copy_of_cut / "checkpoints/round-000002"


# Ended from outside


@pytest.mark.parametrize("rank", [0, 1])
def test_killed_rank_takes_the_others_with_it(rank: int, tiny: list[str], copy_of_cut: Path, checkpoint: Path) -> None:
    before = runs.contents(checkpoint)
    with runs.started(*tiny, *ENDLESS, "--resume", "--output", copy_of_cut) as running:
        running.wait_for(r"round +4/")
        time.sleep(1.5)  # what ranks say of themselves is up to a second old
        running.signalled()
        os.kill(running.rank(rank), signal.SIGKILL)
        ended = running.end()
    assert re.fullmatch(
        rf"Rank {rank} of 2 on {runs.HOST} has died \[round \d+, [^]]+\], says rank {1 - rank} of 2 on {runs.HOST}\. "
        + re.escape(going_on(copy_of_cut)),
        ended.mistake,
    ), ended
    assert f"process rank {rank}" in ended.stderr  # the launcher's word
    assert ended.seconds < runs.SOON
    assert runs.contents(checkpoint) == before


def test_killed_rank_without_a_watchdog(tiny: list[str], copy_of_cut: Path) -> None:
    with runs.started(*tiny, *ENDLESS, "--watchdog=0", "--resume", "--output", copy_of_cut) as running:
        running.wait_for(r"round +4/")
        running.signalled()
        os.kill(running.rank(1), signal.SIGKILL)
        ended = running.end()
    # The launcher sends TERM to those that are left, and kills them a second later: they wait in a collective.
    assert "Told to stop by TERM [round " in ended.stderr
    assert going_on(copy_of_cut) in ended.stderr
    assert ended.status != 0
    assert ended.seconds < runs.SOON


def test_cancelled_job_ends_on_all_ranks(tiny: list[str], copy_of_cut: Path) -> None:
    with runs.started(*tiny, *ENDLESS, "--resume", "--output", copy_of_cut) as running:
        running.wait_for(r"round +12/")
        running.signalled()
        running.process.send_signal(signal.SIGTERM)
        ended = running.end()
    assert re.fullmatch(
        r"Stopped by TERM after round \d+; checkpoint \S+; go on with --resume --output \S+", ended.mistake
    )
    assert ended.seconds < runs.SOON
    # It had time for lines enough to see that they are aligned, whatever their numbers.
    lines = [line for line in ended.stdout.splitlines() if line.startswith("round ")]
    assert [int(line.split()[1].partition("/")[0]) for line in lines] == list(range(3, 3 + len(lines)))
    for word in ("loss", "lr", "compute", "data", "sync", "sent", "MB"):
        assert len({line.index(word) for line in lines}) == 1


def test_interrupt_from_a_terminal_ends_horovodrun_and_all_ranks(tiny: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with runs.started(*tiny, *ENDLESS, "--output", folder, launcher="horovodrun") as running:
        running.wait_for(r"round +2/")
        running.signalled()
        os.killpg(running.process.pid, signal.SIGINT)  # a terminal's Ctrl-C reaches the whole group
        ended = running.end()
    assert re.fullmatch(r"Stopped by (TERM|INT) after round \d+; checkpoint \S+; go on with .*", ended.mistake), ended
    assert ended.seconds < runs.SOON


def test_interrupt_of_one_worker_without_a_launcher(tiny: list[str], copy_of_cut: Path) -> None:
    with runs.started(*tiny, *ENDLESS, "--resume", "--output", copy_of_cut, launcher="none") as running:
        running.wait_for(r"round +3/")
        running.process.send_signal(signal.SIGINT)
        ended = running.end()
    assert ended.mistake.startswith("Stopped by INT after round ")
    assert ended.status == 75


# Errors on some ranks


FAILS_IN_A_STEP = """
from resist_hvd.training import loop

sound = loop.LocalTraining.step


def step(self):
    if self.run.world.rank in {ranks}:
        raise {error}
    return sound(self)


loop.LocalTraining.step = step
"""

FAILS_TO_LOAD = """
from resist_hvd import data
from resist_hvd.errors import UserError

sound = data.load


def load(settings, *, shard, **others):
    if shard.rank == 1:  # while the others wait for it: files are listed once a host
        raise UserError("The disk is not there", where="/scratch", mend="Mount it.")
    return sound(settings, shard=shard, **others)


data.load = load
"""


def test_rank_that_raises_takes_down_those_that_wait_for_it(
    tiny: list[str], copy_of_cut: Path, checkpoint: Path, program: Callable[[str], list[str]]
) -> None:
    before = runs.contents(checkpoint)
    broken = program(FAILS_IN_A_STEP.format(ranks="[1]", error="RuntimeError('out of order')"))
    ended = runs.run(*tiny, "--resume", "--output", copy_of_cut, program=broken)
    assert ended.message == (
        f"RuntimeError: out of order [rank 1 of 2 on {runs.HOST}, round 3, local training]. {going_on(copy_of_cut)}"
    )
    assert ended.status == 70
    assert ended.stderr.count("Traceback (most recent call last)") == 1
    assert runs.contents(checkpoint) == before


def test_what_all_ranks_raise_is_told_by_one(
    tiny: list[str], copy_of_cut: Path, checkpoint: Path, program: Callable[[str], list[str]]
) -> None:
    before = runs.contents(checkpoint)
    broken = program(FAILS_IN_A_STEP.format(ranks="[0, 1]", error="RuntimeError('out of order')"))
    ended = runs.run(*tiny, "--resume", "--output", copy_of_cut, program=broken)
    assert ended.message.startswith(f"RuntimeError: out of order [rank 0 of 2 on {runs.HOST}, round 3, local training]")
    assert ended.stderr.count("Traceback (most recent call last)") == 1
    assert runs.contents(checkpoint) == before


def test_rank_that_meets_a_user_s_mistake_alone_names_itself(
    tiny: list[str], copy_of_cut: Path, program: Callable[[str], list[str]]
) -> None:
    error = "UserError('The scratch disk is full', where='/scratch', mend='Free space there.')"
    broken = program(
        "from resist_hvd.errors import UserError\n" + FAILS_IN_A_STEP.format(ranks="[1]", error=error)
    )  # fmt: skip
    ended = runs.run(*tiny, "--resume", "--output", copy_of_cut, program=broken)
    assert ended.mistake == (
        f"The scratch disk is full [/scratch, rank 1 of 2 on {runs.HOST}, round 3, local training]. Free space there."
    )
    assert ended.status == 2


def test_step_that_fails_on_one_rank_fails_on_all_where_they_agree(
    tiny: list[str], copy_of_cut: Path, program: Callable[[str], list[str]]
) -> None:
    before = runs.contents(copy_of_cut)
    ended = runs.run(*tiny, "--resume", "--output", copy_of_cut, program=program(FAILS_TO_LOAD))
    assert ended.mistake == (
        f"The disk is not there [/scratch, rank 1 of 2 on {runs.HOST}, loading the data]. Mount it."
    )
    assert ended.status == 2
    assert runs.contents(copy_of_cut) == before


BEGINS_WITH_A_WRONG_FLAG = """
import os, sys
from resist_hvd.guard import failure

failure.PATIENCE = 1.0  # for which it leaves the word to rank 0
if os.environ["OMPI_COMM_WORLD_RANK"] == "1":
    sys.argv.append("--frobnicate=3")
"""


def test_rank_that_finds_fault_alone_before_there_is_a_world_names_itself(
    tiny: list[str], tmp_path: Path, program: Callable[[str], list[str]]
) -> None:
    ended = runs.run(*tiny, "--output", tmp_path / "run", program=program(BEGINS_WITH_A_WRONG_FLAG))
    assert ended.mistake == (
        f"There is no flag --frobnicate [rank 1 on {runs.HOST}, starting]. See --help for every setting."
    )
    assert ended.status == 2


# Numbers that are not finite


HOT = ["--optim.schedule=constant", "--optim.lr=1e30", "--checkpoint_every=1"]


def test_loss_that_is_not_finite_ends_all_ranks(tiny: list[str], copy_of_cut: Path, checkpoint: Path) -> None:
    before = runs.contents(checkpoint)
    ended = runs.run(*tiny, *HOT, "--resume", "--output", copy_of_cut)
    place = f"[rank 0 of 2 on {runs.HOST}, round 3, local iteration 2]"
    for fact in ("loss", place, "--optim.lr", "--optim.warmup", "--optim.clip_norm", going_on(copy_of_cut)):
        assert fact in ended.mistake
    assert ended.status == 2
    assert runs.contents(checkpoint) == before
