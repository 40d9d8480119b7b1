"""Batch normalisation without running statistics, and the exact ones that evaluation gives it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Norm(nn.BatchNorm2d):
    """Batch normalisation of images that keeps no running statistics.

    Training normalises with the batch's own; evaluation sets exact ones. So nothing beside the parameters ever needs
    synchronising between workers.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, track_running_stats=False)


def norms_of(module: nn.Module) -> dict[str, _BatchNorm]:
    """Return a module's batch norms by name, in the order in which activations reach them."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, _BatchNorm)}


def set_statistics(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Have a norm normalise with these when in evaluation mode; [channels] each."""
    norm.running_mean, norm.running_var = mean, variance


def clear_statistics(norm: _BatchNorm) -> None:
    """Have a norm normalise with the batch's own statistics again."""
    norm.running_mean = norm.running_var = None
