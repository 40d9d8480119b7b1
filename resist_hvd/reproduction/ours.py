"""What the paper has not: ResIST and local SGD, each at its best, at equal samples and at equal arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from resist_hvd.reporting.reading import RunRecord
from resist_hvd.reproduction.budgets import cifar
from resist_hvd.reproduction.experiment import Case, Experiment, Goal, Measure
from resist_hvd.reproduction.measures import ACCURACY, NOISE_OF_TIME, SENT
from resist_hvd.settings.reproduce import BudgetName, ReproduceSettings
from resist_hvd.units import duration

OUTER_MOMENTUM: dict[str, Any] = {"outer_momentum": 0.4}
FEW_BITS: dict[str, Any] = {"exchange__trunk": "int4", "exchange__blocks": "int8"}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A budget's size.

    Attributes:
        epochs: summed over workers, at equal samples.
        rounds: of l iterations at equal samples, about, on four workers.
        local_iterations: l of the recipe.
        held: blocks that a worker of ResIST has at least in its best: three quarters of those that are dealt out.
        gain: arithmetic of a step with the whole network over that with so many blocks, as `resist_hvd.plan` has it.
    """

    epochs: int
    rounds: int
    local_iterations: int
    held: int
    gain: float


SCALES: dict[BudgetName, Scale] = {
    "minutes": Scale(epochs=3, rounds=118, local_iterations=10, held=9, gain=1.24),
    "hours": Scale(epochs=12, rounds=469, local_iterations=10, held=9, gain=1.24),
    "paper": Scale(epochs=160, rounds=313, local_iterations=50, held=16, gain=1.23),
}

EVALUATIONS = 6
"""During a run."""


def arithmetic(run: RunRecord, _: Goal) -> float | None:
    """Return the seconds in which workers computed, the mean over them."""
    return sum(line.seconds_compute for line in run.rounds) or None


ARITHMETIC = Measure(name="arithmetic", read=arithmetic, show=duration, noise=NOISE_OF_TIME, relative=True, own=True)


def _row(
    settings: ReproduceSettings, name: str, method: str, *, epochs: float = 1, rounds: int = 1, **levers: Any
) -> Case:
    """Return a row.

    Args:
        settings: the budget, and where images are.
        name: of the row.
        method: of training.
        epochs: in those of the budget.
        rounds: in the place of one of the recipe's.
        levers: other settings; a dot in a name is two underscores.
    """
    scale = SCALES[settings.budget]
    taken = epochs * scale.epochs
    levers |= {
        "epochs": round(taken, 2),
        "local_iterations": scale.local_iterations // rounds,
        "evaluate_every": round(epochs * rounds * scale.rounds * 4 / settings.ranks / EVALUATIONS),
    }
    return Case(name=name, workers=settings.ranks, settings=cifar(settings, method, **levers))


def _rows(settings: ReproduceSettings) -> list[Case]:
    scale = SCALES[settings.budget]
    best: dict[str, Any] = {**OUTER_MOMENTUM, **FEW_BITS, "min_blocks": scale.held, "rounds": 2}
    return [
        _row(settings, "local-sgd", "local-sgd"),
        _row(settings, "local-sgd, its best", "local-sgd", **OUTER_MOMENTUM),
        _row(settings, "resist", "resist"),
        _row(settings, "resist, outer momentum", "resist", **OUTER_MOMENTUM),
        _row(settings, "resist, its best", "resist", **best),
        _row(settings, "resist, its best, in local SGD's arithmetic", "resist", epochs=scale.gain, **best),
    ]


AHEAD = Experiment(
    name="ahead",
    title="ResIST and local SGD, each at its best",
    source="",
    about="Both with all that they gain by, of one search on images kept out of training: with the same samples, and "
    "ResIST with as many more as local SGD's arithmetic is worth.",
    cases=_rows,
    measures=(ACCURACY, ARITHMETIC, SENT),
    lasts={"minutes": "20 min", "hours": "4 h"},
    curves=True,
)
