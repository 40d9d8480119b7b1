"""Putting images into class folders so that any moment is a good one to be stopped at, and nothing is ever lost."""

import errno
import filecmp
import os
import shutil
from pathlib import Path
from typing import Literal, get_args

from prepare_imagenet.pictures import Picture
from resist_hvd.errors import UserError

Manner = Literal["link", "symlink", "copy", "move"]
MANNERS: tuple[str, ...] = get_args(Manner)


def write_whole(target: Path, content: bytes) -> None:
    """Write a file that is there as a whole, or not at all."""
    partial = _partial(target)
    partial.write_bytes(content)
    os.replace(partial, target)


def _partial(target: Path) -> Path:
    # Hidden, so that no reader takes it for an image, and always the same, so that the next run writes over it.
    return target.with_name(f".{target.name}.partial")


def place(picture: Picture, target: Path, manner: Manner) -> bool:
    """Put an image where it belongs, unless it is there already; return whether there was something to do.

    An archive's image is unpacked whatever the manner; the archive stays. A moved file is gone from its old place only
    once all of it is at its new one.

    Raises:
        UserError: another file has that name, or a hard link cannot be made between the two places.
        OSError: the disk is full, or may not be written to.
    """
    if picture.file is not None and target.exists() and picture.file.samefile(target):
        # A link's old name goes too where files are to be moved, but never the only one.
        if manner == "move" and picture.file.stat().st_nlink > 1 and not _one_path(picture.file, target):
            picture.file.unlink()
            return True
        return False
    if os.path.lexists(target):
        return _already_there(picture, target, manner)
    if picture.file is None:
        write_whole(target, picture.read())
    elif manner == "link":
        _link(picture.file, target)
    elif manner == "symlink":
        target.symlink_to(picture.file.absolute())
    elif manner == "copy":
        _copy(picture.file, target)
    else:
        _move(picture.file, target)
    return True


def _one_path(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _already_there(picture: Picture, target: Path, manner: Manner) -> bool:
    same = target.is_file() and target.stat().st_size == picture.size
    if same and manner == "move" and picture.file is not None:
        same = filecmp.cmp(picture.file, target, shallow=False)
        if same:
            picture.file.unlink()
            return True
    if not same:
        raise UserError(
            f"Another file of that name, or a broken link, lies where {picture.source} belongs",
            where=str(target),
            mend="Remove it if it is of no use, or give another --output.",
        )
    return False


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file.resolve(), target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise
        raise UserError(
            f"No hard link can be made to {file} ({error.strerror})",
            where=str(target),
            mend="Give --files symlink, copy or move, or an --output on the file system of the download.",
        ) from error


def _copy(file: Path, target: Path) -> None:
    partial = _partial(target)
    shutil.copyfile(file, partial)
    os.replace(partial, target)


def _move(file: Path, target: Path) -> None:
    try:
        os.rename(file, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        partial = _partial(target)
        shutil.copyfile(file, partial)
        with partial.open("rb") as copied:
            os.fsync(copied.fileno())
        os.replace(partial, target)
        file.unlink()
