"""Settings of the optimizer: the flags `--optim.*`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from resist_hvd.settings.group import Amount, Bound, Fraction, Group, Positive

USUAL: dict[str, dict[str, Any]] = {"sgd": {}, "adamw": {"optim.lr": 1e-3, "optim.weight_decay": 0.05}}
"""Defaults of each optimizer that are not those of `OptimSettings`, by their flags."""

OF_AN_OPTIMIZER = {f"optim.{name}" for name in ("lr", "momentum", "nesterov", "weight_decay", "betas", "eps")}
"""Settings whose values mean something for one optimizer alone."""


def ascending(numbers: tuple[float, ...]) -> bool:
    """Return whether fractions between 0 and 1 ascend."""
    return list(numbers) == sorted(numbers) and all(0 < number < 1 for number in numbers)


Betas = Annotated[
    tuple[float, float], Bound("two numbers from 0 up to, but not, 1", lambda betas: all(0 <= b < 1 for b in betas))
]
Milestones = Annotated[tuple[float, ...], Bound("ascending fractions between 0 and 1", ascending)]


Warmup = Annotated[
    float,
    Bound(
        "a fraction of the run, from 0 up to, but not, 1; --optim.warmup_epochs takes epochs",
        lambda fraction: 0 <= fraction < 1,
    ),
]


@dataclass(frozen=True, kw_only=True)
class OptimSettings(Group):
    """The optimizer and its learning rate."""

    PREFIX: ClassVar = "optim."

    name: Literal["sgd", "adamw"] = "sgd"
    """sgd (with momentum), or adamw (Adam with decoupled weight decay, Loshchilov and Hutter 2019)."""

    lr: Positive = 0.1
    """The peak learning rate. Default: 0.1 for sgd, 0.001 for adamw."""

    momentum: Fraction = 0.9
    """SGD's momentum; adamw has betas instead."""

    nesterov: bool = False
    """Nesterov's momentum, for sgd."""

    weight_decay: Amount = 5e-4
    """For sgd an L2 penalty on all parameters; for adamw how much of a parameter is taken off in each step, times the
    learning rate. Default: 0.0005 for sgd, 0.05 for adamw."""

    betas: Betas = (0.9, 0.999)
    """For adamw: the decay of its averages of gradients and of their squares."""

    eps: Positive = 1e-8
    """For adamw: added to the root of the average of squares that a step is divided by."""

    schedule: Literal["step", "cosine", "constant"] = "cosine"
    """step (divided at each milestone), cosine (to zero at the end), or constant."""

    milestones: Milestones = (0.5, 0.75)
    """For step: at which fractions of the run the learning rate is divided."""

    divide_by: Positive = 10.0
    """For step: what it is divided by at each milestone."""

    warmup: Warmup = 0.0
    """Fraction of the run in which the learning rate rises linearly to its peak; the first step has its share of it."""

    warmup_epochs: Amount = 0.0
    """The same warm-up in epochs, summed over workers, instead of as a fraction of the run."""

    warmup_from: Fraction = 0.0
    """Share of its peak at which the learning rate's warm-up begins."""

    label_smoothing: Fraction = 0.0
    """Probability spread evenly over all classes in the training targets."""

    clip_norm: Positive | None = None
    """Scale a worker's gradient down to this norm where it is larger. Default: never."""

    def check(self) -> None:
        """Refuse settings that contradict one another, or do nothing for this optimizer."""
        if self.warmup and self.warmup_epochs:
            raise ValueError("--optim.warmup and --optim.warmup_epochs both say how long the warm-up is; give one")
        if self.warmup_from and not (self.warmup or self.warmup_epochs):
            raise ValueError(
                f"--optim.warmup_from is {self.warmup_from}, and there is no warm-up; give --optim.warmup, too"
            )
        for name in ("momentum", "nesterov") if self.name == "adamw" else ("betas", "eps"):
            if self.changed(name):
                raise ValueError(
                    f"--optim.{name} is {getattr(self, name)}, which does nothing for {self.name}; leave it out"
                )
        if self.nesterov and self.momentum == 0:
            raise ValueError("--optim.nesterov is true, but --optim.momentum is 0; give a momentum")
