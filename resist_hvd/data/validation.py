"""Training images that are held out: evaluated on in the test set's place, which settings must not be chosen by."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from resist_hvd.data.memory.resident import ImageSet
from resist_hvd.data.order import fixed_order
from resist_hvd.data.tree import ImageTree, find_images
from resist_hvd.errors import UserError
from resist_hvd.settings.data import DataSettings


def held_out(labels: NDArray[np.int64], share: float) -> NDArray[np.bool_]:
    """Return which training images are held out: of each class this share, rounded, and never all.

    They are a function of the labels: the same ones in all runs on a training set, whatever their seeds.

    Args:
        labels: each image's class, [N].
        share: above 0, below 1.

    Raises:
        UserError: no image is held out.
    """
    _, counts = np.unique(labels, return_counts=True)
    quotas = np.minimum(np.rint(share * counts).astype(np.int64), counts - 1)
    if not quotas.any():
        raise UserError(
            f"--data.validation {share:g} holds out none of {len(labels):,} training images of {len(counts):,} classes",
            mend="Give a larger share, or leave the flag out.",
        )
    order = fixed_order(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]  # class by class, each in random order
    place = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = np.zeros(len(labels), dtype=np.bool_)
    chosen[by_class[place < np.repeat(quotas, counts)]] = True
    return chosen


def hold_out(images: ImageSet, share: float) -> ImageSet:
    """Return a set in memory whose test half are held-out training images."""
    chosen = held_out(images.train.labels.numpy(), share)
    train, test = images.train.select(~chosen), images.train.select(chosen)
    return replace(images, train=train, test=test, remarks=(*images.remarks, remark(chosen, share)))


def list_images(settings: DataSettings) -> ImageTree:
    """Return the files of a set of class folders, a part of the training half in place of the test half if asked for.

    Raises:
        UserError: as `find_images`; or no image is held out.
    """
    assert settings.root is not None  # DataSettings sees to it
    images, share = find_images(settings.root, settings.extra_tests), settings.validation
    if not share:
        return images
    chosen = held_out(images.train.labels, share)
    train, test = images.train.select(~chosen), images.train.select(chosen)
    return replace(images, train=train, test=test, remarks=(*images.remarks, remark(chosen, share)))


def remark(chosen: NDArray[np.bool_], share: float) -> str:
    """Return what is trained on, and what evaluated on, in a sentence."""
    return (
        f"--data.validation {share:g}: {int(chosen.sum()):,} of {len(chosen):,} training images are held out and "
        "evaluated on; the test set is not used"
    )
