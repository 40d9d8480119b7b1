"""The runs of an experiment: their folders, their flags, and running those that are not finished."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resist_hvd import console
from resist_hvd.errors import Stopped, UserError
from resist_hvd.guard.signals import name_of
from resist_hvd.json_record import RecordError
from resist_hvd.records import Summary
from resist_hvd.reproduction.experiment import Case, Experiment
from resist_hvd.reproduction.launching import Ended
from resist_hvd.settings.reading import plain
from resist_hvd.settings.reproduce import ReproduceSettings
from resist_hvd.training.disk import create
from resist_hvd.units import duration

RUNS = "runs"

GO_ON = "The same command goes on from here."


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run of a case with a seed.

    Attributes:
        folder: its own, named by its settings: experiments with the same run share it.
    """

    case: Case
    seed: int
    folder: Path

    @property
    def title(self) -> str:
        """Its name in messages."""
        return f"{self.case.name}, seed {self.seed}"

    @property
    def flags(self) -> list[str]:
        """Flags of its program, but for its folder; each is one word."""
        return [f"--{name}={_text(value)}" for name, value in {**self.case.settings, "seed": self.seed}.items()]

    @property
    def arguments(self) -> list[str]:
        """The whole command line after `python`; training goes on where it was stopped."""
        if self.case.counted:
            return ["-m", "resist_hvd.bench", "compare", *self.flags, f"--json={self.result}"]
        return ["-m", "resist_hvd.train", *self.flags, "--resume", f"--output={self.folder}"]

    @property
    def result(self) -> Path:
        """The file that is written when it has come to its end."""
        case = self.case
        return self.folder / ("compare.json" if case.counted else "numbers.json" if case.computed else "summary.json")

    def numbers(self) -> dict[str, Any]:
        """Return what a finished run that is no training's has written.

        Raises:
            OSError, ValueError: it is not finished.
        """
        found = json.loads(self.result.read_text())
        if not isinstance(found, dict):
            raise ValueError(found)
        return found

    @property
    def log(self) -> Path:
        """The file that all of its output goes to."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def finished(self) -> bool:
        """True if it has come to its end, now or earlier."""
        try:
            if self.case.counted or self.case.computed:
                self.numbers()
            else:
                Summary.read(self.result)
        except (OSError, RecordError, ValueError):
            return False
        return True


def _text(value: Any) -> str:
    """Return a setting's value as a flag has it."""
    return str(value).lower() if isinstance(value, bool) else f"{value}"


def runs_of(case: Case, settings: ReproduceSettings) -> list[Run]:
    """Return a case's runs, one a seed; none where it cannot be run."""
    if case.lacking:
        return []
    method = case.settings.get("rows") or case.settings.get("method") or case.group.replace(" ", "-").replace(",", "")
    found = []
    for seed in range(1, settings.seeds_taken + 1):
        own = {"name": case.name} if case.computed else {}
        whole = json.dumps([case.workers, seed, plain({**case.settings, **own})], sort_keys=True)
        digest = hashlib.sha256(whole.encode()).hexdigest()[:8]
        folder = settings.output / RUNS / f"{method}-{case.workers}-seed{seed}-{digest}"
        found.append(Run(case=case, seed=seed, folder=folder))
    return found


def planned(experiment: Experiment, settings: ReproduceSettings) -> list[Run]:
    """Return an experiment's runs, each once, seed after seed, so that a first answer comes early."""
    by_case = [runs_of(case, settings) for case in experiment.cases(settings)]
    ordered = [runs[seed] for seed in range(settings.seeds_taken) for runs in by_case if runs]
    return list({run.folder: run for run in ordered}.values())


Start = Callable[[int, Sequence[str], Path], Ended]
"""Starts so many ranks of a program with arguments, its output in a file, and waits for its end."""


def run_all(runs: Sequence[Run], start: Start) -> None:
    """Run what is not finished, one run after another.

    Raises:
        UserError: a run has failed; it names its folder, and what it said.
        Stopped: this program was told to stop.
    """
    for number, run in enumerate(runs, 1):
        head = f"{number}/{len(runs)} {run.title}"
        if run.finished:
            console.out(f"{head}: finished before [{run.folder}]")
            continue
        console.out(f"{head}: {'goes on' if run.folder.exists() else 'begins'} [{run.folder}]")
        began = time.monotonic()
        run_one(run, start)
        console.out(f"{head}: {_said(run)}{duration(time.monotonic() - began)}")


def _said(run: Run) -> str:
    """Return what a run came to, to stand before something else."""
    if run.case.counted or run.case.computed:
        return ""
    result = Summary.read(run.result).result
    return "" if result is None else f"{result}, "


def run_one(run: Run, start: Start) -> None:
    """Run to the end.

    Raises:
        UserError: it has failed.
        Stopped: this program was told to stop.
    """
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    if run.case.computed:
        numbers = dict(run.case.computed(run.seed))
        run.folder.mkdir(exist_ok=True)
        with create(run.result) as file:
            file.write(json.dumps(numbers, indent=2).encode())
        return
    if run.case.counted:
        run.folder.mkdir(exist_ok=True)
    ended = start(run.case.workers, run.arguments, run.log)
    if ended.signal:
        left = "before it ended" if not run.finished else "when it was done"
        raise Stopped(f"Stopped by {name_of(ended.signal)} in {run.title}, {left} [{run.folder}]. {GO_ON}")
    if not run.finished:
        said = next(_messages(run.log), "")
        raise UserError(
            f"The run {run.title} ended with status {ended.status}" + (f": {said}" if said else ""),
            where=str(run.folder),
            mend=f"All that it printed is in {run.log}, and in console.log in its folder. Start the same command again "
            "once it is mended: finished runs are not run again.",
        )


def _messages(log: Path) -> Iterator[str]:
    """Yield what the program said of its failure in a log."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        if line.startswith("resist_hvd: "):
            yield line.removeprefix("resist_hvd: ").rstrip(".")
