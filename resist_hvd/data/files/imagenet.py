"""ImageNet's own folder layout, or any of its kind (see `tree`), decoded batch by batch.

Preprocessing as in the paper's source of ImageNet results (He et al. 2016; torchvision's reference training): random
windows of 8 to 100 % of an image, mirrored or not, for training; the middle 224 of 256 pixels for testing.
"""

import importlib.util
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from resist_hvd.data.broken import BrokenFiles
from resist_hvd.data.files.loader import ImageLoader, TrainingPlan, preprocess_of
from resist_hvd.data.files.training_stream import TrainingStream
from resist_hvd.data.folders import ImageIndex
from resist_hvd.data.order import EpochOrder, fixed_choice
from resist_hvd.data.side_stream import SideStream, made_beside
from resist_hvd.data.source import Batch, DataSource, DataSpec, ExtraTest, Shard, check_one_batch
from resist_hvd.data.tree import ImageTree, Share
from resist_hvd.data.validation import list_images
from resist_hvd.errors import UserError
from resist_hvd.settings.data import DataSettings


def load(
    settings: DataSettings, *, shard: Shard, seed: int, device: torch.device, share: Share[ImageTree]
) -> DataSource:
    """The images below `settings.root` as worker `shard` sees them, with batches on `device`.

    `share` lists them once for all workers of a host.

    Raises:
        UserError: a folder is missing or empty, its classes do not match, images are too few for one batch of all
            workers, or the loader that is asked for is not installed.
    """
    images = share(lambda: list_images(settings), ImageTree.digest)
    check_one_batch(
        images.train.folder.parent.name,
        train_size=len(images.train),
        batch_size=settings.batch_size,
        shard=shard,
        where=str(images.train.folder),
    )
    broken = BrokenFiles(stop=settings.broken_files == "stop")
    loader = make_loader(settings, device=device, broken=broken)
    return StreamedSource(images, settings, loader=loader, broken=broken, shard=shard, seed=seed, device=device)


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
        from resist_hvd.data.files.torchvision_loader import TorchvisionLoader

        return TorchvisionLoader(settings, device=device, broken=broken)
    from resist_hvd.data.files.dali import DaliLoader

    return DaliLoader(settings, device=device, broken=broken)


def dali_is_installed() -> bool:
    """Return whether NVIDIA DALI can be imported."""
    return all(importlib.util.find_spec(name) is not None for name in ("nvidia", "nvidia.dali"))


class StreamedSource(DataSource):
    """Training and test images that a loader decodes whenever they are needed."""

    def __init__(
        self,
        images: ImageTree,
        settings: DataSettings,
        *,
        loader: ImageLoader,
        broken: BrokenFiles,
        shard: Shard,
        seed: int,
        device: torch.device,
    ) -> None:
        train, test = images.train, images.test
        self.spec = DataSpec(
            name=settings.name,
            classes=train.classes,
            train_size=len(train),
            test_size=len(test),
            **preprocess_of(settings).to_json(),
        )
        self.remarks = images.remarks
        self._train, self._test = train, test
        self.extra_tests = tuple(self._extra_test(name, index) for name, index in images.extra.items())
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
        # One for all training, and one for all evaluations: memory that was used in one stream serves no other.
        self._training = TrainingStream(plan, partial(loader.train, train), SideStream(device))
        self._beside = SideStream(device)

    def train(self, samples: int = 0, shard: Shard | None = None) -> Iterator[Batch]:
        """A worker's training batches, made in advance, from where all workers have drawn so many samples."""
        return self._training.at(samples, shard or self._shard)

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
        batches = self._loader.test(index, images[shard.rank :: shard.size])
        return made_beside(batches, self._beside)

    def broken_files(self) -> dict[str, str]:
        """Faults of the files that this worker passed over, by their paths."""
        return dict(self._broken.found)

    def close(self) -> None:
        """Let go of the loader."""
        self._training.close()
        self._loader.close()
