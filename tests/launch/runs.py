"""Starts whole programs under their launchers, and looks at what they printed, left on the disk, and left running.

Every run has a mark of its own in its environment, which all its processes inherit: so those of a run are found, and
ended, without ever touching another's.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

PYTHON = sys.executable
PROGRAMS = Path(PYTHON).parent
TRAIN = (PYTHON, "-m", "resist_hvd.train")
MARK = "RESIST_HVD_TEST_RUN"
HOST = socket.gethostname().split(".")[0]

LONGEST = 240.0
"""Seconds after which a run counts as hanging, and is killed."""

SOON = 60.0
"""Seconds within which all ranks must be gone once something is wrong, on a machine that has much other work to do."""

PATH = f"{PROGRAMS}{os.pathsep}{os.environ.get('PATH', '')}"
"""Where launchers are: beside Python, or, with a site's own MPI, where that is."""


def launch(launcher: str, ranks: int) -> list[str]:
    """Return what starts a program on so many ranks by a launcher, with its options, or by none."""
    if launcher == "none":
        return []
    name, *options = launcher.split()
    found = shutil.which(name, path=PATH)
    assert found, f"there is no {name} on {PATH}"
    return [found, *options, "-np", str(ranks)]


def environment(**variables: str) -> dict[str, str]:
    """Return what a run's environment has: a user's, with ranks that share this machine's cores."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        # Started by a test that an MPI launcher started, a launcher would take itself for a rank of that one. Output is
        # to be buffered as a user's is, and compiled modules kept, or each rank would compile PyTorch anew.
        if not name.startswith(("OMPI_COMM_", "OMPI_MCA_ess", "PMIX_", "PMI_", "HOROVOD_", "SLURM_"))
        and name not in ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE")
    }
    ranks = {
        "PATH": PATH,
        "OMP_NUM_THREADS": "1",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }
    return inherited | ranks | variables


class HangsError(AssertionError):
    """A run has not ended within its limit."""


class LeftBehindError(AssertionError):
    """Processes of a run outlive its launcher."""


@dataclass
class Ended:
    """A run that has ended.

    Attributes:
        status: the launcher's exit status.
        stdout, stderr: what came out of the launcher, without the tags that horovodrun puts before lines.
        seconds: from its start, or from `Running.signalled`, to its end.
    """

    status: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def messages(self) -> list[str]:
        """What we said of failures."""
        said = [line for line in self.stderr.splitlines() if line.startswith("resist_hvd: ")]
        return [line.removeprefix("resist_hvd: ") for line in said]

    @property
    def message(self) -> str:
        """The one message of a run that has failed."""
        assert self.status != 0, f"status 0 after:\n{self}"
        assert len(self.messages) == 1, f"{len(self.messages)} messages in:\n{self}"
        return self.messages[0]

    @property
    def mistake(self) -> str:
        """The one message of a run that ended by a user's mistake: without a traceback."""
        assert "Traceback" not in self.stderr, f"a traceback in:\n{self}"
        return self.message

    def __str__(self) -> str:
        return f"status {self.status} after {self.seconds:.1f} s\n-- stdout\n{self.stdout}\n-- stderr\n{self.stderr}"


