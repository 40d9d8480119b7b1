"""Theorem 3.1: the rate at which ResIST's loss falls on a wide network, beside the least that the theorem says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

from resist_hvd.reporting.reading import RunRecord
from resist_hvd.reproduction.experiment import Case, Experiment, Goal, Measure, bound_of
from resist_hvd.settings.reproduce import ReproduceSettings


def _number(name: str, *, flag: bool = False) -> Measure:
    """Return a measure of what this process computes: no run of training tells it."""

    def read(_: RunRecord, __: Goal) -> float | None:
        return None

    def show(value: float) -> str:
        return ("yes" if value else "no") if flag else f"{value:.3g}"

    return Measure(name=name, read=read, show=show, relative=True, own=not flag)


RATE = _number("share of the loss that a round takes")
LINEAR = _number("with the first Gram matrix")
LAMBDA = _number("λ_min, infinitely wide")
LAMBDA_WIDTH = _number("λ_min at this width")
FLOOR = _number("loss at the end, of the first")
HELD = _number("no loss above the line", flag=True)


def _measured(number: int, seed: int) -> Mapping[str, float]:
    """Return the numbers of one of the theory's cases; those that are not finite are left out."""
    from resist_hvd.theory.cases import cases
    from resist_hvd.theory.convergence import measure  # which needs PyTorch

    row = measure(list(cases())[number], seed=seed)
    numbers = {
        RATE.name: row.measured,
        bound_of(RATE): row.predicted,
        LINEAR.name: row.linear,
        LAMBDA.name: row.lambda_min,
        LAMBDA_WIDTH.name: row.lambda_width,
        FLOOR.name: row.floor,
        HELD.name: float(row.held),
        bound_of(HELD): 1.0,
    }
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _cases(_: ReproduceSettings) -> list[Case]:
    from resist_hvd.theory.cases import cases

    made = []
    for number, case in enumerate(cases()):
        shape, training = case.shape, case.training
        name = (
            f"{case.varied}: n = {case.samples}, m = {shape.width}, H = {shape.depth}, S = {training.workers}, "
            f"l = {training.local_iterations}, step {training.step:g}"
        )
        made.append(Case(name=name, workers=1, group=case.varied, computed=partial(_measured, number)))
    return made


THEOREM = Experiment(
    name="theorem",
    title="The rate of convergence on a wide network",
    source="Theorem 3.1",
    about="Squared loss on n points of the unit sphere; m is the width, H the depth, S the number of workers. The "
    "theorem: a round takes the share step · l · λ_min / 2 of the loss, or more, with λ_min the least eigenvalue of "
    "the Gram matrix of the last residual layer, if the network is wide and the step small enough. Shares are measured "
    "down to a thousandth of the first loss; below, the neighbourhood counts that the theorem speaks of. It holds "
    "where no round's loss is above the line of its share.",
    cases=_cases,
    measures=(RATE, LINEAR, LAMBDA, LAMBDA_WIDTH, FLOOR, HELD),
    compare="bound",
    lasts={"minutes": "5 min"},
    notes=("In one process: the S workers' rounds are made one after another, by the deal and the average of ResIST.",),
)
