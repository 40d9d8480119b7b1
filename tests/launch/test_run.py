"""`launch/run`: ranks on this machine, their output as it is, their status, and the signals that reach them."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import termios
import time
from collections.abc import Callable
from contextlib import suppress
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
    found = set()
    for member in [psutil.Process(process), *psutil.Process(process).children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):  # a helper that has just ended
            connections = member.net_connections("tcp")
            found |= {connection.laddr.ip for connection in connections if connection.status == psutil.CONN_LISTEN}
    return found


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


STAND_IN = """#!/bin/sh
if [ "$1" = --version ]; then exit; fi
echo "mpirun $*"
echo $$ >"$TOLD.new" && mv "$TOLD.new" "$TOLD"
while [ ! -e "$TOLD.end" ]; do sleep 0.05; done
exit 5
"""


@pytest.fixture
def copy(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """Return a `launch/run` whose mpirun is a stand-in, and its environment.

    The stand-in writes its process number to the file `told`, and ends with status 5 once there is `told.end`.
    """
    (tmp_path / "launch").mkdir()
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name in ("run", "common.sh"):
        (tmp_path / "launch" / name).write_bytes((RUN.parent / name).read_bytes())
    for name, body in {"mpirun": STAND_IN, "python": "#!/bin/sh\n"}.items():
        (tmp_path / ".venv/bin" / name).write_text(body)
        (tmp_path / ".venv/bin" / name).chmod(0o755)
    return tmp_path / "launch/run", {"PATH": "/usr/bin:/bin", "TOLD": str(tmp_path / "told")}


LATE_WAIT = """
wait() {
    while [ ! -e "$TOLD.stopped" ]; do sleep 0.05; done
    builtin wait "$@"
}
"""


@pytest.mark.parametrize("late", [False, True])
def test_ranks_that_are_stopped_have_not_ended(late: bool, copy: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    """Whether the shell has come to wait for them before they are stopped, or comes to it only then."""
    program, environment = copy
    if late:
        (tmp_path / "late_wait").write_text(LATE_WAIT)
        environment["BASH_ENV"] = str(tmp_path / "late_wait")
    process = subprocess.Popen(["/bin/bash", program], env=environment, stdout=subprocess.DEVNULL)
    wait_until((tmp_path / "told").exists)
    mpirun = int((tmp_path / "told").read_text())
    os.kill(mpirun, signal.SIGSTOP)
    time.sleep(0.3)  # in which the shell, should it be late, learns of that
    (tmp_path / "told.stopped").touch()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1)
    (tmp_path / "told.end").touch()
    os.kill(mpirun, signal.SIGCONT)
    assert process.wait(timeout=runs.LONGEST) == 5


LATE_KILL = """
wait() {
    touch "$TOLD.awaited"
    builtin wait "$@"
}
kill() {
    touch "$TOLD.end"
    while builtin kill -0 "$2" 2>/dev/null; do :; done
    builtin kill "$@"
}
"""


def test_a_signal_after_the_ranks_have_ended_changes_no_status(
    copy: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    """In place of the shell's own kill there is one that waits until they have."""
    program, environment = copy
    (tmp_path / "late_kill").write_text(LATE_KILL)
    environment["BASH_ENV"] = str(tmp_path / "late_kill")
    process = subprocess.Popen(
        ["/bin/bash", program], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    wait_until((tmp_path / "told.awaited").exists)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=runs.LONGEST)
    assert (process.returncode, said) == (5, b"")


def test_ranks_write_to_a_terminal_that_stops_what_is_in_the_background(
    copy: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    program, environment = copy
    (tmp_path / "told.end").touch()
    ours, terminal = pty.openpty()
    settings = termios.tcgetattr(terminal)
    settings[3] |= termios.TOSTOP
    termios.tcsetattr(terminal, termios.TCSANOW, settings)
    # As a session's first, bash has the terminal that it opens for its own.
    command = ["/bin/bash", "-c", 'exec >"$0" 2>&1 <"$0" && exec "$@"', os.ttyname(terminal), "/bin/bash", program]
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        assert process.wait(timeout=runs.LONGEST) == 5
    finally:
        process.kill()
    # The kernel hands over what was written to a terminal in its own time, and not in one piece.
    printed, wanted = b"", b"mpirun -np 4 python -m resist_hvd.train\r\n"
    while wanted not in printed and select.select([ours], [], [], runs.LONGEST)[0]:
        printed += os.read(ours, 10_000)
    os.close(ours)
    os.close(terminal)
    assert wanted.strip() in printed.splitlines()


@pytest.mark.parametrize("output", [">/dev/full", ">&-"])
def test_ranks_start_where_nothing_can_be_printed(
    copy: tuple[Path, dict[str, str]], tmp_path: Path, output: str
) -> None:
    program, environment = copy
    (tmp_path / "told.end").touch()
    command = ["/bin/bash", "-c", f'exec /bin/bash "$0" {output}', program]
    assert subprocess.run(command, env=environment, check=False, timeout=runs.LONGEST).returncode == 5
    assert (tmp_path / "told").exists()


@pytest.mark.parametrize("flags", [["-np"], ["-np", "0"], ["-np=two"]])
def test_a_number_of_ranks_that_is_none(flags: list[str]) -> None:
    done = subprocess.run([RUN, *flags], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 2
    assert re.fullmatch(r"launch/run: -np [^\n]+\n", done.stderr)


def test_its_help() -> None:
    done = subprocess.run([RUN, "--help"], capture_output=True, text=True, check=True, timeout=300)
    assert "-np N" in done.stdout
    assert "-m MODULE" in done.stdout
