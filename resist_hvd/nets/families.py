"""Families of networks: from settings, or from what a model's description says, to parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from resist_hvd.nets import preact_resnet
from resist_hvd.nets.architecture import Architecture
from resist_hvd.nets.parts import Network
from resist_hvd.settings.model import ModelSettings


def chosen(settings: ModelSettings, *, channels: int, image_size: int, classes: int) -> Network:
    """Return the network that `settings` ask for, on images and classes as the data have them.

    Raises:
        UserError: it cannot be made, or not be dealt out.
    """
    architecture = Architecture.of(settings, channels=channels, classes=classes)
    return preact_resnet.network(architecture, image_size=image_size, zero_residual=settings.zero_init_residual)


def make(description: Mapping[str, Any]) -> Network:
    """Return the network that a description is of, as `Network.description` has it.

    Raises:
        ValueError: it is none.
    """
    said = dict(description)
    depths = said.pop("depths", None)
    if said.pop("family", None) != "preact_resnet":
        raise ValueError("it is of no family that this version knows")
    network = preact_resnet.network(Architecture.from_json(said), image_size=32)
    return network if depths is None else network.shallower(depths)
