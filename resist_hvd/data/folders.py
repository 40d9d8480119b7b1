"""Class folders and the images in them, listed by one rule for every reader.

Hidden entries are nobody's images and are not mentioned. Everything else that is passed over is counted, so that a run
can say what it does not train on.

An ImageNet has 1.3 million files. Their names are kept in one piece of memory, so that an index takes some 50 MB, not
some hundreds, and travels quickly to the worker processes of a loader and to the other ranks of a host.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resist_hvd.errors import UserError
from resist_hvd.units import counted

SUFFIXES = (
    ".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
"""Endings of image files' names, in any case: the formats that every reader decodes to the same pixels."""

_ENCODED_SUFFIXES = tuple(suffix.encode() for suffix in SUFFIXES)

_LITTER = (b"@eaDir", b"#recycle", b"__MACOSX", b"$RECYCLE.BIN", b"System Volume Information", b"lost+found")
"""Folders that file servers and archives leave behind, which are no classes."""

FOLDER = "/"
"""Counted for a folder that was passed over, in place of a file's ending."""

LeftOut = Counter[str]
"""Numbers of entries that were passed over, by the ending of their names in lower case, or `FOLDER`."""


@dataclass(frozen=True, kw_only=True)
class ImageIndex:
    """Image files by number: folder by folder, and within one by name.

    Attributes:
        folder: what all files lie below.
        classes: the names of all classes, in the order of their numbers.
        labels: int64 [N], each file's class.
        names: every file's path below `folder`, as the system spells it, laid end to end.
        ends: int64 [N], where each path ends in `names`.
    """

    folder: Path
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    names: bytes
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def encoded_path(self, image: int) -> bytes:
        """The image file's whole path, as the system spells it."""
        start = int(self.ends[image - 1]) if image else 0
        return os.fsencode(self.folder) + b"/" + self.names[start : int(self.ends[image])]

    def encoded_paths(self, images: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The whole paths of some images [B], as the system spells them: uint8 [B, length], of one length.

        Shorter ones have more slashes before the class, which mean no more than one.
        """
        names = np.frombuffer(self.names, dtype=np.uint8)
        ends = self.ends[images]
        lengths = ends - np.where(images > 0, self.ends[images - 1], 0)
        columns = np.arange(-lengths.max(), 0)
        padding = columns < -lengths[:, None]
        below = np.where(padding, ord("/"), names[np.where(padding, 0, ends[:, None] + columns)])
        folder = np.frombuffer(os.fsencode(self.folder) + b"/", dtype=np.uint8)
        return np.hstack([np.broadcast_to(folder, (len(images), len(folder))), below.astype(np.uint8)])

    def select(self, chosen: NDArray[np.bool_]) -> "ImageIndex":
        """Some of the files, in their order.

        Args:
            chosen: whether a file is among them, [N].
        """
        lengths = np.diff(self.ends, prepend=0)
        names = np.frombuffer(self.names, dtype=np.uint8)[np.repeat(chosen, lengths)]
        ends = np.cumsum(lengths[chosen])
        return replace(self, labels=self.labels[chosen], names=names.tobytes(), ends=ends)

    def path(self, image: int) -> Path:
        """The image file's whole path."""
        return Path(os.fsdecode(self.encoded_path(image)))


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


def class_folders(folder: Path, *, mend: str = "") -> tuple[tuple[str, ...], LeftOut]:
    """The names of the class folders in `folder`, sorted as text, and what else lies there.

    Args:
        folder: to be listed.
        mend: what to do where it has neither class folders nor images.

    Raises:
        UserError: there are no class folders, or `folder` cannot be read.
    """
    names, left_out = _listed(folder, lambda entry: _is_folder(entry) and entry.name not in _LITTER)
    if names:
        return tuple(sorted(map(os.fsdecode, names))), left_out
    if any(ending in left_out for ending in SUFFIXES):
        raise UserError(
            "The images lie flat in the folder, without class folders",
            where=str(folder),
            mend="Sort them into class folders; for ImageNet's validation images launch/prepare-imagenet does it.",
        )
    raise UserError(
        "The folder has no class folders",
        where=str(folder),
        mend=mend or "Put each class's images into a folder of the class's name there.",
    )


def has_class_folders(folder: Path) -> bool:
    """Return whether a folder is there and holds class folders."""
    try:
        return bool(class_folders(folder)[0])
    except UserError:
        return False


def index_images(
    folder: Path, classes: tuple[str, ...], *, label_of: Mapping[str, int] | None = None
) -> tuple[ImageIndex, LeftOut]:
    """The image files in the class folders of `folder`, and what else lies in those.

    Args:
        folder: holds a folder for each class.
        classes: the names of all classes, in the order of their numbers.
        label_of: the number of the class that each folder to be read holds images of, in the order to read them in;
            by default the folders are named as the classes.

    Raises:
        UserError: a folder is missing, cannot be read, or has no image in it.
    """
    names = bytearray()
    ends: list[int] = []
    labels: list[int] = []
    left_out = LeftOut()
    for name, label in (label_of or {name: number for number, name in enumerate(classes)}).items():
        files, others = image_files(folder / name)
        left_out.update(others)
        for file in files:
            names += os.fsencode(name) + b"/" + file
            ends.append(len(names))
        labels += [label] * len(files)
    index = ImageIndex(
        folder=folder,
        classes=classes,
        labels=np.array(labels, dtype=np.int64),
        names=bytes(names),
        ends=np.array(ends, dtype=np.int64),
    )
    return index, left_out


def image_files(folder: Path) -> tuple[list[bytes], LeftOut]:
    """The names of the image files in a class folder, sorted and as the system spells them, and what else lies there.

    Raises:
        UserError: there is no image, or `folder` cannot be read.
    """
    # Links are not followed: an ImageNet of links would be a million questions to the file system.
    names, left_out = _listed(
        folder, lambda entry: entry.name.lower().endswith(_ENCODED_SUFFIXES) and not entry.is_dir(follow_symlinks=False)
    )
    if not names:
        others = f", but {in_words(left_out)}" if left_out else ""
        raise UserError(
            f"The class folder has no image in it{others}",
            where=str(folder),
            mend=f"Put images ({', '.join(SUFFIXES)}) right there, or remove the folder.",
        )
    return sorted(names), left_out


def _listed(folder: Path, is_wanted: Callable[[os.DirEntry[bytes]], bool]) -> tuple[list[bytes], LeftOut]:
    """The names of the entries that are wanted, and what else lies in a folder."""
    names, left_out = [], LeftOut()
    for entry in _entries(folder):
        if is_wanted(entry):
            names.append(entry.name)
        else:
            ending = os.path.splitext(os.fsdecode(entry.name))[1].lower()
            left_out[FOLDER if _is_folder(entry) else ending] += 1
    return names, left_out


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
