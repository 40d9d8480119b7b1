"""`launch/run`: ranks on this machine, their output as it is, their status, and the signals that reach them."""

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from . import runs

RUN = Path(__file__).resolve().parents[2] / "launch" / "run"
SLOW = """
import time
from resist_hvd.training.loop import LocalTraining

step = LocalTraining.step
LocalTraining.step = lambda self: (time.sleep(0.1), step(self))[1]
"""


def starts(ranks: int) -> tuple[str | Path, ...]:
    return (RUN, "-np", str(ranks))


def test_status_and_output_are_those_of_the_ranks(tiny: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ended = runs.run(*tiny, "--max_rounds=1", "--output", folder, launcher="none", program=starts(3))
    assert ended.status == 0, ended
    assert json.loads((folder / "summary.json").read_text())["workers"] == 3
    command, *lines = ended.stdout.splitlines()
    assert "mpirun -np 3" in command
    assert lines[0].startswith("resist on 3 workers")
    assert "<stdout>" not in ended.stdout


def test_another_module_and_the_status_of_a_mistake(tmp_path: Path) -> None:
    ended = runs.run("-m", "resist_hvd.doctor", "--frobnicate=1", launcher="none", program=starts(2))
    assert "--frobnicate" in ended.mistake
    assert ended.status == 2


def listening(process: int) -> set[str]:
    """Return the addresses at which a process, or one that it has started, listens."""
    family = [psutil.Process(process), *psutil.Process(process).children(recursive=True)]
    connections = [connection for member in family for connection in member.net_connections("tcp")]
    return {connection.laddr.ip for connection in connections if connection.status == psutil.CONN_LISTEN}


def endless(tiny: list[str], folder: Path) -> list[str | Path]:
    # The watchdog has a port of its own, which is not MPI's.
    return [*tiny, "--epochs=1000", "--evaluate_every=0", "--watchdog=0", "--output", folder]


def test_a_single_worker_listens_nowhere(tiny: list[str], tmp_path: Path) -> None:
    with runs.started(*endless(tiny, tmp_path / "run"), launcher="none") as running:
        running.wait_for(r"round +2/")
        assert listening(running.process.pid) <= {"127.0.0.1", "::1"}


def test_a_signal_saves_the_round_and_a_closed_terminal_ends_nothing(tiny: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with runs.started(*endless(tiny, folder), launcher="none", program=starts(2)) as running:
        running.wait_for(r"round +2/")
        # On one host no rank can be reached from another by MPI; of mpirun's own ports one can.
        assert listening(running.rank(0)) | listening(running.rank(1)) <= {"127.0.0.1", "::1"}
        running.process.send_signal(signal.SIGHUP)
        running.wait_for(rf"round +{len(re.findall('^round', running.out.read_text(), re.MULTILINE)) + 10}/")
        running.signalled()
        running.process.send_signal(signal.SIGINT)
        ended = running.end()
    assert ended.status == 75, ended
    assert (folder / "checkpoints/latest").exists()


def test_a_second_signal_ends_it_at_once(tiny: list[str], tmp_path: Path) -> None:
    module = tmp_path / "slow_rounds.py"
    module.write_text(f"{SLOW}\nfrom resist_hvd import train\n\ntrain.main()\n")
    flags = [*endless(tiny, tmp_path / "run"), "--local_iterations=1000"]
    start = (*starts(2), "-m", "slow_rounds")
    with runs.started(*flags, launcher="none", program=start, PYTHONPATH=str(tmp_path)) as running:
        running.wait_for("sections 1,1,6,1")
        running.signalled()
        running.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "a checkpoint is written when the round is done" in running.err.read_text())
        time.sleep(2.5)  # signals that come together count as one
        running.process.send_signal(signal.SIGTERM)
        ended = running.end()
    assert ended.status not in (0, 75), ended
    assert ended.seconds < runs.LONGEST


def wait_until(true: Callable[[], bool]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + runs.LONGEST
    while not true():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.05)


def test_ranks_do_not_outlive_it(tiny: list[str], tmp_path: Path) -> None:
    with runs.started(*endless(tiny, tmp_path / "run"), launcher="none", program=starts(2)) as running:
        running.wait_for(r"round +2/")
        running.process.send_signal(signal.SIGKILL)
        running.process.wait(timeout=runs.SOON)
        wait_until(lambda: not running.processes())
        assert "Told to stop by the end of what started mpirun" in running.err.read_text()


@pytest.mark.parametrize("flags", [["-np"], ["-np", "0"], ["-np=two"]])
def test_a_number_of_ranks_that_is_none(flags: list[str]) -> None:
    done = subprocess.run([RUN, *flags], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert re.fullmatch(r"launch/run: -np [^\n]+\n", done.stderr)


def test_its_help() -> None:
    done = subprocess.run([RUN, "--help"], capture_output=True, text=True, check=True, timeout=60)
    assert "-np N" in done.stdout
    assert "-m MODULE" in done.stdout
