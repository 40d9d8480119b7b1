"""scikit-learn's handwritten digits: 1,797 real images that come with the library, so nothing needs a download.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998
(its test half), 8 x 8 pixels of 17 grey levels.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resist_hvd.data.memory.images import LabelledImages, check_memory
from resist_hvd.data.memory.resident import ImageSet
from resist_hvd.settings.data import DataSettings

_TEST_SIZE = 360
_BRIGHTEST = 16


def read(settings: DataSettings) -> ImageSet:
    """The digits scaled up bilinearly to 32 x 32 pixels or `image_size`; always the same 360 of them are the test set.

    The test set has its share of each class. Digits are not mirrored by default, and cropped with a padding of 2.

    Raises:
        UserError: they would take more memory than `resident_limit_gib`.
    """
    # Importing scikit-learn takes each rank more than a second: its file is read without it.
    package = find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    table = np.loadtxt(Path(package.origin).parent / "datasets/data/digits.csv.gz", delimiter=",")
    labels = torch.from_numpy(table[:, -1].astype(np.int64))
    train, test = _split(labels.numpy())
    size, padding = settings.image_size or 32, 2 if settings.crop_padding is None else settings.crop_padding
    # They are scaled in double precision.
    check_memory(
        settings, train=len(train), test=len(test), size=size, padding=padding, where=Path("digits"), bytes_a_pixel=8
    )
    images = _scaled_up(torch.from_numpy(table[:, :-1].reshape(-1, 8, 8)), size)
    return ImageSet(
        name="digits",
        classes=tuple("0123456789"),
        train=LabelledImages.of(images[train], labels[train], padding=padding),
        test=LabelledImages.of(images[test], labels[test], padding=0),
        mirrored=False,
    )


def _split(labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The training and test images' numbers: scikit-learn's `train_test_split`, stratified, with `random_state` 0."""
    random = np.random.RandomState(0)
    exact = np.bincount(labels) * (1 - _TEST_SIZE / len(labels))
    of_train = np.floor(exact).astype(np.int64)
    remainders = exact - of_train
    for remainder in np.unique(remainders)[::-1]:  # the largest are rounded up; chance decides between equal ones
        tied = np.flatnonzero(remainders == remainder)
        missing = len(labels) - _TEST_SIZE - int(of_train.sum())
        of_train[random.choice(tied, size=min(len(tied), missing), replace=False)] += 1
        if missing <= len(tied):
            break
    members = [random.permutation(np.flatnonzero(labels == label)) for label in range(len(of_train))]
    train = np.concatenate([own[:first] for own, first in zip(members, of_train, strict=True)])
    test = np.concatenate([own[first:] for own, first in zip(members, of_train, strict=True)])
    return random.permutation(train), random.permutation(test)


def _scaled_up(digits: Tensor, size: int) -> Tensor:
    """From 0 to 16, [N, 8, 8], to bytes, uint8 [N, size, size, 1]."""
    scaled = torch.nn.functional.interpolate(digits[:, None], size=(size, size), mode="bilinear", align_corners=False)
    return (scaled * (255 / _BRIGHTEST)).round().to(torch.uint8).permute(0, 2, 3, 1)
