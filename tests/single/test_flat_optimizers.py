"""Optimizers on flat buffers make the steps of PyTorch's own on a network's many tensors."""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resist_hvd.methods.state import Moves
from resist_hvd.nets.parts import Network, Part
from resist_hvd.nets.subnet import SubNet
from resist_hvd.settings.optim import OptimSettings
from resist_hvd.training.optim import make_optimizer, make_state

STEPS = 5
SLOTS = 3
PARTS = Network(
    (
        Part("stem", partial(nn.Linear, 3, 5)),
        *(Part(f"blocks.{block}", partial(nn.Linear, 5, 5), deck="blocks") for block in range(SLOTS)),
        Part("head", partial(nn.Linear, 5, 2)),
    )
)

SGD = [
    pytest.param({}, id="sgd"),
    pytest.param({"momentum": 0.0}, id="without-momentum"),
    pytest.param({"nesterov": True}, id="nesterov"),
    pytest.param({"weight_decay": 0.0}, id="without-weight-decay"),
    pytest.param({"clip_norm": 2.0}, id="clipped"),
    pytest.param({"clip_norm": 2.0, "nesterov": True, "weight_decay": 0.1}, id="all-at-once"),
]
ADAMW = [
    pytest.param({"name": "adamw"}, id="adamw"),
    pytest.param({"name": "adamw", "weight_decay": 0.0}, id="adamw-without-weight-decay"),
    pytest.param(
        {"name": "adamw", "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.2, "clip_norm": 2.0},
        id="adamw-all-at-once",
    ),
]


def draw(seed: int, like: Tensor) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))


def rates() -> list[float]:
    return [0.1 / (1 + step) for step in range(STEPS)]


