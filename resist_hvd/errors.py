"""The exceptions that are shown to a user as a sentence, without a traceback: a mistake to mend, a run told to stop."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

from resist_hvd import console


class UserError(Exception):
    """Something the user can mend: a wrong setting, a missing folder, a damaged checkpoint, an unsound launch.

    The entry points print it as one message and end with a nonzero status; everything else that is raised is a
    defect of ours and keeps its traceback.

    Args:
        seen: what was seen, a sentence without a full stop at its end.
        mend: what to do about it, an imperative sentence.
        where: the rank, host, file, setting or round it was seen at.
        everywhere: whether every rank raises it together; if not, the rank that does takes the world down.
    """

    exit_status = 2

    def __init__(self, seen: str, *, mend: str, where: str = "", everywhere: bool = False) -> None:
        self.seen = seen
        self.mend = mend
        self.where = where
        self.everywhere = everywhere
        super().__init__(str(self))

    def __str__(self) -> str:
        where = f" [{self.where}]" if self.where else ""
        return f"{self.seen}{where}. {self.mend}"


class Stopped(Exception):
    """A run was told to stop, and has: on every rank together, with everything saved. It is no error.

    Args:
        sentence: by what it was stopped, where it stands, and how to go on with it.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)


def run_alone(program: Callable[[], None]) -> None:
    """Run the main function of a program that is one process, and end it as it deserves: a mistake is a sentence."""
    console.guard()
    try:
        program()
    except UserError as error:
        console.err(f"resist_hvd: {error}")
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
