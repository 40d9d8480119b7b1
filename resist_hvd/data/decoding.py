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


def decode_rgb(encoded: bytes) -> NDArray[np.uint8]:
    """Decode an image of any format that Pillow reads: uint8 [H, W, 3].

    Grey images become RGB, transparency is dropped, 16-bit images keep their high byte, of several frames the first
    one counts.

    Raises:
        ValueError: the image is damaged, cut short, empty or none at all; the message continues "the file ...".
    """
    if not encoded:
        raise ValueError("is empty")
    if _simplejpeg is not None and encoded.startswith(_JPEG_START):
        try:
            # The two libraries disagree on CMYK; Pillow knows Adobe's inverted kind.
            if _simplejpeg.decode_jpeg_header(encoded)[2] != "CMYK":
                pixels: NDArray[np.uint8] = _simplejpeg.decode_jpeg(encoded, colorspace="RGB")
                return pixels
        except ValueError:
            pass  # Pillow's word is final on what is damaged
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return np.asarray(_eight_bits(image).convert("RGB"))
    except UnidentifiedImageError:
        raise ValueError("is no image, or one of an unknown format") from None
    except MemoryError:
        raise
    except Exception as error:  # damaged files make Pillow's decoders raise errors of any kind
        raise ValueError(f"is a damaged image ({error})") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Pillow's own conversion of 16-bit grey images would cut off all that is brighter than 255."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    return image


def fit_square(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Scale the image's middle square to `size` x `size`, bilinearly and without aliasing: uint8 [size, size, 3]."""
    if pixels.shape[:2] == (size, size):
        return pixels
    return np.asarray(ImageOps.fit(Image.fromarray(pixels), (size, size), method=Image.Resampling.BILINEAR))
