"""SGD on a flat buffer makes the steps of PyTorch's own on a network's many tensors."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resist_hvd.settings.optim import OptimSettings
from resist_hvd.training.optim import FlatSGD

SIZES = (7, 1, 30)
STEPS = 5

CASES = [
    pytest.param({}, id="plain"),
    pytest.param({"momentum": 0.0}, id="without-momentum"),
    pytest.param({"nesterov": True}, id="nesterov"),
    pytest.param({"weight_decay": 0.0}, id="without-weight-decay"),
    pytest.param({"clip_norm": 2.0}, id="clipped"),
    pytest.param({"clip_norm": 2.0, "nesterov": True, "weight_decay": 0.1}, id="all-at-once"),
]


def draw(seed: int) -> Tensor:
    return torch.randn(sum(SIZES), generator=torch.Generator().manual_seed(seed))


def rates() -> list[float]:
    return [0.1 / (1 + step) for step in range(STEPS)]


class Both:
    """The same parameters under both optimizers."""

    def __init__(self, **changes: Any) -> None:
        self.settings = OptimSettings(**changes)
        self.flat = draw(0)
        self.gradients = torch.zeros_like(self.flat)
        # What lies in a buffer that counts as zero must not matter.
        self.momentum = torch.full_like(self.flat, torch.nan)
        self.ours = FlatSGD(self.flat, self.gradients, self.momentum, self.settings)
        self.theirs = [nn.Parameter(piece.clone()) for piece in self.flat.split(SIZES)]

    def optimizer(self) -> torch.optim.SGD:
        settings = self.settings
        return torch.optim.SGD(
            self.theirs,
            lr=1.0,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            weight_decay=settings.weight_decay,
        )

    def step(self, theirs: torch.optim.SGD, seed: int, rate: float, *, fresh: bool) -> None:
        self.gradients.copy_(draw(seed))
        for parameter, gradient in zip(self.theirs, draw(seed).split(SIZES), strict=True):
            parameter.grad = gradient.clone()
        if self.settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.theirs, self.settings.clip_norm)
        theirs.param_groups[0]["lr"] = rate
        theirs.step()
        self.ours.step(rate, fresh=fresh)
        torch.testing.assert_close(self.flat, torch.cat([p.detach() for p in self.theirs]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("changes", CASES)
def test_step_by_step(changes: dict[str, Any]) -> None:
    both = Both(**changes)
    theirs = both.optimizer()
    for step, rate in enumerate(rates()):
        both.step(theirs, 1 + step, rate, fresh=step == 0)


@pytest.mark.parametrize("changes", CASES)
def test_momentum_that_restarts_is_a_new_optimizers(changes: dict[str, Any]) -> None:
    both = Both(**changes)
    for begin in (0, 3):
        theirs = both.optimizer()
        for step in range(begin, begin + 3):
            both.step(theirs, 1 + step, 0.1, fresh=step == begin)


def test_momentum_is_the_buffer_that_was_given() -> None:
    both = Both()
    theirs = both.optimizer()
    for step in range(2):
        both.step(theirs, 1 + step, 0.1, fresh=step == 0)
    velocities = torch.cat([theirs.state[parameter]["momentum_buffer"] for parameter in both.theirs])
    torch.testing.assert_close(both.momentum, velocities)


@pytest.mark.parametrize("changes", CASES)
def test_a_rate_in_memory_and_negative_zeros_for_momentum_are_the_same_to_the_bit(changes: dict[str, Any]) -> None:
    settings = OptimSettings(**{"weight_decay": 0.0, **changes})
    # Zeros of both signs, for parameters and for gradients.
    flat = torch.cat([draw(0), torch.tensor([0.0, -0.0]).repeat(20)])
    gradients = torch.cat([torch.tensor([0.0, 0.0, -0.0, -0.0]).repeat(12), draw(1)])[: len(flat)]
    found = []
    for static in (False, True):
        parameters, momentum = flat.clone(), torch.full_like(flat, -0.0 if static else torch.nan)
        ours = FlatSGD(parameters, gradients.clone(), momentum, settings)
        for step, rate in enumerate(rates()):
            ours.step(torch.tensor(rate) if static else rate, fresh=step == 0 and not static)
        found.append((parameters, momentum if settings.momentum else parameters))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.view(torch.int32), other.view(torch.int32))


def test_a_gradient_is_clipped_by_the_norm_of_all_of_it() -> None:
    both = Both(clip_norm=2.0, momentum=0.0, weight_decay=0.0)
    before, gradient = both.flat.clone(), draw(1)
    assert gradient.norm() > 2
    both.gradients.copy_(gradient)
    both.ours.step(1.0, fresh=True)
    torch.testing.assert_close(both.flat, before - 2 * gradient / gradient.norm(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_a_small_gradient_is_not_clipped(scale: float) -> None:
    both = Both(clip_norm=1000.0 * scale)
    both.gradients.copy_(scale * draw(1))
    both.ours.step(0.1, fresh=True)
    torch.testing.assert_close(both.gradients, scale * draw(1))


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"lr": 0.0}, "--optim.lr is 0.0; give a number above 0"),
    ({"momentum": 1.0}, "--optim.momentum is 1.0; give a number from 0 up to, but not, 1"),
    ({"momentum": -0.1}, "--optim.momentum is -0.1"),
    ({"weight_decay": -1e-4}, "--optim.weight_decay is -0.0001; give 0 or more"),
    ({"warmup": 1.0}, "--optim.warmup is 1.0; give a number from 0 up to, but not, 1"),
    ({"label_smoothing": 1.0}, "--optim.label_smoothing is 1.0"),
    ({"clip_norm": 0.0}, "--optim.clip_norm is 0.0; give a number above 0"),
    ({"divide_by": 0.0}, "--optim.divide_by is 0.0; give a number above 0"),
    ({"milestones": (0.75, 0.5)}, r"--optim.milestones is (0.75, 0.5); give ascending fractions"),
    ({"milestones": (0.5, 1.0)}, "--optim.milestones is"),
    ({"nesterov": True, "momentum": 0.0}, "--optim.nesterov is true, but --optim.momentum is 0"),
    ({"lr": float("nan")}, "--optim.lr is nan"),
    ({"weight_decay": float("nan")}, "--optim.weight_decay is nan"),
    ({"lr": float("inf")}, "--optim.lr is inf"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_wrong_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    make: Callable[..., OptimSettings] = OptimSettings
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        make(**changes)
