"""timm's networks as parts: the same network, the same initial weights, its own state dict."""

import importlib
import sys
from typing import Any

import pytest
import torch
from torch import nn

from resist_hvd.errors import UserError
from resist_hvd.nets.parts import Network

from .initial_weights import assert_same_statistics

timm = pytest.importorskip("timm")
timm_nets = importlib.import_module("resist_hvd.nets.timm_nets")

VIT = {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}
CONVNEXT = {"depths": [1, 2, 3, 1], "dims": [8, 16, 24, 32]}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("vit_tiny_patch16_224", VIT),
    ("vit_tiny_patch16_224", {**VIT, "class_token": False, "global_pool": "avg", "dynamic_img_size": True}),
    ("vit_tiny_patch16_224.augreg_in21k", {**VIT, "reg_tokens": 2, "init_values": 0.1, "weight_init": "jax_nlhb"}),
    ("vit_base_patch16_clip_224", VIT),
    ("vit_base_patch16_siglip_224", VIT),
    ("vit_base_patch16_rpn_224", VIT),
    ("deit_tiny_patch16_224", {**VIT, "drop_path_rate": 0.2}),
    ("deit3_small_patch16_224", VIT),
    ("convnext_tiny", CONVNEXT),
    ("convnextv2_atto", CONVNEXT),
    ("convnext_zepto_rms", {**CONVNEXT, "head_init_scale": 0.5, "drop_path_rate": 0.3}),
]


def parts_of(name: str = "vit_tiny_patch16_224", options: dict[str, Any] = VIT, **arguments: Any) -> Network:
    found: Network = timm_nets.network(
        name, **{"channels": 3, "image_size": 32, "classes": 5, "options": options, **arguments}
    )
    return found


def model_of(name: str, options: dict[str, Any], classes: int = 5) -> nn.Module:
    """timm's own model, which begins from one seed."""
    size = {} if name.startswith("convnext") else {"img_size": 32}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model: nn.Module = timm.create_model(name, num_classes=classes, **size, **options)
    return model


