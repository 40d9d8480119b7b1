"""From a file's bytes to an RGB image."""

import importlib
import importlib.util
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

# Where it is installed, simplejpeg decodes small JPEGs about five times as fast as Pillow, which spends most of its
# time around the decoder. Both wrap libjpeg-turbo, and a test holds them to the same pixels.
_simplejpeg: Any = importlib.import_module("simplejpeg") if importlib.util.find_spec("simplejpeg") else None

_JPEG_START = b"\xff\xd8\xff"

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
"""In Pillow's words, the formats that every reader decodes, whatever a file's name ends with."""

LARGEST_IMAGE = 2**28
"""Pixels of the largest image that is decoded: 0.75 GiB of memory."""


def lift_pillows_limit() -> None:
    """Have Pillow open images of any size: its own limit refuses photographs that people do have.

    `check_size` takes its place.
    """
    Image.MAX_IMAGE_PIXELS = None


def decode_rgb(encoded: bytes, formats: tuple[str, ...] | None = FORMATS) -> NDArray[np.uint8]:
    """Decode an image of some formats, by default those that have a suffix in `folders`: uint8 [H, W, 3].

    Grey images become RGB, transparency is dropped, 16-bit images keep their high byte, of several frames the first
    one counts. Pixels are as they are stored: EXIF's orientation is not followed, as in torchvision and DALI.

    Raises:
        ValueError: the image is damaged, cut short, empty, larger than `LARGEST_IMAGE` or none at all; the message
            continues "the file ...".
    """
    if not encoded:
        raise ValueError("is empty")
    lift_pillows_limit()
    pixels = _fast_jpeg(encoded)
    if pixels is not None:
        return pixels
    try:
        with Image.open(io.BytesIO(encoded), formats=formats) as image:
            check_size(*image.size)
            return np.asarray(eight_bits(image).convert("RGB"))
    except UnidentifiedImageError:
        raise ValueError("is no image, or one of an unknown format") from None
    except (MemoryError, TooLargeError):
        raise
    except Exception as error:  # damaged files make Pillow's decoders raise errors of any kind
        raise ValueError(f"is a damaged image ({error})") from error


class TooLargeError(ValueError):
    """An image has more pixels than are decoded."""


def check_size(width: int, height: int) -> None:
    """Check that an image is not too large to be decoded.

    Raises:
        TooLargeError: it is; the message continues "the file ...".
    """
    if width * height > LARGEST_IMAGE:
        raise TooLargeError(
            f"has {width:,} x {height:,} pixels, more than the {LARGEST_IMAGE:,} that are read: scale it down"
        )


def _fast_jpeg(encoded: bytes) -> NDArray[np.uint8] | None:
    """A JPEG's pixels, None where that is for Pillow to decode or to find fault with."""
    if _simplejpeg is None or not encoded.startswith(_JPEG_START):
        return None
    try:
        height, width, colours = _simplejpeg.decode_jpeg_header(encoded)[:3]
        check_size(width, height)
        # The two libraries disagree on CMYK; Pillow knows Adobe's inverted kind.
        if colours == "CMYK":
            return None
        pixels: NDArray[np.uint8] = _simplejpeg.decode_jpeg(encoded, colorspace="RGB")
        return pixels
    except TooLargeError:
        raise
    except ValueError:
        return None


def eight_bits(image: Image.Image) -> Image.Image:
    """Return an image whose channels have 8 bits: of 16-bit grey images the high byte.

    Pillow's own conversion would cut off all that is brighter than 255.
    """
    if image.mode == "I" or image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    return image


def fit_square(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Scale the middle square of an image [H, W, 3] or [H, W] to `size` x `size`, bilinearly and without aliasing."""
    if pixels.shape[:2] == (size, size):
        return pixels
    return np.asarray(ImageOps.fit(Image.fromarray(pixels), (size, size), method=Image.Resampling.BILINEAR))
