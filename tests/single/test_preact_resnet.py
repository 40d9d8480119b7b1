"""The network computes what He et al. (2016b) describe, written out here once more."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from resist_hvd.nets.architecture import Architecture
from resist_hvd.nets.norms import Norm, clear_statistics, set_statistics
from resist_hvd.nets.parts import Network
from resist_hvd.nets.preact_resnet import Projection, initialise, network
from resist_hvd.nets.saved import Whole
from resist_hvd.settings.model import ModelSettings

CASES = [
    ModelSettings(sections="2,2,3,1", width_factor=1 / 16),
    ModelSettings(sections="1,2,2", width_factor=1 / 4, final_norm=False),
    ModelSettings(sections="2,1,2", width_factor=1 / 16, block="bottleneck", stem="imagenet"),
]


def parts_of(settings: ModelSettings) -> Network:
    return network(Architecture.of(settings, channels=3, classes=5), image_size=8)


def make(settings: ModelSettings) -> Whole:
    """A network in double precision whose parameters, norms' too, are random."""
    whole = Whole(parts_of(settings)).double()
    generator = torch.Generator().manual_seed(1)
    for parameter in whole.parameters():
        parameter.data.normal_(0.0, 0.5, generator=generator)
    return whole


def images(size: int) -> Tensor:
    return torch.randn(6, 3, size, size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def norm_relu(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    mean = x.mean(dim=(0, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
    scaled = (x - mean) / (variance + 1e-5).sqrt() * weights[f"{name}.weight"][:, None, None]
    return (scaled + weights[f"{name}.bias"][:, None, None]).clamp_min(0)


def convolve(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    return functional.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)


def written_out(settings: ModelSettings, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """The scores of a network in training, from its parameters alone."""
    architecture = Architecture.of(settings, channels=3, classes=5)
    imagenet = architecture.stem == "imagenet"
    x = convolve(x, weights["stem.0.weight"], 2 if imagenet else 1)
    if imagenet:
        x = functional.max_pool2d(x, 3, 2, padding=1)
    for section, blocks in enumerate(architecture.sections):
        for place in range(blocks):
            block = f"sections.{section}.{place}"
            stride = 2 if place == 0 and section > 0 else 1
            kernels = [3, 3] if architecture.block == "basic" else [1, 3, 1]
            branch = x
            for unit, kernel in enumerate(kernels):
                active = norm_relu(branch, weights, f"{block}.units.{unit}.norm")
                if unit == 0 and f"{block}.shortcut.weight" in weights:
                    x = convolve(active, weights[f"{block}.shortcut.weight"], stride)
                weight = weights[f"{block}.units.{unit}.conv.weight"]
                assert weight.shape[2] == kernel
                # The first 3x3 convolution of a block is the strided one.
                strides = unit == kernels.index(3)
                branch = convolve(active, weight, stride if strides else 1)
            x = x + branch
    if architecture.final_norm:
        x = norm_relu(x, weights, "head.norm")
    return x.mean(dim=(2, 3)) @ weights["head.linear.weight"].T + weights["head.linear.bias"]


@pytest.mark.parametrize("settings", CASES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_scores_are_those_written_out(settings: ModelSettings, layout: torch.memory_format) -> None:
    whole = make(settings)
    x = images(32 if settings.stem == "imagenet" else 8)
    expected = written_out(settings, whole.tensors(), x)
    scores = whole.to(memory_format=layout)(x.contiguous(memory_format=layout))
    torch.testing.assert_close(scores, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("inputs", [3, 4, 8, 15, 16, 24])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_strided_projection_is_a_convolution(inputs: int, layout: torch.memory_format) -> None:
    x = torch.randn(4, inputs, 8, 8, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=layout)
    projection = Projection(inputs, 2 * inputs, 2).to(memory_format=layout)
    expected = torch.einsum("oi,nihw->nohw", projection.weight[:, :, 0, 0], x[:, :, ::2, ::2])
    torch.testing.assert_close(projection(x), expected)
    slope = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    for _ in range(20):
        # A backward pass that writes past its memory is not always found out the first time.
        (found,) = torch.autograd.grad((projection(x) * slope).sum(), projection.weight)
    (wanted,) = torch.autograd.grad((expected * slope).sum(), projection.weight)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "dealt"),
    [
        (CASES[0], ["2.1", "2.2"]),
        (CASES[1], ["2.1"]),
        (CASES[2], ["2.1"]),
        (replace(CASES[0], partition="all"), ["0.0", "0.1", "1.1", "2.1", "2.2"]),
        (replace(CASES[2], partition="all"), ["0.1", "2.1"]),
    ],
)
def test_blocks_that_keep_the_shape_are_dealt_out(settings: ModelSettings, dealt: list[str]) -> None:
    parts = parts_of(settings)
    assert [part.name for part in parts.blocks] == [f"sections.{place}" for place in dealt]
    decks = [name.partition(".")[0] for name in dealt]
    assert parts.deck_sizes == tuple(decks.count(deck) for deck in dict.fromkeys(decks))
    assert [part.deck for part in parts.blocks] == [f"sections.{deck}" for deck in decks]
    blocks = [f"sections.{section}.{place}" for section, n in enumerate(settings.counts) for place in range(n)]
    assert [part.name for part in parts.parts] == ["stem", *blocks, "head"]
    assert parts.parameters == sum(parameter.numel() for parameter in make(settings).parameters())


def test_parts_begin_as_the_network_does() -> None:
    architecture = Architecture.of(CASES[0], channels=3, classes=5)
    for zero in (False, True):
        for part in network(architecture, image_size=8, zero_residual=zero).parts:
            one, other = part.make(), part.make()
            assert part.initialise is not None
            part.initialise(one, 7)
            initialise(other, 7, zero_residual=zero)
            assert all(map(torch.equal, one.parameters(), other.parameters()))
            for branch in part.branches:
                assert zero != bool(one.get_submodule(branch).weight.any())


def test_norms_keep_no_running_statistics() -> None:
    whole = make(CASES[0])
    whole(images(8))
    assert all(norm.running_mean is None for norm in whole.modules() if isinstance(norm, Norm))
    assert set(whole.state_dict()) == {name for name, _ in whole.named_parameters()}


def test_statistics_that_are_set_are_used_in_evaluation_alone() -> None:
    norm = Norm(2)
    x = torch.tensor([[[[1.0]], [[10.0]]], [[[3.0]], [[30.0]]]])
    by_batch = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    norm.eval()
    set_statistics(norm, torch.tensor([1.0, 10.0]), torch.tensor([4.0, 100.0]))
    torch.testing.assert_close(norm(x)[:, :, 0, 0], torch.tensor([[0.0, 0.0], [1.0, 2.0]]), rtol=1e-4, atol=1e-4)
    clear_statistics(norm)
    torch.testing.assert_close(norm(x)[:, :, 0, 0], by_batch, rtol=1e-4, atol=1e-4)
