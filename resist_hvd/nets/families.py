"""Networks of every family, by their settings or by the description that an exported model has.

torchvision and timm take seconds to import: each is, where a network of its own is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, get_args

from resist_hvd.nets.architecture import Architecture
from resist_hvd.nets.parts import Network
from resist_hvd.nets.weights import begun_with
from resist_hvd.settings.model import LIBRARIES, ModelSettings, Scope

SIZES = ("channels", "image_size", "classes")
FIELDS = {
    **dict.fromkeys(LIBRARIES, ("name", *SIZES, "options", "partition")),
    "parts": ("parts", *SIZES, "options"),
}
"""What a description of each family has, beside the family itself; a pre-activation ResNet's has its architecture."""

MOST_ANCHORS = 100
MOST_BLOCKS = 10_000
LARGEST = 2**24
"""More anchors and blocks than any network has, and larger numbers than any description: else it is damaged."""


def chosen(
    settings: ModelSettings, *, channels: int, image_size: int, classes: int, anchors: int | None = None
) -> Network:
    """Return the network that `settings` ask for, on images and classes as the data have them.

    Args:
        settings: of the network.
        channels: of an image.
        image_size: height and width in pixels.
        classes: how many are told apart.
        anchors: of a detector, how many predictors it has in each cell; None for a classifier.

    Raises:
        UserError: it cannot be made, or not be dealt out, or its weights are not in the file that has them.
    """
    said: dict[str, Any]
    sizes = {"channels": channels, "image_size": image_size, "classes": classes}
    match settings.family:
        case "preact":
            architecture = Architecture.of(settings, channels=channels, classes=classes)
            said = {"family": "preact_resnet", "image_size": image_size, **architecture.to_json()}
        case "parts":
            said = {"family": "parts", "parts": settings.parts, **sizes, "options": settings.options}
        case family:
            name = settings.name.partition("/")[2]
            said = {"family": family, "name": name, **sizes, "options": settings.options}
            said["partition"] = settings.partition
    if anchors is not None and settings.family != "parts":
        said["anchors"] = anchors
    asked = settings.zero_init_residual
    network = make(said, zero_residual=settings.family == "preact" if asked is None else asked)
    return network if settings.weights is None else begun_with(network, settings.weights)


def make(description: Mapping[str, Any], *, zero_residual: bool = False) -> Network:
    """Return the network that a description is of, as `Network.description` has it.

    Args:
        description: the family, and all that its parts are made from.
        zero_residual: whether blocks begin as the identity; a user's own begin as they are made.

    Raises:
        ValueError: it is no description of a network.
        UserError: the network cannot be made: its library is missing, or has no such network.
    """
    said = dict(description)
    family, depths, anchors = (said.pop(name, None) for name in ("family", "depths", "anchors"))
    if family == "preact_resnet":
        from resist_hvd.nets import preact_resnet

        # No tensor depends on the size of images, and descriptions do not say it.
        image_size = said.pop("image_size", 32)
        check({"image_size": image_size, **said})
        architecture = Architecture.from_json(said)
        if sum(architecture.sections) > MOST_BLOCKS:
            raise ValueError(f"it has {sum(architecture.sections):,} blocks, more than any network")
        network = preact_resnet.network(architecture, image_size=image_size, zero_residual=zero_residual)
    elif isinstance(family, str) and family in FIELDS:
        if set(said) != set(FIELDS[family]):
            raise ValueError(f"a network of {family} has {', '.join(FIELDS[family])} and nothing else")
        check(said)
        if family == "parts":
            from resist_hvd.nets import users

            network = users.network(said.pop("parts"), **said)
        else:
            library = import_module(f"resist_hvd.nets.{family}_nets")
            network = library.network(said.pop("name"), **said, zero_residual=zero_residual)
    else:
        raise ValueError("it is of no family that this version knows")
    if anchors is not None:
        network = _detector(network, anchors, said.get("classes"), said.get("final_norm", False))
    if depths is None:
        return network
    sizes = network.deck_sizes
    if not isinstance(depths, list) or len(depths) != len(sizes) or not all(map(is_depth, depths, sizes)):
        raise ValueError("depths are no numbers of blocks that its decks have")
    return network.shallower(depths)


def _detector(network: Network, anchors: object, classes: object, normed: object) -> Network:
    """Return a family's network as a detector.

    Raises:
        ValueError: its description is damaged.
        UserError: it cannot be one.
    """
    if not (isinstance(anchors, int) and 0 < anchors <= MOST_ANCHORS and isinstance(classes, int)):
        raise ValueError(f"anchors are {str(anchors)[:40]!r}, no number from 1 to {MOST_ANCHORS}")
    from resist_hvd.nets import detector

    return detector.with_detector(network, anchors=anchors, classes=classes, normed=bool(normed))


def check(said: Mapping[str, Any]) -> None:
    """Refuse a description whose values are of other types than those that any has.

    Raises:
        ValueError: with the name of the value.
    """
    for name in SIZES:
        if name in said and not (type(said[name]) is int and said[name] > 0):
            raise ValueError(f"{name} is {str(said[name])[:40]!r}, no number from 1 up")
    for name in ("name", "parts"):
        if name in said and not isinstance(said[name], str):
            raise ValueError(f"{name} is {str(said[name])[:40]!r}, no text")
    if "partition" in said and said["partition"] not in get_args(Scope):
        raise ValueError(f"partition is {str(said['partition'])[:40]!r}, none of {get_args(Scope)}")
    options = said.get("options", {})
    if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
        raise ValueError("options are no values by name")
    for name, value in (*said.items(), *options.items()):
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, int | float) and abs(number) > LARGEST:
                raise ValueError(f"{name} is {str(number)[:40]}: the network is larger than any can be")


def is_depth(depth: object, blocks: int) -> bool:
    """Return whether a deck of so many blocks has this depth."""
    return type(depth) is int and 0 <= depth <= blocks
