"""Initial weights are the same for any number of workers, since trunk and blocks have seeds of their own."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from resist_hvd.nets import Architecture, SubNet
from resist_hvd.nets.preact_resnet import Norm
from resist_hvd.protocol.rule import Rule, depth
from resist_hvd.settings.model import BlockKind, ModelSettings

CPU = torch.device("cpu")
SETTINGS = [
    ModelSettings(sections="1,2,7,1", width_factor=1 / 16),
    ModelSettings(sections="2,2,4,2", width_factor=1 / 16, partition="all"),
]


def worker(architecture: Architecture, blocks: tuple[int, ...], depths: list[int], seed: int = 5) -> SubNet:
    subnet = SubNet(architecture, depths, device=CPU)
    subnet.initialise(seed, blocks)
    return subnet


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_worker_makes_the_same_ones_alone(settings: ModelSettings) -> None:
    architecture = Architecture.of(settings, channels=3, classes=5)
    numbers = tuple(range(architecture.partitionable))
    whole = worker(architecture, numbers, list(architecture.decks))
    for workers, least in ((1, 0), (2, 0), (3, 2), (4, 0)):
        depths = [depth(blocks, workers, least) for blocks in architecture.decks]
        for held in Rule(architecture.decks, workers, least).deal(workers).held:
            subnet = worker(architecture, held, depths)
            assert torch.equal(subnet.trunk, whole.trunk)
            for block, slot in zip(held, subnet.slots, strict=True):
                assert torch.equal(slot, whole.slots[block])


@pytest.mark.parametrize("settings", SETTINGS)
def test_no_two_blocks_and_no_two_seeds_are_alike(settings: ModelSettings) -> None:
    architecture = Architecture.of(settings, channels=3, classes=5)
    numbers = tuple(range(architecture.partitionable))
    one, other = (worker(architecture, numbers, list(architecture.decks), seed) for seed in (1, 2))
    contents = {slot.numpy().tobytes() for subnet in (one, other) for slot in subnet.slots}
    assert len(contents) == 2 * len(numbers)
    assert not torch.equal(one.trunk, other.trunk)
    # Nor are blocks of the trunk copies of each other.
    convolutions: list[Tensor] = [p for p in one.network.parameters() if p.dim() == 4]
    assert len({tuple(p.flatten()[:4].tolist()) for p in convolutions}) == len(convolutions)


def test_their_spread_is_that_of_he_et_al() -> None:
    architecture = Architecture.of(ModelSettings(sections="1,1,2,1"), channels=3, classes=10)
    network = worker(architecture, (0,), [0, 0, 1, 0]).network
    convolutions = {name: p for name, p in network.named_parameters() if p.dim() == 4 and p.numel() > 10_000}
    assert len(convolutions) > 8
    for weight in convolutions.values():
        expected = math.sqrt(2 / (weight.shape[0] * weight.shape[2] * weight.shape[3]))
        # Ten thousand draws: their spread has a spread of its own, of less than 0.8 %.
        assert weight.std().item() == pytest.approx(expected, rel=0.04)
        assert abs(weight.mean().item()) < 0.05 * expected
    for norm in (module for module in network.modules() if isinstance(module, Norm)):
        assert torch.equal(norm.weight, torch.ones_like(norm.weight))
        assert torch.equal(norm.bias, torch.zeros_like(norm.bias))
    linear = network.head.linear
    assert torch.equal(linear.bias, torch.zeros(10))
    assert linear.weight.abs().max() <= 1 / math.sqrt(512)
    assert linear.weight.std().item() == pytest.approx(1 / math.sqrt(3 * 512), rel=0.05)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_with_zero_residuals_every_block_begins_as_the_identity_and_nothing_else_changes(block: BlockKind) -> None:
    settings = replace(SETTINGS[0], block=block)
    architecture = Architecture.of(settings, channels=3, classes=5)
    numbers = tuple(range(architecture.partitionable))
    usual, zero = (SubNet(architecture, architecture.decks, device=CPU) for _ in range(2))
    usual.initialise(5, numbers)
    zero.initialise(5, numbers, zero_residual=True)
    last = f".units.{1 if block == 'basic' else 2}.conv.weight"
    for (name, before), after in zip(usual.network.named_parameters(), zero.network.parameters(), strict=True):
        assert torch.equal(after, torch.zeros_like(before) if name.endswith(last) else before), name
    x = torch.rand(2, architecture.outputs(2), 4, 4)
    for module in zero.slot_modules():
        assert torch.equal(module(x), x)
    # So the network is the same, whichever blocks are left out.
    images = torch.rand(2, 3, 16, 16)
    few = SubNet(architecture, [0, 0, 2, 0], device=CPU)
    few.initialise(5, (1, 4), zero_residual=True)
    assert torch.equal(few(images), zero(images))
    zero(images).sum().backward()  # type: ignore[no-untyped-call]
    assert all(module.units[-1].conv.weight.grad.abs().sum() > 0 for module in zero.slot_modules())


def test_global_randomness_plays_no_part() -> None:
    architecture = Architecture.of(SETTINGS[0], channels=3, classes=5)
    state = torch.get_rng_state()
    one = worker(architecture, (0, 1), [0, 0, 2, 0])
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    assert torch.equal(worker(architecture, (0, 1), [0, 0, 2, 0]).parameters_flat, one.parameters_flat)
    torch.set_rng_state(state)
