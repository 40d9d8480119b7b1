"""Detectors: a network whose head finds boxes in place of telling classes of images apart.

A 1x1 convolution follows the last section, as in YOLOv2 and in the paper's section 5. At each place of the last
section's output it has, for each anchor, four numbers of a box, one of objectness, and one for each class.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from resist_hvd.errors import UserError
from resist_hvd.nets.norms import Norm
from resist_hvd.nets.parts import Network, Part, seeded

OF_A_BOX = 5
"""Numbers of a predictor beside its classes: x, y, width, height, objectness."""

FIRST_OBJECTNESS = 0.02
"""Objectness of every predictor before training."""


class DetectorHead(nn.Module):
    """From the last section's output to predictors.

    Args:
        channels: of the last section.
        anchors: predictors at each place.
        classes: that each tells apart.
        normed: whether it is normalised and rectified before, as the stream of a pre-activation network is to be.
    """

    def __init__(self, channels: int, anchors: int, classes: int, *, normed: bool) -> None:
        super().__init__()
        self.anchors = anchors
        self.norm = Norm(channels) if normed else None
        self.detector = nn.Conv2d(channels, anchors * (OF_A_BOX + classes), 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [batch, anchors x (5 + classes), rows, columns]."""
        if self.norm is not None:
            x = functional.relu(self.norm(x), inplace=True)
        found: Tensor = self.detector(x)
        return found


def with_detector(network: Network, *, anchors: int, classes: int, normed: bool) -> Network:
    """Return a network of the same parts but the last, in whose place is a detector's head.

    Args:
        network: a classifier of images of known size.
        anchors: how many predictors each place has.
        classes: how many they tell apart.
        normed: as of `DetectorHead`.

    Raises:
        UserError: what comes to the head is no map of an image.
    """
    before = network.outputs[-2]
    if before.ndim != 4:
        raise UserError(
            f"A detector needs a map of the image, and {network.title} has {list(before.shape)} before its head",
            mend="Give a convolutional network: one of preact_resnet..., or torchvision/resnet...",
        )
    make = partial(DetectorHead, before.shape[1], anchors, classes, normed=normed)
    head = Part("head" if normed else "", make, initialise=initialise)
    return replace(
        network,
        parts=(*network.parts[:-1], head),
        description={**network.description, "anchors": anchors},
        title=f"{network.title}, as a detector",
    )


@torch.no_grad()
def initialise(module: nn.Module, seed: int) -> None:
    """Fill a head's parameters from a seed: small weights, so that at first each box is its anchor's.

    Objectness begins low, as most predictors are to find nothing: else it saturates in the first steps (Lin et al.
    2017, section 4.1).
    """
    assert isinstance(module, DetectorHead)
    if module.norm is not None:
        module.norm.reset_parameters()
    with seeded(seed):
        weight = torch.empty(module.detector.weight.shape, device="cpu")
        module.detector.weight.copy_(nn.init.normal_(weight, std=0.01))
    assert module.detector.bias is not None
    nn.init.zeros_(module.detector.bias)
    module.detector.bias.view(module.anchors, -1)[:, OF_A_BOX - 1] = math.log(FIRST_OBJECTNESS / (1 - FIRST_OBJECTNESS))
