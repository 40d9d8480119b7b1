"""The account of a run: what ranks tell each other is agreed on, checked, and added to the run's progress.

All ranks call each function here together. What they return is a record, for the journal to write.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resist_hvd.comm.transport import BytesSent
from resist_hvd.protocol.partition import Partition
from resist_hvd.records import Evaluation, EvaluationRecord, ExtraTestRecord, RankSeconds, RoundRecord, Summary
from resist_hvd.training.divergence import diverged
from resist_hvd.training.run import Run, Training

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Round:
    """One rank's account of a round: seconds, and bytes of payload it sent in the synchronisation at its end.

    Of the synchronisation's seconds some are the exchange of blocks, and some the wait for the trunk's average after
    it. Seconds in which it went on beside steps are hidden, and none of these. Data-parallel training waits for
    averages in its steps: its `seconds_trunk` are of `seconds_compute`. What the first step of a network takes to be
    compiled (`seconds_prepare`) is none of these.
    """

    number: int
    iterations: int
    losses: Tensor
    lr: float
    seconds_data: float
    seconds_compute: float
    seconds_sync: float
    seconds_hidden: float
    seconds_prepare: float
    seconds_trunk: float
    seconds_blocks: float
    bytes_sent: BytesSent
    overlap: int
    partition: Partition


class Message(NamedTuple, Generic[T]):
    """The numbers that ranks tell each other at the end of a round: one rank's, each a mean or a sum, or arrays of all.

    Attributes:
        diverged_at: the first local iteration whose loss is not finite, -1 where all are.
    """

    loss: T
    seconds_compute: T
    seconds_data: T
    seconds_sync: T
    seconds_hidden: T
    seconds_prepare: T
    seconds_trunk: T
    seconds_blocks: T
    bytes_trunk: T
    bytes_blocks: T
    diverged_at: T
    stop_signal: T


def add_round(run: Training, done: Round) -> RoundRecord:
    """Add a round to the run's progress; return its record: seconds and loss averaged over ranks, bytes summed.

    Raises:
        UserError: on every rank, where the loss of one was not finite.
    """
    everyone = run.world.gather(message_of(run, done))
    of_ranks = Message[NDArray[np.float64]](*everyone.T)
    mean = Message[float](*everyone.mean(axis=0).tolist())
    run.stop_signal = int(of_ranks.stop_signal.max())
    refuse_diverged(run, done, of_ranks.diverged_at)
    trunk, blocks = int(of_ranks.bytes_trunk.sum()), int(of_ranks.bytes_blocks.sum())
    record = RoundRecord(
        round=done.number,
        iterations=done.iterations,
        loss=mean.loss,
        lr=done.lr,
        seconds_compute=mean.seconds_compute,
        seconds_data=mean.seconds_data,
        seconds_sync=mean.seconds_sync,
        seconds_hidden=mean.seconds_hidden or None,
        bytes_sent=trunk + blocks,
        bytes_trunk=trunk,
        bytes_blocks=blocks,
        seconds_prepare=float(of_ranks.seconds_prepare.max()) or None,
        overlap=done.overlap or None,
        partition=done.partition.held,
        ranks=RankSeconds(
            **{name.name: tuple(getattr(of_ranks, name.name).round(6).tolist()) for name in fields(RankSeconds)}
        ),
    )
    progress = run.progress
    progress.round += 1
    progress.seconds += record.seconds
    progress.seconds_compute += record.seconds_compute
    progress.seconds_data += record.seconds_data
    progress.seconds_sync += record.seconds_sync
    progress.seconds_hidden += record.seconds_hidden or 0.0
    progress.bytes_sent += record.bytes_sent
    return record


def message_of(run: Training, done: Round) -> Message[float]:
    """Return what this rank tells the others of a round."""
    losses = done.losses.double().cpu()
    bad = (~torch.isfinite(losses)).nonzero().flatten().tolist()
    return Message(
        loss=losses.mean().item(),
        seconds_compute=done.seconds_compute,
        seconds_data=done.seconds_data,
        seconds_sync=done.seconds_sync,
        seconds_hidden=done.seconds_hidden,
        seconds_prepare=done.seconds_prepare,
        seconds_trunk=done.seconds_trunk,
        seconds_blocks=done.seconds_blocks,
        bytes_trunk=done.bytes_sent.trunk,
        bytes_blocks=done.bytes_sent.blocks,
        diverged_at=bad[0] if bad else -1,
        stop_signal=run.world.stop.signal,
    )


def refuse_diverged(run: Training, done: Round, diverged_at: NDArray[np.float64]) -> None:
    """Raise what ends a run in which a rank's loss is not finite.

    Args:
        run: the run.
        done: the round.
        diverged_at: every rank's first such iteration, -1 where there is none.

    Raises:
        UserError: on every rank, naming the first of these ranks.
    """
    world = run.world
    for rank, iteration in enumerate(diverged_at.astype(int)):
        if iteration >= 0:
            host = world.gather_objects(world.host)[rank]
            when = f"round {done.number + 1}, local iteration {iteration + 1}"
            raise diverged("The loss", where=f"rank {rank} of {world.size} on {host}, {when}")


def add_evaluation(run: Run, found: Evaluation) -> EvaluationRecord:
    """Add an evaluation on the run's own test set to the run's progress, and return its record.

    Raises:
        UserError: on every rank, where its loss is not finite.
    """
    progress = run.progress
    run.stop_signal = int(run.world.gather([run.world.stop.signal]).max())
    refuse_infinite("The loss on the test set", found, run)
    progress.evaluated_round = progress.round
    progress.accuracy = found.figure
    progress.best_accuracy = max(found.figure, progress.best_accuracy or 0.0)
    return EvaluationRecord(
        round=progress.round,
        epoch=progress.samples / run.source.spec.train_size,
        samples=progress.samples,
        seconds=progress.seconds,
        bytes_sent=progress.bytes_sent,
        **figures_of(found),
    )


def figures_of(found: Evaluation) -> dict[str, Any]:
    """Return an evaluation's figures by their names in records."""
    return {each.name: getattr(found, each.name) for each in fields(found) if each.name != "images"}


