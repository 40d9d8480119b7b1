"""The journal of a run: its records on the console, in the files of its folder, and for TensorBoard."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from resist_hvd import console
from resist_hvd.errors import Stopped, UserError
from resist_hvd.json_record import Record
from resist_hvd.records import EvaluationRecord, ExtraTestRecord, RoundRecord, Summary, round_of
from resist_hvd.training.board import Board
from resist_hvd.training.disk import append, disk_errors, write_whole
from resist_hvd.training.display import Bar, Lines, bar_is_of_use
from resist_hvd.training.pace import Pace
from resist_hvd.training.run import Run
from resist_hvd.training.trace import trace_of
from resist_hvd.units import remaining


class Journal:
    """Writes what it is handed. Every rank has one, for a trace is everybody's; rank 0's alone writes all else.

    Args:
        run: the run.
        printer: takes a line for the console; by default a person at a terminal sees a bar, and all others lines.

    Attributes:
        display: what is shown, a context manager that the training runs in.
    """

    def __init__(self, run: Run, printer: Callable[[str], None] | None = None) -> None:
        self.run = run
        if printer is not None:
            self.display = Lines(printer)
        else:
            self.display = Bar() if run.world.is_first and bar_is_of_use() else Lines()
        first_step = run.progress.round + 1
        self._board = Board(run.folder / "tensorboard", first_step=first_step) if run.world.is_first else None
        self._trace = trace_of(run)
        self._pace = Pace()

    def round(self, record: RoundRecord) -> None:
        """Write a round; all ranks must call it together.

        Raises:
            UserError: a file cannot be written: on rank 0, or on every rank if it is the trace.
        """
        self._append("rounds.jsonl", record)
        if self.run.world.is_first:
            done, total = record.round + 1, self.run.rounds()
            self._pace.round_done(record.seconds)
            left = self._pace.left(total - done)
            if record.seconds_prepare:
                self.display.line(f"  prepared the first step in {record.seconds_prepare:.1f} s")
            self.display.round(
                line_of(record, total),
                done=done,
                total=total,
                loss=figure(record.loss),
                left=remaining(left) if left else "",
            )
            scalars = {"loss": record.loss, "lr": record.lr}
            self._to_board(done, scalars | {"bytes_sent": record.bytes_sent, "seconds_sync": record.seconds_sync})
        if self._trace is not None:
            self._trace.round_done()

    def evaluation(self, record: EvaluationRecord) -> None:
        """Write an evaluation on the run's own test set.

        Raises:
            UserError: on rank 0, where the file cannot be written.
        """
        self._append("eval.jsonl", record)
        if self.run.world.is_first:
            self.display.line(
                f"  evaluated after round {record.round:>5}  epoch {record.epoch:7.2f}  "
                f"{record.figure_name} {record.figure:6.2f} %  loss {figure(record.loss)}"
            )
            self._to_board(record.round, {record.figure_name: record.figure, "test_loss": record.loss})

    def remark(self, sentence: str) -> None:
        """Show a sentence on the console."""
        if self.run.world.is_first:
            self.display.line(f"  {sentence}")

    def extra_test(self, record: ExtraTestRecord) -> None:
        """Write an evaluation on a further test set.

        Raises:
            UserError: on rank 0, where the file cannot be written.
        """
        self._append("extra_tests.jsonl", record)
        if self.run.world.is_first:
            self.display.line(
                f"  {record.test}, {record.images:,} images: {record.figure_name} {record.figure:6.2f} %  "
                f"loss {figure(record.loss)}"
            )
            scalars = {f"{record.figure_name}/{record.test}": record.figure, f"test_loss/{record.test}": record.loss}
            self._to_board(record.round, scalars)

    def summary(self, summary: Summary) -> None:
        """Write `summary.json`.

        Raises:
            UserError: on rank 0, where the file cannot be written.
        """
        world, path = self.run.world, self.run.folder / "summary.json"
        if world.is_first:
            with world.activity.long_limit_for("writing the summary"), disk_errors(self.run.folder):
                write_whole(path, summary.as_text())

    def _append(self, name: str, record: Record) -> None:
        if self.run.world.is_first:
            path = self.run.folder / name
            with self.run.world.activity.long_limit_for(f"writing {name}"), disk_errors(path):
                append(path, record.as_line())

    def _to_board(self, step: int, scalars: dict[str, float]) -> None:
        if self._board is not None:
            self._board.add(scalars, step)

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


def line_of(record: RoundRecord, rounds: int) -> str:
    """Return a round's line on the console, of a run of so many rounds."""
    hidden = f"hidden {record.seconds_hidden:6.3f} s  " if record.seconds_hidden else ""
    return (
        f"round {record.round + 1:>{len(str(rounds))}}/{rounds}  loss {figure(record.loss)}  "
        f"lr {figure(record.lr)}  compute {record.seconds_compute:7.3f} s  "
        f"data {record.seconds_data:6.3f} s  sync {record.seconds_sync:6.3f} s  {hidden}"
        f"sent {record.bytes_sent / 1e6:8.2f} MB"
    )


def figure(value: float) -> str:
    """Return a number of any size in seven characters."""
    return f"{value:7.4f}" if value == 0 or 1e-3 <= abs(value) < 100 else f"{value:7.1e}"


def keep_lines_before(path: Path, *, round_number: int, inclusive: bool) -> None:
    """Cut a run's file of lines to the rounds that a checkpoint knows of, so that what follows repeats none.

    Args:
        path: rounds.jsonl or eval.jsonl; a last line that was cut short is dropped too.
        round_number: the checkpoint's.
        inclusive: whether a line of that very round stays.

    Raises:
        OSError: it cannot be read or written.
    """
    if not path.exists():
        return
    end = round_number + inclusive
    lines = path.read_text(errors="replace").splitlines()
    write_whole(path, "".join(f"{line}\n" for line in lines if (number := round_of(line)) is not None and number < end))
