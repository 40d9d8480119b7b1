"""A lab of launch/lab as tests use it: made by the command that users type, and gone whatever happens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laboratory import packages

ROOT = Path(__file__).resolve().parents[2]
LAB = ROOT / "launch/lab"

LONGEST = 240.0
"""Seconds after which something that was to happen counts as hanging."""

TINY = (
    "--recipe=digits",
    "--device=cpu",
    "--model.sections=1,1,6,1",
    "--data.batch_size=8",
    "--local_iterations=2",
    "--evaluate_every=0",
    "--device=cpu",
)
"""A run whose rounds take parts of a second: 5 blocks to deal out, 3 a worker."""


def lack(*, slurm: bool) -> str:
    """Return why no lab can be made here, empty where one can."""
    if os.geteuid() != 0:
        return "a lab needs root"
    programs = packages.FOR_HOSTS | (packages.FOR_SLURM | packages.FOR_ACCOUNTING if slurm else {})
    if missing := packages.missing(programs):
        return f"these Debian packages are missing: {' '.join(missing)}"
    probe = ["unshare", "--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--mount-proc", "true"]
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    return f"this kernel, or container, makes no namespaces: {done.stderr.strip()}" if done.returncode else ""


@dataclass
class Ended:
    """A command that has ended."""

    status: int
    stdout: str
    stderr: str

    def __str__(self) -> str:
        return f"status {self.status}\n-- stdout\n{self.stdout}\n-- stderr\n{self.stderr}"


@dataclass(frozen=True)
class Hold:
    """Holds a job's ranks in a round, so that what befalls them there does not come too late, however fast they are.

    Attributes:
        prefix: of the files that hold them, one for each start of the job.
    """

    prefix: Path

    @property
    def variables(self) -> dict[str, str]:
        """The job's environment."""
        folder = ROOT / "tests/cluster/holding"
        return {"PYTHONPATH": f"{folder}:{ROOT}", "RESIST_HVD_TEST_HOLD": str(self.prefix)}

    def file(self, start: int) -> Path:
        """Return what holds the job after so many earlier starts."""
        return Path(f"{self.prefix}-{start}")

    def end(self, start: int = 0) -> None:
        """Have the ranks go on."""
        self.file(start).unlink()


@dataclass
class Lab:
    """A lab that is up.

    Attributes:
        name: its name.
        folder: where runs write; all hosts see it.
    """

    name: str
    folder: Path

    def command(self, verb: str, *words: str | Path) -> list[str]:
        """Return a command line of launch/lab for this lab."""
        return [sys.executable, str(LAB), verb, "--name", self.name, *map(str, words)]

    def do(self, verb: str, *words: str | Path) -> Ended:
        """Do a command to its end."""
        done = subprocess.run(
            self.command(verb, *words),
            capture_output=True,
            text=True,
            cwd=self.folder,
            timeout=LONGEST,
            stdin=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": str(ROOT), "RESIST_HVD_HOME": str(ROOT)},
            check=False,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def ask(self, *words: str | Path) -> str:
        """Run a program on the head and return what it printed; it must succeed."""
        ended = self.do("run", *words)
        assert ended.status == 0, ended
        return ended.stdout

    def traffic(self) -> dict[str, dict[str, int]]:
        """Return what the kernel has counted so far on each host's link."""
        counted: dict[str, dict[str, int]] = json.loads(self.do("bytes", "--json").stdout)
        return counted

    def processes(self) -> dict[str, list[dict[str, Any]]]:
        """Return what runs on each host besides sshd and SLURM's daemons."""
        found: dict[str, list[dict[str, Any]]] = json.loads(self.do("ps", "--json").stdout)
        daemons = ("sshd", "munged", "mariadbd", "slurmctld", "slurmd", ": slurmscriptd")
        return {
            host: [one for one in everyone if one["command"] and not one["command"][0].startswith(daemons)]
            for host, everyone in found.items()
        }

    def assert_empty(self) -> None:
        """See that no process is left on any host, now or in a moment."""
        wait_until(lambda: not any(self.processes().values()), lambda: f"left behind: {self.processes()}", 60)

    @contextmanager
    def ranks(self, *flags: str | Path, number: int = 4) -> Iterator[subprocess.Popen[bytes]]:
        """Start a training on all hosts, with its output in `self.folder`; it is over afterwards."""
        run = ("-np", str(number), "python", "-m", "resist_hvd.train", *flags)
        with (self.folder / "stdout").open("wb") as out, (self.folder / "stderr").open("wb") as err:
            process = subprocess.Popen(
                self.command("run", *run),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=self.folder,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )
            try:
                yield process
            finally:
                process.terminate()
                process.wait(timeout=LONGEST)

    def train(self, *flags: str | Path, number: int = 4) -> None:
        """Train to the end."""
        with self.ranks(*flags, number=number) as process:
            assert process.wait(timeout=LONGEST) == 0, self.said()

    def said(self) -> str:
        """Return what the last training wrote to both its outputs."""
        return "".join((self.folder / name).read_text(errors="replace") for name in ("stdout", "stderr"))

    def hold(self, starts: int = 1) -> Hold:
        """Return what holds a job's ranks in the second round of each of its first starts."""
        hold = Hold(self.folder / f"hold-{uuid.uuid4().hex[:8]}")
        for start in range(starts):
            hold.file(start).touch()
        return hold

    def submit(self, script: str, *flags: str | Path, options: tuple[str, ...] = (), **variables: str) -> int:
        """Submit a batch script and return the job's number; its runs and logs are in `self.folder`."""
        exported = ",".join(["--export=ALL", *(f"{name}={value}" for name, value in variables.items())])
        return int(self.ask("sbatch", "--parsable", exported, *options, ROOT / "slurm" / script, *flags))

    def job(self, number: int) -> dict[str, str]:
        """Return what SLURM knows of a job."""
        words = self.ask("scontrol", "--oneliner", "show", "job", str(number)).split()
        return dict(word.partition("=")[::2] for word in words if "=" in word)

    def await_job(self, number: int, *states: str) -> dict[str, str]:
        """Wait until a job is in one of some states, and return what SLURM knows of it."""
        wait_until(lambda: self.job(number)["JobState"] in states, lambda: f"{self.job(number)}\n{self.log(number)}")
        return self.job(number)

    def log(self, number: int) -> str:
        """Return what a job has printed."""
        return "".join(path.read_text(errors="replace") for path in self.folder.glob(f"*-{number}.log"))


def wait_until(happened: Callable[[], bool], tell: Callable[[], str], seconds: float = LONGEST) -> None:
    """Wait until something has happened, and fail by what `tell` returns if it does not."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, tell()
        time.sleep(0.3)


@contextmanager
def made(folder: Path, *, hosts: int, bandwidth: str = "1gbit") -> Iterator[Lab]:
    """Make a lab; nothing of it is left afterwards."""
    lab = Lab(f"test-{uuid.uuid4().hex[:8]}", folder)
    try:
        ended = lab.do("up", "--hosts", str(hosts), "--bandwidth", bandwidth, "--share", folder)
        assert ended.status == 0, ended
        yield lab
    finally:
        assert lab.do("down").status == 0
