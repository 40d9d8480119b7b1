"""Initial weights are the same for any number of workers, since trunk and blocks have seeds of their own."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from resist_hvd.nets.architecture import Architecture
from resist_hvd.nets.norms import Norm
from resist_hvd.nets.parts import Network
from resist_hvd.nets.preact_resnet import network
from resist_hvd.nets.subnet import SubNet
from resist_hvd.protocol.rule import Rule
from resist_hvd.settings.model import BlockKind, ModelSettings

CPU = torch.device("cpu")
SETTINGS = [
    ModelSettings(sections="1,2,7,1", width_factor=1 / 16),
    ModelSettings(sections="2,2,4,2", width_factor=1 / 16, partition="all"),
]


def parts_of(settings: ModelSettings, *, classes: int = 5, zero_residual: bool = False) -> Network:
    return network(Architecture.of(settings, channels=3, classes=classes), image_size=16, zero_residual=zero_residual)


def worker(parts: Network, blocks: Sequence[int], depths: Sequence[int], seed: int = 5) -> SubNet:
    subnet = SubNet(parts, depths, device=CPU)
    subnet.initialise(seed, blocks)
    return subnet


def whole(parts: Network, seed: int = 5) -> SubNet:
    return worker(parts, range(len(parts.blocks)), parts.deck_sizes, seed)


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_worker_makes_the_same_ones_alone(settings: ModelSettings) -> None:
    parts = parts_of(settings)
    everything = whole(parts)
    for workers, least in ((1, 0), (2, 0), (3, 2), (4, 0)):
        rule = Rule(parts.deck_sizes, workers, least)
        for held in rule.deal(workers).held:
            subnet = worker(parts, held, rule.depths)
            assert torch.equal(subnet.trunk, everything.trunk)
            for block, slot in zip(held, subnet.slots, strict=True):
                assert torch.equal(slot, everything.slots[block])


@pytest.mark.parametrize("settings", SETTINGS)
def test_no_two_blocks_and_no_two_seeds_are_alike(settings: ModelSettings) -> None:
    parts = parts_of(settings)
    one, other = (whole(parts, seed) for seed in (1, 2))
    contents = {slot.numpy().tobytes() for subnet in (one, other) for slot in subnet.slots}
    assert len(contents) == 2 * len(parts.blocks)
    assert not torch.equal(one.trunk, other.trunk)
    # Nor are blocks of the trunk copies of each other.
    convolutions: list[Tensor] = [p for p in one.parameters() if p.dim() == 4]
    assert len({tuple(p.flatten()[:4].tolist()) for p in convolutions}) == len(convolutions)


def test_their_spread_is_that_of_he_et_al() -> None:
    subnet = worker(parts_of(ModelSettings(sections="1,1,2,1"), classes=10), (0,), [1])
    convolutions = {name: p for name, p in subnet.named_parameters() if p.dim() == 4 and p.numel() > 10_000}
    assert len(convolutions) > 8
    for weight in convolutions.values():
        expected = math.sqrt(2 / (weight.shape[0] * weight.shape[2] * weight.shape[3]))
        # Ten thousand draws: their spread has a spread of its own, of less than 0.8 %.
        assert weight.std().item() == pytest.approx(expected, rel=0.04)
        assert abs(weight.mean().item()) < 0.05 * expected
    for norm in (module for module in subnet.modules() if isinstance(module, Norm)):
        assert torch.equal(norm.weight, torch.ones_like(norm.weight))
        assert torch.equal(norm.bias, torch.zeros_like(norm.bias))
    linear = subnet.layers[-1].linear
    assert torch.equal(linear.bias, torch.zeros(10))
    assert linear.weight.abs().max() <= 1 / math.sqrt(512)
    assert linear.weight.std().item() == pytest.approx(1 / math.sqrt(3 * 512), rel=0.05)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_with_zero_residuals_every_block_begins_as_the_identity_and_nothing_else_changes(block: BlockKind) -> None:
    settings = replace(SETTINGS[0], block=block)
    usual, zero = whole(parts_of(settings)), whole(parts := parts_of(settings, zero_residual=True))
    last = f".units.{1 if block == 'basic' else 2}.conv.weight"
    for (name, before), after in zip(usual.named_parameters(), zero.parameters(), strict=True):
        assert torch.equal(after, torch.zeros_like(before) if name.endswith(last) else before), name
    x = torch.rand(parts.outputs[parts.decks[0].first].shape)
    for module in zero.slot_modules:
        assert torch.equal(module(x), x)
    # So the network is the same, whichever blocks are left out.
    images = torch.rand(2, 3, 16, 16)
    few = worker(parts, (1, 4), [2])
    assert torch.equal(few(images), zero(images))
    zero(images).sum().backward()  # type: ignore[no-untyped-call]
    assert all(module.units[-1].conv.weight.grad.abs().sum() > 0 for module in zero.slot_modules)


def test_global_randomness_plays_no_part() -> None:
    parts = parts_of(SETTINGS[0])
    state = torch.get_rng_state()
    one = worker(parts, (0, 1), [2])
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    assert torch.equal(worker(parts, (0, 1), [2]).parameters_flat, one.parameters_flat)
    torch.set_rng_state(state)
