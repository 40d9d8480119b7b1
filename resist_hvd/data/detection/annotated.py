"""Images with the objects that are in them, by number: what lists of images name, and any part of it."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors

from resist_hvd.data.broken import read_trusted
from resist_hvd.data.preprocess import as_tensor

Example = tuple[tv_tensors.Image, dict[str, Tensor]]
"""An image, uint8 [3, H, W], and its objects: `boxes` (float32 [objects, 4], as in `Annotation`), `labels` (int64
[objects]) and `difficult` (bool [objects]), as torchvision's transforms (v2) take them."""


@dataclass(frozen=True, kw_only=True)
class AnnotatedImages:
    """The images of some lists, and the objects in them that are of the classes asked for.

    Attributes:
        folder: what all of them lie below.
        classes: names, in the order of their labels.
        paths: the image files.
        sizes: int64 [images, 2], each image's width and height in pixels.
        boxes: float32 [objects, 4], of all images end to end, as in `Annotation`.
        labels: int64 [objects], places in the list of classes.
        difficult: bool [objects].
        ends: int64 [images], where each image's objects end.
        places: int64 [images], each image's place in the lists, where those that were passed over count as well.
        listed: images in the lists.
        others: the classes of objects that are left out.
    """

    folder: Path
    classes: tuple[str, ...]
    paths: tuple[Path, ...]
    sizes: NDArray[np.int64]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    difficult: NDArray[np.bool_]
    ends: NDArray[np.int64]
    places: NDArray[np.int64]
    listed: int
    others: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def encoded_path(self, image: int) -> bytes:
        """The image file's whole path, as the system spells it."""
        return os.fsencode(self.paths[image])

    def objects_of(self, image: int) -> slice:
        """Return the part of `boxes`, `labels` and `difficult` that is an image's objects."""
        return slice(int(self.ends[image - 1]) if image else 0, int(self.ends[image]))

    @property
    def counts(self) -> NDArray[np.int64]:
        """Each image's number of objects, [images]."""
        return np.diff(self.ends, prepend=0)

    def shares(self) -> NDArray[np.float32]:
        """Return the width and height of every object, as shares of its image's: float32 [objects, 2]."""
        sides = np.repeat(self.sizes, self.counts, axis=0)
        shares: NDArray[np.float32] = ((self.boxes[:, 2:] - self.boxes[:, :2]) / sides).astype(np.float32)
        return shares

    def example(self, image: int) -> Example:
        """Return an image and its objects.

        Raises:
            ValueError: the image file is damaged; words that continue "the image file ...".
        """
        pixels = as_tensor(read_trusted(self.encoded_path(image)))
        own = self.objects_of(image)
        boxes = tv_tensors.BoundingBoxes(
            torch.from_numpy(self.boxes[own]), format="XYXY", canvas_size=tuple(pixels.shape[1:])
        )
        labels, difficult = (torch.from_numpy(values[own]) for values in (self.labels, self.difficult))
        return tv_tensors.Image(pixels), {"boxes": boxes, "labels": labels, "difficult": difficult}

    def without_difficult(self) -> AnnotatedImages:
        """The same images, without the objects that are marked difficult."""
        kept = ~self.difficult
        before = np.concatenate([[0], np.cumsum(kept)])
        return replace(
            self,
            boxes=self.boxes[kept],
            labels=self.labels[kept],
            difficult=self.difficult[kept],
            ends=before[self.ends],
        )

    def select(self, chosen: NDArray[np.bool_]) -> AnnotatedImages:
        """Some of the images, in their order.

        Args:
            chosen: whether an image is among them, [images].
        """
        kept = np.repeat(chosen, self.counts)
        return replace(
            self,
            paths=tuple(self.paths[image] for image in np.flatnonzero(chosen)),
            sizes=self.sizes[chosen],
            boxes=self.boxes[kept],
            labels=self.labels[kept],
            difficult=self.difficult[kept],
            ends=np.cumsum(self.counts[chosen]),
            places=self.places[chosen],
        )

    def digest(self) -> str:
        """Numbers of images and objects, and a digest of their names and boxes, in words."""
        digest = hashlib.sha256(repr(self.classes).encode(errors="surrogateescape"))
        for path in self.paths:
            digest.update(os.fsencode(path.name) + b"/")
        for values in (self.sizes, self.boxes, self.labels, self.difficult, self.ends):
            digest.update(np.ascontiguousarray(values).tobytes())
        return f"{len(self):,} images with {len(self.labels):,} objects (list {digest.hexdigest()[:12]})"
