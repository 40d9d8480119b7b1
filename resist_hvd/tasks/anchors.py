"""Anchors of a training set: the shapes around which its boxes gather.

Source: Redmon, Farhadi, "YOLO9000: Better, Faster, Stronger" (CVPR 2017), section 2, "Dimension Clusters": k-means
whose distance is 1 - IoU of boxes with one centre, so that large boxes weigh no more than small ones.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from resist_hvd.errors import UserError
from resist_hvd.tasks.yolo import shape_iou

TURNS = 300
"""Turns of k-means at most; some thousand boxes take a few dozen."""


def find_anchors(sizes: NDArray[np.float32], count: int = 5, *, seed: int = 0) -> NDArray[np.float32]:
    """Return anchors [count, 2] for boxes of some sizes [boxes, 2], widths and heights; the smallest first.

    Args:
        sizes: in any unit, that anchors then have, too.
        count: of anchors.
        seed: of the sizes to begin with: one at random, then each with a probability by its distance from those there
            are (k-means++).

    Raises:
        UserError: there are fewer sizes than anchors that are not the same.
    """
    different = len(np.unique(sizes, axis=0))
    if different < count:
        raise UserError(
            f"Boxes of {different} sizes are too few for {count} anchors",
            mend="Give anchors, or fewer of them, or more annotated images.",
        )
    random = np.random.default_rng(seed)
    anchors = sizes[[random.integers(len(sizes))]]
    while len(anchors) < count:
        distances = 1 - _overlaps(sizes, anchors).max(axis=1)
        chances = np.square(distances.clip(0))
        anchors = np.concatenate([anchors, sizes[[random.choice(len(sizes), p=chances / chances.sum())]]])
    nearest = np.full(len(sizes), -1)
    for _ in range(TURNS):
        before, nearest = nearest, _overlaps(sizes, anchors).argmax(axis=1)
        if (before == nearest).all():
            break
        of_each = [sizes[nearest == number] for number in range(count)]
        # An anchor that no box is nearest to stays where it is.
        means = [own.mean(axis=0) if len(own) else anchor for own, anchor in zip(of_each, anchors, strict=True)]
        anchors = np.stack(means)
    ordered: NDArray[np.float32] = anchors[anchors.prod(axis=1).argsort(kind="stable")].astype(np.float32)
    return ordered


def mean_overlap(sizes: NDArray[np.float32], anchors: NDArray[np.float32]) -> float:
    """Return the mean IoU of boxes with the anchors that are nearest to them: how well anchors fit."""
    return float(_overlaps(sizes, anchors).max(axis=1).mean())


def _overlaps(sizes: NDArray[np.float32], anchors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the IoU of each size with each anchor [boxes, anchors]."""
    found: NDArray[np.float64] = shape_iou(torch.from_numpy(sizes).double(), torch.from_numpy(anchors).double()).numpy()
    return found
