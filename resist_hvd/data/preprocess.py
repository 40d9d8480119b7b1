"""Preparing images as the evaluation of a data set prepares them: for whoever uses an exported model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from resist_hvd.data.broken import read_trusted
from resist_hvd.data.decoding import FORMATS, eight_bits, fit_square
from resist_hvd.data.files.windows import middle_windows
from resist_hvd.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """A callable from an image to what a network takes: float32 [channels, image_size, image_size].

    Attributes:
        image_size: height and width in pixels.
        channels: 1 for grey images, 3 for colour.
        mean, std: of each channel, in 0 to 255.
        test_resize: pixels that an image's shorter side is scaled to before the middle is cut out; None where the
            middle square is scaled to `image_size`, and an image of that size is taken as it is.
        stretched: whether all of an image is scaled to `image_size`, in place of a square of it.
    """

    image_size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    test_resize: int | None = None
    stretched: bool = False

    @classmethod
    def from_json(cls, model: Mapping[str, Any]) -> Self:
        """The preprocessing of an exported model, from what its `model.json` says."""
        size = int(model["image_size"])
        # Earlier versions noted neither of these two.
        default = round(size * 8 / 7) if model["data"] == "imagenet" else None
        return cls(
            image_size=size,
            channels=len(model["mean"]),
            mean=tuple(model["mean"]),
            std=tuple(model["std"]),
            test_resize=model.get("test_resize", default),
            stretched=bool(model.get("stretched", False)),
        )

    def to_json(self) -> dict[str, Any]:
        """Values that JSON can hold, of which `from_json` makes the same again."""
        return asdict(self)

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        """Prepare an image: Pillow's, or a tensor, uint8 [1 or 3, height, width].

        Pixels are taken as they are stored: EXIF's orientation is not followed, as in training.

        Raises:
            ValueError: the tensor is no image.
        """
        if isinstance(image, Tensor):
            if image.dtype != torch.uint8 or image.ndim != 3 or len(image) not in (1, 3):
                raise ValueError(f"an image is uint8 [1 or 3, height, width], not {image.dtype} {list(image.shape)}")
            array = image.permute(1, 2, 0).cpu().numpy()
            image = Image.fromarray(array[..., 0] if len(image) == 1 else array)
        return self._normalised(np.asarray(eight_bits(image).convert("L" if self.channels == 1 else "RGB")))

    def read(self, path: Path) -> Tensor:
        """Prepare an image file of any format that Pillow reads.

        Raises:
            UserError: it is missing or damaged.
        """
        try:
            return self.decode(os.fsencode(path), formats=None)
        except ValueError as fault:
            raise UserError(f"The image file {fault}", where=str(path), mend="Give an image.") from None

    def decode(self, path: bytes, formats: tuple[str, ...] | None = FORMATS) -> Tensor:
        """Prepare an image file of some formats, in Pillow's words; of all that Pillow reads where they are None.

        Raises:
            ValueError: what is wrong with it, words that continue "the image file ...".
        """
        pixels = read_trusted(path, formats)
        return self(Image.fromarray(pixels)) if self.channels == 1 else self._normalised(pixels)

    def _normalised(self, pixels: NDArray[np.uint8]) -> Tensor:
        scale, offset = scale_and_offset(self.mean, self.std)
        return self.cut(pixels).float().mul_(scale.view(-1, 1, 1)).add_(offset.view(-1, 1, 1))

    def cut(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Scale and cut out: from uint8 [H, W, 3], or [H, W] of a grey image, to [channels, image_size, image_size]."""
        if self.test_resize is None and not self.stretched:
            return as_tensor(fit_square(pixels, self.image_size))
        from torchvision.transforms.v2 import InterpolationMode, functional  # takes a second to load

        if self.stretched:
            size = [self.image_size, self.image_size]
            whole: Tensor = functional.resize(as_tensor(pixels), size, InterpolationMode.BILINEAR, antialias=True)
            return whole
        assert self.test_resize is not None
        (scaled,), (corner,) = middle_windows(self.image_size, self.test_resize, np.array([pixels.shape[:2]]))
        resized = functional.resize(as_tensor(pixels), scaled.tolist(), InterpolationMode.BILINEAR, antialias=True)
        middle: Tensor = functional.crop(resized, *corner.tolist(), self.image_size, self.image_size)
        return middle


def scale_and_offset(mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> tuple[Tensor, Tensor]:
    """Return the factors and summands [C], float32, by which pixels are normalised: x * scale + offset.

    That is (x - mean) / std in two roundings; a channel whose std is 0 is only centred.
    """
    mean, std = (torch.as_tensor(values, dtype=torch.float64) for values in (mean, std))
    scale = 1 / torch.where(std > 0, std, 1.0)
    return scale.float(), (-mean * scale).float()


def as_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """Return pixels, [H, W, C] or [H, W], as a tensor [C, H, W]."""
    # What Pillow decoded is read-only memory, of which PyTorch takes no view.
    tensor = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy())
    return tensor.permute(2, 0, 1) if tensor.ndim == 3 else tensor[None]
