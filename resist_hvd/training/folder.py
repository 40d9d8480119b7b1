"""A run's folder: making it, and which checkpoints lie in it."""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from itertools import count
from pathlib import Path

from resist_hvd.comm.world import World
from resist_hvd.errors import UserError
from resist_hvd.training.disk import disk_errors


def make_folder(folder: Path | None, name: str, world: World) -> Path:
    """Return a run's folder, which rank 0 has made if it was not there; all ranks must call it together.

    Args:
        folder: the one to take; None for a new one under `runs`, which no other run has.
        name: what a new one's name begins with; the time follows.
        world: all ranks.

    Raises:
        UserError: it cannot be made.
    """
    with world.agree("opening the run's folder"), disk_errors(folder or Path("runs")):
        if world.is_first and folder is None:
            folder = new_folder(f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
        elif world.is_first and folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "", str(folder))
    return world.broadcast_object(folder or Path())


def new_folder(name: str) -> Path:
    """Return a folder under `runs` that this call has made: of a name, or of one with a number after it."""
    Path("runs").mkdir(exist_ok=True)
    for number in count(1):
        folder = Path("runs") / (name if number == 1 else f"{name}-{number}")
        with suppress(FileExistsError):
            folder.mkdir()
            break
    return folder


RESULTS = (
    "rounds.jsonl",
    "eval.jsonl",
    "extra_tests.jsonl",
    "summary.json",
    "trace.json",
    "model.json",
    "model.safetensors",
    "members",
)
"""Names of a run's results in its folder, beside its checkpoints and its settings."""


def set_aside(folder: Path) -> Path | None:
    """Move the results and settings of a run that left no checkpoint into a folder of their own; return it, if any.

    Raises:
        OSError: they cannot be moved.
    """
    found = [name for name in RESULTS if os.path.lexists(folder / name)]
    if not found:
        return None
    for number in count(1):
        aside = folder / f"earlier-{number}"
        with suppress(FileExistsError):
            aside.mkdir()
            break
    for name in (*found, "config.yaml"):
        with suppress(FileNotFoundError):
            (folder / name).rename(aside / name)
    return aside


def complete(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder `checkpoints`, the newest first; none where there is no such folder.

    Raises:
        UserError: there is one, but what is in it cannot be seen.
    """
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        if not folder.is_symlink():
            return []
        raise unseen(folder, "it is a link to a place that does not exist") from None
    except OSError as error:
        raise unseen(folder, error.strerror or str(error)) from None
    numbers = {name: name.removeprefix("round-") for name in names if name.startswith("round-")}
    found = [name for name, number in numbers.items() if number.isdecimal()]
    return [folder / name for name in sorted(found, key=lambda name: int(numbers[name]), reverse=True)]


def unseen(folder: Path, why: str) -> UserError:
    """Return the error that says that there may be checkpoints which cannot be seen."""
    return UserError(
        f"The run's checkpoints cannot be seen: {why}",
        where=str(folder),
        mend="Mount its disk, or have its owner make it readable, then resume; nothing was changed.",
    )


def round_of(checkpoint: Path) -> int:
    """Return the round after which a checkpoint in a folder was written."""
    return int(checkpoint.name.removeprefix("round-"))
