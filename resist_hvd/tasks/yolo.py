"""YOLOv2's outputs: the boxes that they stand for, and the loss that has them fit an image's objects.

Source: Redmon, Farhadi, "YOLO9000: Better, Faster, Stronger" (CVPR 2017), section 2, "Direct location prediction"; the
loss, which it leaves to its code, is that of darknet's region layer, with the constants of `yolov2-voc.cfg`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import batched_nms, box_convert, box_iou

from resist_hvd.tasks.objects import Objects

VOC_ANCHORS = (
    (1.3221, 1.73145),
    (3.19275, 4.00944),
    (5.05587, 8.09892),
    (9.47112, 4.84053),
    (11.2364, 10.0071),
)
"""Widths and heights in cells of 32 pixels, as they were found for Pascal VOC (`yolov2-voc.cfg`)."""


MOST = 1000
"""The surest detections of an image that count. The development kit counts all; more than these nobody has objects
for, and their number would be a matter of the score at which noise is cut off."""

LEAST_SCORE = 0.005
"""The least score of a detection, where detectors are judged by mean average precision; darknet's."""


class Predictions(NamedTuple):
    """Meaning of outputs, of each predictor: anchors x rows x columns of an image.

    Attributes:
        offsets: [images, predictors, 2], from 0 to 1: a box's centre within its cell.
        stretches: [images, predictors, 2]: logarithms of a box's width and height in those of its anchor.
        objectness: [images, predictors], from 0 to 1: the expected IoU of a box with an object.
        classes: [images, predictors, classes]: logits.
        boxes: [images, predictors, 4]: edges as in `Objects`.
    """

    offsets: Tensor
    stretches: Tensor
    objectness: Tensor
    classes: Tensor
    boxes: Tensor


class Detections(NamedTuple):
    """Objects found in an image, the surest first.

    Attributes:
        boxes: [found, 4], edges as in `Objects`.
        scores: [found], objectness times the class's probability.
        labels: int64 [found].
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights of the loss's terms, and from where a predictor counts as right; the defaults are `yolov2-voc.cfg`'s.

    Attributes:
        empty: of the objectness of predictors that are to find nothing.
        objectness: of those that are to find an object.
        coordinates: of their offsets and stretches, times 2 less the object's share of the image.
        classes: of their cross-entropy.
        right: a predictor whose box has a greater IoU with any object need not say that it found nothing.
    """

    empty: float = 1.0
    objectness: float = 5.0
    coordinates: float = 1.0
    classes: float = 1.0
    right: float = 0.6


def predictions(outputs: Tensor, anchors: Tensor) -> Predictions:
    """Return what a network's outputs stand for.

    Args:
        outputs: [images, anchors x (5 + classes), rows, columns]; of an anchor x, y, width, height, objectness, and the
            classes' logits. Under autocast they may be of half precision: all that follows is in float32 at least.
        anchors: [anchors, 2], widths and heights in cells.
    """
    images, _, rows, columns = outputs.shape
    values = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    values = values.view(images, len(anchors), -1, rows, columns).permute(0, 1, 3, 4, 2)
    offsets, stretches = values[..., :2].sigmoid(), values[..., 2:4]
    y, x = torch.meshgrid(
        torch.arange(rows, device=outputs.device), torch.arange(columns, device=outputs.device), indexing="ij"
    )
    grid = extent(rows, columns, values)
    centres = (torch.stack([x, y], dim=-1) + offsets) / grid
    sizes = anchors.to(values)[:, None, None, :] * stretches.exp() / grid
    boxes = box_convert(torch.cat([centres, sizes], dim=-1), "cxcywh", "xyxy")
    return Predictions(
        *(each.flatten(1, 3) for each in (offsets, stretches, values[..., 4].sigmoid(), values[..., 5:], boxes))
    )


def extent(rows: int, columns: int, like: Tensor) -> Tensor:
    """Return columns and rows [2], of another tensor's type and on its device.

    They are filled in there: a step on a GPU would wait for a copy from the host, and no CUDA graph could record one.
    """
    return torch.stack([like.new_full((), columns), like.new_full((), rows)])


class Targets(NamedTuple):
    """Predictors' tasks: the object that each is to find, and how.

    Attributes:
        predictors: int64 [images, most]: the one that is to find each object.
        found: bool [images, most]: false where there is no object, or a later one has the same predictor.
        offsets, stretches: [images, most, 2].
    """

    predictors: Tensor
    found: Tensor
    offsets: Tensor
    stretches: Tensor


