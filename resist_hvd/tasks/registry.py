"""Tasks by their settings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resist_hvd.settings.task import TaskName, TaskSettings
from resist_hvd.tasks.base import Task
from resist_hvd.tasks.classification import Classification

CELL = 32
"""Pixels of the side of a cell, in which anchors are given."""


def task_of(
    name: TaskName,
    settings: TaskSettings,
    *,
    label_smoothing: float,
    classes: Sequence[str],
    image_size: int,
    object_sizes: NDArray[np.float32] | None,
    device: torch.device,
    anchors: Sequence[Sequence[float]] | None = None,
) -> Task:
    """Return the task of a run.

    Args:
        name: which it is.
        settings: its own.
        label_smoothing: of classification.
        classes: their names, in the order of labels.
        image_size: height and width of an image in pixels.
        object_sizes: of detection, the width and height of each object to train on, as shares of its image's.
        device: where losses are computed.
        anchors: of detection, those that it began with, widths and heights as shares of an image's; by default what its
            settings ask for.

    Raises:
        UserError: objects have too few sizes to find anchors among; or what detection needs is not installed.
    """
    if name == "classification":
        return Classification(label_smoothing)
    from resist_hvd.tasks.detection import Detection  # with torchvision, which others need not wait for
    from resist_hvd.tasks.yolo import Weights

    weights = {each: getattr(settings, each) for each in ("empty", "objectness", "coordinates", "classes", "right")}
    task = Detection(
        anchors_of(settings, object_sizes, image_size) if anchors is None else torch.tensor(anchors),
        classes,
        Weights(**weights),
        pull=settings.pull,
        pulled_images=settings.pulled_images,
        device=device,
    )
    task.metric()  # a library that is missing is missed before training
    return task


def anchors_of(settings: TaskSettings, object_sizes: NDArray[np.float32] | None, image_size: int) -> Tensor:
    """Return anchors [anchors, 2], widths and heights as shares of an image's.

    Args:
        settings: which anchors are asked for.
        object_sizes: of the objects to train on, as shares of their images.
        image_size: height and width of an image in pixels.

    Raises:
        UserError: objects have fewer sizes than anchors are to be found.
    """
    from resist_hvd.tasks.anchors import find_anchors
    from resist_hvd.tasks.yolo import VOC_ANCHORS

    if settings.anchors == "auto":
        assert object_sizes is not None
        return torch.from_numpy(find_anchors(object_sizes, settings.anchor_count))
    cells = VOC_ANCHORS if settings.anchors == "voc" else settings.anchors
    return torch.tensor(cells).view(-1, 2) * (CELL / image_size)
