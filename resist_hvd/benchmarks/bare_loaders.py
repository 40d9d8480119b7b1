"""Loaders that a benchmark compares this project's with: DALI and torchvision, used as their own guides do."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from torchvision.transforms import InterpolationMode

from resist_hvd.data.files.loader import MEAN, STD
from resist_hvd.data.source import Shard
from resist_hvd.errors import UserError
from resist_hvd.settings.data import DataSettings


def bare_dali(settings: DataSettings, *, shard: Shard, seed: int, device: torch.device) -> Iterator[Any]:
    """Yield training batches as DALI's own pipeline puts them out, endlessly.

    The operators are those of NVIDIA's ResNet-50 examples: readers.file, decoders.image_random_crop, resize,
    crop_mirror_normalize, and the decoder is told what this project's is. Nothing is done to what comes out, not even
    the copy that DALI's iterator for PyTorch makes.

    Raises:
        UserError: DALI is not installed.
    """
    try:
        from nvidia.dali import Pipeline, fn, types

        from resist_hvd.data.files.dali_graph import Means
    except ImportError as error:
        raise UserError("NVIDIA DALI is not installed", mend="Install it with launch/setup --dali.") from error
    means = Means.of(settings, settings.batch_size, device)
    pipeline = Pipeline(
        batch_size=means.batch_size,
        num_threads=means.threads,
        device_id=means.device_id,
        prefetch_queue_depth=means.prefetch,
        seed=seed,
    )
    with pipeline:
        encoded, labels = fn.readers.file(
            file_root=str(_train_folder(settings)),
            shard_id=shard.rank,
            num_shards=shard.size,
            random_shuffle=True,
            name="Reader",
        )
        images = fn.decoders.image_random_crop(encoded, random_area=[settings.crop_area, 1.0], **means.decoding())
        images = fn.resize(images, size=[settings.size, settings.size], interp_type=types.INTERP_LINEAR, antialias=True)
        images = fn.crop_mirror_normalize(
            images,
            dtype=types.FLOAT16 if settings.image_type == "fp16" else types.FLOAT,
            output_layout="HWC",
            mean=list(MEAN),
            std=list(STD),
            mirror=fn.random.coin_flip(),
        )
        pipeline.set_outputs(images, labels)
    pipeline.build()
    while True:
        yield pipeline.run()


def torchvision_loader(settings: DataSettings, *, seed: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield training batches from torchvision's ImageFolder through PyTorch's DataLoader, endlessly.

    As in PyTorch's ImageNet example, with as many worker processes as this project's loader has threads. Processes are
    spawned: MPI is up, and a process that it has threads in is not to be forked.
    """
    size = settings.size
    images = datasets.ImageFolder(
        str(_train_folder(settings)),
        transforms.Compose(
            [
                transforms.RandomResizedCrop(
                    size, (settings.crop_area, 1.0), interpolation=InterpolationMode.BILINEAR, antialias=True
                ),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize([value / 255 for value in MEAN], [value / 255 for value in STD]),
            ]
        ),
    )
    loader = DataLoader(
        images,
        batch_size=settings.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=settings.threads,
        persistent_workers=True,
        multiprocessing_context="spawn",
        pin_memory=device.type == "cuda",
        generator=torch.Generator().manual_seed(seed),
    )
    while True:
        for pixels, labels in loader:
            yield pixels.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def _train_folder(settings: DataSettings) -> Path:
    assert settings.root is not None  # DataSettings sees to it
    return settings.root.expanduser().absolute() / "train"
