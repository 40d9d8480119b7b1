"""Folders laid out as ImageNet, of pictures as smooth as photographs and of many sizes; and files of odd kinds."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE = 32
"""Pixels that tests have pictures cut to: so they are quick, and most pictures are still scaled down."""


def picture(seed: int, height: int = 0, width: int = 0) -> NDArray[np.uint8]:
    """A smooth picture, uint8 [H, W, 3]; of a size of its own where none is given."""
    random = np.random.default_rng(seed)
    drawn = random.integers(40, 120, size=2)
    coarse = random.integers(0, 256, size=(5, 5, 3)).astype(np.uint8)
    size = (width or int(drawn[0]), height or int(drawn[1]))
    return np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))


def encode(pixels: NDArray[np.uint8], kind: str = "JPEG", mode: str = "RGB", **options: object) -> bytes:
    """The file's content."""
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


def make_root(root: Path, *, classes: int = 3, train: int = 4, val: int = 2) -> Path:
    """A data folder: so many classes of so many training and validation pictures each."""
    seed = 0
    for half, images in (("train", train), ("val", val)):
        for number in range(classes):
            folder = root / half / f"n{number:08d}"
            folder.mkdir(parents=True)
            for image in range(images):
                (folder / f"{half}_{number}_{image}.JPEG").write_bytes(encode(picture(seed)))
                seed += 1
    return root


def odd_files() -> dict[str, bytes]:
    """Sound files of the kinds that are found in ImageNet, and others that decoders read: all named as JPEG there."""
    pixels = picture(1000, 90, 70)
    return {
        "grey": encode(pixels, mode="L"),
        "cmyk": encode(pixels, mode="CMYK", quality=95),
        "progressive": encode(pixels, progressive=True),
        "png": encode(pixels, "PNG"),
        "png-grey": encode(pixels, "PNG", "L"),
        "png-transparent": encode(pixels, "PNG", "RGBA"),
        "png-palette": encode(pixels, "PNG", "P"),
        "bmp": encode(pixels, "BMP"),
        "ppm": encode(pixels, "PPM"),
        "turned": encode(pixels, exif=_turned()),
        "with-more-after-its-end": encode(pixels) + bytes(100),
        "one-pixel": encode(picture(1001, 1, 1)),
        "narrow": encode(picture(1002, 90, 3)),
    }


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned by 90 degrees when it is shown
    return exif


def broken_files() -> dict[str, bytes]:
    """Files that are no sound image, by what is wrong with them."""
    jpeg, png = encode(picture(1003, 90, 70)), encode(picture(1003, 90, 70), "PNG")
    progressive = encode(picture(1003, 90, 70), progressive=True)
    return {
        "empty": b"",
        "one-byte": b"\xff",
        "text": b"This is no image, but a page that says that there is none.\n" * 9,
        "jpeg-cut-in-its-header": jpeg[:40],
        "jpeg-cut-short": jpeg[: len(jpeg) * 3 // 4],
        "jpeg-without-its-end": jpeg[:-2],
        "progressive-cut-short": progressive[: len(progressive) // 2],
        "png-cut-short": png[: len(png) // 2],
        "of-an-unknown-format": encode(picture(1003, 90, 70), "PCX"),
    }


def foreign_files() -> dict[str, tuple[str, bytes]]:
    """Sound files of formats that not all libraries decode alike: endings of their names, and contents."""
    pixels = picture(1004, 90, 70)
    turned = _turned()
    return {
        "gif": ("gif", encode(pixels, "GIF")),
        "tiff": ("TIFF", encode(pixels, "TIFF")),
        "tiff-turned": ("tif", encode(pixels, "TIFF", exif=turned)),
        "tiff-palette": ("tif", encode(pixels, "TIFF", "P")),
        "ppm-of-another-maximum": ("ppm", b"P6 2 90 100\n" + bytes(range(90)) * 6),
        "pbm": ("pbm", encode(pixels, "PPM", "1")),
    }
