"""Image files that are empty, cut short or damaged: what is done about them, and an account of them."""

import os
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from resist_hvd import console
from resist_hvd.data.decoding import FORMATS, decode_rgb
from resist_hvd.errors import UserError

USUAL_ENDS = (b"\xff\xd9", b"\x60\x82")
"""The last two bytes of a JPEG file and of a PNG file. A decoder that only reads the rows of a window would not notice
that what follows them is missing, so a file that ends otherwise is decoded to its end before it is trusted."""


def read_trusted(path: bytes, formats: tuple[str, ...] | None = FORMATS) -> NDArray[np.uint8]:
    """Read and decode a whole image file of some formats, or of all that Pillow reads: uint8 [H, W, 3].

    Raises:
        ValueError: what is wrong with it, words that continue "the image file ...".
    """
    try:
        with open(path, "rb") as file:
            encoded = file.read()
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from None
    return decode_rgb(encoded, formats)


class ImageFiles(Protocol):
    """Image files by number, that lie below a folder."""

    @property
    def folder(self) -> Path:
        """The folder."""

    def __len__(self) -> int: ...

    def encoded_path(self, image: int) -> bytes:
        """The image file's whole path, as the system spells it."""


class BrokenFiles:
    """The files that one worker has found broken, and what takes their places.

    Args:
        stop: whether a broken file ends the run.
    """

    def __init__(self, *, stop: bool) -> None:
        self._stop = stop
        self._numbers: dict[Path, set[int]] = {}
        self._sound: set[bytes] = set()
        self.found: dict[str, str] = {}
        """Faults by the paths of the files that have them."""

    def note(self, index: ImageFiles, image: int, fault: str) -> None:
        """Note that an image's file is broken.

        Args:
            index: where the image is.
            image: its number.
            fault: what is wrong, words that continue "the image file ...".

        Raises:
            UserError: broken files end the run, or no sound one is left.
        """
        path = os.fsdecode(index.encoded_path(image))
        if self._stop:
            raise UserError(
                f"The image file {fault}",
                where=path,
                mend="Put a sound copy in its place, or pass over broken files with --data.broken_files skip.",
            )
        if path not in self.found:
            self.found[path] = fault
            console.err(f"Passed over: the image file {fault} [{path}]")
        numbers = self._numbers.setdefault(index.folder, set())
        numbers.add(image)
        if len(numbers) == len(index):
            raise UserError(
                f"All {len(index)} image files are broken", where=str(index.folder), mend="Unpack the data again."
            )

    def is_sound(self, index: ImageFiles, image: int) -> bool:
        """Return whether an image file can be decoded to its end; note one that cannot."""
        path = index.encoded_path(image)
        if path in self._sound:
            return True
        try:
            read_trusted(path)
        except ValueError as fault:
            self.note(index, image, str(fault))
            return False
        self._sound.add(path)
        return True

    def replaced(self, index: ImageFiles, images: NDArray[np.int64]) -> NDArray[np.int64]:
        """The images [B] that are trained on: for each broken one the next sound one, by their numbers."""
        numbers = self._numbers.get(index.folder)
        if not numbers:
            return images
        return np.array([self._next_sound(numbers, len(index), int(image)) for image in images], dtype=np.int64)

    @staticmethod
    def _next_sound(numbers: set[int], size: int, image: int) -> int:
        while image in numbers:
            image = (image + 1) % size
        return image

    def left(self, index: ImageFiles, images: NDArray[np.int64]) -> NDArray[np.int64]:
        """The images that are not broken, of `images` [B]."""
        numbers = self._numbers.get(index.folder)
        if not numbers:
            return images
        return np.array([image for image in images.tolist() if image not in numbers], dtype=np.int64)
