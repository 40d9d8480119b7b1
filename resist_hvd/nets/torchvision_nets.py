"""torchvision's residual networks as parts: ResNet, Wide ResNet and ResNeXt, of 18 to 152 layers.

They are post-activation: a block computes relu(x + f(x)), and f ends with a norm, in which the global network's scale
goes. An exported one is torchvision's own, which takes its tensors with `load_state_dict`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from resist_hvd.errors import UserError
from resist_hvd.nets.norms import Norm
from resist_hvd.nets.parts import Network, Part, emptied, seeded

OURS = ("norm_layer", "num_classes", "progress", "weights", "zero_init_residual")
"""Arguments of torchvision that no option may give, since settings of this project decide them."""


class Stem(nn.Module):
    """From images to the first section's input; takes the layers of a torchvision ResNet."""

    def __init__(self, model: ResNet) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu, self.maxpool = model.conv1, model.bn1, model.relu, model.maxpool

    def forward(self, images: Tensor) -> Tensor:
        """Return [batch, channels, height / 4, width / 4]."""
        x: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return x


class Head(nn.Module):
    """From the last section's output to class scores; takes the layers of a torchvision ResNet."""

    def __init__(self, model: ResNet) -> None:
        super().__init__()
        self.avgpool, self.fc = model.avgpool, model.fc

    def forward(self, x: Tensor) -> Tensor:
        """Return scores [batch, classes]."""
        scores: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return scores


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
    """Return the parts of a network of torchvision's.

    Args:
        name: resnet18 to resnet152, wide_resnet50_2, resnext50_32x4d and their like.
        channels: of the images; with other than three, the first convolution is not torchvision's.
        image_size: height and width of the images, in pixels.
        classes: how many the head tells apart.
        options: further arguments of torchvision's function of that name.
        partition: blocks that are dealt out: those of the third section but its strided one, or of all sections.
        zero_residual: whether blocks begin with a branch of zeros, the weight of its last norm.

    Raises:
        UserError: torchvision has no such network, or does not take the options.
    """
    options = dict(options or {})
    model = meta_model(name, channels, classes, options)
    fill = partial(initialise, zero_residual=zero_residual)
    parts = [Part("", partial(emptied, Stem(model)), initialise=fill)]
    for section in range(1, 5):
        for place, block in enumerate(model.get_submodule(f"layer{section}").children()):
            dealt = block.downsample is None and block.stride == 1 and (section == 3 or partition == "all")
            parts.append(
                Part(
                    f"layer{section}.{place}",
                    partial(emptied, block),
                    deck=f"layer{section}" if dealt else None,
                    branches=(last_norm(block),) if dealt else (),
                    initialise=fill,
                )
            )
    parts.append(Part("", partial(emptied, Head(model)), initialise=fill))
    return Network(
        tuple(parts),
        example=torch.empty(2, channels, image_size, image_size, device="meta"),
        description={
            "family": "torchvision",
            "name": name,
            "channels": channels,
            "image_size": image_size,
            "classes": classes,
            "options": options,
            "partition": partition,
        },
        title=f"torchvision {name}",
    )


def whole(*, name: str, channels: int, classes: int, options: Mapping[str, Any], **_: object) -> nn.Module:
    """Return torchvision's own network, of a description that `network` has made, on the meta device.

    Raises:
        UserError: as `network` does.
    """
    model: nn.Module = meta_model(name, channels, classes, options, norm=nn.BatchNorm2d)
    return model


def meta_model(
    name: str, channels: int, classes: int, options: Mapping[str, Any], norm: Callable[[int], nn.Module] = Norm
) -> ResNet:
    """Return torchvision's network, with norms of a kind, on the meta device.

    Raises:
        UserError: it has none of this name, or does not take the options.
    """
    builder = torchvision.models.get_model_builder
    known = [known for known in torchvision.models.list_models() if builder(known).__module__ == ResNet.__module__]
    if name not in known:
        raise UserError(
            f"torchvision has no residual network {name!r}",
            mend=f"Give one of torchvision/{', torchvision/'.join(known)} as --model.name, or parts of your own "
            "(--model.parts).",
        )
    if taken := sorted(set(OURS) & set(options)):
        raise UserError(
            f"{taken[0]} of torchvision is no option of a model here",
            where="--model.options",
            mend="Leave it out: classes are the data's, norms keep no statistics, weights are read from a file "
            "(--model.weights), and blocks begin as zeros by --model.zero_init_residual.",
        )
    try:
        with torch.device("meta"):
            model: ResNet = torchvision.models.get_model(name, num_classes=classes, norm_layer=norm, **options)
            if channels != 3:
                model.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    except Exception as error:
        raise UserError(
            f"torchvision's {name} does not take these options: {' '.join(str(error).split())}",
            where="--model.options",
            mend="Give arguments of its ResNet, such as replace_stride_with_dilation or width_per_group.",
        ) from None
    return model


def last_norm(block: nn.Module) -> str:
    """Return the name of the norm that ends a block's residual branch."""
    return "bn3" if isinstance(block, Bottleneck) else "bn2"


@torch.no_grad()
def initialise(module: nn.Module, seed: int, *, zero_residual: bool) -> None:
    """Fill a part's parameters from a seed, as torchvision does: convolutions by fan-out, norms as the identity."""
    with seeded(seed):
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                weight = torch.empty(layer.weight.shape, device="cpu")
                layer.weight.copy_(nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu"))
            elif isinstance(layer, Norm):
                layer.reset_parameters()
            elif isinstance(layer, nn.Linear):
                fresh = nn.Linear(layer.in_features, layer.out_features, device="cpu")
                layer.load_state_dict(fresh.state_dict())
    if zero_residual and isinstance(module, BasicBlock | Bottleneck):
        nn.init.zeros_(module.get_submodule(last_norm(module)).weight)
