"""Settings of the data: the flags `--data.*`."""

import math
import os
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal, NamedTuple

from resist_hvd.settings.group import Bound, Count, Fraction, Group, Natural, Positive, Share

DataName = Literal["digits", "cifar10", "cifar100", "svhn", "folder", "imagenet", "voc"]

LoaderName = Literal["auto", "dali", "torchvision"]


class Facts(NamedTuple):
    """Facts of a data set, by which a run on it can be planned; 0 where one is not known.

    Attributes:
        channels: of an image.
        size: height and width in pixels.
        classes: number of classes.
        train: number of training images.
    """

    channels: int
    size: int
    classes: int
    train: int


FACTS: dict[DataName, Facts] = {
    "cifar10": Facts(3, 32, 10, 50_000),
    "cifar100": Facts(3, 32, 100, 50_000),
    "svhn": Facts(3, 32, 10, 73_257),
    "imagenet": Facts(3, 224, 1000, 1_281_167),
    "digits": Facts(1, 32, 10, 1_437),
    "voc": Facts(3, 448, 20, 16_551),
}

_TORCHVISION_SETS: tuple[DataName, ...] = ("cifar10", "cifar100", "svhn")
_CLASS_FOLDERS: tuple[DataName, ...] = ("folder", "imagenet")
_STREAMED: tuple[DataName, ...] = ("imagenet", "voc")

_COUNTS_FOR: dict[str, tuple[DataName, ...]] = {
    "root": (*_TORCHVISION_SETS, *_CLASS_FOLDERS, "voc"),
    "download": _TORCHVISION_SETS,
    "test_resize": ("imagenet",),
    "crop_area": ("imagenet",),
    "color_jitter": _STREAMED,
    "jitter": ("voc",),
    "sets": ("voc",),
    "test": ("voc",),
    "classes": ("voc",),
    "ignore_exif": ("voc",),
    "crop_padding": ("digits", *_TORCHVISION_SETS, "folder"),
    "resident_limit_gib": ("digits", *_TORCHVISION_SETS, "folder"),
    "extra_tests": _CLASS_FOLDERS,
    "decode_threads": (*_TORCHVISION_SETS, *_CLASS_FOLDERS, "voc"),
    "loader": ("imagenet",),
    "prefetch": _STREAMED,
    "image_type": _STREAMED,
    "broken_files": (*_CLASS_FOLDERS, "voc"),
    "dali": ("imagenet",),
}
"""Data sets that a setting does something for; one that is not here counts for all."""

MOST_STREAMING_THREADS = 16
"""More threads than this are not taken to decode batch by batch unless they are asked for: they decode some 8,000
images a second, twice what a GPU trains on."""

_INSTEAD = {"crop_area": "--data.crop_padding", "crop_padding": "--data.crop_area"}


Load = Annotated[float, Bound("a share from 0 to 1", lambda share: 0 <= share <= 1)]
Jitter = Annotated[float, Bound("0 for none, or a number below 1", lambda x: 0 <= x < 1)]
Padding = Annotated[int, Bound("0 for no crop, or a number of pixels", lambda n: n >= 0)]


@dataclass(frozen=True, kw_only=True)
class DaliSettings(Group):
    """NVIDIA DALI's decoding on a GPU; on CPUs none of this counts. The defaults are DALI's own."""

    PREFIX: ClassVar = "data.dali."

    hardware_load: Load = 0.65
    """Share of the JPEGs that a GPU's hardware decoder takes, where it has one, from 0 to 1; the cores and the GPU's
    other units take the rest. What is best depends on both: try 0.65 to 0.95 by bench loader --hardware_load."""

    width_hint: Natural = 0
    """Width in pixels of the largest image to expect: GPU memory for decoding is taken at once, not piece by piece."""

    height_hint: Natural = 0
    """Height in pixels of the largest image to expect."""

    device_buffer: Natural = 16777216
    """Bytes of GPU memory that each decoding thread begins with."""

    host_buffer: Natural = 8388608
    """Bytes of pinned memory that each decoding thread begins with, where decoding is on a GPU."""


