"""Theorem 3.1 on wide networks: Gram matrices in three ways, rounds by plain gradient descent, rates beside both."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from resist_hvd.protocol.rule import Rule
from resist_hvd.theory import convergence, picture
from resist_hvd.theory.cases import BASE, ActivationName, Case, Shape, Training
from resist_hvd.theory.gram import (
    ACTIVATIONS,
    Activation,
    Array,
    activations_gram,
    expectation,
    last_layer_gram,
    least_eigenvalue,
    means,
)
from resist_hvd.theory.wide import WideNetwork, losses_of, sphere, train_round

SMALL = Case(shape=Shape(width=128, depth=5), training=Training(workers=2, local_iterations=5, step=0.1), rounds=12)
BOTH: tuple[ActivationName, ...] = ("softplus", "tanh")


def sampled(function: Activation, inputs: Array, residual_layers: int, factor: float) -> tuple[Array, Array]:
    """K^(h) [n, n] and b^(h) [n] with each expectation taken over drawn numbers."""
    random = np.random.Generator(np.random.PCG64(1))

    def drawn(covariances: Array) -> Array:
        """Numbers [n, draws] with these covariances, and their opposites."""
        values, vectors = np.linalg.eigh(covariances)
        half = (vectors * np.sqrt(np.maximum(values, 0))) @ random.standard_normal((len(values), 100_000))
        return np.concatenate([half, -half], axis=1)

    def both(covariances: Array) -> tuple[Array, Array]:
        s = function.value(drawn(covariances))
        return s @ s.T / s.shape[1], s.mean(axis=1)

    product, mean = both(inputs @ inputs.T)
    gram, drift = function.norm * product, np.sqrt(function.norm) * mean
    for _ in range(residual_layers):
        product, mean = both(gram)
        gram = gram + factor * (drift[:, None] * mean + mean[:, None] * drift) + factor**2 * product
        drift = drift + factor * mean
    slopes = function.slope(drawn(gram))
    return gram, slopes @ slopes.T / slopes.shape[1]


def test_expectations_are_those_that_are_known() -> None:
    covariances = np.array([[1.0, 0.3], [0.3, 2.0]])
    assert np.allclose(expectation(lambda z: z, covariances), covariances, atol=1e-12)
    # Isserlis: E u^2 v^2 = E u^2 E v^2 + 2 (E u v)^2.
    squares = np.outer(np.diag(covariances), np.diag(covariances)) + 2 * covariances**2
    assert np.allclose(expectation(np.square, covariances), squares, atol=1e-12)
    assert np.allclose(means(np.square, covariances), [1.0, 2.0], atol=1e-12)


@pytest.mark.parametrize("name", BOTH)
def test_a_slope_is_the_derivative(name: ActivationName) -> None:
    activation, z = ACTIVATIONS[name], np.linspace(-3, 3, 13)
    assert np.allclose(activation.slope(z), (activation.value(z + 1e-5) - activation.value(z - 1e-5)) / 2e-5, atol=1e-9)


@pytest.mark.parametrize("name", BOTH)
def test_the_recursion_is_what_drawn_numbers_come_to(name: ActivationName) -> None:
    activation, (inputs, _) = ACTIVATIONS[name], sphere(4, 3, seed=2)
    gram, slopes = sampled(activation, inputs, 3, 0.2)
    assert np.allclose(activations_gram(inputs, 3, 0.2, activation), gram, atol=0.01)
    assert np.allclose(last_layer_gram(inputs, 5, 1.0, activation), 0.04 * gram * slopes, atol=0.04 * 0.01)


@pytest.mark.parametrize("name", BOTH)
def test_the_recursion_is_the_limit_of_wide_networks(name: ActivationName) -> None:
    inputs, _ = sphere(4, 3, seed=2)
    expected = last_layer_gram(inputs, 4, 0.5, ACTIVATIONS[name])
    apart = []
    for width in (16, 256):
        shape = Shape(width=width, depth=4, c_res=0.5, activation=name)
        grams = [WideNetwork.drawn(shape, 3, seed).grams(torch.from_numpy(inputs))[-2] for seed in range(24)]
        apart.append(abs(np.mean(grams, axis=0) - expected).max() / expected.max())
    assert apart[1] < 0.1
    assert apart[1] < apart[0] / 2


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("depth", [2, 3, 9])
def test_least_eigenvalues_are_positive_and_fall_by_the_depths_square(name: ActivationName, depth: int) -> None:
    inputs, _ = sphere(8, 16, seed=1)
    least = least_eigenvalue(last_layer_gram(inputs, depth, 0.5, ACTIVATIONS[name]))
    assert least > 0
    twice = least_eigenvalue(last_layer_gram(inputs, 2 * depth, 0.5, ACTIVATIONS[name]))
    assert least / twice == pytest.approx(4, rel=0.1)


def test_inputs_are_of_norm_1_and_labels_of_size_1() -> None:
    inputs, targets = sphere(8, 16, seed=1)
    assert np.allclose(np.linalg.norm(inputs, axis=1), 1)
    assert set(np.abs(targets)) == {1.0}


def plain_descent(
    network: WideNetwork, held: tuple[int, ...], steps: int, rate: float, x: Tensor, y: Tensor
) -> dict[str, Tensor]:
    """A sub-network's weights by name after some steps, with the network's formula written out."""
    shape = network.shape
    weights = {"first": network.first, "last": network.last} | {str(b): network.blocks[b] for b in held}
    weights = {name: value.clone().requires_grad_() for name, value in weights.items()}
    for _ in range(steps):
        h = torch.tanh(x @ weights["first"].T) * (ACTIVATIONS["tanh"].norm / shape.width) ** 0.5
        for block in held:
            h = h + shape.c_res / shape.depth / shape.width**0.5 * torch.tanh(h @ weights[str(block)].T)
        ((y - h @ weights["last"]) ** 2).sum().div(2).backward()
        weights = {name: (w - rate * w.grad).detach().requires_grad_() for name, w in weights.items()}
    return weights


def test_a_round_is_gradient_descent_of_each_worker_and_the_holders_means() -> None:
    x, y = (torch.from_numpy(array) for array in sphere(5, 4, seed=3))
    network = WideNetwork.drawn(Shape(width=16, depth=5), 4, seed=3)
    partition = Rule((4,), 3, 2).deal(7)
    assert {len(holders) for holders in partition.holders} == {1, 2}
    after = train_round(network, partition, Training(workers=3, local_iterations=4, step=0.2), x, y)
    workers = [plain_descent(network, held, 4, 0.2, x, y) for held in partition.held]

    def mean(name: str) -> Tensor:
        return torch.stack([own[name] for own in workers if name in own]).mean(dim=0)

    assert torch.allclose(after.first, mean("first"), atol=1e-14)
    assert torch.allclose(after.last, mean("last"), atol=1e-14)
    for block, weight in enumerate(after.blocks):
        assert torch.allclose(weight, mean(str(block)), atol=1e-14)
    assert not torch.equal(after.first, network.first)


def test_a_trunk_that_does_not_learn_stays() -> None:
    x, y = (torch.from_numpy(array) for array in sphere(5, 4, seed=3))
    network = WideNetwork.drawn(Shape(width=16, depth=5), 4, seed=3)
    training = Training(workers=2, local_iterations=2, step=0.2, trunk_learns=False)
    after = train_round(network, Rule((4,), 2).deal(1), training, x, y)
    assert torch.equal(after.first, network.first)
    assert torch.equal(after.last, network.last)
    assert not any(torch.equal(*pair) for pair in zip(after.blocks, network.blocks, strict=True))


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_loss_falls_within_the_theorems_line_and_as_the_gram_matrix_says(workers: int) -> None:
    row = convergence.measure(replace(SMALL, training=replace(SMALL.training, workers=workers)))
    assert row.held
    assert 0 < row.predicted < row.measured
    assert row.measured == pytest.approx(row.linear, rel=0.1)
    assert row.lambda_width == pytest.approx(row.lambda_min, rel=1)
    assert row.case.training.step > row.step_of_theorem > 0


def test_the_rate_grows_with_local_iterations() -> None:
    rates = [
        convergence.measure(replace(SMALL, training=replace(SMALL.training, local_iterations=some)))
        for some in (1, 2, 4)
    ]
    assert [row.predicted / rates[0].predicted for row in rates] == pytest.approx([1, 2, 4])
    assert rates[0].measured < rates[1].measured < rates[2].measured


def test_a_step_too_large_breaks_it() -> None:
    row = convergence.measure(replace(SMALL, training=replace(SMALL.training, step=2.0)))
    assert not row.held
    assert row.measured < 0


def test_a_network_too_narrow_cannot_follow() -> None:
    crowded = replace(SMALL, samples=32, rounds=40, training=replace(SMALL.training, step=0.05))
    narrow, wide = (
        convergence.measure(replace(crowded, shape=replace(crowded.shape, width=width))) for width in (1, 64)
    )
    assert narrow.floor > 0.01
    assert narrow.floor > 10 * wide.floor
    assert narrow.lambda_width < 1e-12 < wide.lambda_min == narrow.lambda_min


def test_workers_leave_the_loss_in_a_neighbourhood_that_one_worker_does_not() -> None:
    one, two = (
        convergence.measure(replace(SMALL, rounds=24, training=replace(SMALL.training, workers=workers)))
        for workers in (1, 2)
    )
    assert one.floor < 1e-7 < two.floor < 1e-4
    assert (1 - two.predicted) ** two.rounds_within == pytest.approx(two.floor)


def test_without_the_scale_the_whole_network_stays_further_off() -> None:
    scaled, plain = (
        convergence.measure(replace(SMALL, rounds=20, training=replace(SMALL.training, scaled=scaled)))
        for scaled in (True, False)
    )
    assert plain.floor > 20 * scaled.floor


def test_a_seed_decides_all() -> None:
    first, again, other = (convergence.measure(SMALL, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.losses != other.losses


def test_it_ends_where_nothing_is_left_to_learn() -> None:
    inputs, targets = sphere(4, 8, seed=1)
    network = WideNetwork.drawn(Shape(width=64, depth=3), 8, seed=1)
    training = Training(workers=1, local_iterations=10, step=0.2)
    losses = losses_of(network, training, 100, inputs, targets, seed=1, least=1e-6)
    assert len(losses) < 100
    assert losses[-1] <= 1e-6 * losses[0] < losses[-2]


def test_cases_vary_one_thing_at_a_time_and_rows_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cases = list(convergence.cases())
    assert len({(case.varied, case.shape, case.training) for case in cases}) == len(cases)
    assert sum(case == replace(BASE, varied=case.varied) for case in cases) == 5
    few = [replace(SMALL, varied=name, rounds=3) for name in ("workers", "width", "depth", "without the scale k / N")]
    monkeypatch.setattr(convergence, "cases", lambda: iter(few))
    told: list[convergence.Row] = []
    rows = convergence.run(told=told.append)
    assert list(rows) == told
    assert [row.case for row in rows] == few
    picture.draw(rows, tmp_path / "theorem.svg")
    text = (tmp_path / "theorem.svg").read_text()
    assert text.startswith("<?xml")
