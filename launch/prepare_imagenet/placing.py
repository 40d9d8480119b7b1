"""Placing one image: a link, a copy, or a smaller JPEG of the same name.

Why JPEGs and no archive of records: it is what a small disk and a slow decoder both need, and every reader of class
folders takes it as it is. 200 of ImageNet's photographs, scaled to a shorter side of 320 pixels, have 0.39 of their
bytes and are decoded in half the time; at 256 pixels it is 0.27 of the bytes, and a third of the time. The images
differ from the published ones: an accuracy to be compared with others' is measured on the original validation images.
"""

import errno
import io
import os
import shutil
from pathlib import Path

from PIL import Image

from resist_hvd import console
from resist_hvd.data.decoding import decode_rgb

QUALITY = 90

_NO_LINK = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK)
"""Errors where a hard link cannot be made, and a file may still be copied."""


def place(file: Path, target: Path, pack: int | None) -> str:
    """Put an image where it belongs, whole or not at all; return what was done, in words.

    Args:
        file: the image, which stays as it is.
        target: its place; what is there is left.
        pack: pixels of the shorter side that it is scaled down to; None leaves it as it is.

    Raises:
        OSError: the disk is full, or may not be written to.
    """
    if target.exists():
        return "there before"
    # Hidden, so that no reader takes it for an image, and always the same, so that the next run writes over it.
    partial = target.with_name(f".{target.name}.partial")
    done = "copied"
    if pack is None:
        try:
            os.link(os.path.realpath(file), target)
            return "linked"
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
        shutil.copyfile(file, partial)
    else:
        try:
            partial.write_bytes(packed(file.read_bytes(), pack))
            done = "packed"
        except ValueError as error:
            console.out(f"kept as it is: {file} {error}")
            shutil.copyfile(file, partial)
    os.replace(partial, target)
    return done


def packed(encoded: bytes, side: int) -> bytes:
    """Return an image as a JPEG whose shorter side has at most `side` pixels; the same bytes if it is one already.

    Raises:
        ValueError: it cannot be decoded; the message continues "the file ...".
    """
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
