"""ImageNet's own folder layout, or any of its kind: train/<class>/* and val/<class>/*, decoded batch by batch.

Preprocessing as in the paper's source of ImageNet results (He et al. 2016; torchvision's reference training): random
windows of 8 to 100 % of an image, mirrored or not, for training; the middle 224 of 256 pixels for testing.
"""

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from resist_hvd.data.ahead import Ahead
from resist_hvd.data.broken import BrokenFiles
from resist_hvd.data.extra_tests import find_extra_tests
from resist_hvd.data.index import ImageIndex, class_folders, index_images
from resist_hvd.data.loader import ImageLoader, TrainingPlan
from resist_hvd.data.order import EpochOrder, fixed_choice
from resist_hvd.data.settings import DataSettings
from resist_hvd.data.source import Batch, DataSource, DataSpec, ExtraTest, Shard
from resist_hvd.data.stream import NumberedStream, check_one_batch
from resist_hvd.errors import UserError

MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)
"""Of ImageNet's red, green and blue: the figures that published models were trained with."""


def load(settings: DataSettings, *, shard: Shard, seed: int, device: torch.device) -> DataSource:
    """The images below `settings.root` as worker `shard` sees them, with batches on `device`.

    Raises:
        UserError: a folder is missing or empty, its classes do not match, images are too few for one batch of all
            workers, or the loader that is asked for is not installed.
    """
    assert settings.root is not None  # DataSettings sees to it
    train, val = find_images(settings.root.expanduser().absolute())
    check_one_batch(
        train.folder.parent.name,
        train_size=len(train),
        batch_size=settings.batch_size,
        shard=shard,
        where=str(train.folder),
    )
    broken = BrokenFiles(stop=settings.broken_files == "stop")
    loader = make_loader(settings, device=device, broken=broken)
    tests = find_extra_tests(settings.extra_tests, train.classes) if settings.extra_tests else ()
    extra = {test.name: index_images(test.folder, train.classes, label_of=test.label_of) for test in tests}
    return StreamedSource(train, val, extra, settings, loader=loader, broken=broken, shard=shard, seed=seed)


def find_images(root: Path) -> tuple[ImageIndex, ImageIndex]:
    """The training and the validation images below `root`, their classes numbered in the order of the folders' names.

    A class may have no validation image, but must have a folder for them.

    Raises:
        UserError: a folder is missing or empty, or the two halves have not the same classes.
    """
    if not root.is_dir():
        raise UserError(
            "There is no such folder" if not root.exists() else "This is not a folder",
            where=str(root),
            mend="Give the folder that holds train and val with --data.root.",
        )
    for half in ("train", "val"):
        if not (root / half).is_dir():
            raise UserError(
                f"The data folder has no folder {half}",
                where=str(root),
                mend=f"Put images into {half}/<class>/ there, or give another --data.root; launch/prepare-imagenet "
                "sorts a downloaded ImageNet.",
            )
    classes, val_classes = (class_folders(root / half) for half in ("train", "val"))
    if classes != val_classes:
        only_train, only_val = (sorted(set(a) - set(b)) for a, b in ((classes, val_classes), (val_classes, classes)))
        named = [
            f"{len(names)} only {half} has ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for half, names in (("train", only_train), ("val", only_val))
            if names
        ]
        raise UserError(
            f"train has {len(classes)} classes and val {len(val_classes)}, of which {' and '.join(named)}",
            where=str(root),
            mend="Give both the same class folders.",
        )
    return index_images(root / "train", classes), index_images(root / "val", classes, may_be_empty=True)


def make_loader(settings: DataSettings, *, device: torch.device, broken: BrokenFiles) -> ImageLoader:
    """The loader that `settings.loader` names, for batches on `device`.

    Raises:
        UserError: it is DALI, which is not installed.
    """
    installed = dali_is_installed()
    if settings.loader == "dali" and not installed:
        raise UserError(
            "--data.loader is dali, but NVIDIA DALI is not installed",
            mend="Install it with launch/setup --dali, or give --data.loader torchvision.",
        )
    # Each brings a library along that takes a while to load.
    if settings.loader == "torchvision" or not installed:
        from resist_hvd.data.torchvision_loader import TorchvisionLoader

        return TorchvisionLoader(settings, mean=MEAN, std=STD, device=device, broken=broken)
    from resist_hvd.data.dali import DaliLoader

    return DaliLoader(settings, mean=MEAN, std=STD, device=device, broken=broken)


