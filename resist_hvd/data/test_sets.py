"""Test sets for a model that is trained: images of any data set, each prepared as the model takes it.

Classes and preprocessing are the model's, so that class folders need no training half.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resist_hvd.data import read_published
from resist_hvd.data.broken import BrokenFiles
from resist_hvd.data.folders import ImageIndex, class_folders, existing_folder, has_class_folders, in_words
from resist_hvd.data.preprocess import Preprocess
from resist_hvd.data.source import Batch, ExtraTest, Shard
from resist_hvd.data.tree import find_extra_tests
from resist_hvd.errors import UserError
from resist_hvd.settings.data import DataSettings

AHEAD = 2
"""Batches that are decoded while another is evaluated."""


@dataclass(frozen=True, kw_only=True)
class TestSets:
    """Test sets, and what is to be known of their files.

    Attributes:
        tests: the data set's own first.
        broken: what is wrong with files that this worker has passed over.
        remarks: sentences for the user, on files that are left out.
    """

    __test__ = False  # whatever pytest thinks of the class's name

    tests: tuple[ExtraTest, ...]
    broken: BrokenFiles
    remarks: tuple[str, ...] = ()


def load(
    settings: DataSettings, *, classes: Sequence[str], prepare: Preprocess, device: torch.device, detects: bool = False
) -> TestSets:
    """Return the test sets that settings name.

    Args:
        settings: the data set; of class folders, `root` holds a test half, or is a test set, or a folder of several.
        classes: the model's. A set may have some of them alone, and no other.
        prepare: makes of an image what the model takes.
        device: where batches are wanted.
        detects: whether the model is a detector.

    Raises:
        UserError: images are missing or damaged, or of classes that the model does not have; or they have no boxes, and
            the model is a detector, or the other way round.
    """
    refuse_other_targets(settings, detects=detects)
    broken = BrokenFiles(stop=settings.broken_files == "stop")
    if detects:
        from resist_hvd.data.detection import source  # with torchvision's transforms, which take a second to load

        own = replace(settings, image_size=prepare.image_size)
        test, passed_over = source.test_set(own, classes, device=device, broken=broken)
        return TestSets(tests=(test,), broken=broken, remarks=passed_over)

    def streamed(name: str, labels: NDArray[np.int64], read: Callable[[int], Tensor | None]) -> ExtraTest:
        def batches(shard: Shard) -> Iterator[Batch]:
            own = np.arange(len(labels))[shard.rank :: shard.size]
            chunks = [own[at : at + settings.test_batch_size] for at in range(0, len(own), settings.test_batch_size)]
            return _batches(chunks, labels, read, threads=settings.threads, device=device)

        return ExtraTest(name=name, size=len(labels), batches=batches)

    def of_files(name: str, index: ImageIndex) -> ExtraTest:
        def read(image: int) -> Tensor | None:
            try:
                return prepare.decode(index.encoded_path(image))
            except ValueError as fault:
                broken.note(index, image, str(fault))
                return None

        return streamed(name, index.labels, read)

    if settings.name in ("folder", "imagenet"):
        assert settings.root is not None  # Settings see to it
        tests, remarks = [], []
        for place in filter(None, (_own_tests(settings.root, classes), settings.extra_tests)):
            found, left_out = find_extra_tests(place, classes)
            tests += [of_files(name, index) for name, index in found.items()]
            remarks += [f"left out: {in_words(left_out)} [{place}]"] if left_out else []
        return TestSets(tests=tuple(tests), broken=broken, remarks=tuple(remarks))
    # An image of the model's size is taken as it is; digits are scaled by their reader, from pixels of its own.
    size = prepare.image_size if prepare.test_resize is None else None
    images = read_published(replace(settings, image_size=size))
    labels = numbers_of(images.classes, classes, images.name)[images.test.labels.numpy()]
    pixels = images.test.images.permute(0, 3, 1, 2)
    return TestSets(tests=(streamed("test", labels, lambda image: prepare(pixels[image])),), broken=broken)


def refuse_other_targets(settings: DataSettings, *, detects: bool) -> None:
    """Refuse images without boxes for a detector, and images with boxes for what tells classes apart.

    Raises:
        UserError: they are such.
    """
    if detects != (settings.name == "voc"):
        has, wants = ("classes", "boxes") if detects else ("boxes", "classes")
        raise UserError(
            f"--data.name is {settings.name}, whose images have {has}, and the model finds {wants}",
            mend=f"Give images with {wants}" + (": --data.name voc." if detects else "."),
        )


def _own_tests(root: Path, classes: Sequence[str]) -> Path:
    """Return the test half of a data folder; the folder itself where it is a test set, or has several.

    Raises:
        UserError: it is neither, or has classes that the model does not have.
    """
    root = existing_folder(root, mend="Give the folder that holds test or val, or class folders, with --data.root.")
    names, _ = class_folders(root)
    halves = [root / name for name in ("test", "val") if name in names and has_class_folders(root / name)]
    if not halves and any(has_class_folders(root / name) for name in names):
        return root
    (folder, *_) = halves or [root]
    names, _ = class_folders(folder)
    if set(names) & set(classes) or not all(name.isdecimal() for name in names):
        numbers_of(names, classes, str(folder))
    return folder


def numbers_of(names: Sequence[str], classes: Sequence[str], where: str) -> NDArray[np.int64]:
    """Return the numbers that a set's classes have among a model's.

    Raises:
        UserError: it has others.
    """
    number = {name: place for place, name in enumerate(classes)}
    unknown = [name for name in names if name not in number]
    if unknown:
        some = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise UserError(
            f"{len(unknown):,} of the set's {len(names):,} classes are none of the model's {len(classes):,} "
            f"({classes[0]} to {classes[-1]}): {some}",
            where=where,
            mend="Evaluate on images of the model's classes, or of some of them, under the same names.",
        )
    return np.array([number[name] for name in names], dtype=np.int64)


def _batches(
    chunks: Sequence[NDArray[np.int64]],
    labels: NDArray[np.int64],
    read: Callable[[int], Tensor | None],
    *,
    threads: int,
    device: torch.device,
) -> Iterator[Batch]:
    """Yield batches of these images; files that `read` passes over are left out."""
    ahead: deque[tuple[NDArray[np.int64], list[Future[Tensor | None]]]] = deque()
    waiting = iter(chunks)
    with ThreadPoolExecutor(threads) as pool:
        try:
            while True:
                while len(ahead) <= AHEAD and (chunk := next(waiting, None)) is not None:
                    ahead.append((chunk, [pool.submit(read, image) for image in chunk.tolist()]))
                if not ahead:
                    return
                chunk, futures = ahead.popleft()
                found = [
                    (image, label) for image, label in zip((f.result() for f in futures), labels[chunk], strict=True)
                ]
                sound = [(image, label) for image, label in found if image is not None]
                if sound:
                    images = torch.stack([image for image, _ in sound]).contiguous(memory_format=torch.channels_last)
                    yield images.to(device), torch.tensor([label for _, label in sound]).to(device)
        finally:
            pool.shutdown(cancel_futures=True)
