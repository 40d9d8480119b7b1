"""A rank is lost, fails or stops the run while a synchronisation is under way beside steps: as in any round."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from . import runs

OVERLAP = ["--local_iterations=6", "--overlap=5", "--epochs=4", "--evaluate_every=0", "--checkpoint_every=0"]

# In the second round rank 1 sends nothing of what has departed, so that rank 0's average stays under way; then, while
# rank 0 is in its steps, something befalls it.
IN_MID_FLIGHT = """
import os, signal, time
from resist_hvd.comm.changes import EncodedShift
from resist_hvd.comm.shift import Shift
from resist_hvd.training import loop

sound, stuck = loop.LocalTraining.step, []


def holding_up(sound_advance):
    def advance(self):
        if stuck:
            {in_the_thread}
            return False
        return sound_advance(self)

    return advance


def step(self):
    if self.run.progress.round == 1:
        time.sleep(0.2)
        if self.run.world.rank == 1:
            stuck.append(True)
            if self.rounds.made == 3:
                {on_the_main_thread}
    return sound(self)


loop.LocalTraining.step = step
for each in (Shift, EncodedShift):
    each.advance = holding_up(each.advance)
"""


@pytest.mark.parametrize(
    ("signal", "codec", "says"),
    [
        pytest.param("SIGKILL", "fp32", "has died", id="killed"),
        pytest.param("SIGKILL", "int8", "has died", id="killed-encoded"),
        pytest.param("SIGSTOP", "int8", "has not been heard of for", id="paused"),
    ],
)
def test_lost_rank(
    signal: str, codec: str, says: str, tiny: list[str], tmp_path: Path, program: Callable[[str], list[str]]
) -> None:
    act = f"time.sleep(1.5); os.kill(os.getpid(), signal.{signal})"  # what ranks say of themselves is a second old
    broken = program(IN_MID_FLIGHT.format(in_the_thread="pass", on_the_main_thread=act))
    flags = (*tiny, *OVERLAP, f"--exchange.trunk={codec}", f"--exchange.blocks={codec}", "--watchdog=4")
    ended = runs.run(*flags, "--output", tmp_path / "run", program=broken)
    assert re.match(rf"Rank 1 of 2 on {runs.HOST} {says} .*\[round 2, ", ended.mistake), ended
    assert ended.status != 0


def test_error_in_the_thread_is_the_main_threads(
    tiny: list[str], tmp_path: Path, program: Callable[[str], list[str]]
) -> None:
    raises = "raise RuntimeError('cut off')"
    broken = program(IN_MID_FLIGHT.format(in_the_thread=raises, on_the_main_thread="pass"))
    ended = runs.run(*tiny, *OVERLAP, "--output", tmp_path / "run", program=broken)
    assert ended.status == 70, ended
    assert f"RuntimeError: cut off [rank 1 of 2 on {runs.HOST}, round 2, synchronising]" in ended.message
    assert "in finish" in ended.stderr  # of the courier, by the main thread


def test_told_to_stop_it_arrives_first_and_goes_on_exactly(
    tiny: list[str], tmp_path: Path, program: Callable[[str], list[str]]
) -> None:
    act = "os.kill(os.getpid(), signal.SIGUSR2)"
    told = program(IN_MID_FLIGHT.format(in_the_thread="stuck.clear()", on_the_main_thread=act))
    folder = tmp_path / "run"
    ended = runs.run(*tiny, *OVERLAP, "--output", folder, program=told)
    assert ended.status == 75, ended
    assert ended.mistake.startswith("Stopped by USR2 after round 2; checkpoint ")
    resumed = runs.run("--resume", "--output", folder)
    assert resumed.status == 0, resumed
    whole = runs.run(*tiny, *OVERLAP, "--output", tmp_path / "whole")
    assert whole.status == 0, whole
    models = [(each / "model.safetensors").read_bytes() for each in (folder, tmp_path / "whole")]
    assert models[0] == models[1]
