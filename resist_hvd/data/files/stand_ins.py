"""Stand-ins for image files that DALI does not decode, or not to the same pixels as Pillow: decoded by Pillow.

DALI is given their pixels as a file of the plainest format, and a placeholder to read in place of the file itself. So
its pipelines stay what they are, and every loader trains on the same pixels whatever a file's format.
"""

import io
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resist_hvd.data.broken import read_trusted
from resist_hvd.data.index import ImageIndex

_FOREIGN_SUFFIXES = (b".gif", b".tif", b".tiff", b".ppm", b".pgm", b".pbm", b".pnm")
_FOREIGN_STARTS = (b"GIF8", b"II*\0", b"MM\0*", b"P1", b"P2", b"P3", b"P4", b"P5", b"P6")
"""First bytes of GIF, TIFF and PNM files. DALI knows no GIF, ignores a TIFF's orientation, rounds some palettes
otherwise, and does not scale the values of a PNM file that go to another number than 255."""


class SuspectError(RuntimeError):
    """One image of a batch is at fault; which one has yet to be found out."""


@dataclass(frozen=True, kw_only=True)
class StandIn:
    """An image in the place of its file.

    Attributes:
        encoded: uint8 [bytes], the image as a PPM file.
        sides: its height and width.
    """

    encoded: NDArray[np.uint8]
    sides: tuple[int, int]

    @classmethod
    def of(cls, pixels: NDArray[np.uint8]) -> "StandIn":
        """A stand-in of pixels [H, W, 3]."""
        height, width = pixels.shape[:2]
        header = np.frombuffer(b"P6 %d %d 255\n" % (width, height), dtype=np.uint8)
        return cls(encoded=np.concatenate([header, pixels.reshape(-1)]), sides=(height, width))


class _Placeholder:
    """A tiny image that DALI reads where an image has a stand-in, and that it surely decodes."""

    @cached_property
    def path(self) -> NDArray[np.uint8]:
        """Its path, as bytes; the file is in memory, and there as long as this process is."""
        content = io.BytesIO()
        Image.new("RGB", (16, 16)).save(content, "JPEG")
        descriptor = os.memfd_create("placeholder")
        os.write(descriptor, content.getvalue())
        return np.frombuffer(f"/proc/{os.getpid()}/fd/{descriptor}".encode(), dtype=np.uint8)


PLACEHOLDER = _Placeholder()


class ForeignFiles:
    """Knows which files have stand-ins: by their names, or once it was seen that they need one.

    Args:
        threads: that decode.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._noted: set[bytes] = set()

    def knows(self, index: ImageIndex, image: int) -> bool:
        """Return whether an image has a stand-in."""
        path = index.encoded_path(image)
        return path.lower().endswith(_FOREIGN_SUFFIXES) or path in self._noted

    def note(self, index: ImageIndex, image: int) -> None:
        """Give an image a stand-in from now on."""
        self._noted.add(index.encoded_path(image))

    def recognised(self, index: ImageIndex, image: int) -> bool:
        """Note a file whose content needs a stand-in, and that has none yet; return whether it is such a one."""
        if self.knows(index, image):
            return False
        with open(index.encoded_path(image), "rb") as file:
            is_foreign = file.read(4).startswith(_FOREIGN_STARTS)
        if is_foreign:
            self.note(index, image)
        return is_foreign

    def stand_ins(self, index: ImageIndex, images: NDArray[np.int64]) -> Mapping[int, StandIn]:
        """The stand-ins of those images [B] that have one, by their places.

        Raises:
            SuspectError: a file is broken.
        """
        places = [place for place, image in enumerate(images.tolist()) if self.knows(index, image)]
        if not places:
            return {}
        paths = [index.encoded_path(int(images[place])) for place in places]
        with ThreadPoolExecutor(self._threads) as pool:
            try:
                stand_ins = list(pool.map(lambda path: StandIn.of(read_trusted(path)), paths))
            except ValueError as fault:
                raise SuspectError(str(fault)) from fault
        return dict(zip(places, stand_ins, strict=True))
