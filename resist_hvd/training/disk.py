"""Files that are whole or not there at all, and what the operating system says when they cannot be written."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from resist_hvd.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the operating system says where there is no room: on the disk, in a quota, in what a file may grow to."""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says against a file into a sentence.

    Args:
        path: what is being written; an error that names another file says that one.

    Raises:
        UserError: a file could not be written.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        if found := re.search(r"\(os error (\d+)\)", str(error)):
            number = int(found[1])
        mend = (
            "Free space there, then go on with --resume." if number in FULL else "Give an --output that can be written."
        )
        raise UserError(
            f"Cannot write: {os.strerror(number) if number else error}",
            where=str(getattr(error, "filename", None) or path),
            mend=f"{mend} What was saved before is untouched.",
        ) from None


@contextmanager
def removed_on_failure(path: Path) -> Iterator[None]:
    """Leave no part of a file behind, on a disk that may be full of it, where a `UserError` says that it failed."""
    try:
        yield
    except UserError:
        path.unlink(missing_ok=True)
        raise


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def digest(path: Path) -> str:
    """Return a file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Have a file, or a folder's entries, reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