@dataclass
class Running:
    """A run that has been started, with its output in files: a pipe that nobody reads would stop it."""

    process: subprocess.Popen[bytes]
    mark: str
    out: Path
    err: Path
    since: float = field(default_factory=time.monotonic)

    def processes(self) -> dict[int, dict[str, str]]:
        """Return the run's living processes and their environments; whatever became of their parents."""
        found = {}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdecimal():
                continue
            try:
                variables = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if f"{MARK}={self.mark}" in variables and state != "Z":
                found[int(folder.name)] = dict(entry.partition("=")[::2] for entry in variables if entry)
        return found

    def ranks(self) -> dict[int, int]:
        """Return the living processes that are ranks, by rank; not what they have started themselves."""
        numbers = {
            pid: int(variables["OMPI_COMM_WORLD_RANK"])
            for pid, variables in self.processes().items()
            if "OMPI_COMM_WORLD_RANK" in variables
        }
        found = {rank: pid for pid, rank in numbers.items() if _is_python(pid) and numbers.get(_parent(pid)) != rank}
        return dict(sorted(found.items()))

    def rank(self, rank: int) -> int:
        """Return the process that is a rank.

        Raises:
            KeyError: there is none.
        """
        return self.ranks()[rank]

    def wait_for(self, pattern: str, file: Path | None = None) -> None:
        """Wait until the run has printed what a regular expression describes: to its output, or to `err`."""
        end = time.monotonic() + LONGEST
        while not re.search(pattern, (file or self.out).read_text(errors="replace")):
            assert self.process.poll() is None, f"it ended before {pattern!r} was printed:\n{self.end()}"
            assert time.monotonic() < end, f"it ran for {LONGEST} s before {pattern!r} was printed"
            time.sleep(0.05)

    def signalled(self) -> None:
        """Count the seconds to its end from now."""
        self.since = time.monotonic()

    def end(self, *, limit: float = LONGEST, patience: float = 30.0) -> Ended:
        """Wait for its end, and see that nothing of it is left.

        Args:
            limit: seconds after which it counts as hanging.
            patience: seconds that its processes may outlive the launcher.

        Raises:
            HangsError: it has not ended.
            LeftBehindError: processes are left.
        """
        try:
            status = self.process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            self.kill()
            raise HangsError(f"it hangs:\n{self._ended(-1)}") from None
        ended = self._ended(status)
        end = time.monotonic() + patience
        while left := self.processes():
            if time.monotonic() > end:
                self.kill()
                raise LeftBehindError(f"processes {sorted(left)} were left behind by:\n{ended}")
            time.sleep(0.05)
        return ended

    def _ended(self, status: int) -> Ended:
        tag = re.compile(r"^\[\d+(?:,\d+)?\]<std(?:out|err)>:", re.MULTILINE)
        stdout, stderr = (tag.sub("", path.read_text(errors="replace")) for path in (self.out, self.err))
        return Ended(status, stdout, stderr, time.monotonic() - self.since)

    def kill(self) -> None:
        """End all that is left of it."""
        for pid in self.processes():
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def _is_python(pid: int) -> bool:
    """Return whether a process runs Python, and neither has ended nor looks after a rank from beside it."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return bool(re.search(rb"(?:^|/)python[\d.]*$", command[0])) and not any(b"/guard/" in word for word in command)


def _parent(pid: int) -> int:
    """Return the parent of a process, 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


@contextmanager
def started(
    *flags: str | Path,
    ranks: int = 2,
    launcher: str = "mpirun",
    program: Sequence[str | Path] = TRAIN,
    terminal: int | None = None,
    **variables: str,
) -> Iterator[Running]:
    """Start a program under its launcher; whatever happens, nothing of it is left afterwards.

    Args:
        flags: the program's.
        ranks: how many.
        launcher: mpirun, horovodrun, perhaps with options, or none.
        program: what to launch.
        terminal: a descriptor that takes what it prints, in place of files.
        variables: of its environment.
    """
    mark = uuid.uuid4().hex
    command = [*launch(launcher, ranks), *map(str, program), *map(str, flags)]
    with tempfile.TemporaryDirectory(prefix="resist-hvd-run-") as folder:
        out, err = Path(folder, "stdout"), Path(folder, "stderr")
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stdout if terminal is None else terminal,
                stderr=stderr if terminal is None else terminal,
                cwd=folder,
                env=environment(**{MARK: mark}, **variables),
                start_new_session=True,
            )
        running = Running(process, mark, out, err)
        try:
            yield running
        finally:
            running.kill()


def run(
    *flags: str | Path,
    ranks: int = 2,
    launcher: str = "mpirun",
    program: Sequence[str | Path] = TRAIN,
    limit: float = LONGEST,
    **variables: str,
) -> Ended:
    """Run a program to its end, within `limit` seconds; the other arguments are those of `started`."""
    with started(*flags, ranks=ranks, launcher=launcher, program=program, **variables) as running:
        return running.end(limit=limit)


def contents(folder: Path) -> dict[str, str]:
    """Return the digest of every file below a folder, by its path: what must not change does not change this."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def flip_byte(path: Path) -> None:
    """Change one byte in the middle of a file."""
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 0x01
    path.write_bytes(damaged)
