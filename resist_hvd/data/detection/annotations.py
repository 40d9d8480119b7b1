"""Annotation files of Pascal VOC: an image's size, and the objects that are seen in it.

The meaning of every field is that of the development kit (Everingham et al., "The PASCAL Visual Object Classes
Challenge 2012 Development Kit"): boxes count pixels from 1 and include their last one; an object that is marked
difficult is left out when a detector is judged, neither to be found nor wrong to be found. Other tools write such files
as well, each with words and encodings of its own.
"""

import codecs
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from resist_hvd.errors import UserError

MEND_FILE = "Unpack its archive anew, or put the file right."
"""What is done about a damaged file."""

_LARGEST_ANNOTATION = 2**20

_WORDS = {"": False, "unspecified": False, "false": False, "no": False, "true": True, "yes": True}
"""Words that tools write in place of 0 and 1."""

_ENCODINGS = {"ansi": "cp1252", "unicode": "cp1252", "utf-16": "cp1252", "gb2312": "gb18030", "gbk": "gb18030"}
"""Encodings' names that tools declare, and what text is in that is neither UTF-8 nor, by its bytes, UTF-16."""


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """An annotation file's account of its image.

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
        raise UserError(seen, where=str(path), mend=MEND_FILE) from error
    except ValueError as error:
        raise UserError(f"The annotation is damaged: {error}", where=str(path), mend=MEND_FILE) from error


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
        parser.feed(_text(content))
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
            name = " ".join((element.findtext("name") or "").split())
            if not name:
                raise ValueError("it has no name")
            if _UNREADABLE in name:
                raise ValueError(f"its name {name!r} is not in the file's encoding: save the file as UTF-8")
            box = [_number(element, f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")]
            boxes.append(_edges(box, width, height))
            difficult.append(_is_difficult(element))
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


_UNREADABLE = "\ufffd"
_DECLARED = re.compile(rb"""<\?xml[^>]*?encoding\s*=\s*["']([^"']*)["']""")


def _text(content: bytes) -> str:
    """Return an annotation's text; what cannot be decoded is replaced by `_UNREADABLE`, as it matters in names alone.

    Many tools declare one encoding and write another, or a name that no parser knows. Text that is valid UTF-8 is that.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content[:4]:
        little = content[1:2] == b"\0"
        has_mark = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return content.decode("utf-16" if has_mark else "utf-16-le" if little else "utf-16-be", "replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        found = _DECLARED.match(content)
        declared = found[1].decode("ascii", "replace").strip().lower() if found else "utf-8"
        try:
            return content.decode(_ENCODINGS.get(declared, declared), "replace")
        except LookupError:
            raise ValueError(f"it declares an encoding that is not known, {declared!r}: save it as UTF-8") from None


def _is_difficult(element: ElementTree.Element) -> bool:
    word = (element.findtext("difficult") or "").strip().lower()
    return _WORDS[word] if word in _WORDS else bool(_number(element, "difficult"))


def _number(element: ElementTree.Element, path: str) -> float:
    text = element.findtext(path)
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
    if max(right, bottom) <= 1 and min(width, height) > 1 and (right % 1 or bottom % 1):
        raise ValueError(
            f"the box {left:g}, {top:g}, {right:g}, {bottom:g} is in shares of the image: write it in pixels, from 1"
        )
    edges = [max(0.0, left - 1), max(0.0, top - 1), min(float(width), right), min(float(height), bottom)]
    if np.float32(edges[2]) <= np.float32(edges[0]) or np.float32(edges[3]) <= np.float32(edges[1]):
        raise ValueError(f"the box {left:g}, {top:g}, {right:g}, {bottom:g} has no pixel of {width} x {height}")
    return edges