def targets(objects: Objects, anchors: Tensor, rows: int, columns: int) -> Targets:
    """Return by which predictor each object is to be found, and how.

    It is that of the cell of the object's centre, and of the anchor whose shape has the greatest IoU with the object's.
    Of objects with the same predictor the last one counts, as in darknet.
    """
    grid = extent(rows, columns, objects.boxes)
    centres, sizes = (box_convert(objects.boxes, "xyxy", "cxcywh") * grid.repeat(2)).split(2, dim=-1)
    cells = torch.minimum(centres.floor(), grid - 1)
    anchors = anchors.to(objects.boxes)
    best = shape_iou(sizes, anchors).argmax(dim=-1)
    predictors = (best * rows + cells[..., 1].long()) * columns + cells[..., 0].long()
    there = objects.labels >= 0
    same = (predictors[:, :, None] == predictors[:, None, :]) & there[:, None, :]
    superseded = same.triu(diagonal=1).any(dim=-1)
    stretches = (sizes / anchors[best]).where(there[..., None], torch.ones(())).log()
    return Targets(predictors, there & ~superseded, centres - cells, stretches)


def shape_iou(sizes: Tensor, anchors: Tensor) -> Tensor:
    """Return the IoU of boxes with one centre: of sizes [..., 2] with each of the anchors [anchors, 2]."""
    shared = torch.minimum(sizes[..., None, :], anchors).prod(dim=-1)
    return shared / (sizes.prod(dim=-1)[..., None] + anchors.prod(dim=-1) - shared)


def loss(
    outputs: Tensor, objects: Objects, anchors: Tensor, weights: Weights | None = None, *, pull: Tensor | None = None
) -> Tensor:
    """Return the loss of a batch, the sum over its predictors by the mean over its images.

    Squares count half, so that gradients are darknet's. No gradient passes through the IoU that objectness is to be.

    Args:
        outputs: as in `predictions`.
        objects: what is to be found.
        anchors: [anchors, 2], widths and heights in cells.
        weights: of the terms.
        pull: a number, the weight of the distance of boxes that are to find nothing from their anchors: darknet has it
            early in training. None for none.
    """
    weights = weights or Weights()
    said = predictions(outputs, anchors)
    objects = Objects(objects.boxes.to(said.boxes), objects.labels)
    wanted = targets(objects, anchors, *outputs.shape[2:])
    there = objects.labels >= 0
    with torch.no_grad():
        overlaps = torch.vmap(box_iou)(said.boxes, objects.boxes) * there[:, None, :]
        none = overlaps.new_zeros(overlaps.shape[:2])
        right = overlaps.amax(dim=2) > weights.right if overlaps.shape[2] else none.bool()
        finds = none.scatter_add(1, wanted.predictors, wanted.found.to(none)) > 0
        overlap = overlaps.gather(1, wanted.predictors[:, None, :]).squeeze(1)
    # Masks in the place of selections: these would have a GPU waited for, to learn how many there are.
    found = wanted.found.to(none)
    empty = (said.objectness.square() * ~(finds | right)).sum()

    def own(values: Tensor) -> Tensor:
        """Return the values of the predictors that are to find objects [images, most, ...]."""
        places = wanted.predictors.view(*wanted.predictors.shape, *[1] * (values.ndim - 2))
        return values.gather(1, places.expand(-1, -1, *values.shape[2:]))

    objectness = ((own(said.objectness) - overlap).square() * found).sum()
    larger = 2 - (objects.boxes[..., 2:] - objects.boxes[..., :2]).prod(dim=-1)
    far = (own(said.offsets) - wanted.offsets).square() + (own(said.stretches) - wanted.stretches).square()
    coordinates = (larger * far.sum(dim=-1) * found).sum()
    logits, labels = own(said.classes).flatten(0, 1), objects.labels.clamp_min(0).flatten()
    classes = (functional.cross_entropy(logits, labels, reduction="none") * found.flatten()).sum()
    squares = weights.empty * empty + weights.objectness * objectness + weights.coordinates * coordinates
    if pull is not None:
        away = (said.offsets - 0.5).square() + said.stretches.square()
        squares = squares + pull * (away * ~finds[..., None]).sum()
    whole: Tensor = (squares / 2 + weights.classes * classes) / len(outputs)
    return whole


def detections(
    said: Predictions, *, least_score: float = LEAST_SCORE, most_overlap: float = 0.45, most: int = MOST
) -> list[Detections]:
    """Return what was found in each image.

    Args:
        said: of a batch.
        least_score: that a detection has.
        most_overlap: IoU above which the less sure of two boxes of a class is left out.
        most: detections of an image.
    """
    scores = said.objectness[..., None] * said.classes.softmax(dim=-1)
    found = []
    for boxes, of_classes in zip(said.boxes, scores, strict=True):
        predictors, labels = torch.nonzero(of_classes >= least_score, as_tuple=True)
        sure, at = of_classes[predictors, labels], boxes[predictors].clamp(0, 1)
        kept = batched_nms(at, sure, labels, most_overlap)[:most]
        found.append(Detections(at[kept], sure[kept], labels[kept]))
    return found
