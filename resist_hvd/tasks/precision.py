"""Mean average precision as Pascal VOC counts it, by torchmetrics; and the mean loss beside it.

Source: Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge" (2010), section 4.2, and the development
kits of 2007 (the mean of precision at eleven recalls) and 2010 (the area below its envelope). A detection is right
where its IoU with an object of its class is a half at least, the surest first, once for each object.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

from resist_hvd.errors import UserError
from resist_hvd.records import RECALLS
from resist_hvd.tasks.base import Figures, Mean
from resist_hvd.tasks.objects import Objects, unpacked
from resist_hvd.tasks.yolo import MOST, Detections

RIGHT = 0.5
"""The IoU with an object from which on a detection is right."""

STEPS = 1000
"""Steps of recall from 0 to 1 at which precision is read: a tenth of them are VOC 2007's eleven, all make the area."""


class Wanted(NamedTuple):
    """Objects of an image that are to be found: boxes [objects, 4], labels [objects]."""

    boxes: Tensor
    labels: Tensor


class PrecisionAndLoss:
    """Mean average precision, in per cent, and the mean loss of an image.

    Args:
        detections: returns what outputs say is in each image.
        loss: returns a batch's mean loss for outputs and targets.
        classes: their names, in the order of labels.

    Raises:
        UserError: torchmetrics or its evaluator is not installed.
    """

    def __init__(
        self,
        detections: Callable[[Tensor], list[Detections]],
        loss: Callable[[Tensor, Tensor], Tensor],
        classes: Sequence[str],
    ) -> None:
        self._detections, self._classes = detections, classes
        self._loss = Mean(lambda outputs, targets: loss(outputs, targets).expand(len(outputs)))
        self._new_precision = mean_average_precision()
        self._judged: list[tuple[Detections, Wanted]] = []

    def reset(self) -> None:
        """Forget all batches."""
        self._loss.reset()
        self._judged = []

    def update(self, outputs: Tensor, targets: Tensor, /) -> None:
        """Add a batch of outputs, and targets as in `objects.packed`."""
        self._loss.update(outputs, targets)
        objects = unpacked(targets.cpu())
        for image, found in enumerate(self._detections(outputs)):
            self._judged.append(counted(Detections(*(values.cpu() for values in found)), objects, image))

    def compute(self) -> Figures:
        """Return mean average precision by eleven recalls and by the area, each class's precisions, and the loss."""
        precision = self._new_precision()
        # Detections of one score count in the order of their images, which must not be that of ranks.
        judged = sorted(self._judged, key=place_of)
        precision.update([found._asdict() for found, _ in judged], [asked._asdict() for _, asked in judged])
        computed = precision.compute()
        of_classes = computed["precision"][0, :, :, 0, -1].double()  # [recalls, classes], of classes that were seen
        wanted = (of_classes >= 0).all(dim=0)  # a class without objects has -1
        there, labels = of_classes[:, wanted], computed["classes"].reshape(-1)[wanted]
        return {
            "mean_average_precision": percent(there[:: STEPS // 10]),
            "mean_average_precision_area": percent(there),
            "loss": self._loss.compute(),
            "precisions": {
                self._classes[label]: tuple(round(value, 4) for value in of_class)
                for label, of_class in zip(labels.tolist(), there[:: STEPS // (RECALLS - 1)].T.tolist(), strict=True)
            },
        }

    @property
    def metric_state(self) -> dict[str, Any]:
        """Detections and objects of each image, on the CPU, and the loss's sum and number."""
        return {"judged": self._judged, **self._loss.metric_state}

    def merge_state(self, incoming_state: dict[str, Any], /) -> None:
        """Add the batches that another such metric knows."""
        self._loss.merge_state(incoming_state)
        self._judged = [*self._judged, *incoming_state["judged"]]


def place_of(judged: tuple[Detections, Wanted]) -> list[list[float]]:
    """Return by what an image is sorted: numbers of its own, whoever has judged it."""
    found, asked = judged
    return [values.flatten().tolist() for values in (asked.boxes, asked.labels, found.scores, found.boxes)]


def percent(precisions: Tensor) -> float:
    """Return the mean of precisions in per cent, 0 where there is none."""
    return 100 * float(precisions.mean()) if precisions.numel() else 0.0


def counted(found: Detections, objects: Objects, image: int) -> tuple[Detections, Wanted]:
    """Return the detections of an image that count, and the objects that are to be found.

    One that fits a difficult object of its class best, and well enough, is neither right nor wrong, as VOC has it.
    """
    there = objects.labels[image] >= 0
    boxes, labels = objects.boxes[image][there], objects.labels[image][there]
    difficult = torch.zeros_like(there) if objects.difficult is None else objects.difficult[image]
    difficult = difficult[there]
    if difficult.any():
        overlaps = box_iou(found.boxes, boxes.to(found.boxes)) * (found.labels[:, None] == labels)
        most, best = overlaps.max(dim=1)
        kept = ~((most >= RIGHT) & difficult[best])
        found = Detections(*(values[kept] for values in found))
    return found, Wanted(boxes[~difficult], labels[~difficult])


def mean_average_precision() -> Callable[[], Any]:
    """Return what makes torchmetrics' metric, with VOC's IoU, and precision read at every step of recall.

    Raises:
        UserError: torchmetrics or its evaluator is not installed.
    """
    try:
        from torchmetrics.detection import MeanAveragePrecision  # takes a second to load

        make = partial(
            MeanAveragePrecision,
            iou_thresholds=[RIGHT],
            rec_thresholds=[step / STEPS for step in range(STEPS + 1)],
            max_detection_thresholds=[1, 10, MOST],
            extended_summary=True,
            backend="faster_coco_eval",
        )
        make()
    except ImportError as error:
        raise UserError(
            f"Detection needs torchmetrics and faster-coco-eval: {error}",
            mend="Install them with launch/setup, or as the extra detection of this package.",
            everywhere=True,
        ) from None
    return make
