"""A run's account: a line a round on the console, and the files of its folder.

Rounds are counted from 1 wherever a person reads them: on the console, in TensorBoard, in reports, in messages. A line
of `rounds.jsonl` is of round number `round`, counted from 0. Where something is so after rounds (`eval.jsonl`,
`extra_tests.jsonl`, a checkpoint's name), `round` is how many are done.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from resist_hvd import console
from resist_hvd.comm.transport import BytesSent
from resist_hvd.errors import Stopped, UserError
from resist_hvd.models.resnet import count_parameters
from resist_hvd.protocol.partition import Partition
from resist_hvd.training.board import Board
from resist_hvd.training.disk import append, disk_errors, write_whole
from resist_hvd.training.display import Bar, Lines, bar_is_of_use
from resist_hvd.training.divergence import diverged
from resist_hvd.training.evaluate import Evaluation
from resist_hvd.training.pace import Pace
from resist_hvd.training.run import Run
from resist_hvd.training.trace import trace_of
from resist_hvd.units import remaining


@dataclass(frozen=True, kw_only=True)
class Round:
    """One rank's account of a round: seconds, and bytes of payload it sent in the synchronisation at its end.

    Of the synchronisation's seconds some are the exchange of blocks, and some the wait for the trunk's average after
    it. Data-parallel training waits for averages in its steps: its `seconds_trunk` are of `seconds_compute`. What the
    first step of a network takes to be compiled (`seconds_prepare`) is none of these.
    """

    number: int
    iterations: int
    losses: Tensor
    lr: float
    seconds_data: float
    seconds_compute: float
    seconds_sync: float
    seconds_trunk: float
    seconds_blocks: float
    bytes_sent: BytesSent
    partition: Partition
    seconds_prepare: float = 0.0


SECONDS = ("seconds_compute", "seconds_data", "seconds_sync")
"""Parts of a round's seconds."""

RANK_COLUMNS = {"seconds_compute": 1, "seconds_data": 2, "seconds_sync": 3, "seconds_trunk": 8, "seconds_blocks": 9}
"""Entries of a round's line for each rank, and their columns in the gathered accounts."""


