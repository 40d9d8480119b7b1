"""Windows that are cut out of images: at random for training, the middle for testing. Pure functions.

Every loader takes its windows from the numbers drawn here, so all of them cut out the same. The rules are those of
torchvision's `RandomResizedCrop`, `Resize` and `CenterCrop`, with which ImageNet's published results were obtained.
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

TRIES = 10
"""Windows that are drawn for an image until one fits into it."""

GREATEST_RATIO = 4 / 3
"""The most that a window's width is of its height, and its height of its width."""

WORDS_PER_WINDOW = 2 * TRIES + 8
"""64-bit random words that one image takes for everything random about it; a multiple of four."""


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Random draws for each of B images, before anything is known of their sizes.

    Attributes:
        widths_squared, heights_squared: float64 [B, TRIES], each try's squared width and squared height as a multiple
            of the image's area in pixels.
        places: float64 [B, 2], from 0 up to 1: where the window lies between the topmost and the lowest, and between
            the leftmost and the rightmost place that it can have.
        mirrored: bool [B].
        colours: float64 [B, 3], from -1 up to 1: which way brightness, contrast and saturation are changed.
    """

    widths_squared: NDArray[np.float64]
    heights_squared: NDArray[np.float64]
    places: NDArray[np.float64]
    mirrored: NDArray[np.bool_]
    colours: NDArray[np.float64]

    @classmethod
    def of(cls, words: NDArray[np.uint64], *, least_area: float, may_mirror: bool) -> Self:
        """The draws that random words make.

        Args:
            words: uint64 [B, WORDS_PER_WINDOW].
            least_area: the smallest share of an image that a window covers.
            may_mirror: whether half of the images are mirrored.
        """
        uniform = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53  # evenly spaced from 0 up to 1
        areas = least_area + (1 - least_area) * uniform[:, :TRIES]
        ratios = np.exp(math.log(GREATEST_RATIO) * (2 * uniform[:, TRIES : 2 * TRIES] - 1))
        rest = uniform[:, 2 * TRIES :]
        return cls(
            widths_squared=areas * ratios,
            heights_squared=areas / ratios,
            places=rest[:, :2],
            mirrored=(rest[:, 2] < 0.5) & may_mirror,
            colours=2 * rest[:, 3:6] - 1,
        )


def random_windows(draws: Draws, heights: NDArray[np.int64], widths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The windows that training cuts out of images of these sizes: int64 [B, 4] of top, left, height, width.

    The first try that fits counts; where none does, the largest window in the middle whose ratio is a permitted one.
    """
    image_heights, image_widths = heights[:, None].astype(np.float64), widths[:, None].astype(np.float64)
    area = image_heights * image_widths
    tried_widths = np.floor(np.sqrt(area * draws.widths_squared) + 0.5)
    tried_heights = np.floor(np.sqrt(area * draws.heights_squared) + 0.5)
    fits = (
        (tried_widths >= 1) & (tried_widths <= image_widths) & (tried_heights >= 1) & (tried_heights <= image_heights)
    )
    last_width = np.minimum(image_widths, np.floor(image_heights * GREATEST_RATIO + 0.5))
    last_height = np.minimum(image_heights, np.floor(image_widths * GREATEST_RATIO + 0.5))
    chosen = np.where(fits.any(axis=1), fits.argmax(axis=1), TRIES)[:, None]
    height = np.take_along_axis(np.hstack([tried_heights, last_height]), chosen, axis=1)[:, 0]
    width = np.take_along_axis(np.hstack([tried_widths, last_width]), chosen, axis=1)[:, 0]
    spare = np.stack([heights - height, widths - width], axis=1)
    corner = np.where(chosen == TRIES, spare // 2, np.floor(draws.places * (spare + 1)))
    return np.column_stack([corner, height, width]).astype(np.int64)


def middle_windows(
    size: int, shorter_side: int, sides: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the sizes that testing scales images to, and the corners of the middle that it cuts out.

    Args:
        size: height and width of the middle, in pixels.
        shorter_side: pixels that each image's shorter side is scaled to.
        sides: int64 [B, 2], each image's height and width.

    Returns:
        The height and width that each image is scaled to, and the top and left of its middle: int64 [B, 2] each.
    """
    scaled = shorter_side * sides // sides.min(axis=1, keepdims=True)
    # Halves go to the even number, as in torchvision.
    return scaled, np.rint((scaled - size) / 2).astype(np.int64)