def extra_test(run: Run, name: str, found: Evaluation) -> ExtraTestRecord:
    """Return the record of an evaluation of the trained network on a further test set.

    Raises:
        UserError: on every rank, where its loss is not finite.
    """
    refuse_infinite(f"The loss on {name}", found, run)
    return ExtraTestRecord(round=run.progress.round, test=name, images=found.images, **figures_of(found))


def refuse_infinite(what: str, found: Evaluation, run: Run) -> None:
    """Raise what ends a run whose trained network has a loss that is not finite.

    Raises:
        UserError: on every rank.
    """
    if not math.isfinite(found.loss):
        raise diverged(what, where=f"all ranks, after round {run.progress.round}")


def summary_of(
    run: Run, peak_memory_bytes: Sequence[int], broken_files: Mapping[str, str], extra_tests: Mapping[str, Evaluation]
) -> Summary:
    """Return a run's summary at its end.

    Args:
        run: the run.
        peak_memory_bytes: each rank's.
        broken_files: the fault of each image file that was passed over, over all ranks.
        extra_tests: the evaluation on each further test set, by its name.
    """
    progress, detects = run.progress, run.settings.task_name == "detection"
    return Summary(
        method=run.settings.method,
        workers=run.world.size,
        rounds=progress.round,
        samples=progress.samples,
        accuracy=None if detects else progress.accuracy,
        best_accuracy=None if detects else progress.best_accuracy,
        mean_average_precision=progress.accuracy if detects else None,
        best_mean_average_precision=progress.best_accuracy if detects else None,
        seconds=progress.seconds,
        seconds_compute=progress.seconds_compute,
        seconds_data=progress.seconds_data,
        seconds_sync=progress.seconds_sync,
        seconds_hidden=progress.seconds_hidden or None,
        bytes_sent=progress.bytes_sent,
        parameters_global=run.method.setup.network.parameters,
        parameters_worker=run.method.subnet.parameters_flat.numel(),
        peak_memory_bytes=tuple(peak_memory_bytes),
        broken_files=dict(broken_files),
        extra_tests=dict(extra_tests) or None,
    )
