"""A network of one's own in our loop: torchvision's ConvNeXt blocks on small images, dealt out by a function of parts.

launch/run -np 4 --model.parts examples/own_model.py:parts --data.name digits --optim.name adamw --optim.lr 2e-3 \
    --local_iterations 5 --epochs 20 --min_blocks 4
"""

from functools import partial

from torch import Tensor, nn
from torchvision.models.convnext import CNBlock, LayerNorm2d

import resist_hvd as resist

BLOCKS, PATCH = 12, 4


class Head(nn.Module):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm, self.linear = LayerNorm2d(width, eps=1e-6), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x).mean(dim=(2, 3)))


def parts(channels: int, image_size: int, classes: int, width: int = 48) -> list[resist.Part]:
    """Return the network, part by part, for images and classes as the data have them, and --model.options.width."""
    stem = partial(nn.Conv2d, channels, width, PATCH, stride=PATCH)
    block = partial(CNBlock, width, layer_scale=1.0, stochastic_depth_prob=0.0)
    # A block is x + layer_scale * block(x): its last linear layer, "block.5", ends the branch.
    dealt = [resist.Part(f"blocks.{b}", block, deck="blocks", branches=("block.5",)) for b in range(BLOCKS)]
    return [resist.Part("stem", stem), *dealt, resist.Part("head", partial(Head, width, classes))]
