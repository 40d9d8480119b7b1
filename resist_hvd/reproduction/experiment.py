"""Experiments as data: the rows that are run and compared, what is read of each, and the paper's numbers beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from resist_hvd.reporting.reading import RunRecord
from resist_hvd.settings.reproduce import BudgetName, ReproduceSettings

Layer = Mapping[str, Any]
"""Settings of `resist_hvd.train` by the names of their flags; `recipe` among them."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """The point up to which runs of one experiment are compared.

    Attributes:
        accuracy: percent, that all of them have reached; None where there is none.
        samples: training images with which data-parallel training has come to it; None without such a run.
    """

    accuracy: float | None = None
    samples: float | None = None


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A number that is read of each run.

    Attributes:
        name: the heading of its column, with its unit.
        read: of a finished run; None where the run does not tell.
        show: the number as people read it.
        noise: the difference between two runs of one seed each that means nothing.
        relative: whether noise is a share, and differences are ratios.
        own: whether it is one of ours, for which the paper has no column.
        to_goal: whether it is what a run had taken when it came to the goal.
    """

    name: str
    read: Callable[[RunRecord, Goal], float | None]
    show: Callable[[float], str]
    noise: float = 0.0
    relative: bool = False
    own: bool = False
    to_goal: bool = False


def bound_of(measure: Measure) -> str:
    """Return the name of the paper's bound on a measure among a row's computed numbers."""
    return f"bound of {measure.name}"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A row of an experiment.

    Attributes:
        name: what its row is called; unlike every other.
        workers: how many ranks it runs on.
        settings: of its runs, but for their seeds and folders: training's, or those of `bench compare`.
        counted: for a row of `bench compare`: measures' numbers of what that has written.
        computed: for a row that this process computes by itself: measures' numbers by a seed.
        group: rows of a group are compared with one another.
        paper: the paper's numbers, by the measures' names.
        place: where the paper shows an order without numbers: its place in it, the least first.
        lacking: why it cannot be run; empty where it can.
        note: a sentence on this row.
    """

    name: str
    workers: int
    settings: Layer = field(default_factory=dict)
    counted: Callable[[Mapping[str, Any], Goal], Mapping[str, float]] | None = None
    computed: Callable[[int], Mapping[str, float]] | None = None
    group: str = ""
    paper: Mapping[str, float] = field(default_factory=dict)
    place: int | None = None
    lacking: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A table or a figure of the paper; or one of ours.

    Attributes:
        name: as it is asked for.
        title: what it shows.
        source: its place in the paper; empty for one of ours.
        about: how to read it, in sentences.
        cases: the rows, by what is asked for.
        measures: what is read of each row; the first is drawn.
        compare: that with which each row of a group is compared: the group's first, the one before, or, where the
            paper's numbers are what it has at least, its own.
        lasts: how long each budget takes.
        curves: whether accuracy against rounds, seconds and bytes is drawn.
        notes: what else differs from the paper, whatever the budget.
    """

    name: str
    title: str
    source: str
    about: str
    cases: Callable[[ReproduceSettings], list[Case]]
    measures: tuple[Measure, ...]
    compare: Literal["first", "before", "bound"] = "first"
    lasts: Mapping[BudgetName, str] = field(default_factory=dict)
    curves: bool = False
    notes: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Its place in the paper as a sentence has it, in small letters."""
        return f"{self.source} of the ResIST paper" if self.source else "not in the ResIST paper"
