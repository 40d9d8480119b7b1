"""Stochastic gradient descent on a flat buffer, and its learning rate over a run."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from resist_hvd.settings.optim import OptimSettings


def learning_rate(settings: OptimSettings, progress: float, *, step: float = 0.0, epochs: float = 1.0) -> float:
    """Return the learning rate of a step that begins when `progress`, from 0 to 1, of the run's iterations are done.

    A warm-up rises by as much in each step, the first included (Goyal et al. 2017, section 2.2): a first step of rate
    zero would be for nothing.

    Args:
        settings: the schedule.
        progress: how much of the run is done.
        step: how much of it this step does.
        epochs: of the run, by which a warm-up in epochs is measured.
    """
    warmup = settings.warmup_epochs / epochs or settings.warmup
    if progress < warmup:
        return settings.lr * min(1.0, (progress + step) / warmup)
    match settings.schedule:
        case "constant":
            return settings.lr
        case "step":
            passed = sum(progress >= milestone for milestone in settings.milestones)
            return settings.lr / settings.divide_by**passed
        case "cosine":
            rest = (progress - warmup) / (1.0 - warmup)
            return settings.lr * 0.5 * (1.0 + math.cos(math.pi * min(rest, 1.0)))


class FlatSGD:
    """SGD that updates a flat buffer of parameters in one fused pass.

    It calls what `torch.optim.SGD(fused=True)` calls, and not that class: constructing an optimizer loads PyTorch's
    compiler, nearly half of what a start takes, and the class makes a new buffer wherever momentum restarts. Here it
    stays where its owner has it, and restarting costs nothing.

    Args:
        parameters: [P], updated in place.
        gradients: [P].
        momentum: [P], the buffer of velocities; whoever owns it may rearrange it between steps.
        settings: rates and penalties.
    """

    def __init__(self, parameters: Tensor, gradients: Tensor, momentum: Tensor, settings: OptimSettings) -> None:
        self.settings = settings
        self._flat = nn.Parameter(parameters)
        self._flat.grad = self._gradients = gradients
        self._buffers = [momentum] if settings.momentum else []

    @torch.no_grad()
    def step(self, rate: float | Tensor, *, fresh: bool = False) -> None:
        """Update the parameters at a learning rate, and leave the gradients as they are.

        Args:
            rate: the learning rate; a GPU reads it from memory where it is a tensor, of type float32.
            fresh: whether momentum begins here, whatever its buffer holds.
        """
        settings = self.settings
        if settings.clip_norm is not None:
            nn.utils.clip_grad_norm_([self._flat], settings.clip_norm)
        torch._fused_sgd_(
            [self._flat],
            [self._gradients],
            self._buffers,
            lr=cast(Any, rate),  # it has a form for either
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            dampening=0.0,
            nesterov=settings.nesterov,
            maximize=False,
            is_first_step=fresh,
        )
