"""A network of one's own in the toolkit's loop: torchvision's ConvNeXt, the blocks of whose third stage are dealt out.

launch/run -np 4 --model.parts examples/own_model.py:parts --data.name digits [--model.options.width 32]

Names are torchvision's, so its own ConvNeXt loads the exported model: load_state_dict(load_file("model.safetensors")).
"""

from collections.abc import Sequence
from functools import partial

from torch import nn
from torchvision.models.convnext import CNBlock, LayerNorm2d

from resist_hvd.nets import Part


def begun(*layers: nn.Module) -> nn.Sequential:
    """Return layers in a row, with initial weights as torchvision has them."""
    row = nn.Sequential(*layers)
    for layer in row.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    return row


def stem(channels: int, width: int) -> nn.Module:
    return begun(nn.Conv2d(channels, width, 4, 4), LayerNorm2d(width, eps=1e-6))


def downsampling(width: int) -> nn.Module:
    return begun(LayerNorm2d(width // 2, eps=1e-6), nn.Conv2d(width // 2, width, 2, 2))


def block(width: int) -> nn.Module:
    # No stochastic depth: torchvision's rate rises with depth, and a worker's module gets another block each round.
    return begun(CNBlock(width, layer_scale=1e-6, stochastic_depth_prob=0.0))[0]


def classifier(width: int, classes: int) -> nn.Module:
    return begun(LayerNorm2d(width, eps=1e-6), nn.Flatten(1), nn.Linear(width, classes))


def parts(
    channels: int, image_size: int, classes: int, width: int = 96, depths: Sequence[int] = (3, 3, 9, 3)
) -> list[Part]:
    """Return the network as parts in a row; the toolkit calls this with what the data have, and --model.options."""
    found = [Part("features.0", partial(stem, channels, width))]
    for stage, blocks in enumerate(depths):
        if stage > 0:
            found.append(Part(f"features.{2 * stage}", partial(downsampling, width << stage)))
        for place in range(blocks):
            make = partial(block, width << stage)
            if stage == 2:  # x + f(x), equal in shape: f ends with the layer block.5, a linear one
                part = Part(f"features.5.{place}", make, deck="features.5", branches=("block.5",))
            else:
                part = Part(f"features.{2 * stage + 1}.{place}", make)
            found.append(part)
    found.append(Part("avgpool", partial(nn.AdaptiveAvgPool2d, 1)))
    found.append(Part("classifier", partial(classifier, width << 3, classes)))
    return found
