"""Images with boxes, in Pascal VOC's layout, decoded batch by batch: the data of detection."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.context import ForkServerContext

import numpy as np
import torch
from numpy.typing import NDArray

from resist_hvd.data.broken import BrokenFiles
from resist_hvd.data.detection.annotated import AnnotatedImages
from resist_hvd.data.detection.batches import DetectionPlan, PlainBatches, TrainingBatches
from resist_hvd.data.detection.voc import read_lists
from resist_hvd.data.files.loader import MEAN, STD
from resist_hvd.data.files.loader_processes import forked_from_a_server
from resist_hvd.data.files.process_batches import made_by_processes, sound_batches
from resist_hvd.data.files.training_stream import TrainingStream
from resist_hvd.data.order import EpochOrder, fixed_choice, fixed_order
from resist_hvd.data.side_stream import SideStream, made_beside
from resist_hvd.data.source import Batch, DataSource, DataSpec, ExtraTest, Shard, check_one_batch
from resist_hvd.data.tree import Share
from resist_hvd.errors import UserError
from resist_hvd.settings.data import DataSettings, named
from resist_hvd.units import counted

BATCHES = "resist_hvd.data.detection.batches"
"""The module that processes have loaded."""


@dataclass(frozen=True, kw_only=True)
class Halves:
    """Every image of a run, and what was passed over.

    Attributes:
        train: without objects that are marked difficult.
        test: with them.
        broken: the fault of each file that was passed over, by its path.
        remarks: sentences for the user.
    """

    train: AnnotatedImages
    test: AnnotatedImages
    broken: dict[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def digest(self) -> str:
        """Numbers of images and objects, and digests of them, in words."""
        return f"{self.train.digest()} to train on, {self.test.digest()} to test on"


def load(
    settings: DataSettings, *, shard: Shard, seed: int, device: torch.device, share: Share[Halves]
) -> DetectionSource:
    """The images of the lists that `settings` name, as worker `shard` sees them, with batches on `device`.

    `share` reads annotations once for all workers of a host.

    Raises:
        UserError: a file is missing or damaged, or images are too few for one batch of all workers.
    """
    halves = share(lambda: read(settings), Halves.digest)
    check_one_batch(
        settings.sets,
        train_size=len(halves.train),
        batch_size=settings.batch_size,
        shard=shard,
        where=str(halves.train.folder),
    )
    return DetectionSource(halves, settings, shard=shard, seed=seed, device=device)


def read(settings: DataSettings) -> Halves:
    """Read the lists to train on and to test on; or hold out a share of the former, in place of the latter.

    Raises:
        UserError: a file is missing or damaged, or no object is there to be found.
    """
    assert settings.root is not None  # DataSettings sees to it
    broken: dict[str, str] | None = {} if settings.broken_files == "skip" else None
    classes = None if settings.classes is None else named(settings.classes)
    train = read_lists(settings.root, named(settings.sets), classes, ignore_exif=settings.ignore_exif, broken=broken)
    remarks: list[str] = []
    if settings.validation:
        # By places in the lists, which stay where one file more is broken: or images would change sides.
        held = round(settings.validation * train.listed)
        chosen = np.isin(train.places, fixed_order(train.listed)[:held])
        if not 0 < chosen.sum() < len(train):
            raise UserError(
                f"--data.validation {settings.validation:g} holds out {chosen.sum()} of "
                f"{counted(len(train), 'training image')}",
                mend="Give another share, or leave the flag out.",
            )
        train, test = train.select(~chosen), train.select(chosen)
        remarks.append(
            f"--data.validation {settings.validation:g}: {len(test):,} of {len(chosen):,} training images are held out "
            "and evaluated on; the test set is not used"
        )
    else:
        test = read_test_lists(settings, train.classes, broken)
    whole, train = train, train.without_difficult()
    if not len(train.labels):
        why = "all are marked difficult" if len(whole.labels) else "none is in images that are trained on"
        raise UserError(
            f"No object of {settings.sets} is to be found: {why}",
            where=str(train.folder),
            mend="Give other --data.sets.",
        )
    remarks.append(
        f"{counted(len(train.labels), 'object')} to train on, "
        f"{counted(int((~test.difficult).sum()), 'object')} to find in the test images"
    )
    remarks += left_out(train.others + test.others, broken)
    return Halves(train=train, test=test, broken=broken or {}, remarks=tuple(remarks))


def test_set(
    settings: DataSettings, classes: Sequence[str], *, device: torch.device, broken: BrokenFiles
) -> tuple[ExtraTest, tuple[str, ...]]:
    """Return the test lists that `settings` name, for a trained detector, and sentences on what was passed over.

    Args:
        settings: with the image size that the detector takes.
        classes: the detector's.
        device: where batches are wanted.
        broken: takes up files that are broken.

    Raises:
        UserError: a file is missing or damaged.
    """
    faults: dict[str, str] | None = {} if settings.broken_files == "skip" else None
    images = read_test_lists(settings, classes, faults)
    broken.found |= faults or {}
    remarks = [f"{counted(int((~images.difficult).sum()), 'object')} to find", *left_out(images.others, faults)]
    processes = forked_from_a_server(preload=BATCHES)

    def batches(shard: Shard) -> Iterator[Batch]:
        chosen = np.arange(len(images))[shard.rank :: shard.size]
        return plain_batches(images, chosen, settings, processes=processes, device=device, broken=broken)

    return ExtraTest(name=settings.test, size=images.listed, batches=batches), tuple(remarks)


def left_out(others: Sequence[str], broken: dict[str, str] | None) -> Iterator[str]:
    """Yield sentences on classes whose objects are left out, and on files that were passed over."""
    if names := sorted(set(others)):
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        yield f"objects of {counted(len(names), 'other class', 'other classes')} are left out: {shown}"
    for path, fault in sorted((broken or {}).items()):
        yield f"passed over: {fault} [{path}]"


def read_test_lists(settings: DataSettings, classes: Sequence[str], broken: dict[str, str] | None) -> AnnotatedImages:
    """Return the images of the lists to test on, and the objects in them that are of these classes.

    Args:
        settings: they name the lists.
        classes: of which there may be no object.
        broken: takes up the fault of each image that is missing or damaged; without it the first is an error.

    Raises:
        UserError: a file is missing or damaged.
    """
    assert settings.root is not None  # settings see to it
    return read_lists(
        settings.root,
        named(settings.test),
        classes,
        ignore_exif=settings.ignore_exif,
        may_lack_classes=True,
        broken=broken,
    )


def tested_images(settings: DataSettings, classes: Sequence[str]) -> AnnotatedImages:
    """Return the images that a run with these settings is evaluated on: lists to test on, or what is held out.

    Args:
        settings: the run's.
        classes: the detector's.

    Raises:
        UserError: a file is missing or damaged.
    """
    if settings.validation:
        return read(settings).test
    return read_test_lists(settings, classes, {} if settings.broken_files == "skip" else None)


def plain_batches(
    images: AnnotatedImages,
    chosen: NDArray[np.int64],
    settings: DataSettings,
    *,
    processes: ForkServerContext,
    device: torch.device,
    broken: BrokenFiles,
) -> Iterator[Batch]:
    """Yield batches of some images in their order, without augmentation; broken files are left out."""
    batches = PlainBatches(settings, images, chosen)
    made = made_by_processes(batches, range(len(batches)), processes=processes, settings=settings, device=device)
    return sound_batches(made, images, broken)


class DetectionSource(DataSource):
    """Training and test images with their objects, decoded by processes whenever they are needed.

    Targets of a batch are float32 [B, most, 6]: see `tasks.objects.packed`; most is that of the half's richest image.
    """

    loader_name = "torchvision"

    def __init__(
        self, halves: Halves, settings: DataSettings, *, shard: Shard, seed: int, device: torch.device
    ) -> None:
        self.spec = DataSpec(
            name=settings.name,
            classes=halves.train.classes,
            channels=3,
            image_size=settings.size,
            train_size=len(halves.train),
            test_size=len(halves.test),
            mean=MEAN,
            std=STD,
            stretched=True,
        )
        self.remarks = halves.remarks
        self.object_sizes = halves.train.shares()
        self._halves, self._settings, self._shard, self._device = halves, settings, shard, device
        self._broken = BrokenFiles(stop=settings.broken_files == "stop")
        self._processes = forked_from_a_server(preload=BATCHES)
        self._calibration_images = fixed_choice(len(halves.train), settings.calibration_images)
        plan = DetectionPlan(order=EpochOrder(len(halves.train), seed), shard=shard, batch_size=settings.batch_size)
        self._training = TrainingStream(plan, self._training_batches, SideStream(device))
        self._beside = SideStream(device)

    def train(self, samples: int = 0, shard: Shard | None = None) -> Iterator[Batch]:
        """A worker's training batches, made in advance, from where all workers have drawn so many samples."""
        return self._training.at(samples, shard or self._shard)

    def _training_batches(self, plan: DetectionPlan, samples: int) -> Iterator[Batch]:
        images = self._halves.train
        made = made_by_processes(
            TrainingBatches(self._settings, images, plan),
            count(samples, plan.after(0)),
            processes=self._processes,
            settings=self._settings,
            device=self._device,
        )
        return sound_batches(made, images, self._broken)

    def test(self, shard: Shard | None = None) -> Iterator[Batch]:
        """A share of the test set."""
        return self._share(self._halves.test, np.arange(self.spec.test_size), shard)

    def calibration(self, shard: Shard | None = None) -> Iterator[Batch]:
        """A share of the calibration set, the same images in every run on this training set."""
        return self._share(self._halves.train, self._calibration_images, shard)

    def _share(self, images: AnnotatedImages, chosen: NDArray[np.int64], shard: Shard | None) -> Iterator[Batch]:
        shard = shard or self._shard
        batches = plain_batches(
            images,
            chosen[shard.rank :: shard.size],
            self._settings,
            processes=self._processes,
            device=self._device,
            broken=self._broken,
        )
        return made_beside(batches, self._beside)

    def broken_files(self) -> dict[str, str]:
        """Faults of the files that this worker passed over, by their paths."""
        return {**self._halves.broken, **self._broken.found}

    def close(self) -> None:
        """Let go of processes."""
        self._training.close()
