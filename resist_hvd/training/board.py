"""TensorBoard's files: a convenience, which is passed over where it is not installed, and never ends a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from resist_hvd import console

FLUSH_SECONDS = 10
"""So many seconds of scalars are lost at most where a process is killed; TensorBoard's own default is two minutes."""


class Board:
    """Writes scalars for TensorBoard. Where that fails it says so once, and writes no more.

    Args:
        folder: where its files are.
        first_step: the step of the next scalar; what an earlier start wrote from there on is not shown.
    """

    def __init__(self, folder: Path, *, first_step: int) -> None:
        self._folder = folder
        self._writer: Any = None
        if find_spec("tensorboard") is not None:
            self._try(lambda: self._open(first_step))

    def _open(self, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._folder), purge_step=first_step, flush_secs=FLUSH_SECONDS)

    def add(self, scalars: Mapping[str, float], step: int) -> None:
        """Write scalars of a step."""
        if self._writer is not None:
            self._try(lambda: [self._writer.add_scalar(name, value, step) for name, value in scalars.items()])

    def close(self) -> None:
        """Write what is not written yet, and let go of the files."""
        if self._writer is not None:
            self._try(self._writer.close)
            self._writer = None

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # what a library, or what it is built on, raises where its install is broken
            self._writer = None
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            console.err(
                f"TensorBoard is left out from here on ({reason}) [{self._folder}]; the run goes on without it."
            )