class Telemetry:
    """Gathers every rank's account of a round, and has rank 0 write it down.

    Args:
        run: the run; its progress is kept here.
        printer: takes a line for the console; by default a person at a terminal sees a bar, and all others lines.

    Attributes:
        display: what is shown, a context manager that the training runs in.
        stop_signal: the signal by which any rank was told to stop, 0 if none was: the same on all ranks.
    """

    def __init__(self, run: Run, printer: Callable[[str], None] | None = None) -> None:
        self.run = run
        self.stop_signal = 0
        self._extra_tests: dict[str, dict[str, float]] = {}
        if printer is not None:
            self.display = Lines(printer)
        else:
            self.display = Bar() if run.world.is_first and bar_is_of_use() else Lines()
        first_step = run.progress.round + 1
        self._board = Board(run.folder / "tensorboard", first_step=first_step) if run.world.is_first else None
        self._trace = trace_of(run)
        self._pace = Pace()

    def record(self, done: Round) -> None:
        """Add a round to the run's progress and files; all ranks must call it together.

        Raises:
            UserError: on every rank, where the loss of one was not finite.
        """
        run, progress = self.run, self.run.progress
        account = self._gather(done)
        progress.round += 1
        for name in SECONDS:
            setattr(progress, name, getattr(progress, name) + account[name])
            progress.seconds += account[name]
        progress.bytes_sent += account["bytes_sent"]
        ranks = account.pop("ranks")
        self._append("rounds.jsonl", {**account, "partition": done.partition.held, "ranks": ranks})
        if run.world.is_first:
            self._pace.round_done(sum(account[name] for name in SECONDS))
            total = run.rounds()
            left = self._pace.left(total - progress.round)
            if "seconds_prepare" in account:
                self.display.line(f"  prepared the first step in {account['seconds_prepare']:.1f} s")
            self.display.round(
                self._line(account),
                done=progress.round,
                total=total,
                loss=figure(account["loss"]),
                left=remaining(left) if left else "",
            )
            self._to_board({name: account[name] for name in ("loss", "lr", "bytes_sent", "seconds_sync")})
        if self._trace is not None:
            self._trace.round_done()

    def _gather(self, done: Round) -> dict[str, Any]:
        """Return the round's account over all ranks: seconds and loss averaged, bytes summed."""
        world = self.run.world
        losses = done.losses.double().cpu()
        bad = (~torch.isfinite(losses)).nonzero().flatten().tolist()
        everyone = world.gather(
            [
                losses.mean().item(),
                done.seconds_compute,
                done.seconds_data,
                done.seconds_sync,
                done.bytes_sent.trunk,
                done.bytes_sent.blocks,
                bad[0] if bad else -1,
                world.stop_signal,
                done.seconds_trunk,
                done.seconds_blocks,
                done.seconds_prepare,
            ]
        )
        self.stop_signal = int(everyone[:, 7].max())
        for rank, iteration in enumerate(everyone[:, 6].astype(int)):
            if iteration >= 0:
                host = world.gather_objects(world.host)[rank]
                when = f"round {done.number + 1}, local iteration {iteration + 1}"
                raise diverged("The loss", where=f"rank {rank} of {world.size} on {host}, {when}")
        loss, compute, data, sync = everyone[:, :4].mean(axis=0).tolist()
        trunk, blocks = (int(total) for total in everyone[:, 4:6].sum(axis=0))
        prepared = everyone[:, 10].max()
        return {
            "round": done.number,
            "iterations": done.iterations,
            "loss": loss,
            "lr": done.lr,
            "seconds_compute": compute,
            "seconds_data": data,
            "seconds_sync": sync,
            "bytes_sent": trunk + blocks,
            "bytes_trunk": trunk,
            "bytes_blocks": blocks,
            **({"seconds_prepare": prepared} if prepared else {}),
            "ranks": {name: everyone[:, column].round(6).tolist() for name, column in RANK_COLUMNS.items()},
        }

    def evaluated(self, evaluation: Evaluation) -> None:
        """Note an evaluation of the global model in the run's progress and files; all ranks must call it together.

        Raises:
            UserError: on every rank, where its loss is not finite.
        """
        run, progress = self.run, self.run.progress
        self.stop_signal = int(run.world.gather([run.world.stop_signal]).max())
        if not math.isfinite(evaluation.loss):
            raise diverged("The loss on the test set", where=f"all ranks, after round {progress.round}")
        progress.evaluated_round = progress.round
        progress.accuracy = evaluation.accuracy
        progress.best_accuracy = max(evaluation.accuracy, progress.best_accuracy or 0.0)
        epoch = progress.samples / run.source.spec.train_size
        self._append(
            "eval.jsonl",
            {
                "round": progress.round,
                "epoch": epoch,
                "samples": progress.samples,
                "seconds": progress.seconds,
                "bytes_sent": progress.bytes_sent,
                "accuracy": evaluation.accuracy,
                "loss": evaluation.loss,
            },
        )
        if run.world.is_first:
            self.display.line(
                f"  evaluated after round {progress.round:>5}  epoch {epoch:7.2f}  "
                f"accuracy {evaluation.accuracy:6.2f} %  loss {figure(evaluation.loss)}"
            )
            self._to_board({"accuracy": evaluation.accuracy, "test_loss": evaluation.loss})

    def evaluated_extra(self, found: Mapping[str, Evaluation]) -> None:
        """Note what the trained network does on further test sets, each by itself: `extra_tests.jsonl`, the summary.

        Raises:
            UserError: on every rank, where a loss is not finite.
        """
        run, progress = self.run, self.run.progress
        for name, evaluation in found.items():
            if not math.isfinite(evaluation.loss):
                raise diverged(f"The loss on {name}", where=f"all ranks, after round {progress.round}")
            result = asdict(evaluation)
            self._extra_tests[name] = result
            self._append("extra_tests.jsonl", {"round": progress.round, "test": name, **result})
            if run.world.is_first:
                self.display.line(
                    f"  {name}, {evaluation.images:,} images: accuracy {evaluation.accuracy:6.2f} %  "
                    f"loss {figure(evaluation.loss)}"
                )
                self._to_board({f"accuracy/{name}": evaluation.accuracy, f"test_loss/{name}": evaluation.loss})

    def summarise(self, peak_memory_bytes: list[int], broken_files: dict[str, str]) -> dict[str, Any]:
        """Write `summary.json`, and return it.

        Args:
            peak_memory_bytes: each rank's.
            broken_files: what is wrong with each image file that was passed over, over all ranks.

        Raises:
            UserError: on rank 0, where the file cannot be written.
        """
        run, progress = self.run, self.run.progress
        summary: dict[str, Any] = {
            "method": run.settings.method,
            "workers": run.world.size,
            "rounds": progress.round,
            "samples": progress.samples,
            "accuracy": progress.accuracy,
            "best_accuracy": progress.best_accuracy,
            "seconds": progress.seconds,
            "seconds_compute": progress.seconds_compute,
            "seconds_data": progress.seconds_data,
            "seconds_sync": progress.seconds_sync,
            "bytes_sent": progress.bytes_sent,
            "parameters_global": count_parameters(run.method.subnet.architecture),
            "parameters_worker": run.method.subnet.parameters_flat.numel(),
            "peak_memory_bytes": peak_memory_bytes,
            "broken_files": broken_files,
        }
        if self._extra_tests:
            summary["extra_tests"] = self._extra_tests
        if run.world.is_first:
            with run.world.activity.unhurried_for("writing the summary"), disk_errors(run.folder):
                write_whole(run.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        return summary

    def _line(self, account: dict[str, Any]) -> str:
        rounds = self.run.rounds()
        return (
            f"round {account['round'] + 1:>{len(str(rounds))}}/{rounds}  loss {figure(account['loss'])}  "
            f"lr {figure(account['lr'])}  compute {account['seconds_compute']:7.3f} s  "
            f"data {account['seconds_data']:6.3f} s  sync {account['seconds_sync']:6.3f} s  "
            f"sent {account['bytes_sent'] / 1e6:8.2f} MB"
        )

    def _append(self, name: str, entry: dict[str, Any]) -> None:
        if self.run.world.is_first:
            path = self.run.folder / name
            with self.run.world.activity.unhurried_for(f"writing {name}"), disk_errors(path):
                append(path, json.dumps(entry) + "\n")

    def _to_board(self, scalars: dict[str, float]) -> None:
        if self._board is not None:
            self._board.add(scalars, self.run.progress.round)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let go of the files, however the run ends; where it ends for all ranks together, write the trace, too."""
        together = isinstance(error, Stopped) or (isinstance(error, UserError) and error.everywhere)
        try:
            if self._trace is not None and (error is None or together):
                self._trace.write()
        except UserError as unwritten:
            if error is None:
                raise
            if self.run.world.is_first:  # what ends the run is to be told, and its status given
                console.err(f"There is no trace: {unwritten}")
        finally:
            if self._board is not None:
                self._board.close()


def figure(value: float) -> str:
    """Return a number of any size in seven characters."""
    return f"{value:7.4f}" if value == 0 or 1e-3 <= abs(value) < 100 else f"{value:7.1e}"


def keep_lines_before(path: Path, *, round_number: int, inclusive: bool) -> None:
    """Cut a run's file of lines to the rounds that a checkpoint knows of, so that what follows repeats none.

    Args:
        path: rounds.jsonl or eval.jsonl; a last line that was cut short is dropped too.
        round_number: the checkpoint's.
        inclusive: whether a line of that very round stays.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            number = json.loads(line)["round"]
            if number < round_number or (inclusive and number == round_number):
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    write_whole(path, "".join(kept))
