"""Display of a run to a person: a line a round, or on a terminal a bar that fills."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from resist_hvd import console
from resist_hvd.comm.launch import person_watches


def bar_is_of_use() -> bool:
    """Return whether a person watches, at a terminal that can draw over what it has drawn."""
    return person_watches() and os.environ.get("TERM", "").lower() not in ("", "dumb", "unknown")


class Lines:
    """A line for everything: what a file keeps, and what programs read.

    Args:
        printer: takes a line.
    """

    def __init__(self, printer: Callable[[str], None] = console.out) -> None:
        self._print = printer

    def round(self, line: str, *, done: int, total: int, loss: str, left: str = "") -> None:
        """Show that a round is done.

        Args:
            line: its account.
            done: rounds that are done.
            total: rounds of the whole run.
            loss: the round's, as text.
            left: the time that the rest will take, as text; empty while it is not known.
        """
        self.line(f"{line}  left {left}" if left else line)

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
        screen: where it is drawn.
    """

    def __init__(self, screen: Console | None = None) -> None:
        self._progress = Progress(
            TextColumn("round {task.completed:,.0f}/{task.total:,.0f}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[left]}"),
            console=screen or console.screen(),
            auto_refresh=False,
        )
        super().__init__(self._above)

    def _above(self, text: str) -> None:
        console.keep(text)
        self._progress.console.print(console.printable(text), markup=False, emoji=False, highlight=False)

    def round(self, line: str, *, done: int, total: int, loss: str, left: str = "") -> None:
        """Move the bar; the line itself goes into the log only."""
        console.keep(line)
        left = f"left {left}" if left else ""
        if not self._progress.tasks:
            self._progress.start()
            # A process that is killed could not bring it back.
            self._progress.console.show_cursor(True)
            self._progress.add_task("", total=total, completed=done - 1, loss=loss, left=left)
        self._progress.update(self._progress.task_ids[0], completed=done, loss=loss.strip(), left=left, refresh=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()
