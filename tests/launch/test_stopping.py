"""Programs that are told to stop, by their launcher or past it: status 75, a checkpoint, and nothing left running."""

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

from . import runs

STOPPED = 75

SLOW = """
import time
from resist_hvd.training import loop

sound = loop.LocalTraining.step


def step(self):
    time.sleep({seconds} if self.run.progress.round >= {after} else 0)
    return sound(self)


loop.LocalTraining.step = step
"""

WAITING = """
import os, time
from resist_hvd.training import loop

sound = loop.LocalTraining.step


def step(self):
    if self.run.progress.round == {round}:
        print("in that round", flush=True)
        while not os.path.exists({go!r}):
            time.sleep(0.02)
    return sound(self)


loop.LocalTraining.step = step
"""


DONE = """
import os, time
from resist_hvd.training import program

sound = program.farewell


def farewell(summary, folder):
    print("all is written", flush=True)
    while not os.path.exists({go!r}):
        time.sleep(0.02)
    return sound(summary, folder)


program.farewell = farewell
"""

ENDING = """
import sys, time, types


class Late(types.ModuleType):
    "What is left until Python has taken its signal handlers away, and takes its modules down."

    def __del__(self, out=sys.stdout.fileno(), write=__import__("os").write, sleep=time.sleep):
        write(out, b"Python ends\\n")
        sleep(1)


sys.late = Late("late")
"""


def stop_message(name: str, folder: Path, round_number: int) -> str:
    return (
        f"Stopped by {name} after round {round_number}; checkpoint {folder}/checkpoints/round-{round_number:06d}; "
        f"go on with --resume --output {folder}"
    )


def last_round(folder: Path) -> int:
    """The number of rounds that are done, each on a line of its own."""
    numbers = [json.loads(line)["round"] for line in (folder / "rounds.jsonl").read_text().splitlines()]
    assert numbers == list(range(len(numbers)))
    return len(numbers)


