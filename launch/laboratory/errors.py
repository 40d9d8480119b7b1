"""Errors of a lab that users see as a sentence, and commands whose failure becomes one."""

import os
import shlex
import subprocess
from pathlib import Path

DEFAULT_NAME = "lab"
NAME_VARIABLE = "RESIST_HVD_LAB"
"""The variable that names the lab of a command, and of whatever a command starts."""


def typed(command: str) -> str:
    """Return a command of launch/lab as a user has to type it for this lab."""
    verb, _, rest = command.partition(" ")
    name = os.environ.get(NAME_VARIABLE, DEFAULT_NAME)
    return " ".join(filter(None, ("launch/lab", verb, "" if name == DEFAULT_NAME else f"--name {name}", rest)))


class LabError(Exception):
    """Something that a user can mend.

    Args:
        seen: what was seen, a sentence without a full stop at its end.
        mend: what to do about it, sentences.
    """

    def __init__(self, seen: str, *, mend: str) -> None:
        super().__init__(f"{seen}. {mend}")


def do(*command: str | Path | int) -> str:
    """Run a system command to its end and return what it printed.

    Raises:
        LabError: the program is missing, or ended with a status that is not 0.
    """
    words = [str(word) for word in command]
    mend = f"`{typed('down')}` removes what is there."
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except OSError as error:
        raise LabError(f"{words[0]} cannot be run: {error.strerror}", mend=mend) from None
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split()) or f"status {done.returncode}"
        raise LabError(f"`{shlex.join(words)}` failed: {said}", mend=mend)
    return done.stdout
