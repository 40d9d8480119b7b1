"""Images that nobody reads: one batch of noise over and over, so that a step is measured by itself."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat

import torch

from resist_hvd.data.files.loader import BATCH_TYPES
from resist_hvd.data.source import Batch, DataSource, DataSpec, Shard
from resist_hvd.settings.data import DataSettings


class NoiseSource(DataSource):
    """A training set of one batch on the device, as a loader would hand it over; there is nothing to test on.

    Args:
        settings: how many images the batch has, and in which type they come.
        image_size: height and width in pixels.
        channels: of an image.
        classes: how many there are.
        seed: the pixels and labels come from it.
        device: where the batch lies.
    """

    def __init__(
        self,
        settings: DataSettings,
        *,
        image_size: int,
        channels: int,
        classes: int,
        seed: int,
        device: torch.device,
    ) -> None:
        count = settings.batch_size
        self.spec = DataSpec(
            name="noise",
            classes=tuple(map(str, range(classes))),
            channels=channels,
            image_size=image_size,
            train_size=count,
            test_size=0,
            mean=(0.0,) * channels,
            std=(1.0,) * channels,
        )
        generator = torch.Generator(device).manual_seed(seed)
        pixels = torch.randn(count, image_size, image_size, channels, generator=generator, device=device)
        labels = torch.randint(classes, (count,), generator=generator, device=device)
        self._batch = pixels.permute(0, 3, 1, 2).to(BATCH_TYPES[settings.image_type]), labels

    def train(self, samples: int = 0, shard: Shard | None = None) -> Iterator[Batch]:
        """The batch, endlessly."""
        return repeat(self._batch)

    def test(self, shard: Shard | None = None) -> Iterator[Batch]:
        """No image."""
        return iter(())

    def calibration(self, shard: Shard | None = None) -> Iterator[Batch]:
        """No image."""
        return iter(())