def test_told_by_mpirun_and_resumed_it_ends_with_the_same_model(
    tiny: list[str], tmp_path: Path, program: Callable[[str], list[str]]
) -> None:
    flags = [*tiny, "--epochs=2", "--checkpoint_every=0", "--evaluate_every=1"]
    whole = runs.run(*flags, "--output", tmp_path / "whole")
    assert whole.status == 0, whole
    cut, go = tmp_path / "cut", tmp_path / "go"
    waits = program(WAITING.format(round=3, go=str(go)))
    with runs.started(*flags, "--output", cut, program=waits) as running:
        running.wait_for("in that round")
        running.signalled()
        running.process.send_signal(signal.SIGUSR2)
        running.wait_for(re.escape("Told to stop by USR2 ["), running.err)
        go.touch()
        ended = running.end()
    assert ended.status == STOPPED, ended
    assert ended.mistake == stop_message("USR2", cut, last_round(cut))
    assert ended.stderr.count("Told to stop by USR2 [") == 1
    assert ended.seconds < runs.SOON
    assert last_round(cut) == 4
    assert not (cut / "model.safetensors").exists()
    resumed = runs.run(*flags, "--resume", "--output", cut)
    assert resumed.status == 0, resumed
    assert last_round(cut) == last_round(tmp_path / "whole") == 8
    for name in ("model.safetensors", "model.json"):
        assert (cut / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    rounds = [json.loads(line)["round"] for line in (cut / "eval.jsonl").read_text().splitlines()]
    assert rounds == list(range(1, 9))


def test_told_to_one_rank_alone_all_stop(tiny: list[str], tmp_path: Path, program: Callable[[str], list[str]]) -> None:
    folder = tmp_path / "run"
    slow = program(SLOW.format(seconds=0.2, after=1))
    with runs.started(*tiny, "--epochs=100", "--output", folder, program=slow) as running:
        running.wait_for(r"round +2/")
        os.kill(running.rank(1), signal.SIGTERM)
        ended = running.end()
    assert ended.status == STOPPED, ended
    assert ended.mistake == stop_message("TERM", folder, last_round(folder))


def test_second_signal_means_now(tiny: list[str], copy_of_cut: Path, program: Callable[[str], list[str]]) -> None:
    before = runs.contents(copy_of_cut / "checkpoints")
    hangs = program(WAITING.format(round=2, go="/nowhere"))
    with runs.started(*tiny, "--resume", "--output", copy_of_cut, program=hangs, launcher="none") as running:
        running.wait_for("in that round")
        running.process.send_signal(signal.SIGINT)
        running.wait_for(re.escape("Told to stop by INT [round 3, local training"), running.err)
        time.sleep(2.5)  # what comes sooner counts as the same signal
        running.signalled()
        running.process.send_signal(signal.SIGTERM)
        ended = running.end()
    assert ended.status == 128 + signal.SIGTERM
    assert ended.mistake.startswith("Told to stop by TERM: the second signal [rank 0 of 1 on ")
    assert ended.mistake.endswith(
        f"Go on from {copy_of_cut}/checkpoints/round-000002 with --resume --output {copy_of_cut}."
    )
    assert ended.seconds < runs.SOON
    assert runs.contents(copy_of_cut / "checkpoints") == before


def test_told_when_all_is_written_it_ends_in_order(
    tiny: list[str], tmp_path: Path, program: Callable[[str], list[str]]
) -> None:
    folder, go = tmp_path / "run", tmp_path / "go"
    with runs.started(*tiny, "--output", folder, program=program(DONE.format(go=str(go)))) as running:
        running.wait_for("all is written")
        running.signalled()
        running.process.send_signal(signal.SIGUSR2)
        time.sleep(1)
        go.touch()
        ended = running.end()
    assert ended.status == 0, ended
    assert "Told to stop" not in ended.stderr
    assert (folder / "summary.json").exists()


def test_told_while_python_ends_it_ends_in_order(
    tiny: list[str], tmp_path: Path, program: Callable[[str], list[str]]
) -> None:
    folder = tmp_path / "run"
    with runs.started(*tiny, "--output", folder, program=program(ENDING)) as running:
        running.wait_for("Python ends")
        running.process.send_signal(signal.SIGUSR2)
        ended = running.end()
    assert ended.status == 0, ended
    assert ended.stdout.count("Python ends") == 2
    assert (folder / "summary.json").exists()


def test_told_again_while_python_ends_it_has_the_status_of_one_that_is_to_go_on(
    tiny: list[str], tmp_path: Path, program: Callable[[str], list[str]]
) -> None:
    folder, go = tmp_path / "run", tmp_path / "go"
    waits = program(ENDING + WAITING.format(round=3, go=str(go)))
    with runs.started(*tiny, "--output", folder, program=waits) as running:
        running.wait_for("in that round")
        running.signalled()
        running.process.send_signal(signal.SIGUSR2)
        running.wait_for(re.escape("Told to stop by USR2 ["), running.err)
        go.touch()
        running.wait_for("Python ends")
        running.process.send_signal(signal.SIGUSR2)
        ended = running.end()
    assert ended.status == STOPPED, ended
    assert ended.stdout.count("Python ends") == 2
    assert ended.mistake == stop_message("USR2", folder, last_round(folder))


def test_told_before_the_first_round_it_ends_at_once_to_be_started_again(
    tiny: list[str], copy_of_cut: Path, program: Callable[[str], list[str]]
) -> None:
    loads_for_long = program(
        "import time\nfrom resist_hvd import data\n\n\ndef load(*_, **__):\n"
        "    print('loading', flush=True)\n    time.sleep(100)\n\n\ndata.load = load\n"
    )
    with runs.started(*tiny, "--resume", "--output", copy_of_cut, program=loads_for_long, launcher="none") as running:
        running.wait_for("loading")
        running.process.send_signal(signal.SIGUSR2)
        ended = running.end()
    assert ended.status == STOPPED
    assert re.fullmatch(
        r"Told to stop by USR2: it was cancelled \[rank 0 of 1 on \S+, loading the data\]\. "
        rf"Go on from {copy_of_cut}/checkpoints/round-000002 with --resume --output {copy_of_cut}\.",
        ended.mistake,
    ), ended


def test_what_ends_horovodrun_stops_the_run(
    tiny: list[str], tmp_path: Path, program: Callable[[str], list[str]]
) -> None:
    folder = tmp_path / "run"
    slow = program(SLOW.format(seconds=0.2, after=1))
    flags = [*tiny, "--epochs=100", "--output", folder]
    with runs.started(*flags, program=slow, launcher="horovodrun") as running:
        running.wait_for(r"round +2/")
        running.process.send_signal(signal.SIGUSR2)
        running.process.wait(timeout=runs.SOON)
        end = time.monotonic() + runs.SOON
        while running.processes():
            assert time.monotonic() < end, "ranks outlive horovodrun"
            time.sleep(0.1)
        said = running.err.read_text()
    assert f"resist_hvd: {stop_message('TERM', folder, last_round(folder))}" in said
    assert "Told to stop by the end of what started mpirun [" in said
    assert (folder / "checkpoints/latest").read_text() == f"round-{last_round(folder):06d}\n"


def test_no_rank_outlives_mpirun(tiny: list[str], tmp_path: Path) -> None:
    with runs.started(*tiny, "--epochs=100000", "--evaluate_every=0", "--output", tmp_path / "run") as running:
        running.wait_for(r"round +2/")
        running.process.send_signal(signal.SIGKILL)
        running.process.wait(timeout=runs.SOON)
        end = time.monotonic() + runs.SOON
        while running.processes():
            assert time.monotonic() < end, "ranks outlive mpirun"
            time.sleep(0.1)
