"""Pascal VOC as it is unpacked: VOCdevkit/VOC2007 and VOC2012, with JPEGImages, Annotations and ImageSets/Main.

The layout and the meaning of every field are those of the development kit (Everingham et al., "The PASCAL Visual Object
Classes Challenge 2012 Development Kit"): boxes count pixels from 1 and include their last one; an object that is marked
difficult is left out when a detector is judged, neither to be found nor wrong to be found.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resist_hvd.errors import UserError

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""The twenty classes, in the order of their names, which is that of the development kit."""

_LARGEST_ANNOTATION = 2**20
_MEND_FILE = "Unpack its archive anew, or put the file right."


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """What an annotation file says of its image.

    Attributes:
        width, height: of the image, in pixels.
        names: each object's class.
        boxes: float32 [objects, 4], the edges of each object from the image's left and top edge in pixels: left, top,
            right, bottom; right minus left is the width.
        difficult: bool [objects].
    """

    width: int
    height: int
    names: tuple[str, ...]
    boxes: NDArray[np.float32]
    difficult: NDArray[np.bool_]


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
        """Where in `boxes`, `labels` and `difficult` an image's objects are."""
        return slice(int(self.ends[image - 1]) if image else 0, int(self.ends[image]))

    @property
    def most_objects(self) -> int:
        """The largest number of objects in one image."""
        return int(np.diff(self.ends, prepend=0).max(initial=0))

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


def read_lists(root: Path, lists: Sequence[str], classes: Sequence[str]) -> AnnotatedImages:
    """Read the images and objects of some lists, one list after another.

    Args:
        root: the folder VOCdevkit, or the one that holds it.
        lists: each a year and the name of a list in ImageSets/Main, as in 2007-trainval.
        classes: what objects are read; those of other classes are left out, and their images stay.

    Raises:
        UserError: a folder, list, image or annotation is missing or damaged; the message names the file.
    """
    devkit = _devkit(root.expanduser().absolute())
    label_of = {name: label for label, name in enumerate(classes)}
    paths: list[Path] = []
    sizes: list[tuple[int, int]] = []
    boxes: list[NDArray[np.float32]] = [np.empty((0, 4), dtype=np.float32)]
    labels: list[int] = []
    difficult: list[bool] = []
    ends: list[int] = []
    for folder, identifier in _identifiers(devkit, lists):
        annotation = read_annotation(folder / "Annotations" / f"{identifier}.xml")
        path = folder / "JPEGImages" / f"{identifier}.jpg"
        _check_size(path, annotation)
        chosen = [number for number, name in enumerate(annotation.names) if name in label_of]
        paths.append(path)
        sizes.append((annotation.width, annotation.height))
        boxes.append(annotation.boxes[chosen])
        labels += [label_of[annotation.names[number]] for number in chosen]
        difficult += annotation.difficult[chosen].tolist()
        ends.append(len(labels))
    return AnnotatedImages(
        paths=tuple(paths),
        sizes=np.array(sizes, dtype=np.int64),
        boxes=np.concatenate(boxes),
        labels=np.array(labels, dtype=np.int64),
        difficult=np.array(difficult, dtype=np.bool_),
        ends=np.array(ends, dtype=np.int64),
    )


def _devkit(root: Path) -> Path:
    for folder in (root / "VOCdevkit", root):
        if (folder / "VOC2007").is_dir() or (folder / "VOC2012").is_dir():
            return folder
    raise UserError(
        "There is neither a folder VOC2007 nor a folder VOC2012" if root.is_dir() else "There is no such folder",
        where=str(root),
        mend="Give the folder VOCdevkit that Pascal VOC's archives unpack to.",
    )


def _identifiers(devkit: Path, lists: Sequence[str]) -> Iterator[tuple[Path, str]]:
    for name in lists:
        year, _, which = name.partition("-")
        folder = devkit / f"VOC{year}"
        path = folder / "ImageSets" / "Main" / f"{which}.txt"
        try:
            # Lists of one class have a second column, which says whether it is there.
            identifiers = [line.split()[0] for line in path.read_text("ascii").splitlines() if line.strip()]
        except OSError as error:
            mend = f"Unpack the archive of VOC{year} that has {which} into {devkit.parent}."
            raise UserError(f"The list cannot be read ({error.strerror})", where=str(path), mend=mend) from error
        except UnicodeDecodeError:
            raise UserError("The list is no text", where=str(path), mend=_MEND_FILE) from None
        if not identifiers:
            raise UserError("The list is empty", where=str(path), mend=_MEND_FILE)
        for identifier in identifiers:
            if Path(identifier).name != identifier:
                raise UserError(f"The list names {identifier!r}, which is no image", where=str(path), mend=_MEND_FILE)
            yield folder, identifier


