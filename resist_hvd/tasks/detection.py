"""Detection: objects in images, each with a box and a class, by YOLOv2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resist_hvd.tasks import yolo
from resist_hvd.tasks.base import Metric, Task
from resist_hvd.tasks.objects import unpacked
from resist_hvd.tasks.precision import PrecisionAndLoss, Wanted
from resist_hvd.tasks.yolo import Detections, Weights


class Example(NamedTuple):
    """An image with the objects in it, and those that a detector has found; edges are in pixels.

    Attributes:
        name: the image file's.
        pixels: [height, width, 3].
        there: the objects in it.
        found: by the detector.
    """

    name: str
    pixels: NDArray[np.uint8]
    there: Wanted
    found: Detections


class Detection(Task):
    """Find objects, each with its box and its class.

    Args:
        anchors: [anchors, 2], widths and heights as shares of an image's.
        classes: their names, in the order of labels.
        weights: of the loss's terms.
        pull: weight by which boxes are pulled to their anchors, in the first images.
        pulled_images: how many these are, summed over workers.
        device: of outputs in training.
    """

    finds_boxes = True

    def __init__(
        self,
        anchors: Tensor,
        classes: Sequence[str],
        weights: Weights | None = None,
        *,
        pull: float = 0.0,
        pulled_images: int = 0,
        device: torch.device | None = None,
    ) -> None:
        self.anchors = anchors.to(device)
        self.classes = tuple(classes)
        self._weights = weights or Weights()
        self._greatest_pull, self._pulled_images = pull, pulled_images
        # On the device, so that a recorded step of a GPU's reads it anew each time.
        self._pull = torch.full((), pull, device=device) if pull and pulled_images else None

    def description(self) -> Mapping[str, Any]:
        """Return the anchors, widths and heights as shares of an image's."""
        return {"task": "detection", "anchors": self.anchors.tolist()}

    def at(self, samples: int) -> None:
        """Pull boxes to their anchors for as long as they are to be."""
        if self._pull is not None:
            self._pull.fill_(self._greatest_pull if samples < self._pulled_images else 0.0)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return YOLOv2's loss, the sum over an image by the mean over the batch.

        Args:
            outputs: [images, anchors x (5 + classes), rows, columns].
            targets: as in `objects.packed`.
        """
        return yolo.loss(outputs, unpacked(targets), self._cells(outputs), self._weights, pull=self._pull)

    def plain_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss without any pull; of several networks' outputs end to end the mean of their losses."""
        apart = outputs.chunk(self._networks(outputs), dim=1)
        losses = [yolo.loss(each, unpacked(targets), self._cells(each), self._weights) for each in apart]
        return torch.stack(losses).mean()

    def detections(self, outputs: Tensor, *, least_score: float = yolo.LEAST_SCORE) -> list[Detections]:
        """Return what was found in each image, by one network or by several whose outputs lie end to end.

        Args:
            outputs: as in `loss`, on any device.
            least_score: that a detection has.
        """
        anchors = self._cells(outputs).repeat(self._networks(outputs), 1)
        return yolo.detections(yolo.predictions(outputs, anchors), least_score=least_score)

    def _cells(self, outputs: Tensor) -> Tensor:
        """Return the anchors in cells of outputs."""
        anchors = self.anchors.to(outputs.device)
        rows, columns = outputs.shape[2:]
        return anchors * yolo.extent(rows, columns, anchors)

    def _networks(self, outputs: Tensor) -> int:
        return outputs.shape[1] // (len(self.anchors) * (5 + len(self.classes)))

    def metric(self) -> Metric:
        """Return a new metric: mean average precision in per cent, each class's precisions, and the mean loss."""
        return PrecisionAndLoss(self.detections, self.plain_loss, self.classes)

    def votes(self, outputs: Tensor) -> Tensor:
        """Return the outputs themselves: boxes have no mean."""
        return outputs

    def elected(self, votes: Sequence[Tensor]) -> Tensor:
        """Return all members' outputs end to end, of which `detections` keeps the surest of boxes that overlap."""
        return torch.cat(list(votes), dim=1)
