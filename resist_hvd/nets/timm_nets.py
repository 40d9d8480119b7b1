"""timm's networks as parts: vision transformers and ConvNeXts, with any of timm's options for them.

A network is made once on the meta device and cut. Dealt are a transformer's blocks, and those of a ConvNeXt's third
stage. Stochastic depth, whose rate timm has rise from block to block, has one rate for all blocks of a
deck, the mean of timm's: a slot holds another block each round, and stays the module that it is.

timm is an extra. No other module imports it.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from resist_hvd.errors import UserError
from resist_hvd.nets.parts import Network, Part, emptied, seeded

try:
    import timm
    from timm.layers.drop import DropPath
    from timm.models import convnext, vision_transformer
except ImportError as error:
    raise UserError(f"timm cannot be imported: {error}", mend="Install it: launch/setup --timm.") from None

OURS = {
    "cache_dir": "weights are read from a file, --model.weights",
    "checkpoint_path": "weights are read from a file, --model.weights",
    "features_only": "a network ends with its head",
    "fix_init": "initial weights of a block cannot depend on its depth",
    "img_size": "it is --data.image_size",
    "in_chans": "it is the data's",
    "num_classes": "it is the data's",
    "pretrained": "weights are read from a file, --model.weights",
    "pretrained_cfg": "weights are read from a file, --model.weights",
    "pretrained_cfg_overlay": "weights are read from a file, --model.weights",
}
"""Arguments of timm that no option may give, and why."""

BRANCHES: dict[type[nn.Module], tuple[str, ...]] = {
    vision_transformer.Block: ("attn.proj", "mlp.fc2"),
    vision_transformer.ResPostBlock: ("norm1", "norm2"),
    convnext.ConvNeXtBlock: ("mlp.fc2",),
}
"""The layers that end the residual branches of each class of blocks."""


class Piece(NamedTuple):
    """A piece of a model.

    Attributes:
        name: its prefix in the model's state dict.
        module: of the model, on the meta device.
        chain: the name of the chain of blocks that it belongs to, if it is a block.
    """

    name: str
    module: nn.Module
    chain: str | None = None


class Kind(NamedTuple):
    """A class of timm's models.

    Attributes:
        models: the class itself; networks of subclasses compute something else.
        cut: returns the pieces whose composition is the model.
        shortest: options for a model with a single block in each chain, like all others of the chain.
        sized: whether it is made for images of one size.
        dealt: the chain that is dealt out under `section3`.
    """

    models: type[nn.Module]
    cut: Callable[[nn.Module], Iterable[Piece]]
    shortest: Mapping[str, Any]
    sized: bool
    dealt: str


def network(
    name: str,
    *,
    channels: int,
    image_size: int,
    classes: int,
    options: Mapping[str, Any] | None = None,
    partition: Literal["section3", "all"] = "section3",
    zero_residual: bool = False,
) -> Network:
    """Return the parts of a network of timm's.

    Args:
        name: as timm has it: vit_tiny_patch16_224, deit3_small_patch16_224, convnext_tiny and the like.
        channels: of the images.
        image_size: height and width of the images, in pixels.
        classes: how many the head tells apart.
        options: further arguments of `timm.create_model`: patch_size, embed_dim, depth, drop_path_rate and others.
        partition: blocks that are dealt out: those of a ConvNeXt's third stage, or of all. All of a transformer's are.
        zero_residual: whether blocks begin as the identity, weight and bias of the layers that end their branches zero;
            otherwise all begins as timm has it.

    Raises:
        UserError: timm has no such network, its class is not known here, or it does not take the options.
    """
    options = dict(options or {})
    kind = kind_of(name)
    make = partial(create, name, kind, options, channels=channels, image_size=image_size)
    with torch.device("meta"):
        model = make(classes=classes)
    pieces = [piece for piece in kind.cut(model) if not isinstance(piece.module, nn.Identity)]
    dealt = {piece.chain for piece in pieces if piece.chain} if partition == "all" else {kind.dealt}
    for chain in dealt:
        one_rate([piece.module for piece in pieces if piece.chain == chain])
    shortest = partial(make, classes=classes, **kind.shortest)
    return Network(
        tuple(part_of(piece, piece.chain in dealt, shortest, zero_residual=zero_residual) for piece in pieces),
        example=torch.empty(2, channels, image_size, image_size, device="meta"),
        description={
            "family": "timm",
            "name": name,
            "channels": channels,
            "image_size": image_size,
            "classes": classes,
            "options": options,
            "partition": partition,
        },
        title=f"timm {name}",
    )


def whole(
    *, name: str, channels: int, image_size: int, classes: int, options: Mapping[str, Any], **_: object
) -> nn.Module:
    """Return timm's own network, of a description that `network` has made, on the meta device.

    Raises:
        UserError: as `network` does.
    """
    with torch.device("meta"):
        return create(name, kind_of(name), options, channels=channels, image_size=image_size, classes=classes)


def part_of(piece: Piece, dealt: bool, shortest: Callable[..., nn.Module], *, zero_residual: bool) -> Part:
    """Return the part that a piece is; `shortest` makes timm's model with one block a chain.

    That first block of a chain stands for all: they begin alike, but for their seeds, and need no head.
    """
    branches = BRANCHES[type(piece.module)] if piece.chain else ()
    make = partial(shortest, classes=1) if piece.chain else shortest
    prefix = f"{piece.chain}.0" if piece.chain else piece.name
    return Part(
        piece.name,
        partial(emptied, piece.module),
        deck=piece.chain if dealt else None,
        branches=branches if dealt else (),
        initialise=partial(initialise, make=make, prefix=prefix, zero=branches if zero_residual else ()),
    )


def kind_of(name: str) -> Kind:
    """Return the kind of a model.

    Raises:
        UserError: timm has none of this name, or its class is not known here.
    """
    if not timm.is_model(name):
        alike = ", timm/".join(difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0))
        raise UserError(
            f"timm {timm.__version__} has no network {name!r}",
            mend=f"Give one that it has as --model.name, such as timm/{alike}; timm.list_models() has all.",
        )
    module = str(timm.models.model_entrypoint(name).__module__).rpartition(".")[2]
    if module not in KINDS:
        raise refused(name, f"is one of timm's {module}")
    return KINDS[module]


def create(
    name: str,
    kind: Kind,
    options: Mapping[str, Any],
    *,
    channels: int,
    image_size: int,
    classes: int,
    **others: Any,
) -> nn.Module:
    """Return timm's model on PyTorch's default device.

    Raises:
        UserError: it does not take the options, or they make another class of it.
    """
    for option in options:
        if option in OURS:
            raise UserError(
                f"{option} of timm is no option of a model here: {OURS[option]}",
                where="--model.options",
                mend="Leave it out.",
            )
    arguments = {**options, **others, "num_classes": classes, "in_chans": channels}
    if kind.sized:
        arguments["img_size"] = image_size
    try:
        model: nn.Module = timm.create_model(name, **arguments)
    except Exception as error:
        raise UserError(
            f"timm's {name} does not take these options, or this size of images: {type(error).__name__}: "
            f"{' '.join(str(error).split())}",
            where="--model.options",
            mend="Give arguments of timm.create_model that fit the network, and images of its size "
            f"(--data.image_size, {image_size} now).",
        ) from None
    if type(model) is not kind.models:
        raise refused(name, f"is of class {type(model).__name__}")
    if buffers := [buffer for buffer, _ in model.named_buffers()]:
        raise refused(name, f"keeps a buffer, {buffers[0]}")
    for piece in kind.cut(model):
        if piece.chain and type(piece.module) not in BRANCHES:
            raise refused(name, f"has blocks of class {type(piece.module).__name__}")
    if any(hasattr(layer, "lambda_init") for layer in model.modules()):
        raise refused(name, "has attention that depends on a block's depth")
    return model


def refused(name: str, reason: str) -> UserError:
    """Return the error of a network that cannot be cut into parts."""
    return UserError(
        f"timm/{name} {reason}, which cannot be dealt out",
        mend="Give a network of class VisionTransformer (vit_*, deit_*, deit3_*) or ConvNeXt (convnext*), one of "
        "torchvision's (torchvision/resnet50), or parts of your own (--model.parts).",
    )


def one_rate(blocks: list[nn.Module]) -> None:
    """Give the stochastic depth of all blocks one rate, the mean."""
    places = {name for block in blocks for name, layer in block.named_children() if isinstance(layer, DropPath)}
    for place in places:
        rate = sum(getattr(block.get_submodule(place), "drop_prob", 0.0) for block in blocks) / len(blocks)
        for block in blocks:
            setattr(block, place, DropPath(rate))


@torch.no_grad()
def initialise(
    module: nn.Module, seed: int, *, make: Callable[[], nn.Module], prefix: str, zero: tuple[str, ...]
) -> None:
    """Fill a part's parameters from a seed with those that timm's own model of one block a chain begins with."""
    with seeded(seed), torch.device("cpu"):
        begun = make()
    for name, parameter in module.named_parameters():
        parameter.copy_(begun.get_parameter(f"{prefix}.{name}" if prefix else name))
    for branch in zero:
        for parameter in module.get_submodule(branch).parameters(recurse=False):
            nn.init.zeros_(parameter)


def piece_of(model: nn.Module, kept: Iterable[str], forward: Callable[[Any, Tensor], Tensor]) -> nn.Module:
    """Return a model that has only these of its children and parameters, and computes what they are for."""
    piece = copy.deepcopy(model)
    for name in [name for name, _ in (*model.named_children(), *model.named_parameters(recurse=False))]:
        if name not in kept:
            delattr(piece, name)
    piece.__class__ = type(f"{type(model).__name__}Piece", (type(model),), {"forward": forward})
    return piece


def embed(model: vision_transformer.VisionTransformer, images: Tensor) -> Tensor:
    """Return the tokens of images, as VisionTransformer.forward_features makes them before its blocks."""
    tokens: Tensor = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
    return tokens


def classify(model: vision_transformer.VisionTransformer, tokens: Tensor) -> Tensor:
    """Return class scores, as VisionTransformer.forward makes them after its blocks."""
    scores: Tensor = model.forward_head(model.norm(tokens))
    return scores


EMBEDDING = ("patch_embed", "cls_token", "reg_token", "pos_embed", "pos_drop", "patch_drop", "norm_pre")
HEAD = ("norm", "attn_pool", "fc_norm", "head_drop", "head")


def cut_transformer(model: nn.Module) -> Iterable[Piece]:
    """Yield the pieces of a VisionTransformer."""
    yield Piece("", piece_of(model, EMBEDDING, embed))
    yield from chain_of(model, "blocks")
    yield Piece("", piece_of(model, HEAD, classify))


def cut_convnext(model: nn.Module) -> Iterable[Piece]:
    """Yield the pieces of a ConvNeXt."""
    yield Piece("stem", model.get_submodule("stem"))
    for stage in range(4):
        yield Piece(f"stages.{stage}.downsample", model.get_submodule(f"stages.{stage}.downsample"))
        yield from chain_of(model, f"stages.{stage}.blocks")
    yield Piece("norm_pre", model.get_submodule("norm_pre"))
    yield Piece("head", model.get_submodule("head"))


def chain_of(model: nn.Module, chain: str) -> Iterable[Piece]:
    """Yield the blocks of a chain."""
    for name, block in model.get_submodule(chain).named_children():
        yield Piece(f"{chain}.{name}", block, chain)


_TRANSFORMER = Kind(vision_transformer.VisionTransformer, cut_transformer, {"depth": 1}, sized=True, dealt="blocks")
KINDS = {
    "vision_transformer": _TRANSFORMER,
    "deit": _TRANSFORMER,
    "convnext": Kind(convnext.ConvNeXt, cut_convnext, {"depths": (1, 1, 1, 1)}, sized=False, dealt="stages.2.blocks"),
}
"""The kinds of models by the name of timm's module that makes them."""
