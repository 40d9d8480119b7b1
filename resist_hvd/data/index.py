"""The image files below class folders, and each one's label: what a reader reads from, image by number.

An ImageNet has 1.3 million files. Their names are kept in one piece of memory, so that an index takes some 50 MB, not
some hundreds, and travels quickly to the worker processes of a loader and to the other ranks of a host.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resist_hvd.data.folders import LeftOut, image_files


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

    def path(self, image: int) -> Path:
        """The image file's whole path."""
        return Path(os.fsdecode(self.encoded_path(image)))


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
