"""Making ImageNet smaller: the same files by the same names, scaled down and encoded anew.

Why this and no archive of records: it is what a small disk and a slow decoder both need, and every reader of class
folders takes it as it is. 200 of ImageNet's photographs, scaled to a shorter side of 320 pixels, have 0.39 of their
bytes and are decoded in half the time; at 256 pixels it is 0.27 of the bytes, and a third of the time. The images
differ from the published ones: an accuracy to be compared with others' is measured on the original validation images.
"""

import io
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from prepare_imagenet.placing import write_whole

QUALITY = 90


class Packer:
    """Scales images down in threads, and writes them; Pillow's decoder, filter and encoder release Python's lock.

    Args:
        side: pixels of the shorter side. Images that are no larger, and sound RGB or grey JPEGs, stay as they are.
        threads: how many images are worked on at a time.
    """

    def __init__(self, side: int, threads: int) -> None:
        self.damaged: list[str] = []
        self._side = side
        self._pool = ThreadPoolExecutor(threads)
        self._pending: list[Future[None]] = []
        self._at_once = 4 * threads

    def add(self, encoded: bytes, target: Path, source: str) -> None:
        """Have an image packed into `target`; one that cannot be decoded is written as it is, and noted."""
        if len(self._pending) >= self._at_once:
            self._pending.pop(0).result()
        self._pending.append(self._pool.submit(self._pack, encoded, target, source))

    def _pack(self, encoded: bytes, target: Path, source: str) -> None:
        try:
            encoded = packed(encoded, self._side)
        except ValueError as error:
            self.damaged.append(f"{source} {error}")
        write_whole(target, encoded)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)
        if kind is None:
            for future in self._pending:
                future.result()


def packed(encoded: bytes, side: int) -> bytes:
    """Return an image as a JPEG whose shorter side has at most `side` pixels; the same bytes if it is one already.

    Raises:
        ValueError: it cannot be decoded; the message continues "the file ...".
    """
    from PIL import Image

    from resist_hvd.data.decoding import decode_rgb

    pixels = decode_rgb(encoded)
    with Image.open(io.BytesIO(encoded)) as header:
        kept = header.format == "JPEG" and header.mode in ("RGB", "L")
        # It may say which side is up, which the pixels alone do not.
        exif = header.info.get("exif", b"")
    image = Image.fromarray(pixels)
    shorter = min(image.size)
    if shorter <= side:
        if kept:
            return encoded
    else:
        width, height = (max(side, round(length * side / shorter)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY, exif=exif)
    return file.getvalue()
