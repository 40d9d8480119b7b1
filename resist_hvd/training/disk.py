"""Files that are whole or not there at all, and what the operating system says when they cannot be written.

Every file of a run's folder is opened for writing by `create` or `append` here, which never write through a link: in a
folder that others may write to, a link would let them choose which file is overwritten.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError

from resist_hvd.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors where there is no room: on the disk, in a quota, in what a file may grow to."""

NOT_OFFERED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)
"""Errors of file systems without `fsync`; what was written is as safe there as it can be."""


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


def create(path: Path) -> BinaryIO:
    """Open a new file for writing, with the permissions that the umask leaves; what had this name is removed.

    Raises:
        OSError: the file cannot be made, or something took the name at this very moment.
    """
    path.unlink(missing_ok=True)
    return os.fdopen(_open(path, os.O_WRONLY | os.O_EXCL), "wb")


def append(path: Path, text: str) -> None:
    """Add text to the end of a file, in one write.

    Raises:
        OSError: it cannot be written, or is a link.
    """
    with os.fdopen(_open(path, os.O_WRONLY | os.O_APPEND), "ab") as file:
        file.write(text.encode())


def _open(path: Path, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with create(partial) as file:
            file.write(text.encode())
            synchronise(file)
        os.replace(partial, path)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise


def synchronise(file: BinaryIO) -> None:
    """Have what was written to a file reach the disk, where its file system offers that."""
    file.flush()
    _fsync(file.fileno())


def _fsync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NOT_OFFERED:
            raise


def digest(path: Path) -> str:
    """Return a file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(folder: Path) -> None:
    """Have a folder's entries reach the disk, where it may be opened for that and its file system offers it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # it may be written and not read
        return
    try:
        _fsync(descriptor)
    finally:
        os.close(descriptor)
