"""Objects in a batch of images, as a detector's targets: one tensor, of one shape for all batches of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

COLUMNS = 6
"""Numbers of an object in a tensor of targets: four edges, its label, and whether it is difficult."""


class Objects(NamedTuple):
    """The objects of a batch of images, of each image as many as the richest has.

    Attributes:
        boxes: float32 [images, most, 4]: left, top, right and bottom edge, as shares of the image's width and height.
        labels: int64 [images, most]: the class of each; -1 where an image has no more.
        difficult: bool [images, most]: whether an object counts neither as found nor as missed; None for nowhere.
    """

    boxes: Tensor
    labels: Tensor
    difficult: Tensor | None = None


def padded(boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> Objects:
    """Return the objects of a batch, of those of its images: boxes [objects, 4] as in `Objects`, labels [objects]."""
    return Objects(
        pad_sequence(list(boxes), batch_first=True), pad_sequence(list(labels), batch_first=True, padding_value=-1)
    )


def packed(boxes: Tensor, labels: Tensor, difficult: Tensor, most: int) -> Tensor:
    """Return an image's objects as its row of a tensor of targets: float32 [most, COLUMNS].

    Args:
        boxes: [objects, 4] as in `Objects`.
        labels: [objects].
        difficult: [objects].
        most: objects that a row has room for.
    """
    row = torch.zeros(most, COLUMNS)
    row[:, 4] = -1
    row[: len(labels)] = torch.cat([boxes.float(), labels[:, None].float(), difficult[:, None].float()], dim=1)
    return row


def unpacked(targets: Tensor) -> Objects:
    """Return the objects of a batch, of its targets: float32 [images, most, COLUMNS]."""
    return Objects(targets[..., :4], targets[..., 4].long(), targets[..., 5] > 0)
