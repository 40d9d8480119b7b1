"""Class folders: which entries of a folder are classes and images, by one rule for every reader.

Hidden entries are nobody's images and are not mentioned. Everything else that is passed over is counted, so that a run
can say what it does not train on.
"""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from resist_hvd.errors import UserError
from resist_hvd.image_names import LITTER, SUFFIXES, is_image_name
from resist_hvd.units import counted

FOLDER = "/"
"""Counted for a folder that was passed over, in place of a file's ending."""

LeftOut = Counter[str]
"""Numbers of entries that were passed over, by the ending of their names in lower case, or `FOLDER`."""

_MEND_FLAT = "Sort them into class folders; for ImageNet's validation images launch/prepare-imagenet does it."
_MEND_NO_CLASSES = "Put each class's images into a folder of the class's name there."


def existing_folder(folder: Path, *, mend: str) -> Path:
    """The absolute path of a folder that is there.

    Args:
        folder: as it was given; ~ is the user's home.
        mend: what to do where it is not there.

    Raises:
        UserError: it is not there, or no folder.
    """
    folder = folder.expanduser().absolute()
    if not folder.is_dir():
        seen = "This is not a folder" if folder.exists() else "There is no such folder"
        raise UserError(seen, where=str(folder), mend=mend)
    return folder


def class_folders(folder: Path) -> tuple[tuple[str, ...], LeftOut]:
    """The names of the class folders in `folder`, sorted as text, and what else lies there.

    Raises:
        UserError: there are none, or `folder` cannot be read.
    """
    names, images, left_out = [], 0, LeftOut()
    for entry in _entries(folder):
        name = os.fsdecode(entry.name)
        if not _is_folder(entry):
            images += is_image_name(name)
            left_out[_ending(name)] += 1
        elif name in LITTER:
            left_out[FOLDER] += 1
        else:
            names.append(name)
    if not names:
        seen = "The images lie flat in the folder, without" if images else "The folder has no"
        raise UserError(f"{seen} class folders", where=str(folder), mend=_MEND_FLAT if images else _MEND_NO_CLASSES)
    return tuple(sorted(names)), left_out


def has_class_folders(folder: Path) -> bool:
    """Return whether a folder is there and holds class folders."""
    try:
        return bool(class_folders(folder)[0])
    except UserError:
        return False


def image_files(folder: Path) -> tuple[list[bytes], LeftOut]:
    """The names of the image files in a class folder, sorted and as the system spells them, and what else lies there.

    Raises:
        UserError: there is no image, or `folder` cannot be read.
    """
    names, left_out = [], LeftOut()
    for entry in _entries(folder):
        # Links are not followed: an ImageNet of links would be a million questions to the file system.
        if entry.is_dir(follow_symlinks=False):
            left_out[FOLDER] += 1
        elif is_image_name(entry.name):
            names.append(entry.name)
        else:
            left_out[_ending(os.fsdecode(entry.name))] += 1
    if not names:
        others = f", but {in_words(left_out)}" if left_out else ""
        raise UserError(
            f"The class folder has no image in it{others}",
            where=str(folder),
            mend=f"Put images ({', '.join(SUFFIXES)}) right there, or remove the folder.",
        )
    return sorted(names), left_out


def in_words(left_out: LeftOut) -> str:
    """Entries that were passed over, in words: "3 folders, 12 files (.txt 8, .db 3, without an ending 1)"."""
    folders = left_out[FOLDER]
    endings = sorted((item for item in left_out.items() if item[0] != FOLDER), key=lambda item: (-item[1], item[0]))
    files = sum(count for _, count in endings)
    named = ", ".join(f"{ending or 'without an ending'} {count:,}" for ending, count in endings[:8])
    parts = [
        counted(folders, "folder") if folders else "",
        f"{counted(files, 'file')} ({named}{', ...' if len(endings) > 8 else ''})" if files else "",
    ]
    return ", ".join(filter(None, parts))


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    """Return whether an entry is a folder, or a link to one; a link that leads nowhere, or in circles, is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _entries(folder: Path) -> Iterable[os.DirEntry[bytes]]:
    """Entries of the folder, without hidden ones.

    Raises:
        UserError: it is not there, no folder, or cannot be read.
    """
    try:
        with os.scandir(os.fsencode(folder)) as found:
            return [entry for entry in found if not entry.name.startswith(b".")]
    except OSError as error:
        raise UserError(
            f"The folder cannot be read ({error.strerror})",
            where=str(folder),
            mend="Check that it is there, and may be read.",
        ) from None
