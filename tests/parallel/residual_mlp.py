"""A residual network without convolutions, for learning curves: `parts`, as `--model.parts` takes them.

Its activations are smooth, its layers few and cheap. A network of ReLUs and convolutions makes a hundredth of the loss
of single precision's last bit within ten steps, so that its curve on one processor says little of another's.
"""

from functools import partial

from torch import Tensor, nn

from resist_hvd.nets.parts import Part

BLOCKS, WIDTH = 6, 64


class Block(nn.Module):
    """x + linear(tanh(linear(norm(x)))), [N, WIDTH]."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH, track_running_stats=False)
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.last(self.first(self.norm(x)).tanh())
        return x + h


def parts(channels: int, image_size: int, classes: int) -> list[Part]:
    """Return the network's parts for images of so many channels and pixels."""
    stem = partial(stem_of, channels * image_size**2)
    dealt = [Part(f"blocks.{number}", Block, deck="blocks", branches=("last",)) for number in range(BLOCKS)]
    return [Part("stem", stem), *dealt, Part("head", partial(head_of, classes))]


def stem_of(inputs: int) -> nn.Module:
    """Return what makes WIDTH numbers of an image."""
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, WIDTH))


def head_of(classes: int) -> nn.Module:
    """Return what makes scores of WIDTH numbers."""
    return nn.Sequential(nn.BatchNorm1d(WIDTH, track_running_stats=False), nn.Linear(WIDTH, classes))
