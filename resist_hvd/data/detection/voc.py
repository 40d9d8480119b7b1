"""Pascal VOC as it is unpacked: VOCdevkit/VOC2007 and VOC2012, with JPEGImages, Annotations and ImageSets/Main.

The layout is that of the development kit, and so is the meaning of every field: see `annotations`.
"""

import codecs
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resist_hvd.data.decoding import FORMATS, TooLargeError, check_size, lift_pillows_limit
from resist_hvd.data.detection.annotated import AnnotatedImages
from resist_hvd.data.detection.annotations import MEND_FILE, Annotation, read_annotation
from resist_hvd.errors import UserError

_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp")
_ORIENTATION = 0x0112
"""EXIF's tag of how a picture is to be turned when it is shown; 1 is not at all, 5 to 8 are turned onto their sides."""


def read_lists(
    root: Path,
    lists: Sequence[str],
    classes: Sequence[str] | None = None,
    *,
    ignore_exif: bool = False,
    may_lack_classes: bool = False,
    broken: dict[str, str] | None = None,
) -> AnnotatedImages:
    """Read the images and objects of some lists, one list after another.

    Args:
        root: the folder VOCdevkit, or the one that holds it.
        lists: each a year and the name of a list in ImageSets/Main, as in 2007-trainval.
        classes: what objects are read; those of other classes are left out, and their images stay. By default all that
            there are, in the order of their names.
        ignore_exif: take all boxes to be for the pixels as they are stored, even of an image that EXIF says is to be
            turned when shown, and whose annotation does not tell by its size which is meant.
        may_lack_classes: whether a class may have no object in the lists, as in a small test set.
        broken: takes up the fault of each image that is missing or damaged, or its annotation, by its path: it is left
            out. Without it the first of them is an error.

    Raises:
        UserError: a folder, list, image or annotation is missing or damaged; the message names the file. Or no object
            is of one of the classes, or there is none at all.
    """
    devkit = _devkit(root.expanduser().absolute(), lists)
    listed = list(_files(devkit, lists))
    found = _sound(listed, ignore_exif, broken)
    if not found:
        raise UserError(f"No image of {', '.join(lists)} is sound", where=str(devkit), mend=MEND_FILE)
    named = {name for annotation in found.values() for name in annotation.names}
    if classes is None:
        classes = sorted(named)
    absent = [name for name in classes if name not in named and not may_lack_classes]
    if absent or not classes:
        raise UserError(
            f"No object is {f'of the class {absent[0]!r}' if absent else 'annotated'} in {', '.join(lists)}",
            where=str(devkit),
            mend="Give classes as the annotations spell them." if absent else "Give other lists.",
        )
    return AnnotatedImages(
        folder=devkit,
        classes=tuple(classes),
        paths=tuple(listed[place][0] for place in found),
        sizes=np.array([(annotation.width, annotation.height) for annotation in found.values()], dtype=np.int64),
        places=np.array(list(found), dtype=np.int64),
        listed=len(listed),
        others=tuple(sorted(named - set(classes))),
        **_of_classes(list(found.values()), classes),
    )


def _sound(
    listed: Sequence[tuple[Path, Path]], ignore_exif: bool, broken: dict[str, str] | None
) -> dict[int, Annotation]:
    """Return the annotations of sound images, by their places among those that are listed; see `read_lists`."""
    found: dict[int, Annotation] = {}
    for place, (path, annotation_path) in enumerate(listed):
        try:
            annotation = read_annotation(annotation_path)
            _check_image(path, annotation, ignore_exif=ignore_exif)
        except UserError as error:
            if broken is None:
                raise
            broken[error.where] = error.seen
        else:
            found[place] = annotation
    return found


def _of_classes(annotations: Sequence[Annotation], classes: Sequence[str]) -> dict[str, Any]:
    """Return the objects of images that are of some classes, as fields of `AnnotatedImages`."""
    label_of = {name: label for label, name in enumerate(classes)}
    boxes: list[NDArray[np.float32]] = [np.empty((0, 4), dtype=np.float32)]
    labels: list[int] = []
    difficult: list[bool] = []
    ends: list[int] = []
    for annotation in annotations:
        chosen = [number for number, name in enumerate(annotation.names) if name in label_of]
        boxes.append(annotation.boxes[chosen])
        labels += [label_of[annotation.names[number]] for number in chosen]
        difficult += annotation.difficult[chosen].tolist()
        ends.append(len(labels))
    return {
        "boxes": np.concatenate(boxes),
        "labels": np.array(labels, dtype=np.int64),
        "difficult": np.array(difficult, dtype=np.bool_),
        "ends": np.array(ends, dtype=np.int64),
    }


def _devkit(root: Path, lists: Sequence[str]) -> Path:
    years = sorted({f"VOC{name.partition('-')[0]}" for name in lists})
    for folder in (root / "VOCdevkit", root):
        if any((folder / year).is_dir() for year in years):
            return folder
    if without := [name for name in lists if not name.partition("-")[2]]:
        raise UserError(
            f"The list {without[0]!r} has no year",
            where=str(root),
            mend="Give lists as 2007-trainval: VOC2007's ImageSets/Main/trainval.txt.",
        )
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
        with Image.open(path, formats=FORMATS) as image:  # reads its header only
            size = image.size
            check_size(*size)
            orientation = _orientation(image)
    except OSError as error:
        seen = f"The image cannot be read ({error.strerror or 'it is no image, or one of an unknown format'})"
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
        otherwise = "" if shown != size else "; or give --data.ignore_exif where all boxes are for the stored pixels"
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
    # Where a PNG has no such block before its pixels, Pillow would decode all of them to look behind.
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # of a damaged block Pillow raises errors of any kind, and no viewer turns the image
        return 1
