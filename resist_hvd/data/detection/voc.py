"""Pascal VOC as it is unpacked: VOCdevkit/VOC2007 and VOC2012, with JPEGImages, Annotations and ImageSets/Main.

The layout is that of the development kit, and so is the meaning of every field: see `annotations`.
"""

import codecs
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from resist_hvd.data.broken import read_trusted
from resist_hvd.data.decoding import TooLargeError, check_size, lift_pillows_limit
from resist_hvd.data.detection.annotations import MEND_FILE, Annotation, read_annotation
from resist_hvd.errors import UserError

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""The twenty classes, in the order of their names, which is that of the development kit."""

_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp")
_ORIENTATION = 0x0112
"""EXIF's tag of how a picture is to be turned when it is shown; 1 is not at all, 5 to 8 are turned onto their sides."""


@dataclass(frozen=True, kw_only=True)
class AnnotatedImages:
    """The images of some of VOC's lists, and the objects in them that are of the classes asked for.

    Attributes:
        paths: the image files.
        sizes: int64 [images, 2], each image's width and height in pixels.
        boxes: float32 [objects, 4], of all images end to end, as in `Annotation`.
        labels: int64 [objects], places in the list of classes.
        difficult: bool [objects].
        ends: int64 [images], where each image's objects end.
    """

    paths: tuple[Path, ...]
    sizes: NDArray[np.int64]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    difficult: NDArray[np.bool_]
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.paths)

    def objects_of(self, image: int) -> slice:
        """Return the part of `boxes`, `labels` and `difficult` that is an image's objects."""
        return slice(int(self.ends[image - 1]) if image else 0, int(self.ends[image]))

    def without_difficult(self) -> "AnnotatedImages":
        """The same images, without the objects that are marked difficult."""
        kept = ~self.difficult
        before = np.concatenate([[0], np.cumsum(kept)])
        return AnnotatedImages(
            paths=self.paths,
            sizes=self.sizes,
            boxes=self.boxes[kept],
            labels=self.labels[kept],
            difficult=self.difficult[kept],
            ends=before[self.ends],
        )


Example = tuple[tv_tensors.Image, dict[str, Tensor]]
"""An image, uint8 [3, H, W], and its objects: `boxes` (float32 [objects, 4], as in `Annotation`), `labels` (int64
[objects]) and `difficult` (bool [objects])."""


class DetectionImages(Dataset[Example]):
    """Images and their objects, one by one, as torchvision's transforms (v2) and a `DataLoader` take them.

    Args:
        images: what `read_lists` returns.
        transform: what is done to an image and its objects, for example scaling both.
    """

    def __init__(
        self, images: AnnotatedImages, transform: Callable[[Any, Any], Any] = lambda *example: example
    ) -> None:
        self.images = images
        self._transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> Example:
        """Return an image and its objects, transformed.

        Raises:
            UserError: the image file is damaged; the message names it.
        """
        images, own = self.images, self.images.objects_of(number)
        try:
            pixels = read_trusted(os.fsencode(images.paths[number]))
        except ValueError as fault:
            raise UserError(f"The image file {fault}", where=str(images.paths[number]), mend=MEND_FILE) from fault
        image = tv_tensors.Image(torch.tensor(pixels).permute(2, 0, 1))
        boxes = tv_tensors.BoundingBoxes(
            torch.from_numpy(images.boxes[own]), format="XYXY", canvas_size=tuple(image.shape[1:])
        )
        labels, difficult = (torch.from_numpy(values[own]) for values in (images.labels, images.difficult))
        example: Example = self._transform(image, {"boxes": boxes, "labels": labels, "difficult": difficult})
        return example


def read_lists(
    root: Path,
    lists: Sequence[str],
    classes: Sequence[str] = CLASSES,
    *,
    ignore_exif: bool = False,
    may_lack_classes: bool = False,
) -> AnnotatedImages:
    """Read the images and objects of some lists, one list after another.

    Args:
        root: the folder VOCdevkit, or the one that holds it.
        lists: each a year and the name of a list in ImageSets/Main, as in 2007-trainval.
        classes: what objects are read; those of other classes are left out, and their images stay.
        ignore_exif: take all boxes to be for the pixels as they are stored, even of an image that EXIF says is to be
            turned when shown, and whose annotation does not tell by its size which is meant.
        may_lack_classes: whether a class may have no object in the lists, as in a small test set.

    Raises:
        UserError: a folder, list, image or annotation is missing or damaged; the message names the file. Or no object
            is of one of the classes.
    """
    devkit = _devkit(root.expanduser().absolute(), lists)
    label_of = {name: label for label, name in enumerate(classes)}
    paths: list[Path] = []
    sizes: list[tuple[int, int]] = []
    boxes: list[NDArray[np.float32]] = [np.empty((0, 4), dtype=np.float32)]
    labels: list[int] = []
    difficult: list[bool] = []
    ends: list[int] = []
    for path, annotation_path in _files(devkit, lists):
        annotation = read_annotation(annotation_path)
        _check_image(path, annotation, ignore_exif=ignore_exif)
        chosen = [number for number, name in enumerate(annotation.names) if name in label_of]
        paths.append(path)
        sizes.append((annotation.width, annotation.height))
        boxes.append(annotation.boxes[chosen])
        labels += [label_of[annotation.names[number]] for number in chosen]
        difficult += annotation.difficult[chosen].tolist()
        ends.append(len(labels))
    absent = sorted(set(range(len(classes))) - set(labels))
    if absent and not may_lack_classes:
        raise UserError(
            f"No object is of the class {classes[absent[0]]!r} in {', '.join(lists)}",
            where=str(root),
            mend="Give classes as the annotations spell them.",
        )
    return AnnotatedImages(
        paths=tuple(paths),
        sizes=np.array(sizes, dtype=np.int64),
        boxes=np.concatenate(boxes),
        labels=np.array(labels, dtype=np.int64),
        difficult=np.array(difficult, dtype=np.bool_),
        ends=np.array(ends, dtype=np.int64),
    )


