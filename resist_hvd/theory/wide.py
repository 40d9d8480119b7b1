"""A wide residual network of Du et al. (2019), section 3, with squared loss; ResIST on it, its workers in one process.

    x^(1) = sqrt(c_sigma / m) s(W^(1) x)
    x^(h) = x^(h-1) + c_res / (H sqrt(m)) s(W^(h) x^(h-1)), h = 2 ... H
    f = <a, x^(H)>

All weights begin as standard normal numbers. The H - 1 residual layers are the blocks that are dealt, W^(1) and a the
trunk. Everything is in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from resist_hvd.protocol.partition import Partition
from resist_hvd.protocol.rule import Rule
from resist_hvd.seeds import derive
from resist_hvd.theory.cases import ActivationName, Shape, Training
from resist_hvd.theory.gram import ACTIVATIONS, Array

FUNCTIONS: dict[ActivationName, Callable[[Tensor], Tensor]] = {"softplus": functional.softplus, "tanh": torch.tanh}


@dataclass(frozen=True)
class WideNetwork:
    """The weights: W^(1) [m, d], W^(2) ... W^(H) [m, m], a [m]."""

    shape: Shape
    first: Tensor
    blocks: tuple[Tensor, ...]
    last: Tensor

    @classmethod
    def drawn(cls, shape: Shape, inputs: int, seed: int) -> WideNetwork:
        """Return a network with its initial weights, for inputs of so many numbers."""

        def normal(name: str, *size: int) -> Tensor:
            generator = torch.Generator().manual_seed(derive(seed, "theorem", name))
            return torch.randn(*size, generator=generator, dtype=torch.float64)

        m = shape.width
        blocks = tuple(normal(f"block {number}", m, m) for number in range(shape.depth - 1))
        return cls(shape, normal("first", m, inputs), blocks, normal("last", m))

    def outputs(self, inputs: Tensor, held: Iterable[int] | None = None, scale: float = 1.0) -> Tensor:
        """Return f [n] of inputs [n, d].

        Args:
            inputs: x.
            held: the blocks that a sub-network has; all by default.
            scale: of the blocks.
        """
        shape, sigma = self.shape, FUNCTIONS[self.shape.activation]
        m = shape.width
        x = math.sqrt(ACTIVATIONS[shape.activation].norm / m) * sigma(inputs @ self.first.T)
        for block in range(len(self.blocks)) if held is None else held:
            x = x + scale * shape.c_res / (shape.depth * math.sqrt(m)) * sigma(x @ self.blocks[block].T)
        return x @ self.last

    def grams(self, inputs: Tensor) -> list[Array]:
        """Return for each layer, the first to the last, <df_i / dW, df_j / dW> at these weights, [n, n]."""
        weights = [w.detach().requires_grad_() for w in (self.first, *self.blocks, self.last)]
        live = WideNetwork(self.shape, weights[0], tuple(weights[1:-1]), weights[-1])
        rows = [torch.autograd.grad(output, weights, retain_graph=True) for output in live.outputs(inputs)]
        flat = (torch.stack([row[layer].flatten() for row in rows]) for layer in range(len(weights)))
        return [(layer @ layer.T).numpy() for layer in flat]


def loss_of(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return 1/2 |y - f|^2."""
    return (targets - outputs).square().sum() / 2


def train_round(
    network: WideNetwork, partition: Partition, training: Training, inputs: Tensor, targets: Tensor
) -> WideNetwork:
    """Return the network after a round: workers train their sub-networks, then each weight is its holders' mean."""
    trunks: list[tuple[Tensor, Tensor]] = []
    copies: list[list[Tensor]] = [[] for _ in network.blocks]
    for held in partition.held:
        first, last, own = train_worker(network, held, training, inputs, targets)
        trunks.append((first, last))
        for block, weight in zip(held, own, strict=True):
            copies[block].append(weight)
    first, last = (torch.stack(weights).mean(dim=0) for weights in zip(*trunks, strict=True))
    blocks = tuple(torch.stack(own).mean(dim=0) if len(own) > 1 else own[0] for own in copies)
    return WideNetwork(network.shape, first, blocks, last)


def train_worker(
    network: WideNetwork, held: Sequence[int], training: Training, inputs: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Make one worker's local iterations; return its W^(1), its a, and its blocks."""
    weights = [w.clone().requires_grad_() for w in (network.first, network.last, *(network.blocks[b] for b in held))]
    learning = weights if training.trunk_learns else weights[2:]
    first, last, own = weights[0], weights[1], weights[2:]
    subnet = WideNetwork(network.shape, first, tuple(own), last)
    for _ in range(training.local_iterations):
        gradients = torch.autograd.grad(loss_of(subnet.outputs(inputs), targets), learning)
        with torch.no_grad():
            for weight, gradient in zip(learning, gradients, strict=True):
                weight.sub_(gradient, alpha=training.step)
    return first.detach(), last.detach(), [weight.detach() for weight in own]


def losses_of(
    network: WideNetwork,
    training: Training,
    rounds: int,
    inputs: Array,
    targets: Array,
    *,
    seed: int,
    least: float = 1e-20,
) -> list[float]:
    """Return the whole network's loss before the first round, and after each.

    It ends early where the loss is `least` of the first, or no number any more.

    Args:
        network: as it begins.
        training: how it is trained.
        rounds: the most that are made.
        inputs: x, [n, d].
        targets: y, [n].
        seed: of the deals.
        least: share of the first loss.
    """
    x, y = torch.from_numpy(inputs), torch.from_numpy(targets)
    rule = Rule((len(network.blocks),), training.workers, training.min_blocks)
    scale = rule.shares[0] if training.scaled else 1.0
    losses = [loss_of(network.outputs(x, scale=scale), y).item()]
    for number in range(rounds):
        network = train_round(network, rule.deal(derive(seed, "round", number)), training, x, y)
        losses.append(loss_of(network.outputs(x, scale=scale), y).item())
        if not losses[-1] > least * losses[0] or not math.isfinite(losses[-1]):
            break
    return losses


def sphere(count: int, dimensions: int, seed: int) -> tuple[Array, Array]:
    """Return inputs [n, d], drawn evenly from the unit sphere, and targets [n], 1 or -1 at random."""
    random = np.random.Generator(np.random.PCG64(derive(seed, "theorem", "data")))
    x = random.standard_normal((count, dimensions))
    y = random.choice(np.array([-1.0, 1.0]), size=count)
    return x / np.linalg.norm(x, axis=1, keepdims=True), y
