"""An experiment of ours: ResIST and local SGD, each at its best, at equal samples and at equal arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from resist_hvd.reporting.reading import RunRecord
from resist_hvd.reproduction.budgets import cifar
from resist_hvd.reproduction.experiment import Case, Experiment, Goal, Measure
from resist_hvd.reproduction.measures import ACCURACY, NOISE_OF_TIME, SENT
from resist_hvd.settings.reproduce import BudgetName, ReproduceSettings
from resist_hvd.units import duration

OUTER_MOMENTUM: dict[str, Any] = {"outer_momentum": 0.4}
FEW_BITS: dict[str, Any] = {"exchange__trunk": "int4", "exchange__blocks": "int8"}
SHARED_BLOCKS: dict[str, Any] = {"outer_momentum_blocks": 0.4, "exchange__blocks": "fp16"}
"""For rows in which several workers hold each block; in fp16, since this momentum repeats some of a codec's error."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A budget's size.

    Attributes:
        epochs: summed over workers, at equal samples.
        steps: local iterations of one of four workers in them, about.
        length: l of the recipe.
        short: l of each method's best.
        least: l of local SGD's rounds in few bits, which pay for more of them.
        blocks: that are dealt out.
        trunk: arithmetic of what all workers share, in a block's.
        deep: blocks that a worker of ResIST has at least at equal samples: three quarters.
        shallow: at equal arithmetic: as few as can be.
    """

    epochs: int
    steps: int
    length: int
    short: int
    least: int
    blocks: int
    trunk: float
    deep: int
    shallow: int

    def gain(self, workers: int) -> float:
        """Return the arithmetic of local SGD's step over that of the shallowest sub-networks."""
        held = max(self.shallow, math.ceil(self.blocks / workers))
        return (self.trunk + self.blocks) / (self.trunk + held)


THIN = Scale(epochs=3, steps=1180, length=10, short=3, least=1, blocks=12, trunk=3.4, deep=9, shallow=3)
SCALES: dict[BudgetName, Scale] = {
    "minutes": THIN,
    "hours": replace(THIN, epochs=12, steps=4690),
    "paper": Scale(epochs=160, steps=15_600, length=50, short=15, least=5, blocks=22, trunk=10.3, deep=16, shallow=5),
}

EVALUATIONS = 6
"""During a run."""


def arithmetic(run: RunRecord, _: Goal) -> float | None:
    """Return the seconds in which workers computed, the mean over them."""
    return sum(line.seconds_compute for line in run.rounds) or None


ARITHMETIC = Measure(name="arithmetic", read=arithmetic, show=duration, noise=NOISE_OF_TIME, relative=True, own=True)


def _row(settings: ReproduceSettings, name: str, method: str, *, length: int, more: float = 1, **levers: Any) -> Case:
    """Return a row.

    Args:
        settings: the budget, and where images are.
        name: of the row.
        method: of training.
        length: l.
        more: samples, in those of the budget.
        levers: other settings; a dot in a name is two underscores.
    """
    scale = SCALES[settings.budget]
    rounds = more * scale.steps * 4 / settings.ranks / length
    levers |= {
        "epochs": round(more * scale.epochs, 2),
        "local_iterations": length,
        "evaluate_every": round(rounds / EVALUATIONS),
    }
    return Case(name=name, workers=settings.ranks, settings=cifar(settings, method, **levers))


def _rows(settings: ReproduceSettings) -> list[Case]:
    scale = SCALES[settings.budget]
    plain, best = scale.length, {**OUTER_MOMENTUM, "length": scale.short}
    cheap = {**best, **FEW_BITS}
    return [
        _row(settings, "local-sgd", "local-sgd", length=plain),
        _row(settings, "local-sgd, outer momentum", "local-sgd", length=plain, **OUTER_MOMENTUM),
        _row(settings, "local-sgd, its best", "local-sgd", **best),
        _row(
            settings, "local-sgd, few bits", "local-sgd", **OUTER_MOMENTUM, length=scale.least, exchange__trunk="int4"
        ),
        _row(settings, "resist", "resist", length=plain),
        _row(settings, "resist, outer momentum", "resist", length=plain, **OUTER_MOMENTUM),
        _row(settings, "resist, its best", "resist", min_blocks=scale.deep, **{**cheap, **SHARED_BLOCKS}),
        _row(
            settings,
            "resist, its best, in local SGD's arithmetic",
            "resist",
            more=scale.gain(settings.ranks),
            min_blocks=scale.shallow,
            **cheap,
        ),
    ]


AHEAD = Experiment(
    name="ahead",
    title="ResIST and local SGD, each at its best",
    source="",
    about="Both with all that they gain by, of one search on images kept out of training: with the same samples, where "
    "ResIST's workers have three quarters of the blocks, and outer momentum on them; and in the same arithmetic, where "
    "they have as few as can be, and more samples.",
    cases=_rows,
    measures=(ACCURACY, ARITHMETIC, SENT),
    lasts={"minutes": "55 min", "hours": "10 h"},
    curves=True,
)
