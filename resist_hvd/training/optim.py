"""Optimizers on flat buffers, and the learning rate over a run."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, cast

import torch
from torch import Tensor, nn

from resist_hvd.methods.state import FlatState
from resist_hvd.nets.subnet import SubNet
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
        risen = min(1.0, (progress + step) / warmup)
        return settings.lr * (settings.warmup_from + (1.0 - settings.warmup_from) * risen)
    match settings.schedule:
        case "constant":
            return settings.lr
        case "step":
            passed = sum(progress >= milestone for milestone in settings.milestones)
            return settings.lr / settings.divide_by**passed
        case "cosine":
            rest = (progress - warmup) / (1.0 - warmup)
            return settings.lr * 0.5 * (1.0 + math.cos(math.pi * min(rest, 1.0)))


class FlatOptimizer(ABC):
    """An optimizer that updates a sub-network's flat parameters in fused passes, and leaves the gradients as they are.

    Slots that stand still are left alone, and so is what is kept of their gradients.

    It calls what PyTorch's optimizers call with `fused=True`, and not these classes: constructing one loads PyTorch's
    compiler, nearly half of what a start takes, and they make new buffers wherever their state restarts. Here these
    stay where their owner has them, and SGD restarts at no cost.

    Args:
        subnet: its parameters are updated in place.
        state: what is kept of earlier gradients; whoever owns it may rearrange it between steps.
        settings: rates and penalties.
    """

    def __init__(self, subnet: SubNet, state: FlatState, settings: OptimSettings) -> None:
        self._subnet = subnet
        self._state = state
        self._settings = settings
        self._cut()

    def _cut(self) -> None:
        """Find the memory of what is trained: one piece each, but where slots stand still."""
        subnet = self._subnet
        self._frozen = subnet.frozen
        self._flats = [nn.Parameter(piece) for piece in subnet.trained(subnet.parameters_flat)]
        self._gradients = subnet.trained(subnet.gradients_flat)
        for flat, gradients in zip(self._flats, self._gradients, strict=True):
            flat.grad = gradients

    @torch.no_grad()
    def step(self, rate: float | Tensor) -> None:
        """Update the parameters at a learning rate, a tensor of one number where a GPU is to read it from memory.

        There it is of float32, and on a CPU of float64, as Python's own numbers are: AdamW divides it.
        """
        if self._subnet.frozen != self._frozen:
            self._cut()
        if self._settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._flats, self._settings.clip_norm)
        self._update(cast(Any, rate))  # PyTorch's functions have a form for either
        self._state.fresh = False

    @abstractmethod
    def _update(self, rate: Any) -> None:
        """Update parameters and state."""


class FlatSGD(FlatOptimizer):
    """Stochastic gradient descent with momentum, as `torch.optim.SGD`."""

    def _cut(self) -> None:
        super()._cut()
        self._momenta = self._subnet.trained(self._state.buffers["momentum"]) if self._settings.momentum else []

    def _update(self, rate: Any) -> None:
        settings = self._settings
        torch._fused_sgd_(
            cast(list[Tensor], self._flats),
            self._gradients,
            self._momenta,
            lr=rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            dampening=0.0,
            nesterov=settings.nesterov,
            maximize=False,
            is_first_step=self._state.fresh,
        )


class FlatAdamW(FlatOptimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), as `torch.optim.AdamW`.

    The trunk and each slot count their own updates: a block that arrives in a slot begins anew.
    """

    def _cut(self) -> None:
        super()._cut()
        subnet, state = self._subnet, self._state
        flats = subnet.parameters_flat, subnet.gradients_flat, state.buffers["exp_avg"], state.buffers["exp_avg_sq"]
        still = {1 + slot for slot in subnet.frozen}
        trained = [place for place in range(1 + len(subnet.slots)) if place not in still]
        self._pieces = [[pieces[place] for place in trained] for pieces in map(subnet.pieces, flats)]
        self._steps = [state.steps[place] for place in trained]
        self._made = torch.ones_like(state.steps)
        for place in still:
            self._made[place] = 0

    def _update(self, rate: Any) -> None:
        self._state.clear()
        parameters, gradients, averages, squares = self._pieces
        self._state.steps += self._made
        beta1, beta2 = self._settings.betas
        torch._fused_adamw_(
            parameters,
            gradients,
            averages,
            squares,
            [],
            self._steps,
            lr=rate,
            beta1=beta1,
            beta2=beta2,
            weight_decay=self._settings.weight_decay,
            eps=self._settings.eps,
            amsgrad=False,
            maximize=False,
        )


STATES = {"sgd": ("momentum",), "adamw": ("exp_avg", "exp_avg_sq")}
"""Names of the buffers that each optimizer keeps."""


def make_state(subnet: SubNet, settings: OptimSettings) -> FlatState:
    """Return the empty state of the optimizer that `settings` ask for."""
    return FlatState(subnet, STATES[settings.name])


def make_optimizer(subnet: SubNet, state: FlatState, settings: OptimSettings) -> FlatOptimizer:
    """Return the optimizer that `settings` ask for."""
    kinds = {"sgd": FlatSGD, "adamw": FlatAdamW}
    return kinds[settings.name](subnet, state, settings)
