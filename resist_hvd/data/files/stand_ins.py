"""Stand-ins for image files that DALI does not decode, or not to the same pixels as Pillow: decoded by Pillow.

DALI is given their pixels as a file of the plainest format, and a placeholder to read in place of the file itself. So
its pipelines stay what they are, and every loader trains on the same pixels whatever a file's format.
"""

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resist_hvd.data.broken import read_trusted
from resist_hvd.data.files import dali_graph
from resist_hvd.data.files.dali_graph import Means
from resist_hvd.data.files.gpu_faults import is_of_gpu
from resist_hvd.data.folders import ImageIndex

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


def undecodable(means: Means, paths: Sequence[NDArray[np.uint8]]) -> Iterator[int]:
    """Yield the places of those files that DALI does not decode, though it decodes others.

    One pipeline takes all files, one by one, after an image that is surely decoded. Where it fails, a new one begins
    with that image and the file again. So a file is yielded only if DALI has failed at it twice, and the second time
    right after it has decoded the image.

    Args:
        means: what the pipeline works with that has failed.
        paths: of the files, as bytes.

    Raises:
        RuntimeError: DALI fails at the image that it surely decodes, or of something that is no file's fault.
        MemoryError: it lacks memory.
    """
    one_by_one = replace(means, batch_size=1, prefetch=1, threads=1)
    start, suspected = 0, -1
    while start < len(paths):
        decoded, error = _decoded(one_by_one, [PLACEHOLDER.path, *paths[start:]])
        if error is None:
            return
        failed_at = start + decoded - 1
        if failed_at < start or is_of_gpu(error):
            raise error
        if failed_at == suspected:
            yield failed_at
            failed_at += 1
        else:
            suspected = failed_at
        start = failed_at


def _decoded(means: Means, paths: Sequence[NDArray[np.uint8]]) -> tuple[int, Exception | None]:
    """Return how many files were decoded until a pipeline failed, and the failure."""
    waiting = iter(paths)
    decoded = 0
    try:
        pipeline = dali_graph.decoding_pipeline(means, lambda: ([next(waiting)],))
        while True:
            pipeline.run()
            decoded += 1
    except StopIteration:
        return decoded, None
    except (RuntimeError, MemoryError) as error:
        return decoded, error
