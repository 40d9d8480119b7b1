"""Child programs: started with a mark in their environment, by which all of their processes are found and ended."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from gpu_check.verdicts import FailedError

MARK = "RESIST_HVD_GPU_CHECK"
SESSION = ".".join(filter(None, (os.environ.get(MARK), uuid.uuid4().hex)))
"""What the marks of all programs that this process starts begin with; and the mark that it has itself, if one like it
started it (as pytest, whose tests start programs), so that they end with it."""

OVER = threading.Event()
"""Whether this process itself is to end, and starts no more programs."""

ROOT = Path(__file__).resolve().parents[2]
RANK = "OMPI_COMM_WORLD_RANK"
PROC = Path("/proc")
OF_ANOTHER_LAUNCH = ("OMPI_COMM_", "OMPI_MCA_ess", "PMIX_", "PMI_", "HOROVOD_")

TURN = 0.3
"""Seconds that a program has to write where it stands, before another does, and it is killed."""

PATIENCE = 20.0
"""Seconds in which processes that are killed must be gone."""

TAIL = 25
"""Lines that are told of a program that failed."""


@dataclass(frozen=True)
class Ended:
    """A program that has ended by itself.

    Attributes:
        output: all that it printed.
        seconds: from its start.
    """

    status: int
    output: str
    seconds: float

    @property
    def tail(self) -> str:
        """The last lines of its output."""
        return "\n".join(self.output.rstrip().splitlines()[-TAIL:])


@dataclass
class Running:
    """A program that runs, with its output in a file: a pipe that nobody reads would stop it."""

    process: subprocess.Popen[bytes]
    mark: str
    log: Path
    since: float = field(default_factory=time.monotonic)

    def output(self) -> str:
        """Return what it has printed so far."""
        return self.log.read_text(errors="replace")

    def processes(self) -> dict[int, dict[str, str]]:
        """Return its living processes, whatever became of their parents, and their environments."""
        return marked(self.mark)

    def rank(self, number: int) -> int | None:
        """Return the process that is a rank, None while there is none."""
        for pid, variables in self.processes().items():
            if variables.get(RANK) == str(number) and is_python(pid):
                return pid
        return None

    def wait(self, seconds: float) -> Ended | None:
        """Wait for its end, for so long; return None where it goes on."""
        try:
            status = self.process.wait(timeout=max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return None
        return Ended(status, self.output(), time.monotonic() - self.since)

    def end(self, *, stacks: bool = False) -> None:
        """End all of its processes.

        Args:
            stacks: whether its Python processes shall first write where they stand.
        """
        if stacks:
            for pid in filter(is_python, self.processes()):
                with suppress(OSError):
                    os.kill(pid, signal.SIGABRT)
                time.sleep(TURN)  # or their words would mix
        end_all(self.mark)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=PATIENCE)


def start(command: Sequence[str | Path], log: Path, variables: Mapping[str, str]) -> Running:
    """Start a program in a session of its own.

    Args:
        command: its command line.
        log: a file for both its outputs.
        variables: for its environment, beyond this process's.

    Raises:
        FailedError: no program is to be started any more.
    """
    if OVER.is_set():
        raise FailedError("ended from outside")
    mark = f"{SESSION}.{uuid.uuid4().hex}"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(OF_ANOTHER_LAUNCH)}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**inherited, **variables, MARK: mark, "PYTHONFAULTHANDLER": "1"},
            start_new_session=True,
        )
    return Running(process, mark, log)


def guard() -> subprocess.Popen[bytes]:
    """Start a program that ends all that this one has started once this one is gone, killed or not: its pipe ends."""
    return subprocess.Popen(
        [sys.executable, "-m", "gpu_check.running", SESSION],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=ROOT / "launch",
        start_new_session=True,
    )


def end_all(mark: str = SESSION) -> None:
    """End all processes of a mark that begins so: by default all that were started.

    One that hangs in a driver may outlive it.
    """
    end = time.monotonic() + PATIENCE
    while (left := marked(mark)) and time.monotonic() < end:  # one may be starting another
        for pid in left:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def marked(mark: str) -> dict[int, dict[str, str]]:
    """Return the living processes whose mark begins so, and their environments."""
    found = {}
    for folder in PROC.iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            entries = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            continue
        variables = dict(entry.partition("=")[::2] for entry in entries if entry)
        if variables.get(MARK, "").startswith(mark) and state != "Z":
            found[int(folder.name)] = variables
    return found


def is_python(pid: int) -> bool:
    """Return whether a process is a Python."""
    try:
        command = (PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return bool(re.search(rb"(?:^|/)python[\d.]*$", command[0]))


if __name__ == "__main__":  # what `guard` has started: once its input ends, nothing of a session is left
    sys.stdin.buffer.read()
    end_all(sys.argv[1])
