"""Gram matrices of wide residual networks: in the limit of infinite width, by recursion.

The paper's theorem takes them from Du et al., Gradient Descent Finds Global Minima of Deep Neural Networks (ICML 2019),
section 6. Of the network (`wide.WideNetwork`) K^(h), h < H, are the limits of inner products of activations, and K^(H)
that of inner products of the outputs' gradients by the last residual layer's weights, whose least eigenvalue counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from resist_hvd.theory.cases import ActivationName

Array = NDArray[np.float64]

NODES = 80
"""Nodes of the Gauss-Hermite quadrature, in each of its two dimensions."""


@dataclass(frozen=True)
class Activation:
    """An activation that the theorem takes: smooth, Lipschitz, analytic and no polynomial (ReLU is not smooth).

    Attributes:
        value: sigma, elementwise.
        slope: its derivative.
    """

    value: Callable[[Array], Array]
    slope: Callable[[Array], Array]

    @cached_property
    def norm(self) -> float:
        """c_sigma, 1 over the expectation of sigma's square at a standard normal number."""
        nodes, weights = quadrature()
        return float(1 / (weights @ self.value(nodes) ** 2))


ACTIVATIONS: dict[ActivationName, Activation] = {
    "softplus": Activation(lambda z: np.logaddexp(0, z), lambda z: 0.5 * (1 + np.tanh(z / 2))),
    "tanh": Activation(np.tanh, lambda z: 1 - np.tanh(z) ** 2),
}


def quadrature() -> tuple[Array, Array]:
    """Return nodes and weights [NODES] by which expectations at a standard normal number are sums."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    return nodes, weights / weights.sum()


def expectation(function: Callable[[Array], Array], covariances: Array) -> Array:
    """Return E f(u_i) f(u_j) of normal numbers of mean 0, for each pair [n, n] of them.

    Args:
        function: f, elementwise.
        covariances: of the numbers u, [n, n], positive semidefinite.
    """
    nodes, weights = quadrature()
    deviations = np.sqrt(np.diag(covariances))
    found = np.empty_like(covariances)
    first = function(deviations[:, None] * nodes)  # [n, nodes]
    for i, deviation in enumerate(deviations):
        slopes = covariances[i] / deviation
        rest = np.sqrt(np.maximum(np.diag(covariances) - slopes**2, 0.0))
        others = function(slopes[:, None, None] * nodes[:, None] + rest[:, None, None] * nodes)  # [n, nodes, nodes]
        found[i] = np.einsum("p,p,jpq,q->j", weights, first[i], others, weights, optimize=True)
    return (found + found.T) / 2


def means(function: Callable[[Array], Array], covariances: Array) -> Array:
    """Return E f(u_i) of normal numbers of mean 0 with these covariances [n, n]."""
    nodes, weights = quadrature()
    mean: Array = function(np.sqrt(np.diag(covariances))[:, None] * nodes) @ weights
    return mean


def activations_gram(inputs: Array, residual_layers: int, factor: float, activation: Activation) -> Array:
    """Return the limit of <x_i, x_j> [n, n] behind some residual layers.

    With b the limits of the activations' means, times the root of the width, and u_i = <w, x_i>:

        K_ij <- K_ij + factor (b_i E s(u_j) + b_j E s(u_i)) + factor^2 E s(u_i) s(u_j);  b_i <- b_i + factor E s(u_i)

    Args:
        inputs: x, [n, d].
        residual_layers: how many.
        factor: of their outputs, c_res / H.
        activation: s.
    """
    covariances = inputs @ inputs.T
    gram = activation.norm * expectation(activation.value, covariances)
    drift = np.sqrt(activation.norm) * means(activation.value, covariances)
    for _ in range(residual_layers):
        mean = means(activation.value, gram)
        both = expectation(activation.value, gram)
        gram = gram + factor * (np.outer(drift, mean) + np.outer(mean, drift)) + factor**2 * both
        drift = drift + factor * mean
    return gram


def last_layer_gram(inputs: Array, depth: int, c_res: float, activation: Activation) -> Array:
    """Return K^(H), [n, n]: (c_res / H)^2 K^(H-1)_ij E s'(u_i) s'(u_j).

    Args:
        inputs: x, [n, d], of norm 1, no two of them parallel.
        depth: H, the first layer and H - 1 residual ones.
        c_res: the network's.
        activation: s.
    """
    factor = c_res / depth
    before = activations_gram(inputs, depth - 2, factor, activation)
    gram: Array = factor**2 * before * expectation(activation.slope, before)
    return gram


def least_eigenvalue(gram: Array) -> float:
    """Return lambda_min of a symmetric matrix."""
    return float(np.linalg.eigvalsh(gram)[0])
