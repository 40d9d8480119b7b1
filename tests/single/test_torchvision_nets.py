"""torchvision's residual networks as parts: the same network, the same initial weights, its own state dict."""

from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from resist_hvd.errors import UserError
from resist_hvd.nets.norms import norms_of, set_statistics
from resist_hvd.nets.parts import Network
from resist_hvd.nets.torchvision_nets import network

from .initial_weights import assert_same_statistics

CASES: list[tuple[str, dict[str, Any]]] = [
    ("resnet18", {}),
    ("resnet50", {"width_per_group": 8, "replace_stride_with_dilation": [False, True, False]}),
]


def parts_of(name: str = "resnet18", **arguments: Any) -> Network:
    return network(name, **{"channels": 3, "image_size": 32, "classes": 5, **arguments})


def random_model(name: str, options: dict[str, Any]) -> nn.Module:
    """torchvision's own network, in evaluation, with random norms and statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model: nn.Module = torchvision.models.get_model(name, num_classes=5, **options)
        for norm in norms_of(model).values():
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                assert tensor is not None
                tensor.data.uniform_(0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize(("name", "options"), CASES)
def test_parts_are_the_network_and_their_tensors_its_state_dict(name: str, options: dict[str, Any]) -> None:
    model = random_model(name, options)
    x = expected = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(2))
    parts = parts_of(name, options=options, image_size=40)
    weights, exported = dict(model.state_dict()), {}
    for part in parts.parts:
        module = part.make().eval()
        assert not list(module.buffers())
        module.load_state_dict({own: weights[part.prefixed(own)] for own, _ in module.named_parameters()})
        exported |= {part.prefixed(own): parameter.detach() for own, parameter in module.named_parameters()}
        for own, norm in norms_of(module).items():
            mean, variance = (weights[part.prefixed(f"{own}.running_{kind}")] for kind in ("mean", "var"))
            set_statistics(norm, mean, variance)
            exported |= {part.prefixed(f"{own}.running_mean"): mean, part.prefixed(f"{own}.running_var"): variance}
        x = module(x)
    assert torch.equal(x, model(expected))
    # A safetensors file has no num_batches_tracked, and torchvision's own network takes it strictly nonetheless.
    fresh = torchvision.models.get_model(name, num_classes=5, **options).eval()
    fresh.load_state_dict(exported, strict=True)
    assert torch.equal(fresh(expected), x)
    assert parts.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_blocks_that_keep_the_shape_are_dealt() -> None:
    resnet50 = parts_of("resnet50")
    assert resnet50.deck_sizes == (5,)
    assert [part.name for part in resnet50.blocks] == [f"layer3.{place}" for place in range(1, 6)]
    assert {part.branches for part in resnet50.blocks} == {("bn3",)}
    everything = parts_of("resnet18", partition="all")
    # Basic blocks of the first section all keep the shape; of each other section the first does not.
    assert [part.name for part in everything.blocks] == ["layer1.0", "layer1.1", "layer2.1", "layer3.1", "layer4.1"]
    assert everything.deck_sizes == (2, 1, 1, 1)
    assert {part.branches for part in everything.blocks} == {("bn2",)}
    assert all(part.branches == () for part in everything.parts if part.deck is None)


@pytest.mark.parametrize("scale", [0.25, 1.0])
def test_a_branch_is_scaled_in_its_last_norm(scale: float) -> None:
    for name in ("resnet18", "resnet50"):
        (part, *_) = parts_of(name).blocks
        block = part.make()
        assert part.initialise is not None
        part.initialise(block, 3)
        x = torch.randn(4, 256 if name == "resnet18" else 1024, 5, 5, generator=torch.Generator().manual_seed(2))
        branch = x
        for place in range(1, 3 if name == "resnet18" else 4):
            conv, norm = block.get_submodule(f"conv{place}"), block.get_submodule(f"bn{place}")
            branch = norm(conv(branch if place == 1 else branch.relu()))
        for tensor in block.get_submodule(part.branches[0]).parameters():
            tensor.data.mul_(scale)
        torch.testing.assert_close(block(x), (x + scale * branch).relu())


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_parts_begin_as_torchvision_begins(name: str, zero: bool) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = torchvision.models.get_model(name, num_classes=50, zero_init_residual=zero)
    expected = dict(model.named_parameters())
    for place, part in enumerate(parts_of(name, classes=50, zero_residual=zero).parts):
        module = part.make()
        assert part.initialise is not None
        part.initialise(module, place)
        for own, found in module.named_parameters():
            assert_same_statistics(part.prefixed(own), found, expected.pop(part.prefixed(own)))
    assert not expected


def test_initial_weights_are_those_of_the_seed_alone() -> None:
    block = parts_of("resnet18").blocks[0]
    assert block.initialise is not None
    state, made = torch.get_rng_state(), []
    for seed in (1, 1, 2):
        module = block.make()
        block.initialise(module, seed)
        made.append([parameter.detach().clone() for parameter in module.parameters()])
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(3)
        state = torch.get_rng_state()
    assert all(map(torch.equal, made[0], made[1]))
    assert not torch.equal(made[0][0], made[2][0])


def test_images_may_have_other_channels() -> None:
    stem = parts_of(channels=1).modules[0]
    assert list(stem.get_parameter("conv1.weight").shape) == [64, 1, 7, 7]


def test_what_torchvision_does_not_have_is_refused() -> None:
    with pytest.raises(UserError, match=r"'resnet51'.*torchvision/resnet50.*--model\.parts"):
        parts_of("resnet51")
    with pytest.raises(UserError, match="'vgg11'"):
        parts_of("vgg11")
    with pytest.raises(UserError, match=r"resnet18 does not take .*'drop'.*--model\.options"):
        parts_of(options={"drop": 0.1})
    with pytest.raises(UserError, match=r"weights of torchvision .*--model\.weights"):
        parts_of(options={"weights": "DEFAULT"})
