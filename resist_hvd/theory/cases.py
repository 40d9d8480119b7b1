"""Settings in which the theorem's rate is measured; without PyTorch, so that they can be listed at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

ActivationName = Literal["softplus", "tanh"]

DIMENSIONS = 16
"""d of the data: points of the unit sphere, each labelled 1 or -1."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A network's shape.

    Attributes:
        width: m, hidden units of each layer.
        depth: H, layers: the first, and H - 1 residual ones.
        c_res: of the residual layers, which are scaled by c_res / H.
    """

    width: int
    depth: int
    c_res: float = 0.5
    activation: ActivationName = "tanh"


@dataclass(frozen=True, kw_only=True)
class Training:
    """Gradient descent by ResIST on squared loss.

    Attributes:
        workers: S.
        local_iterations: l, each a step of gradient descent on all of the data.
        step: eta, of the gradient of 1/2 |y - f|^2.
        min_blocks: m of the rule of the deal.
        scaled: whether the whole network scales blocks by k / N (the paper's section 2.6).
        trunk_learns: whether W^(1) and a are trained, too.
    """

    workers: int
    local_iterations: int
    step: float
    min_blocks: int = 0
    scaled: bool = True
    trunk_learns: bool = True


@dataclass(frozen=True, kw_only=True)
class Case:
    """A setting whose rate is measured.

    Attributes:
        varied: the name of what it has otherwise than `BASE`.
        samples: n, points of data.
        rounds: the most that are made.
    """

    varied: str = "base"
    samples: int = 8
    shape: Shape = field(default_factory=lambda: Shape(width=256, depth=9))
    training: Training = field(default_factory=lambda: Training(workers=2, local_iterations=5, step=0.1))
    rounds: int = 40


BASE = Case()


def cases() -> Iterator[Case]:
    """Yield what is measured: one thing varies at a time, to where the theorem stops holding."""
    for width in (4, 16, 64, 256, 1024):
        yield replace(BASE, varied="width", shape=replace(BASE.shape, width=width))
    for width in (1, 4, 16, 64, 256):
        training = replace(BASE.training, step=0.05)
        shape = replace(BASE.shape, width=width)
        yield replace(BASE, varied="width, 32 points", samples=32, shape=shape, training=training)
    for workers in (1, 2, 4, 8):
        yield replace(BASE, varied="workers", training=replace(BASE.training, workers=workers))
    for local_iterations in (1, 2, 5, 10, 20):
        training = replace(BASE.training, local_iterations=local_iterations)
        yield replace(BASE, varied="local iterations", training=training)
    for depth in (3, 5, 9, 17):
        yield replace(BASE, varied="depth", shape=replace(BASE.shape, depth=depth))
    for step in (0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.8):
        yield replace(BASE, varied="step size", training=replace(BASE.training, step=step))
    for workers in (1, 2, 4, 8):
        training = replace(BASE.training, workers=workers, step=1.0, trunk_learns=False)
        yield replace(BASE, varied="workers, blocks alone", training=training)
    for depth in (3, 5, 9, 17):
        training = replace(BASE.training, step=1.0, trunk_learns=False)
        yield replace(BASE, varied="depth, blocks alone", shape=replace(BASE.shape, depth=depth), training=training)
    for local_iterations in (5, 20, 80):
        training = Training(workers=4, local_iterations=local_iterations, step=1.0, trunk_learns=False)
        yield replace(BASE, varied="local iterations, blocks alone", training=training)
    yield replace(BASE, varied="without the scale k / N", training=replace(BASE.training, scaled=False))
    yield replace(BASE, varied="softplus", shape=replace(BASE.shape, activation="softplus"))
