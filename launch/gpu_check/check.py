"""One step's place: its limit, its folder, and how it runs programs of this project."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_check.machine import Machine
from gpu_check.running import ROOT, Ended, Running, start
from gpu_check.verdicts import FailedError, Finding

LAUNCH = ROOT / "launch"
PYTHON = ROOT / ".venv/bin/python"
RUN = LAUNCH / "run"
EXACT = {"NVIDIA_TF32_OVERRIDE": "0"}
"""Has NVIDIA's libraries compute float32 in float32, not in TF32."""


@dataclass
class Check:
    """Inputs of a step.

    Attributes:
        machine: the machine.
        ranks: how many ranks its worlds have.
        folder: an empty one for its files.
        limit: seconds that it may take; when they are over, its programs are ended.
        images: a folder of images laid out as ImageNet, if one was given.
        needs_gpu: whether a machine without a GPU that can be used is a failure.
        python: the interpreter of the virtual environment.
        run: launch/run.
        finding: what it has found so far.
    """

    machine: Machine
    ranks: int
    folder: Path
    limit: float
    images: Path | None = None
    needs_gpu: bool = False
    python: Path = PYTHON
    run: Path = RUN
    finding: Finding = field(default_factory=Finding)
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds until its limit."""
        return self.began + self.limit - time.monotonic()

    def start(
        self,
        name: str,
        module: str,
        *flags: str | Path,
        ranks: int = 0,
        variables: Mapping[str, str] | None = None,
    ) -> Running:
        """Start a module.

        Args:
            name: of the file that its output goes to.
            module: what is run, by `python -m`.
            flags: the module's.
            ranks: as how many ranks; 0: without a launcher.
            variables: for its environment.

        Raises:
            FailedError: the step's limit has come.
        """
        if self.left <= 0:
            raise FailedError(f"{name} could not begin within the step's limit of {self.limit:.0f} s")
        program = [self.run, "-np", str(ranks)] if ranks else [self.python]
        environment = {"PYTHONPATH": str(LAUNCH), **(variables or {})}
        return start([*program, "-m", module, *flags], self.folder / f"{name}.log", environment)

    def do(
        self,
        name: str,
        module: str,
        *flags: str | Path,
        ranks: int = 0,
        variables: Mapping[str, str] | None = None,
        statuses: Sequence[int] = (0,),
    ) -> Ended:
        """Run a module to its end; of the statuses, those given are no failure, and the rest is as for `start`.

        Raises:
            FailedError: it ended with another status, or still ran at the step's limit and was ended.
        """
        return self.await_end(self.start(name, module, *flags, ranks=ranks, variables=variables), name, statuses)

    def await_end(self, running: Running, name: str, statuses: Sequence[int] = (0,)) -> Ended:
        """Wait for a program's end, and see that nothing of it is left.

        Raises:
            FailedError: it ended with another status, still ran at the step's limit, or left processes behind.
        """
        try:
            ended = running.wait(self.left)
            if ended is None:
                running.end(stacks=True)
                late = Ended(-1, running.output(), 0.0)
                raise FailedError(f"{name} still ran at the step's limit of {self.limit:.0f} s", late.tail)
            patience = time.monotonic() + 5
            while left := running.processes():
                if time.monotonic() > patience:
                    raise FailedError(f"{name} left {len(left)} processes behind", ended.tail)
                time.sleep(0.05)
        finally:
            running.end()
        if ended.status not in statuses:
            raise FailedError(f"{name} ended with status {ended.status}", ended.tail)
        return ended

    def ask(
        self,
        name: str,
        program: str,
        *flags: str | Path,
        ranks: int = 0,
        variables: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Run one of `programs` to its end and return its answer.

        Raises:
            FailedError: it ended with a status other than 0, or gave no answer.
        """
        answer = self.folder / f"{name}.json"
        module = f"gpu_check.programs.{program}"
        ended = self.do(name, module, "--answer", answer, *flags, ranks=ranks, variables=variables)
        return read(answer, ended.tail)

    def train(self, name: str, *flags: str | Path, ranks: int, variables: Mapping[str, str] | None = None) -> Path:
        """Train to the end and return the run's folder.

        Raises:
            FailedError: the training did not end with status 0.
        """
        folder = self.folder / name
        self.do(name, "resist_hvd.train", *flags, "--output", folder, ranks=ranks, variables=variables)
        return folder

    def at_once(self, ranks: int) -> ThreadPoolExecutor:
        """Return what runs several worlds of so many ranks at once, as many as there are cores for."""
        return ThreadPoolExecutor(max_workers=max(1, self.machine.cores // max(1, ranks)))


def lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's file.

    Raises:
        FailedError: it cannot be read.
    """
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise FailedError(f"{path.name} cannot be read: {error}") from None


def read(path: Path, tail: str = "") -> dict[str, Any]:
    """Return what a program has written as JSON.

    Args:
        path: the file.
        tail: the last lines that the program has printed.

    Raises:
        FailedError: it cannot be read.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise FailedError(f"{path.name} cannot be read: {error}", tail) from None
    return found
