"""What a user can set of the data: the flags `--data.*`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

DataName = Literal["digits", "cifar10", "cifar100", "svhn", "folder"]


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which images to train and test on, and how they are batched and augmented.

    Raises:
        ValueError: a value that is wrong by itself, or that another field rules out.
    """

    name: DataName = "digits"
    """The data set: digits (scikit-learn's handwritten digits, built in), cifar10, cifar100, svhn, or folder (any
    folder of train/<class>/* and test/<class>/* or val/<class>/*)."""

    root: Path | None = None
    """The folder that holds the data. Needed for folder; cifar10, cifar100 and svhn default to ./data; digits needs
    none."""

    download: bool = False
    """Fetch cifar10, cifar100 or svhn into root where it is missing."""

    batch_size: int = 32
    """Images in each worker's training batch."""

    test_batch_size: int = 256
    """Images in each worker's batch of the test and calibration sets."""

    calibration_images: int = 2048
    """Training images, summed over workers, from which evaluation takes the exact batch-norm statistics; all of them
    where there are fewer."""

    image_size: int | None = None
    """Height and width in pixels that images are scaled to, for folder and digits. Default: 32 for digits; for folder,
    the size that the images have, if it is one for all."""

    crop_padding: int | None = None
    """Augmentation: black pixels added at each side before a random crop to the image's size; 0 turns it off. Default:
    2 for digits, an eighth of the image's size for the others (4 at 32 x 32)."""

    flip: bool | None = None
    """Augmentation: mirror half of the training images. Default: true, but false for digits and svhn, whose
    classes do not survive it."""

    resident_limit_gib: float = 8.0
    """Refuse a folder whose images would take more memory than this on each worker, in GiB."""

    decode_threads: int | None = None
    """Threads that decode a folder's images while it loads. Default: as many as PyTorch was given, which are this
    worker's cores or OMP_NUM_THREADS."""

    def __post_init__(self) -> None:
        if self.name not in get_args(DataName):
            raise ValueError(f"--data.name is {self.name!r}; give one of {', '.join(get_args(DataName))}")
        at_least_one = {
            "batch_size": self.batch_size,
            "test_batch_size": self.test_batch_size,
            "calibration_images": self.calibration_images,
            "image_size": self.image_size,
            "decode_threads": self.decode_threads,
        }
        for field, value in at_least_one.items():
            if value is not None and value < 1:
                raise ValueError(f"--data.{field} is {value}; give a number of at least 1")
        if self.crop_padding is not None and self.crop_padding < 0:
            raise ValueError(f"--data.crop_padding is {self.crop_padding}; give 0 for no crop, or a number of pixels")
        if not self.resident_limit_gib > 0:
            raise ValueError(f"--data.resident_limit_gib is {self.resident_limit_gib}; give a number above 0")
        if self.name == "folder" and self.root is None:
            raise ValueError("--data.name is folder, but there is no folder; give it with --data.root DIR")
        if self.name == "folder" and self.download:
            raise ValueError("--data.download is true, but a folder is not downloaded; leave the flag out")
        if self.image_size is not None and self.name not in ("digits", "folder"):
            raise ValueError(
                f"--data.image_size is {self.image_size}, but {self.name} has a size of its own, 32; leave the flag out"
            )
