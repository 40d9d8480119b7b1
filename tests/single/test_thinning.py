"""Thin networks are what they are said to be: the whole one's numbers, in their places, computing the same."""

from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from resist_hvd.nets import families
from resist_hvd.nets.subnet import SubNet
from resist_hvd.nets.thinning import Thinning, thin_network, thinning_of
from resist_hvd.protocol.filters import Hand, deal
from resist_hvd.settings.model import ModelSettings

CPU = torch.device("cpu")
BASIC = ModelSettings(sections="1,2,3", width_factor=1 / 8, zero_init_residual=False)
MODELS = {
    "basic": BASIC,
    "bottleneck": replace(BASIC, block="bottleneck"),
    "imagenet": replace(BASIC, stem="imagenet", final_norm=False, partition="all"),
}


@cache
def thinning(kind: str, share: float = 0.5) -> Thinning:
    size = 64 if MODELS[kind].stem == "imagenet" else 16
    return thinning_of(families.chosen(MODELS[kind], channels=3, image_size=size, classes=5), share)


def whole_of(found: Thinning) -> SubNet:
    """The whole network in the order in which its numbers are counted: without decks, part by part."""
    parts = tuple(replace(part, deck=None) for part in found.whole.parts)
    whole = SubNet(replace(found.whole, parts=parts), (), device=CPU, dtype=torch.float64)
    whole.initialise(1, ())
    generator = torch.Generator().manual_seed(2)
    # Norms that are no longer the identity.
    whole.parameters_flat.add_(0.1 * torch.randn(len(whole.parameters_flat), generator=generator, dtype=torch.float64))
    return whole


def thin_of(found: Thinning, whole: SubNet, hand: Hand) -> SubNet:
    thin = SubNet(found.thin, (), device=CPU, dtype=torch.float64)
    places = found.places(hand, 0, found.firsts[-1])
    thin.parameters_flat.copy_(whole.parameters_flat[torch.from_numpy(places)])
    return thin


@pytest.mark.parametrize("kind", MODELS)
def test_a_thin_network_computes_what_the_whole_one_does_without_the_other_channels(kind: str) -> None:
    found = thinning(kind)
    whole = whole_of(found)
    images = torch.randn(4, 3, *found.whole.example.shape[2:], dtype=torch.float64)  # type: ignore[union-attr]
    outputs: list[Tensor] = []
    for worker in range(2):
        hand = deal(found.channels, 3, worker)
        thin = thin_of(found, whole, hand)
        muted = whole_of(found)
        mute(muted, found, hand)
        outputs.append(thin(images))
        torch.testing.assert_close(outputs[-1], muted(images), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(*outputs)


@torch.no_grad()
def mute(whole: nn.Module, found: Thinning, hand: Hand) -> None:
    """Have every layer of a whole network take nothing from the channels that a hand has not."""
    named = [f"layers.{p.part}.{p.name}" for p in found.parameters]
    for name, parameter in zip(named, found.parameters, strict=True):
        if parameter.inputs is not None and parameter.inputs.channels is not None:
            weight = whole.get_parameter(name)
            kept = set(hand[parameter.inputs.channels])
            weight[:, [channel for channel in range(weight.shape[1]) if channel not in kept]] = 0


@pytest.mark.parametrize("kind", MODELS)
def test_a_stretch_of_the_whole_network_is_a_stretch_of_the_thin_one(kind: str) -> None:
    found = thinning(kind)
    end = found.firsts[-1]
    hand = deal(found.channels, 5, 0)
    every = found.places(hand, 0, end)
    assert len(every) == sum(p.numel() for p in SubNet(found.thin, (), device=CPU).parameters())
    assert (np.diff(every) > 0).all()
    for edges in ([0, end], [0, 1, end // 3, end // 2, end - 1, end], list(found.part_edges), [0, 0, end, end]):
        cuts = found.cut(hand, edges)
        assert (cuts[0], cuts[-1]) == (0, len(every))
        for (first, last), (low, high) in zip(pairwise(edges), pairwise(cuts), strict=True):
            assert found.places(hand, first, last).tolist() == (every[low:high] - first).tolist()


@pytest.mark.parametrize("kind", MODELS)
def test_a_thin_network_is_the_architecture_at_a_smaller_width(kind: str) -> None:
    found = thinning(kind)
    narrow = families.chosen(replace(MODELS[kind], width_factor=1 / 16), channels=3, image_size=16, classes=5)
    assert [part.name for part in found.thin.parts] == [part.name for part in narrow.parts]
    assert found.thin.parameters == narrow.parameters
    assert not found.thin.decks
    assert {kept / whole for _, whole, kept in found.channels} == {0.5}


@pytest.mark.parametrize(("share", "kept"), [(0.01, 1), (0.3, 2), (0.75, 6), (1.0, 8)])
def test_a_share_is_of_whole_filters(share: float, kept: int) -> None:
    assert {(whole, k) for name, whole, k in thinning("basic", share).channels if name == "stem"} == {(8, kept)}


def test_all_that_sums_over_thinned_channels_is_scaled() -> None:
    found = thinning("basic", 0.75)
    every = range(len(found.whole.parts))
    assert {scale for part in every for scale in found.scales(part).values()} == {0.75}
    scaled = {f"{found.whole.parts[part].name}.{name}" for part in every for name in found.scales(part)}
    sums = {
        f"{part.name}.{name}"
        for part, module in zip(found.whole.parts, found.whole.modules, strict=True)
        for name, parameter in module.named_parameters()
        if parameter.dim() > 1
    }
    assert scaled == sums - {"stem.0.weight"}
    assert not any(thinning("basic", 1.0).scales(part) for part in every)


def test_other_families_are_not_thinned() -> None:
    network = families.chosen(ModelSettings(name="torchvision/resnet50"), channels=3, image_size=32, classes=5)
    with pytest.raises(ValueError, match="preact"):
        thin_network(network, 0.5)
