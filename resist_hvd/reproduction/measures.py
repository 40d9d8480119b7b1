"""Numbers that are read of runs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from resist_hvd.records import EvaluationRecord
from resist_hvd.reporting.reading import RunRecord
from resist_hvd.reproduction.experiment import Goal, Measure
from resist_hvd.units import duration, scaled

BYTES_OF_A_PARAMETER = 8
"""In the paper's convention: float32, once up and once down for each worker that holds it."""

NOISE_OF_A_SEED = 1.6
"""Percentage points: the difference between two runs of the thin network of one seed each that means nothing."""

NOISE_OF_TIME = 0.1


def accuracy(run: RunRecord, _: Goal) -> float | None:
    """Return the accuracy of the last evaluation, in percent."""
    return run.evaluations[-1].figure if run.evaluations else None


def best_accuracy(run: RunRecord, _: Goal) -> float | None:
    """Return the best accuracy of all evaluations, in percent, as the paper reports it."""
    return max((line.figure for line in run.evaluations), default=None)


def least_test_loss(run: RunRecord, _: Goal) -> float | None:
    """Return the best test loss of all evaluations, as the paper reports it of detectors."""
    return min((line.loss for line in run.evaluations), default=None)


def precision(run: RunRecord, _: Goal) -> float | None:
    """Return a detector's mean average precision at the last evaluation, in percent."""
    return run.evaluations[-1].mean_average_precision if run.evaluations else None


def seconds(run: RunRecord, _: Goal) -> float | None:
    """Return the seconds of training."""
    return run.seconds or None


def bytes_sent(run: RunRecord, _: Goal) -> float | None:
    """Return the payload of the whole run, summed over workers."""
    return float(run.bytes_sent) if run.rounds else None


def bytes_a_round(run: RunRecord, _: Goal) -> float | None:
    """Return the payload of a round, summed over workers: the mean but for the last, which is followed by none."""
    rounds = run.rounds[:-1] or run.rounds
    return sum(line.bytes_sent for line in rounds) / len(rounds) if rounds else None


def papers_bytes_a_round(run: RunRecord, _: Goal) -> float | None:
    """Return a round's bytes in the paper's convention, of the blocks that workers held and the network's sizes.

    8 bytes for each parameter of each worker's network.
    """
    if run.summary is None or not run.rounds:
        return None
    whole, first = run.summary.parameters_global, run.summary.parameters_worker
    partitions = [line.partition for line in run.rounds]
    blocks = 1 + max(max(held, default=-1) for held in partitions[0])
    left_out = blocks - len(partitions[0][0])
    block = (whole - first) / left_out if left_out else 0.0
    parameters = [sum(whole - block * (blocks - len(held)) for held in partition) for partition in partitions]
    return BYTES_OF_A_PARAMETER * sum(parameters) / len(parameters)


def reach(run: RunRecord, goal: Goal, value: Callable[[EvaluationRecord], float]) -> float | None:
    """Return what a run had taken when it came to the goal's accuracy, linearly between two evaluations."""
    if goal.accuracy is None or not run.evaluations:
        return None
    for before, after in pairwise([None, *run.evaluations]):
        assert after is not None
        if after.figure >= goal.accuracy:
            if before is None:
                return value(after)
            share = (goal.accuracy - before.figure) / (after.figure - before.figure)
            return value(before) + share * (value(after) - value(before))
    return None


def percent(value: float) -> str:
    """Return an accuracy as people read it."""
    return f"{value:.2f}"


def gigabytes(value: float) -> str:
    """Return bytes in the unit that suits them."""
    return scaled(value, "B")


ACCURACY = Measure(name="accuracy, %", read=accuracy, show=percent, noise=NOISE_OF_A_SEED)
TEST_LOSS = Measure(
    name="least test loss", read=least_test_loss, show=lambda value: f"{value:.3f}", noise=0.05, relative=True
)
PRECISION = Measure(name="mAP, %", read=precision, show=percent, noise=3.0, own=True)
SECONDS = Measure(name="training", read=seconds, show=duration, noise=NOISE_OF_TIME, relative=True)
SENT = Measure(name="sent", read=bytes_sent, show=gigabytes, relative=True)
SENT_A_ROUND = Measure(name="sent a round", read=bytes_a_round, show=gigabytes, relative=True, own=True)
PAPERS_ROUND = Measure(name="a round, as the paper counts", read=papers_bytes_a_round, show=gigabytes, relative=True)
BYTES_TO_GOAL = Measure(
    name="sent to the same accuracy",
    read=lambda run, goal: reach(run, goal, lambda line: float(line.bytes_sent)),
    show=gigabytes,
    noise=0.05,
    relative=True,
    to_goal=True,
)
SECONDS_TO_GOAL = Measure(
    name="training to the same accuracy",
    read=lambda run, goal: reach(run, goal, lambda line: line.seconds),
    show=duration,
    noise=NOISE_OF_TIME,
    relative=True,
    to_goal=True,
)
ROUNDS_TO_GOAL = Measure(
    name="rounds to the same accuracy",
    read=lambda run, goal: reach(run, goal, lambda line: float(line.round)),
    show=lambda value: f"{value:.1f}",
    noise=0.1,
    relative=True,
    to_goal=True,
    own=True,
)