@pytest.mark.parametrize(("name", "options"), CASES)
def test_parts_are_the_network_and_their_tensors_its_state_dict(name: str, options: dict[str, Any]) -> None:
    model = model_of(name, options).eval()
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.data.normal_(0.1, 0.3, generator=generator)
    x = images = torch.randn(2, 3, 32, 32, generator=generator)
    parts = parts_of(name, options)
    weights, exported = model.state_dict(), {}
    for part in parts.parts:
        module = part.make().eval()
        module.load_state_dict({own: weights[part.prefixed(own)] for own in module.state_dict()})
        exported |= {part.prefixed(own): tensor for own, tensor in module.state_dict().items()}
        x = module(x)
    assert torch.equal(x, model(images))
    assert exported.keys() == weights.keys()
    model_of(name, options).load_state_dict(exported, strict=True)
    assert parts.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert parts.deck_sizes == (3,)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_branch_is_scaled_in_the_layer_that_ends_it(name: str, options: dict[str, Any]) -> None:
    """With branches of zeros a block is the identity, and small scales add up: each branch sees little of the other."""
    parts = parts_of(name, options)
    part = parts.blocks[0]
    x = torch.randn(parts.outputs[parts.decks[0].first].shape, generator=torch.Generator().manual_seed(2))
    block = part.make().eval().double()
    for parameter in block.parameters():
        parameter.data.normal_(0.1, 0.3, generator=torch.Generator().manual_seed(3))
    moves, scale = [], 1e-5
    for _ in range(3):
        with torch.no_grad():
            moves.append(block(x.double()) - x)
        for branch in part.branches:
            for parameter in block.get_submodule(branch).parameters():
                parameter.data.mul_(scale)
    assert moves[0].abs().max() > 1e-2
    torch.testing.assert_close(moves[2] / scale, moves[1], rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_parts_begin_as_timm_begins(name: str, options: dict[str, Any], zero: bool) -> None:
    expected = dict(model_of(name, options).named_parameters())
    for place, part in enumerate(parts_of(name, options, zero_residual=zero, partition="all").parts):
        module = part.make()
        assert part.initialise is not None
        part.initialise(module, place)
        for own, found in module.named_parameters():
            if zero and own.rpartition(".")[0] in part.branches:
                assert not found.any(), own
                del expected[part.prefixed(own)]
            else:
                assert_same_statistics(part.prefixed(own), found, expected.pop(part.prefixed(own)))
    assert not expected


def test_initial_weights_are_those_of_the_seed_alone() -> None:
    one, other, *_ = parts_of().blocks
    assert one.initialise is not None
    assert other.initialise is not None
    state, made = torch.get_rng_state(), []
    for part, seed in ((one, 1), (other, 1), (one, 2)):
        module = part.make()
        part.initialise(module, seed)  # type: ignore[misc]
        made.append(module.get_parameter("attn.qkv.weight"))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_sections_of_a_convnext() -> None:
    third = parts_of("convnext_tiny", CONVNEXT)
    assert [part.name for part in third.blocks] == [f"stages.2.blocks.{place}" for place in range(3)]
    everything = parts_of("convnext_tiny", CONVNEXT, partition="all")
    assert everything.deck_sizes == (1, 2, 3, 1)
    assert [deck.name for deck in everything.decks] == [f"stages.{stage}.blocks" for stage in range(4)]


def test_blocks_of_a_deck_have_one_rate_of_stochastic_depth() -> None:
    network = parts_of(options={**VIT, "drop_path_rate": 0.2})
    blocks = [module for part, module in zip(network.parts, network.modules, strict=True) if part.deck]
    # timm has 0, 0.1 and 0.2.
    drops = [layer.drop_prob for block in blocks for layer in block.modules() if hasattr(layer, "drop_prob")]
    assert drops == pytest.approx([0.1] * 2 * len(blocks))
    convnext = parts_of("convnext_tiny", {**CONVNEXT, "drop_path_rate": 0.6})
    rates = {
        part.name: layer.drop_prob
        for part, module in zip(convnext.parts, convnext.modules, strict=True)
        for layer in module.modules()
        if hasattr(layer, "drop_prob")
    }
    assert rates == pytest.approx(
        {
            "stages.1.blocks.0": 0.1,
            "stages.1.blocks.1": 0.2,
            **{f"stages.2.blocks.{place}": 0.4 for place in range(3)},
            "stages.3.blocks.0": 0.6,
        }
    )


def test_images_may_have_other_channels_and_another_size() -> None:
    network = parts_of(channels=1, image_size=48)
    shapes = {name: list(parameter.shape) for name, parameter in network.modules[0].named_parameters()}
    assert shapes["patch_embed.proj.weight"] == [24, 1, 8, 8]
    assert shapes["pos_embed"] == [1, 37, 24]
    assert list(network.outputs[-1].shape) == [2, 5]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("vit_tiny_patch15", VIT, r"no network 'vit_tiny_patch15'.*timm/vit_"),
        ("hf_hub:timm/vit_tiny_patch16_224", {}, r"no network 'hf_hub:timm/vit_tiny"),
        ("resnet50", {}, r"timm/resnet50 is one of timm's resnet.*VisionTransformer.*ConvNeXt.*--model\.parts"),
        ("deit_tiny_distilled_patch16_224", VIT, "class VisionTransformerDistilled"),
        ("vit_base_patch16_plus_240", {**VIT, "attn_layer": "diff"}, "depends on a block's depth"),
        ("vit_tiny_patch16_224", {**VIT, "heads": 3}, r"heads.*--model\.options"),
        ("vit_tiny_patch16_224", {**VIT, "num_heads": 5}, r"divisible.*--data\.image_size, 32 now"),
        ("vit_tiny_patch16_224", {**VIT, "patch_size": "large"}, "vit_tiny_patch16_224 does not take these options"),
        ("vit_tiny_patch16_224", {**VIT, "pretrained": True}, r"pretrained of timm .*--model\.weights"),
        ("vit_tiny_patch16_224", {**VIT, "checkpoint_path": "x.pth"}, r"checkpoint_path of timm .*--model\.weights"),
        ("vit_tiny_patch16_224", {**VIT, "img_size": 64}, r"img_size of timm .*--data\.image_size"),
        ("vit_small_patch16_18x2_224", VIT, "blocks of class ParallelThingsBlock"),
    ],
)
def test_what_cannot_be_dealt_is_refused(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        parts_of(name, options)


def test_without_timm_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.delitem(sys.modules, "resist_hvd.nets.timm_nets")
    with pytest.raises(UserError, match=r"launch/setup --timm"):
        importlib.import_module("resist_hvd.nets.timm_nets")
