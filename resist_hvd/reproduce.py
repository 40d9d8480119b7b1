"""`python -m resist_hvd.reproduce NAME`: a table or a figure of the paper, run at the size that one can afford."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from rich.table import Table

from resist_hvd import console
from resist_hvd.errors import Stopped, UserError, run_alone
from resist_hvd.guard.endings import STOPPED
from resist_hvd.reproduction import tables
from resist_hvd.reproduction.experiment import Experiment
from resist_hvd.reproduction.launching import Ended, Launcher
from resist_hvd.reproduction.outcome import outcome_of
from resist_hvd.reproduction.registry import EXPERIMENTS, named
from resist_hvd.reproduction.runs import Run, planned, run_all
from resist_hvd.settings import flags
from resist_hvd.settings.reproduce import BudgetName, ImagesSettings, ReproduceSettings
from resist_hvd.units import counted

PROGRAM = "python -m resist_hvd.reproduce NAME"
WIDTH = 140
"""Columns of tables where the output is no terminal."""


def main() -> None:
    """Make what the arguments name; end with status 75 where it was told to stop, and goes on when started again."""
    try:
        run_alone(run_from_flags)
    except Stopped as stopped:
        console.err(f"resist_hvd: {stopped}")
        sys.exit(STOPPED)


def run_from_flags() -> None:
    """List experiments, or run one and write its page.

    Raises:
        UserError: a name or a flag is wrong, a run has failed, or nothing can be written.
        Stopped: it was told to stop.
    """
    names, rest = flags.places(sys.argv[1:])
    settings = flags.parse_settings(PROGRAM, ReproduceSettings, rest)
    if len(names) != 1:
        raise UserError(
            f"{len(names)} experiments are named",
            mend=f"Give one of {', '.join(EXPERIMENTS)} before any flag, or list.",
        )
    if names == ["list"]:
        show_list()
        return
    experiment = named(names[0])
    runs = planned(experiment, settings)
    if settings.part is not None:
        runs = [part(runs, settings.part)]
    if settings.describe:
        describe(runs[0])
    elif settings.dry:
        show_commands(runs)
    else:
        if not settings.page:
            start(runs)
        if settings.part is None:
            write(experiment, settings)


def part(runs: list[Run], number: int) -> Run:
    """Return the run of a number.

    Raises:
        UserError: there is none.
    """
    if number >= len(runs):
        raise UserError(f"--part is {number}, and there are {len(runs)} runs", mend="Give one from 0 up to that.")
    return runs[number]


def start(runs: list[Run]) -> None:
    """Run what is not finished.

    Raises:
        UserError: a run has failed, or there is nothing to start ranks by.
        Stopped: it was told to stop.
    """
    left = [run for run in runs if not run.finished]
    if not left:
        console.out("All runs are finished.")
        return
    run_all(runs, launch_nothing if all(run.case.computed for run in left) else Launcher().start)


def launch_nothing(workers: int, arguments: Sequence[str], log: Path) -> Ended:
    """Stand in for a launcher where this process computes all by itself."""
    raise AssertionError(f"{workers} ranks of {arguments} are not to be started")


def write(experiment: Experiment, settings: ReproduceSettings) -> None:
    """Print what runs came to, and write the page and the tables.

    Raises:
        UserError: they cannot be written.
    """
    from resist_hvd.reproduction import page

    outcome = outcome_of(experiment, settings)
    screen = console.screen(width=None if sys.stdout.isatty() else WIDTH)
    for content in (tables.results(outcome), tables.comparisons(outcome)):
        table = Table()
        for place, column in enumerate(content.columns):
            table.add_column(column, justify="left" if place == 0 else "right", overflow="fold")
        for row in content.rows:
            table.add_row(*row)
        if content.rows:
            screen.print(table)
    screen.print(tables.summary(outcome))
    folder = settings.output / f"{experiment.name}-{settings.budget}"
    console.out(f"Written: {page.write(outcome, folder)}")


def show_list() -> None:
    """Print which experiments there are, and how long each takes."""
    table = Table()
    for column in ("name", "what", "of the paper", "minutes", "hours", "paper"):
        table.add_column(column)
    for experiment in EXPERIMENTS.values():
        shown = [cost(experiment, budget) for budget in get_args(BudgetName)]
        table.add_row(experiment.name, experiment.title, experiment.source or tables.UNKNOWN, *shown)
    console.screen(width=None if sys.stdout.isatty() else WIDTH).print(table)
    console.out(
        "Times are estimates for two CPU cores with nothing else to do; runs that others have made are not run again. "
        "The paper's settings are for GPUs: NAME --budget paper --dry prints their commands."
    )


def cost(experiment: Experiment, budget: BudgetName) -> str:
    """Return how many runs a budget has, and how long they take where that is known."""
    settings = ReproduceSettings(budget=budget, data=ImagesSettings(root=Path("data")))
    runs = planned(experiment, settings)
    return ", ".join(filter(None, (counted(len(runs), "run"), experiment.lasts.get(budget, ""))))


def show_commands(runs: list[Run]) -> None:
    """Print the command of each run."""
    for run in runs:
        command = ["mpirun", "-np", str(run.case.workers), "python", *run.arguments]
        console.out(shlex.join(map(os.fspath, command)))


def describe(run: Run) -> None:
    """Print what a batch script needs to train a run: workers, folder and flags, one a line; nothing of another run."""
    if run.case.counted or run.case.computed:
        return
    for line in (run.case.workers, run.folder.resolve(), *run.flags):
        console.out(str(line))


if __name__ == "__main__":
    main()