def _devkit(root: Path, lists: Sequence[str]) -> Path:
    years = sorted({f"VOC{name.partition('-')[0]}" for name in lists})
    for folder in (root / "VOCdevkit", root):
        if any((folder / year).is_dir() for year in years):
            return folder
    raise UserError(
        f"There is no folder {' or '.join(years)}" if root.is_dir() else "There is no such folder",
        where=str(root),
        mend="Give the folder VOCdevkit that Pascal VOC's archives unpack to.",
    )


def _files(devkit: Path, lists: Sequence[str]) -> Iterator[tuple[Path, Path]]:
    """Yield the path of each image of the lists, and that of its annotation."""
    for name in lists:
        year, _, which = name.partition("-")
        folder = devkit / f"VOC{year}"
        path = folder / "ImageSets" / "Main" / f"{which}.txt"
        try:
            lines = [line.strip() for line in _text_of_list(path.read_bytes()).splitlines() if line.strip()]
        except OSError as error:
            mend = f"Unpack the archive of VOC{year} that has {which} into {devkit.parent}, or give another list."
            raise UserError(f"The list cannot be read ({error.strerror})", where=str(path), mend=mend) from error
        if not lines:
            raise UserError("The list is empty", where=str(path), mend=MEND_FILE)
        images = _images(folder / "JPEGImages")
        for line in lines:
            identifier = _identifier(line, folder)
            if Path(identifier).name != identifier:
                raise UserError(f"The list names {identifier!r}, which is no image", where=str(path), mend=MEND_FILE)
            image = images.get(identifier, f"{identifier}.jpg")
            yield folder / "JPEGImages" / image, folder / "Annotations" / f"{identifier}.xml"


def _text_of_list(content: bytes) -> str:
    """Return a list's text. Names in an encoding that is not UTF-8 are what the system would call such files."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", "replace")
    return os.fsdecode(content.removeprefix(codecs.BOM_UTF8))


def _identifier(line: str, folder: Path) -> str:
    """Return the image that a line names: all of it, but for a second column and an image file's ending."""
    # Lists of one class have a second column, which says whether it is there.
    name, _, last = line.rpartition(" ")
    if name and last in ("-1", "0", "1") and not (folder / "Annotations" / f"{line}.xml").exists():
        line = name.rstrip()
    stem, ending = os.path.splitext(line)
    return stem if ending.lower() in _SUFFIXES else line


def _images(folder: Path) -> Mapping[str, str]:
    """Return the image files of a folder by their names without endings; of several, a .jpg."""
    try:
        files = sorted(os.listdir(folder), key=lambda name: (name.endswith(".jpg"), name))
    except OSError:
        return {}  # the first image that is missed is named
    parts = [os.path.splitext(file) for file in files]
    return {stem: stem + ending for stem, ending in parts if ending.lower() in _SUFFIXES}


def _check_image(path: Path, annotation: Annotation, *, ignore_exif: bool) -> None:
    """See that an image is there, and that its annotation's boxes are for its pixels as they are stored."""
    lift_pillows_limit()
    try:
        with Image.open(path) as image:  # reads its header only
            size = image.size
            orientation = _orientation(image)
        check_size(*size)
    except OSError as error:
        seen = f"The image cannot be read ({error.strerror or 'it is no image'})"
        raise UserError(seen, where=str(path), mend=MEND_FILE) from error
    except TooLargeError as error:
        mend = "Give a smaller one, with its annotation."
        raise UserError(f"The image {error}", where=str(path), mend=mend) from None
    said = (annotation.width, annotation.height)
    shown = size[::-1] if orientation in (5, 6, 7, 8) else size
    # Some tools draw boxes on a picture as it is shown and write its sides so, others as it is stored. Where both have
    # the same sides, nothing tells which.
    if orientation in range(2, 9) and said == shown and not (ignore_exif and shown == size):
        which = "are for it as it is shown" if shown != size else "may be for it as it is stored or as it is shown"
        otherwise = "" if shown != size else "; or give ignore_exif=True where all boxes are for the stored pixels"
        raise UserError(
            f"EXIF says that the image is to be turned when it is shown (orientation {orientation}), and its boxes "
            f"{which}",
            where=str(path),
            mend=f"Write images as they are shown, as `exiftran -ai` does{otherwise}.",
        )
    if size != said:
        raise UserError(
            f"The image has {size[0]} x {size[1]} pixels, and its annotation says {said[0]} x {said[1]}",
            where=str(path),
            mend=MEND_FILE,
        )


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # of a damaged block Pillow raises errors of any kind, and no viewer turns the image
        return 1
