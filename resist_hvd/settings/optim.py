"""Settings of the optimizer: the flags `--optim.*`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class OptimSettings:
    """The optimizer and its learning rate."""

    name: Literal["sgd", "adamw"] = "sgd"
    """sgd (with momentum), or adamw (Adam with decoupled weight decay, Loshchilov and Hutter 2019)."""

    lr: float = 0.1
    """The peak learning rate. Default: 0.1 for sgd, 0.001 for adamw."""

    momentum: float = 0.9
    """SGD's momentum; adamw has betas instead."""

    nesterov: bool = False
    """Nesterov's momentum, for sgd."""

    weight_decay: float = 5e-4
    """For sgd an L2 penalty on all parameters; for adamw how much of a parameter is taken off in each step, times the
    learning rate. Default: 0.0005 for sgd, 0.05 for adamw."""

    betas: tuple[float, float] = (0.9, 0.999)
    """For adamw: the decay of its averages of gradients and of their squares."""

    eps: float = 1e-8
    """For adamw: added to the root of the average of squares that a step is divided by."""

    schedule: Literal["step", "cosine", "constant"] = "cosine"
    """step (divided at each milestone), cosine (to zero at the end), or constant."""

    milestones: tuple[float, ...] = (0.5, 0.75)
    """For step: at which fractions of the run the learning rate is divided."""

    divide_by: float = 10.0
    """For step: what it is divided by at each milestone."""

    warmup: float = 0.0
    """Fraction of the run in which the learning rate rises linearly to its peak; the first step has its share of it."""

    warmup_epochs: float = 0.0
    """The same warm-up in epochs, summed over workers, instead of as a fraction of the run."""

    label_smoothing: float = 0.0
    """Probability spread evenly over all classes in the training targets."""

    clip_norm: float | None = None
    """Scale a worker's gradient down to this norm where it is larger. Default: never."""

    def __post_init__(self) -> None:
        checks = {
            "lr": (0 < self.lr < math.inf, "a rate above 0"),
            "momentum": (0 <= self.momentum < 1, "a number from 0 up to, but not, 1"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "0 or more"),
            "betas": (all(0 <= beta < 1 for beta in self.betas), "two numbers from 0 up to, but not, 1"),
            "eps": (0 < self.eps < math.inf, "a number above 0"),
            "warmup_epochs": (0 <= self.warmup_epochs < math.inf, "0 or more"),
            "warmup": (0 <= self.warmup < 1, "a fraction from 0 up to, but not, 1"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "a probability from 0 up to, but not, 1"),
            "clip_norm": (self.clip_norm is None or self.clip_norm > 0, "a norm above 0, or leave it out"),
            "divide_by": (0 < self.divide_by < math.inf, "a number above 0"),
            "milestones": (
                list(self.milestones) == sorted(self.milestones) and all(0 < m < 1 for m in self.milestones),
                "ascending fractions between 0 and 1",
            ),
        }
        for name, (sound, mend) in checks.items():
            if not sound:
                raise ValueError(f"--optim.{name} is {getattr(self, name)}; give {mend}")
        if self.warmup and self.warmup_epochs:
            raise ValueError("--optim.warmup and --optim.warmup_epochs both say how long the warm-up is; give one")
        useless = ("momentum", "nesterov") if self.name == "adamw" else ("betas", "eps")
        for name in useless:
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise ValueError(
                    f"--optim.{name} is {getattr(self, name)}, which does nothing for {self.name}; leave it out"
                )
        if self.nesterov and self.momentum == 0:
            raise ValueError("--optim.nesterov is true, but --optim.momentum is 0; give a momentum")
