"""Image data sets behind one interface: see `resist_hvd.data.source`, and `load` to get one."""

import importlib
from typing import Any

import torch

from resist_hvd.data.memory.resident import ImageSet, ResidentSource
from resist_hvd.data.source import Batch, DataSource, DataSpec, ExtraTest, Shard
from resist_hvd.data.tree import Share, make_here
from resist_hvd.data.validation import hold_out
from resist_hvd.settings.data import DataName, DataSettings, own_cores

__all__ = ["Batch", "DataSettings", "DataSource", "DataSpec", "ExtraTest", "Shard", "load"]

_READERS: dict[DataName, str] = {
    "digits": "digits",
    "cifar10": "torchvision_sets",
    "cifar100": "torchvision_sets",
    "svhn": "torchvision_sets",
}
"""Modules whose `read` reads a built-in or published set into memory. They are imported only when asked for: the
libraries that they bring along take seconds to load, and not every machine has all of them."""


def load(
    settings: DataSettings,
    *,
    shard: Shard,
    seed: int,
    device: torch.device,
    share: Share[Any] = make_here,
    cores: float | None = None,
) -> DataSource:
    """The data that `settings` describe, as worker `shard` sees them, with batches on `device`.

    Everything random is a function of `seed` and a sample's position, and the same on every worker.

    Args:
        settings: what to load.
        shard: the worker.
        seed: the run's.
        device: where batches are wanted.
        share: lists files once for all workers of a host.
        cores: that the worker has; by default all that it may run on.

    Raises:
        UserError: the data are missing, damaged, too large or too few; the message names the folder or file.
    """
    settings = settings.on_cores(cores or own_cores())
    if settings.name == "imagenet":
        from resist_hvd.data.files import imagenet

        return imagenet.load(settings, shard=shard, seed=seed, device=device, share=share)
    if settings.name == "voc":
        from resist_hvd.data.detection import source

        return source.load(settings, shard=shard, seed=seed, device=device, share=share)
    if settings.name == "folder":
        from resist_hvd.data.memory import folder

        images = folder.read(settings, share)
    else:
        images = read_published(settings)
        if settings.validation:
            images = hold_out(images, settings.validation)
    return ResidentSource(images, settings, shard=shard, seed=seed, device=device)


def read_published(settings: DataSettings) -> ImageSet:
    """The images of a built-in or published set: digits, cifar10, cifar100 or svhn.

    Raises:
        UserError: they are missing or damaged.
    """
    reader = importlib.import_module(f"{__name__}.memory.{_READERS[settings.name]}")
    images: ImageSet = reader.read(settings)
    return images