class Both:
    """The same parameters under both optimizers; theirs has a tensor for the trunk, and one for each slot."""

    def __init__(self, **changes: Any) -> None:
        self.settings = OptimSettings(**changes)
        self.subnet = SubNet(PARTS, (SLOTS,), device=torch.device("cpu"))
        self.flat, self.gradients = self.subnet.parameters_flat, self.subnet.gradients_flat
        self.flat.copy_(draw(0, self.flat))
        self.state = make_state(self.subnet, self.settings)
        # What lies in a buffer that counts as zero must not matter.
        self.spoil()
        self.ours = make_optimizer(self.subnet, self.state, self.settings)
        self.theirs = [nn.Parameter(piece.clone()) for piece in self.subnet.pieces(self.flat)]
        self.optimizer = self.new_optimizer(self.theirs)

    def spoil(self) -> None:
        for buffer in (*self.state.buffers.values(), self.state.steps):
            buffer.fill_(torch.nan)

    def new_optimizer(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        settings = self.settings
        if settings.name == "adamw":
            return torch.optim.AdamW(
                parameters, lr=1.0, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay
            )
        return torch.optim.SGD(
            parameters,
            lr=1.0,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            weight_decay=settings.weight_decay,
        )

    def restart(self) -> None:
        """Have both begin anew."""
        self.state.restart()
        self.spoil()
        self.optimizer = self.new_optimizer(self.theirs)

    def move(self, moves: Moves) -> None:
        """Have blocks change places in both, with all that is known of them; new ones arrive."""
        self.state.carry(moves)
        trunk, *slots = self.theirs
        moved = [nn.Parameter(draw(100 + n, slots[n])) if old is None else slots[old] for n, old in enumerate(moves)]
        self.theirs = [trunk, *moved]
        for piece, parameter in zip(self.subnet.pieces(self.flat), self.theirs, strict=True):
            piece.copy_(parameter.detach())
        # Of a parameter that the optimizer has not seen yet it has no state.
        known = self.optimizer.state
        self.optimizer = self.new_optimizer(self.theirs)
        for parameter in self.theirs:
            if parameter in known:
                self.optimizer.state[parameter] = known[parameter]

    def step(self, seed: int, rate: float) -> None:
        self.gradients.copy_(draw(seed, self.gradients))
        for place, gradient in enumerate(self.subnet.pieces(self.gradients)):
            self.theirs[place].grad = None if place - 1 in self.subnet.frozen else gradient.clone()
        if self.settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.theirs, self.settings.clip_norm)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        self.ours.step(rate)
        for piece, parameter in zip(self.subnet.pieces(self.flat), self.theirs, strict=True):
            torch.testing.assert_close(piece, parameter.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("changes", [*SGD, *ADAMW])
def test_step_by_step(changes: dict[str, Any]) -> None:
    both = Both(**changes)
    for step, rate in enumerate(rates()):
        both.step(1 + step, rate)


@pytest.mark.parametrize("changes", [*SGD, *ADAMW])
@pytest.mark.parametrize("frozen", [(0,), (1,), (0, 2), (0, 1, 2)])
def test_slots_that_stand_still_are_left_alone(frozen: tuple[int, ...], changes: dict[str, Any]) -> None:
    both = Both(**changes)
    both.step(1, 0.1)
    state = [both.subnet.pieces(buffer) for buffer in (both.flat, *both.state.buffers.values())]
    before = [[piece.clone() for piece in pieces] for pieces in state]
    both.subnet.freeze(frozen)
    for step in (2, 3):
        both.step(step, 0.1)
    assert [p.requires_grad for p in both.subnet.slot_modules[frozen[0]].parameters()] == [False, False]
    for pieces, earlier in zip(state, before, strict=True):
        for slot in frozen:
            assert pieces[1 + slot].numpy().tobytes() == earlier[1 + slot].numpy().tobytes()
    both.subnet.freeze(())
    both.step(4, 0.1)
    assert all(parameter.requires_grad for parameter in both.subnet.parameters())


@pytest.mark.parametrize("changes", [*SGD, *ADAMW])
def test_state_that_restarts_is_a_new_optimizers(changes: dict[str, Any]) -> None:
    both = Both(**changes)
    for begin in (0, 3):
        both.restart()
        for step in range(begin, begin + 3):
            both.step(1 + step, 0.1)


@pytest.mark.parametrize("changes", [*SGD, *ADAMW])
def test_state_that_is_kept_follows_its_blocks_and_arrivals_begin_anew(changes: dict[str, Any]) -> None:
    both = Both(**changes)
    moves: list[Moves] = [(0, 1, 2), (1, None, 0), (None, 1, 2), (2, 0, None)]
    for number, move in enumerate(moves):
        for step in range(2):
            both.step(10 * number + step, 0.05)
        both.move(move)
    both.step(50, 0.05)
    if both.settings.name == "adamw":
        counts = [float(both.optimizer.state[parameter]["step"]) for parameter in both.theirs]
        assert both.state.steps.tolist() == counts
        assert counts == [9, 9, 3, 1]


def test_state_is_in_buffers_by_the_names_that_pytorch_has() -> None:
    for changes, names in (({}, ("momentum_buffer",)), ({"name": "adamw"}, ("exp_avg", "exp_avg_sq"))):
        both = Both(**changes)
        for step in range(2):
            both.step(1 + step, 0.1)
        for name, buffer in zip(names, both.state.buffers.values(), strict=True):
            theirs = [both.optimizer.state[parameter][name] for parameter in both.theirs]
            for piece, tensor in zip(both.subnet.pieces(buffer), theirs, strict=True):
                torch.testing.assert_close(piece, tensor)


def test_what_a_checkpoint_has_of_it() -> None:
    sgd, adamw = Both(), Both(name="adamw")
    for both in (sgd, adamw):
        assert both.state.pieces() == {}
        both.step(1, 0.1)
    assert set(sgd.state.pieces()) == {"momentum"}
    assert set(adamw.state.pieces()) == {"exp_avg", "exp_avg_sq", "steps"}
    for both in (sgd, adamw):
        both.state.restart()
        assert both.state.pieces() == {}


@pytest.mark.parametrize("changes", [*SGD, *ADAMW])
def test_a_rate_in_memory_and_negative_zeros_for_state_are_the_same_to_the_bit(changes: dict[str, Any]) -> None:
    found = []
    for static in (False, True):
        both = Both(**{"weight_decay": 0.0, **changes})
        # Zeros of both signs, for parameters and for gradients.
        signs = torch.tensor([0.0, -0.0, 1.0])
        both.flat.mul_(signs.repeat(len(both.flat))[: len(both.flat)])
        both.gradients.copy_(draw(1, both.gradients))
        both.gradients.mul_(signs.repeat_interleave(3).repeat(len(both.flat))[: len(both.flat)])
        for rate in rates():
            if static:
                both.state.clear(zero=-0.0)
            both.ours.step(torch.tensor(rate, dtype=torch.float64) if static else rate)
        state = both.state.buffers.values() if both.settings.momentum else ()
        found.append([both.flat, *state])
    for one, other in zip(*found, strict=True):
        assert not one.isnan().any()
        assert one.numpy().tobytes() == other.numpy().tobytes()


def test_a_gradient_is_clipped_by_the_norm_of_all_of_it() -> None:
    both = Both(clip_norm=2.0, momentum=0.0, weight_decay=0.0)
    before, gradient = both.flat.clone(), draw(1, both.flat)
    assert gradient.norm() > 2
    both.gradients.copy_(gradient)
    both.ours.step(1.0)
    torch.testing.assert_close(both.flat, before - 2 * gradient / gradient.norm(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_a_small_gradient_is_not_clipped(scale: float) -> None:
    both = Both(clip_norm=1000.0 * scale)
    gradient = scale * draw(1, both.flat)
    both.gradients.copy_(gradient)
    both.ours.step(0.1)
    torch.testing.assert_close(both.gradients, gradient)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"lr": 0.0}, "--optim.lr is 0.0"),
    ({"lr": float("nan")}, "--optim.lr is nan"),
    ({"lr": float("inf")}, "--optim.lr is inf"),
    ({"momentum": 1.0}, "--optim.momentum is 1.0"),
    ({"momentum": -0.1}, "--optim.momentum is -0.1"),
    ({"nesterov": True, "momentum": 0.0}, "--optim.nesterov is true, but --optim.momentum is 0"),
    ({"weight_decay": -1e-4}, "--optim.weight_decay is -0.0001"),
    ({"weight_decay": float("nan")}, "--optim.weight_decay is nan"),
    ({"warmup": 1.0}, "--optim.warmup is 1.0"),
    ({"label_smoothing": 1.0}, "--optim.label_smoothing is 1.0"),
    ({"clip_norm": 0.0}, "--optim.clip_norm is 0.0"),
    ({"divide_by": 0.0}, "--optim.divide_by is 0.0"),
    ({"milestones": (0.75, 0.5)}, "--optim.milestones is [0.75, 0.5]"),
    ({"milestones": (0.5, 1.0)}, "--optim.milestones is [0.5, 1.0]"),
    ({"name": "adamw", "betas": (0.9, 1.0)}, "--optim.betas is [0.9, 1.0]"),
    ({"name": "adamw", "eps": 0.0}, "--optim.eps is 0.0"),
    ({"name": "adamw", "nesterov": True}, "--optim.nesterov"),
    ({"betas": (0.8, 0.9)}, "--optim.betas"),
]


@pytest.mark.parametrize(("changes", "facts"), WRONG)
def test_wrong_settings_are_refused(changes: dict[str, Any], facts: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(facts) + r"(?![.\d])"):
        OptimSettings(**changes)
