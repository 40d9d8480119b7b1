"""Theorem 3.1 as an experiment: how fast ResIST's loss falls, beside what the theorem and the Gram matrices say.

The theorem: with step size eta, l local iterations and K^(H) the Gram matrix of the last residual layer, the loss after
t rounds is at most (1 - eta l lambda_min(K^(H)) / 2)^t of the first, if the network is wide and the step small enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch

from resist_hvd.protocol.rule import Rule
from resist_hvd.theory.cases import DIMENSIONS, Case, Training, cases
from resist_hvd.theory.gram import ACTIVATIONS, Array, last_layer_gram, least_eigenvalue
from resist_hvd.theory.wide import WideNetwork, losses_of, sphere

MEASURED_TO = 1e-3
"""A rate is that of the rounds until the loss is this share of the first: later what workers differ in counts."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A case as it was measured; rates are the share of the loss that a round takes away.

    Attributes:
        case: the setting.
        lambda_min: least eigenvalue of K^(H), the network infinitely wide.
        lambda_width: least eigenvalue of the same layer's Gram matrix at the network's width, before training.
        predicted: the theorem's rate, eta l lambda_min / 2; more than that is within it.
        linear: the rate of gradient descent with the Gram matrix of all that learns, as it is before training.
        measured: the rate.
        floor: the median of the last quarter of all rounds' losses, as a share of the first.
        held: whether no round's loss is above the theorem's line.
        losses: the whole network's, before the first round and after each.
    """

    case: Case
    lambda_min: float
    lambda_width: float
    predicted: float
    linear: float
    measured: float
    floor: float
    held: bool
    losses: tuple[float, ...]

    @property
    def step_of_theorem(self) -> float:
        """lambda_min H^2 / (n^2 l^2 S), of the order of which the theorem wants eta to be."""
        training = self.case.training
        most = self.case.samples**2 * training.local_iterations**2 * training.workers
        return self.lambda_min * self.case.shape.depth**2 / most

    @property
    def rounds_within(self) -> float:
        """Rounds after which the theorem's line is below the floor, if the loss falls no further than that."""
        return math.log(self.floor) / math.log1p(-self.predicted)


def run(*, seed: int = 1, told: Callable[[Row], None] = lambda _: None) -> tuple[Row, ...]:
    """Measure all cases, in a few minutes on one core.

    Args:
        seed: of the data, the initial weights and the deals.
        told: is called with each row as it comes.
    """
    rows = []
    for case in cases():
        rows.append(measure(case, seed=seed))
        told(rows[-1])
    return tuple(rows)


def measure(case: Case, *, seed: int = 1) -> Row:
    """Train a network from its initial weights, and compare its loss with the theorem's line.

    Args:
        case: the setting.
        seed: of the data, the initial weights and the deals.
    """
    shape, training = case.shape, case.training
    inputs, targets = sphere(case.samples, DIMENSIONS, seed)
    network = WideNetwork.drawn(shape, DIMENSIONS, seed)
    gram = last_layer_gram(inputs, shape.depth, shape.c_res, ACTIVATIONS[shape.activation])
    layers = network.grams(torch.from_numpy(inputs))
    losses = losses_of(network, training, case.rounds, inputs, targets, seed=seed)
    predicted = training.step * training.local_iterations * least_eigenvalue(gram) / 2
    return Row(
        case=case,
        lambda_min=least_eigenvalue(gram),
        lambda_width=least_eigenvalue(layers[-2]),
        predicted=predicted,
        linear=linear_rate(network, layers, training, inputs, targets, case.rounds),
        measured=rate_of(losses),
        floor=median(losses[-max(1, len(losses) // 4) :]) / losses[0],
        held=holds(losses, predicted),
        losses=tuple(losses),
    )


def rate_of(losses: list[float]) -> float:
    """Return the mean share of the loss that a round takes away, until `MEASURED_TO`; negative where it grows."""
    reached = next((t for t, loss in enumerate(losses) if not loss > MEASURED_TO * losses[0]), len(losses) - 1)
    ratio = losses[reached] / losses[0]
    return 1 - ratio ** (1 / reached) if math.isfinite(ratio) else -math.inf


def holds(losses: list[float], rate: float) -> bool:
    """Return whether each loss is at most (1 - rate)^t of the first."""
    line = losses[0] * np.maximum(1 - rate, 0.0) ** np.arange(len(losses))
    return bool((np.array(losses) <= line * (1 + 1e-12)).all())


def linear_rate(
    network: WideNetwork, layers: list[Array], training: Training, inputs: Array, targets: Array, rounds: int
) -> float:
    """Return the rate at which the loss would fall if the Gram matrix stayed what it is before training.

    A step of a sub-network takes eta G from its residual, with G the sum over all layers that it trains; of N blocks it
    has k, so the blocks' sum counts k / N.

    Args:
        network: as it begins.
        layers: its Gram matrix by layer.
        training: how it is trained.
        inputs: x, [n, d].
        targets: y, [n].
        rounds: the most that are counted.
    """
    rule = Rule((len(network.blocks),), training.workers, training.min_blocks)
    share = rule.shares[0]
    gram = share * sum(layers[1:-1], np.zeros_like(layers[0]))
    if training.trunk_learns:
        gram = gram + layers[0] + layers[-1]
    values, vectors = np.linalg.eigh(gram)
    scale = share if training.scaled else 1.0
    residual = vectors.T @ (targets - network.outputs(torch.from_numpy(inputs), scale=scale).numpy())
    steps = training.local_iterations * np.arange(rounds + 1)
    with np.errstate(over="ignore"):
        left = (1 - training.step * values) ** (2 * steps[:, None])
        return rate_of((left @ residual**2).tolist())
