"""scikit-learn's handwritten digits: 1,797 real images that come with the library, so nothing needs a download.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998
(its test half), 8 x 8 pixels of 17 grey levels.
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from resist_hvd.data.memory.images import LabelledImages
from resist_hvd.data.memory.resident import ImageSet
from resist_hvd.data.settings import DataSettings

_TEST_SIZE = 360
_BRIGHTEST = 16


def read(settings: DataSettings) -> ImageSet:
    """The digits scaled up bilinearly to 32 x 32 pixels or `image_size`; always the same 360 of them are the test set.

    The test set has its share of each class. Digits are not mirrored by default, and cropped with a padding of 2.
    """
    digits = load_digits()
    images = _scaled_up(torch.from_numpy(digits.images), settings.image_size or 32)
    labels = torch.from_numpy(digits.target)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=_TEST_SIZE, stratify=digits.target, shuffle=True, random_state=0
    )
    padding = 2 if settings.crop_padding is None else settings.crop_padding
    return ImageSet(
        name="digits",
        classes=tuple(str(digit) for digit in digits.target_names),
        train=LabelledImages.of(images[train], labels[train], padding=padding),
        test=LabelledImages.of(images[test], labels[test], padding=0),
        mirrored=False,
    )


def _scaled_up(digits: Tensor, size: int) -> Tensor:
    """From 0 to 16, [N, 8, 8], to bytes, uint8 [N, size, size, 1]."""
    scaled = torch.nn.functional.interpolate(digits[:, None], size=(size, size), mode="bilinear", align_corners=False)
    return (scaled * (255 / _BRIGHTEST)).round().to(torch.uint8).permute(0, 2, 3, 1)