def _check_size(path: Path, annotation: Annotation) -> None:
    """See that an image is there, and of its annotation's size: boxes are scaled by it."""
    try:
        with Image.open(path) as image:  # reads its header only
            size = image.size
    except OSError as error:
        seen = f"The image cannot be read ({error.strerror or 'it is no image'})"
        raise UserError(seen, where=str(path), mend=_MEND_FILE) from error
    if size != (annotation.width, annotation.height):
        raise UserError(
            f"The image has {size[0]} x {size[1]} pixels, and its annotation says {annotation.width} x "
            f"{annotation.height}",
            where=str(path),
            mend=_MEND_FILE,
        )


def read_annotation(path: Path) -> Annotation:
    """Read an annotation file.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        if path.stat().st_size > _LARGEST_ANNOTATION:
            raise ValueError(f"it has more than {_LARGEST_ANNOTATION} bytes")
        return parse_annotation(path.read_bytes())
    except OSError as error:
        seen = f"The annotation cannot be read ({error.strerror})"
        raise UserError(seen, where=str(path), mend=_MEND_FILE) from error
    except ValueError as error:
        raise UserError(f"The annotation is damaged: {error}", where=str(path), mend=_MEND_FILE) from error


class _PlainTree(ElementTree.TreeBuilder):
    """Builds elements, and refuses a document type: only there can entities be declared, which may grow without end."""

    def doctype(self, name: str, public: str | None, system: str | None) -> NoReturn:
        raise ValueError(f"it declares a document type, {name}")


def parse_annotation(content: bytes) -> Annotation:
    """Return what an annotation file's content says.

    Raises:
        ValueError: it is no XML, lacks what it must have, or has a box that no image can have; the message continues
            "the annotation is damaged: ...".
    """
    try:
        parser = ElementTree.XMLParser(target=_PlainTree())
        parser.feed(content)
        tree = parser.close()
    except ElementTree.ParseError as error:
        raise ValueError(f"it is no XML ({error})") from error
    width, height = (round(_number(tree, f"size/{side}")) for side in ("width", "height"))
    if width < 1 or height < 1:
        raise ValueError(f"its image has {width} x {height} pixels")
    names: list[str] = []
    boxes: list[list[float]] = []
    difficult: list[bool] = []
    # Parts of persons have names and boxes too, but deeper down.
    for number, element in enumerate(tree.findall("object"), 1):
        try:
            name = (element.findtext("name") or "").strip()
            if not name:
                raise ValueError("it has no name")
            box = [_number(element, f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")]
            boxes.append(_edges(box, width, height))
            difficult.append(bool(_number(element, "difficult", 0)))
            names.append(name)
        except ValueError as error:
            raise ValueError(f"of object {number}, {error}") from error
    return Annotation(
        width=width,
        height=height,
        names=tuple(names),
        boxes=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        difficult=np.array(difficult, dtype=np.bool_),
    )


def _number(element: ElementTree.Element, path: str, default: float | None = None) -> float:
    text = element.findtext(path)
    if text is None and default is not None:
        return default
    try:
        value = float(text or "")
    except ValueError:
        raise ValueError(f"{path} is {text!r}, which is no number") from None
    if not np.isfinite(value):
        raise ValueError(f"{path} is {text!r}, which is no number of pixels")
    return value


def _edges(box: Sequence[float], width: int, height: int) -> list[float]:
    """Return a box's edges counted from 0, cut off at the image's: a few published boxes reach a pixel too far."""
    left, top, right, bottom = box
    edges = [max(0.0, left - 1), max(0.0, top - 1), min(float(width), right), min(float(height), bottom)]
    if edges[2] <= edges[0] or edges[3] <= edges[1]:
        raise ValueError(f"the box {left:g}, {top:g}, {right:g}, {bottom:g} has no pixel of {width} x {height}")
    return edges