@dataclass(frozen=True, kw_only=True)
class DataSettings(Group):
    """Images to train and test on, and the way they are batched and augmented.

    Raises:
        ValueError: a value that is wrong by itself, or that another field rules out.
    """

    PREFIX: ClassVar = "data."

    name: DataName = "digits"
    """The data set: digits (scikit-learn's handwritten digits, built in), cifar10, cifar100, svhn, folder (any folder
    of train/<class>/* and test/<class>/* or val/<class>/*, decoded into memory once), imagenet (the same, decoded
    batch by batch), or voc (images with boxes in Pascal VOC's layout, decoded batch by batch, for --task detection)."""

    root: Path | None = None
    """The folder that holds the data. Needed for folder, imagenet and voc (VOCdevkit); cifar10, cifar100 and svhn
    default to ./data; digits needs none."""

    sets: str = "2007-trainval"
    """voc's lists of images to train on, each a year and a name in its ImageSets/Main: 2007-trainval,2012-trainval."""

    test: str = "2007-test"
    """voc's lists of images to test on."""

    classes: str | None = None
    """voc's classes, with commas between them; objects of others are left out. Default: all that the annotations of the
    training lists have, in the order of their names."""

    ignore_exif: bool = False
    """Take voc's boxes to be for the pixels as they are stored, where EXIF says that an image is to be turned when
    shown, and its annotation does not tell which is meant."""

    download: bool = False
    """Fetch cifar10, cifar100 or svhn into root where it is missing."""

    batch_size: Count = 32
    """Images in each worker's training batch."""

    test_batch_size: Count = 256
    """Images in each worker's batch of the test and calibration sets."""

    calibration_images: Count = 2048
    """Training images, summed over workers, from which evaluation takes the exact batch-norm statistics; all of them
    where there are fewer."""

    validation: Fraction = 0.0
    """Share of the training images, of each class, that is held out: not trained on, and evaluated on in place of the
    test set, which settings must not be chosen by. The same images in all runs on a training set."""

    image_size: Count | None = None
    """Height and width in pixels that images are scaled to. Default: 32 for digits, 224 for imagenet, 448 for voc,
    whose images are stretched to it; for the others, the size that the images have, if it is one for all."""

    test_resize: Count | None = None
    """Pixels that the shorter side of imagenet's test images is scaled to, before their middle is cut out. Default:
    8/7 of image_size, 256 at 224."""

    crop_area: Share = 0.08
    """Augmentation: the smallest share of an image that the random crop of imagenet covers; its ratio is 3:4 to 4:3."""

    jitter: Jitter = 0.0
    """Augmentation: each edge of voc's images moves in or out, by up to this share of the image's side, at random
    (darknet takes 0.3); 0 turns it off."""

    color_jitter: Jitter = 0.0
    """Augmentation: imagenet's and voc's brightness, contrast and saturation are multiplied by random factors, each
    from 1 - x to 1 + x; 0 turns it off."""

    crop_padding: Padding | None = None
    """Augmentation: black pixels added at each side before a random crop to the image's size; 0 turns it off. Default:
    2 for digits, an eighth of the image's size for the others (4 at 32 x 32)."""

    flip: bool | None = None
    """Augmentation: mirror half of the training images. Default: true, but false for digits and svhn, whose
    classes do not survive it, and for voc, as in the paper."""

    resident_limit_gib: Positive = 8.0
    """Refuse images that would take more memory than this on each worker, in GiB: of folder, cifar10, cifar100 or
    svhn."""

    extra_tests: Path | None = None
    """Further test sets, each evaluated by itself after training: a folder that holds ImageNetV2's three, or any others
    with class folders of the training classes' names, or 0, 1, ... in the order of those names, sorted. For folder and
    imagenet."""

    decode_threads: Count | None = None
    """Threads of each worker that decode or scale images: of folder, cifar10, cifar100 and svhn while it loads; of
    imagenet and voc all the time, as processes where DALI does not. Default: one for each core that this worker has
    among those of its host, whatever OMP_NUM_THREADS is; at most 16 for imagenet and voc."""

    loader: LoaderName = "auto"
    """What decodes imagenet: dali (NVIDIA DALI, on a GPU where training is), torchvision (in processes of its own), or
    auto: dali where it is installed."""

    prefetch: Count = 2
    """Batches that the loader of imagenet or voc has ready before they are asked for."""

    image_type: Literal["fp32", "bf16", "fp16"] = "fp32"
    """The numbers that batches of imagenet and voc come in. With precision bf16, bf16 halves what batches take."""

    broken_files: Literal["stop", "skip"] = "stop"
    """What an image file that is empty, cut short or damaged does: stop the run; or be named and counted in its
    summary, and left out. For folder, imagenet and voc, there a damaged annotation, too; in training on imagenet and
    voc another image takes its place."""

    dali: DaliSettings = field(default_factory=DaliSettings)
    """How NVIDIA DALI decodes on a GPU."""

    def check(self) -> None:
        """Refuse a setting that does nothing for this data set, and sizes that do not go together."""
        self._refuse_what_does_nothing()
        if self.resize_before_test < self.size:
            raise ValueError(
                f"--data.test_resize is {self.test_resize}, less than the image_size of {self.size} that is cut out; "
                "give at least that"
            )

        if self.name == "voc":
            self._refuse_lists_without_names()

    def _refuse_lists_without_names(self) -> None:
        """Refuse lists, or classes, in which there is no name; and a class that is there twice."""
        for setting in ("sets", "test", "classes"):
            text = getattr(self, setting)
            if text is not None and not named(text):
                raise ValueError(f"--data.{setting} is {text!r}, which names nothing; give names, commas between them")
        classes = named(self.classes or "")
        if twice := [name for name in classes if classes.count(name) > 1]:
            raise ValueError(f"--data.classes has {twice[0]!r} twice; give each class once")

    def _refuse_what_does_nothing(self) -> None:
        """Refuse a setting that is not its default, and that this data set has no use for."""
        for setting in fields(self):
            names = _COUNTS_FOR.get(setting.name, (self.name,))
            value = getattr(self, setting.name)
            default = DaliSettings() if setting.name == "dali" else setting.default
            if self.name in names or value == default:
                continue
            flag = f"--data.{setting.name}"
            if setting.name == "dali":
                changed = next(f for f in fields(value) if getattr(value, f.name) != f.default)
                flag, value = f"{flag}.{changed.name}", getattr(value, changed.name)
            instead = f", or give {_INSTEAD[setting.name]}" if setting.name in _INSTEAD else ""
            raise ValueError(
                f"{flag} is {value}, which does nothing for {self.name}: it is for {', '.join(names)}; "
                f"leave the flag out{instead}"
            )

    @property
    def lacks_root(self) -> bool:
        """True where it needs a folder, and none is given."""
        return self.name in (*_CLASS_FOLDERS, "voc") and self.root is None

    def on_cores(self, cores: float) -> "DataSettings":
        """The same, with `decode_threads` for a worker that has so many cores, where it counts and is not set."""
        if self.decode_threads is not None or self.name not in _COUNTS_FOR["decode_threads"]:
            return self
        most = MOST_STREAMING_THREADS if self.name in _STREAMED else cores
        return replace(self, decode_threads=max(1, math.floor(min(cores, most))))

    @property
    def threads(self) -> int:
        """Threads or processes that decode."""
        return self.decode_threads or own_cores()

    @property
    def size(self) -> int:
        """Height and width of imagenet's or voc's images, in pixels."""
        return self.image_size or FACTS["voc" if self.name == "voc" else "imagenet"].size

    @property
    def resize_before_test(self) -> int:
        """Pixels that the shorter side of a test image is scaled to."""
        return self.test_resize or round(self.size * 8 / 7)


def named(text: str) -> list[str]:
    """Return the names in a text with commas between them."""
    return [name for part in text.split(",") if (name := part.strip())]


def own_cores() -> int:
    """Return how many cores this process may run on; others may share them."""
    return len(os.sched_getaffinity(0))