def dali_is_installed() -> bool:
    """Whether NVIDIA DALI can be imported."""
    return all(importlib.util.find_spec(name) is not None for name in ("nvidia", "nvidia.dali"))


class LoaderStream(NumberedStream):
    """Training batches from a loader, which makes them in advance, and begins anew where the position jumps."""

    def __init__(self, index: ImageIndex, loader: ImageLoader, plan: TrainingPlan) -> None:
        super().__init__(plan.order, shard=plan.shard, batch_size=plan.batch_size)
        self._index = index
        self._loader = loader
        self._plan = plan
        self._batches: Ahead[Batch] | None = None
        self._next_of_batches = -1

    def batch(self, samples_drawn: int) -> Batch:
        """This worker's batch once all workers have drawn so many samples."""
        if self._batches is None or samples_drawn != self._next_of_batches:
            self.close()
            self._batches = Ahead(self._loader.train(self._index, self._plan, samples_drawn))
        batch = next(self._batches)
        self._next_of_batches = self._plan.after(samples_drawn)
        return batch

    def close(self) -> None:
        """Stop making batches in advance."""
        if self._batches is not None:
            self._batches.close()
        self._batches = None


class StreamedSource(DataSource):
    """Training and test images that a loader decodes whenever they are needed."""

    def __init__(
        self,
        train: ImageIndex,
        test: ImageIndex,
        extra: Mapping[str, ImageIndex],
        settings: DataSettings,
        *,
        loader: ImageLoader,
        broken: BrokenFiles,
        shard: Shard,
        seed: int,
    ) -> None:
        self.spec = DataSpec(
            name=settings.name,
            classes=train.classes,
            channels=3,
            image_size=settings.size,
            train_size=len(train),
            test_size=len(test),
            mean=MEAN,
            std=STD,
        )
        self._train, self._test = train, test
        self.extra_tests = tuple(self._extra_test(name, index) for name, index in extra.items())
        self._loader, self._broken, self._shard = loader, broken, shard
        self.loader_name = loader.name
        self._calibration_images = fixed_choice(len(train), settings.calibration_images)
        plan = TrainingPlan(
            order=EpochOrder(len(train), seed),
            shard=shard,
            batch_size=settings.batch_size,
            least_area=settings.crop_area,
            may_mirror=settings.flip is not False,
        )
        self._stream = LoaderStream(train, loader, plan)

    def train(self) -> LoaderStream:
        """This worker's training stream."""
        return self._stream

    def test(self, shard: Shard | None = None) -> Iterator[Batch]:
        """A share of the test set."""
        return self._share(self._test, np.arange(self.spec.test_size), shard)

    def calibration(self, shard: Shard | None = None) -> Iterator[Batch]:
        """A share of the calibration set, the same images in every run on this training set."""
        return self._share(self._train, self._calibration_images, shard)

    def _extra_test(self, name: str, index: ImageIndex) -> ExtraTest:
        images = np.arange(len(index))
        return ExtraTest(name=name, size=len(index), batches=lambda shard: self._share(index, images, shard))

    def _share(self, index: ImageIndex, images: NDArray[np.int64], shard: Shard | None) -> Iterator[Batch]:
        shard = shard or self._shard
        # Every size-th image: they are sorted by class, and so each share has some of all classes.
        return self._loader.test(index, images[shard.rank :: shard.size])

    def broken_files(self) -> dict[str, str]:
        """What is wrong with each file that this worker passed over, by its path."""
        return dict(self._broken.found)

    def close(self) -> None:
        """Let go of the loader."""
        self._stream.close()
        self._loader.close()
