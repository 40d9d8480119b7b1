"""What a person sees of a run: a line a round, or on a terminal a bar that fills."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


def print_at_once(line: str) -> None:
    """Print a line that is seen when it is printed, through a pipe too."""
    print(line, flush=True)


class Lines:
    """A line for everything: what a file keeps, and what programs read.

    Args:
        printer: takes a line.
    """

    def __init__(self, printer: Callable[[str], None] = print_at_once) -> None:
        self._print = printer

    def round(self, line: str, *, done: int, total: int, loss: str) -> None:
        """Show that a round is done.

        Args:
            line: its account.
            done: rounds that are done.
            total: rounds of the whole run.
            loss: the round's, as text.
        """
        self.line(line)

    def line(self, text: str) -> None:
        """Show a line that stays."""
        self._print(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return


class Bar(Lines):
    """One line at a terminal's end for all rounds; other lines stay above it.

    Args:
        console: where it is drawn.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._progress = Progress(
            TextColumn("round {task.completed:,.0f}/{task.total:,.0f}"),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("loss {task.fields[loss]}"),
            console=console or Console(highlight=False),
            auto_refresh=False,
        )
        super().__init__(lambda text: self._progress.console.print(text, markup=False, highlight=False))

    def round(self, line: str, *, done: int, total: int, loss: str) -> None:
        """Move the bar."""
        if not self._progress.tasks:
            self._progress.start()
            # A process that is killed could not bring it back.
            self._progress.console.show_cursor(True)
            self._progress.add_task("", total=total, completed=done - 1, loss=loss)
        self._progress.update(self._progress.task_ids[0], completed=done, loss=loss.strip(), refresh=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()
