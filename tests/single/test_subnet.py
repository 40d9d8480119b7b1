"""A sub-network on flat storage is the network that its parameters say, and keeps all of them in two buffers."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from resist_hvd.errors import UserError
from resist_hvd.nets import subnet as subnet_module
from resist_hvd.nets.architecture import Architecture
from resist_hvd.nets.parts import Network, Part
from resist_hvd.nets.preact_resnet import network
from resist_hvd.nets.saved import Whole
from resist_hvd.nets.subnet import SubNet, make_block, scale_outputs, scale_weights
from resist_hvd.settings.model import ModelSettings

CPU = torch.device("cpu")
CASES = [
    pytest.param(ModelSettings(sections="1,2,6,1", width_factor=1 / 16), (3,), id="section3"),
    pytest.param(ModelSettings(sections="2,3,4,2", width_factor=1 / 16, partition="all"), (1, 2, 1, 0), id="all"),
    pytest.param(
        ModelSettings(sections="1,1,4", width_factor=1 / 16, block="bottleneck", final_norm=False),
        (3,),
        id="bottleneck",
    ),
]


def parts_of(settings: ModelSettings) -> Network:
    return network(Architecture.of(settings, channels=3, classes=5), image_size=8)


def make(settings: ModelSettings, depths: Sequence[int], dtype: torch.dtype = torch.float64, **options: Any) -> SubNet:
    subnet = SubNet(parts_of(settings), depths, device=CPU, dtype=dtype, **options)
    subnet.initialise(1, range(sum(depths)))
    return subnet


def images(dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(6, 8, 8, 3, generator=generator, dtype=dtype).permute(0, 3, 1, 2)


def addresses(tensor: Tensor) -> set[int]:
    """The address of every number in a tensor."""
    index = torch.zeros(tensor.shape, dtype=torch.int64)
    for dimension, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        steps = torch.arange(size) * stride
        index += steps.view(-1, *[1] * (tensor.dim() - dimension - 1))
    return {tensor.data_ptr() + tensor.itemsize * step for step in index.flatten().tolist()}


@pytest.mark.parametrize(("settings", "depths"), CASES)
def test_parameters_fill_the_buffer_once(settings: ModelSettings, depths: tuple[int, ...]) -> None:
    subnet = make(settings, depths)
    for flat, views in (
        (subnet.parameters_flat, list(subnet.parameters())),
        (subnet.gradients_flat, [parameter.grad for parameter in subnet.parameters()]),
    ):
        assert flat.is_contiguous()
        seen: set[int] = set()
        for view in views:
            assert view is not None
            own = addresses(view)
            assert not own & seen
            seen |= own
        assert seen == addresses(flat)


@pytest.mark.parametrize(("settings", "depths"), CASES)
def test_trunk_and_slots_are_slices_one_after_another(settings: ModelSettings, depths: tuple[int, ...]) -> None:
    subnet = make(settings, depths)
    for flat, pieces in (
        (subnet.parameters_flat, [subnet.trunk, *subnet.slots]),
        (subnet.gradients_flat, [subnet.trunk_gradients, *subnet.slot_gradients]),
    ):
        assert len(pieces) == 1 + sum(depths)
        position = flat.data_ptr()
        for piece in pieces:
            assert (piece.dim(), piece.is_contiguous(), piece.data_ptr()) == (1, True, position)
            position += piece.nbytes
        assert position == flat.data_ptr() + flat.nbytes
    modules = subnet.slot_modules
    assert len(modules) == len(subnet.slots)
    for module, slot, gradients in zip(modules, subnet.slots, subnet.slot_gradients, strict=True):
        assert set().union(*map(addresses, module.parameters())) == addresses(slot)
        assert set().union(*(addresses(p.grad) for p in module.parameters())) == addresses(gradients)  # type: ignore[arg-type]


@pytest.mark.parametrize(("settings", "depths"), CASES)
def test_convolutions_are_in_channels_last_order(settings: ModelSettings, depths: tuple[int, ...]) -> None:
    weights = [parameter for parameter in make(settings, depths).parameters() if parameter.dim() == 4]
    for weight in weights:
        for tensor in (weight, weight.grad):
            assert tensor is not None
            assert tensor.is_contiguous(memory_format=torch.channels_last)
    # A weight with one pixel or one channel would be so in either order.
    assert any(weight.shape[1] > 1 and weight.shape[2] > 1 for weight in weights)


@pytest.mark.parametrize(("settings", "depths"), CASES)
def test_scores_and_gradient_are_those_of_a_plain_network(settings: ModelSettings, depths: tuple[int, ...]) -> None:
    subnet = make(settings, depths)
    plain = Whole(subnet.network.shallower(depths)).double()
    for mine, theirs in zip(subnet.parameters(), plain.parameters(), strict=True):
        theirs.data.copy_(mine)
    x, labels = images(), torch.arange(6) % 5
    scores = subnet(x)
    torch.testing.assert_close(scores, plain(x.contiguous()), rtol=1e-10, atol=1e-10)
    torch.autograd.backward(functional.cross_entropy(scores, labels))
    torch.autograd.backward(functional.cross_entropy(plain(x.contiguous()), labels))
    for mine, parameter in zip(subnet.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, parameter.grad, rtol=1e-8, atol=1e-10)
        assert parameter.grad is not None
        assert parameter.grad.any()


@pytest.mark.parametrize(("settings", "depths"), CASES)
def test_a_step_on_the_buffer_is_a_step_of_the_network(settings: ModelSettings, depths: tuple[int, ...]) -> None:
    subnet = make(settings, depths)
    before = {name: parameter.detach().clone() for name, parameter in subnet.named_parameters()}
    torch.autograd.backward(subnet(images()).square().sum())
    views = [parameter.data_ptr() for parameter in subnet.parameters()]
    subnet.parameters_flat.sub_(subnet.gradients_flat, alpha=0.25)
    assert [parameter.data_ptr() for parameter in subnet.parameters()] == views
    for name, parameter in subnet.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.detach(), before[name] - 0.25 * parameter.grad)


@pytest.mark.parametrize(("settings", "depths"), CASES)
def test_gradients_add_up_in_the_buffer_until_it_is_zeroed(settings: ModelSettings, depths: tuple[int, ...]) -> None:
    subnet = make(settings, depths)
    torch.autograd.backward(subnet(images()).square().sum())
    once = subnet.gradients_flat.clone()
    torch.autograd.backward(subnet(images()).square().sum())
    torch.testing.assert_close(subnet.gradients_flat, 2 * once)
    subnet.gradients_flat.zero_()
    torch.autograd.backward(subnet(images()).square().sum())
    torch.testing.assert_close(subnet.gradients_flat, once)


def test_cutting_a_buffer_alike() -> None:
    subnet = make(*CASES[0].values)
    other = torch.arange(subnet.parameters_flat.numel())
    trunk, slots = subnet.cut(other)
    assert torch.equal(torch.cat([trunk, *slots]), other)
    assert [len(slot) for slot in slots] == [slot.numel() for slot in subnet.slots]
    assert trunk.data_ptr() == other.data_ptr()


def test_the_order_of_the_pieces_is_that_of_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(*CASES[0].values)
    monkeypatch.setattr(subnet_module, "trunk_lies_last", lambda _: True)
    last = make(*CASES[0].values)
    assert torch.equal(torch.cat([*last.slots, last.trunk]), last.parameters_flat)
    assert torch.equal(torch.cat(last.pieces(last.parameters_flat)), first.parameters_flat)
    assert torch.equal(torch.cat(first.pieces(first.parameters_flat)), first.parameters_flat)
    assert torch.equal(last(images()), first(images()))


@given(
    sixteenths=st.integers(1, 8),
    classes=st.integers(2, 1001),
    channels=st.sampled_from([1, 3]),
    block=st.sampled_from(["basic", "bottleneck"]),
    stem=st.sampled_from(["cifar", "imagenet"]),
    partition=st.sampled_from(["section3", "all"]),
    final_norm=st.booleans(),
    depths=st.tuples(*[st.integers(0, 2)] * 4),
)
def test_on_a_gpu_slots_and_trunk_begin_at_multiples_of_64_numbers(
    sixteenths: int, classes: int, channels: int, depths: tuple[int, ...], **shape: Any
) -> None:
    architecture = Architecture(
        sections=(3, 3, 3, 3), width=16 * sixteenths, classes=classes, channels=channels, **shape
    )
    parts = network(architecture, image_size=8)
    fitting = [min(depth, deck) for depth, deck in zip(depths, parts.deck_sizes, strict=False)]
    # The meta device has no memory; where numbers would lie in it is as on a GPU.
    subnet = SubNet(parts, fitting, device=torch.device("meta"))
    for trunk, slots in (subnet.cut(subnet.parameters_flat), (subnet.trunk_gradients, subnet.slot_gradients)):
        assert all(piece.storage_offset() % 64 == 0 for piece in (trunk, *slots))
    # 16 bytes are what kernels for GPUs load at a time.
    assert all(4 * parameter.storage_offset() % 16 == 0 for parameter in subnet.parameters())


@pytest.mark.parametrize(("settings", "depths"), CASES)
@pytest.mark.parametrize("named", [True, False])
def test_slots_are_scaled_and_no_other_block_is(settings: ModelSettings, depths: tuple[int, ...], named: bool) -> None:
    whole = parts_of(settings)
    if not named:
        whole = replace(whole, parts=tuple(replace(part, branches=()) for part in whole.parts))
    scales = [0.25 + 0.125 * deck for deck in range(len(depths))]
    plain, scaled = (SubNet(whole, depths, device=CPU, dtype=torch.float64, scales=s) for s in ((), scales))
    for subnet in (plain, scaled):
        subnet.initialise(1, range(sum(depths)))
    assert torch.equal(plain.parameters_flat, scaled.parameters_flat)
    inputs = dict(zip(whole.parts, (whole.example, *whole.outputs), strict=False))
    of_slots = iter(scaled.of_slots(scales))
    for part, layer, other in zip(plain.parts, plain.layers, scaled.layers, strict=True):
        shape = inputs[part]
        assert shape is not None
        x = torch.randn(shape.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        once = layer(x.clone())
        expected = once if part.deck is None else x + next(of_slots) * (once - x)
        torch.testing.assert_close(other(x.clone()), expected, rtol=1e-10, atol=1e-10)
    assert next(of_slots, None) is None


@pytest.mark.parametrize(("settings", "depths"), CASES)
def test_a_scale_in_the_weights_is_the_scale_of_the_branches(settings: ModelSettings, depths: tuple[int, ...]) -> None:
    scales = [0.25 + 0.125 * deck for deck in range(len(depths))]
    hooked, folded = make(settings, depths, scales=scales), make(settings, depths)
    for part, block, scale in zip(folded.slot_parts, folded.slot_modules, folded.of_slots(scales), strict=True):
        scale_weights(part, block, scale)
    torch.testing.assert_close(folded(images()), hooked(images()), rtol=1e-10, atol=1e-10)


class NormLast(nn.Module):
    """A block whose output is of float32 in mixed precision, whatever its input is of, as norms are on GPUs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.norm(self.linear(x).float())
        return out


def test_a_block_is_scaled_in_mixed_precision() -> None:
    part, block = Part("one", NormLast, deck="blocks"), NormLast()
    x = torch.randn(2, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = block(x)
        scale_outputs(part, block, 0.25)
        scaled = block(x)
    assert plain.dtype == scaled.dtype == torch.float32
    torch.testing.assert_close(scaled, x.float() + 0.25 * (plain - x.float()))
    with pytest.raises(UserError, match="'one' names no weights"):
        scale_weights(part, block, 0.5)


def test_a_part_that_makes_one_module_again_and_again_is_refused() -> None:
    module = nn.Linear(4, 4)
    network = Network((Part("first", lambda: nn.Linear(4, 4)), Part("same", lambda: module)))
    with pytest.raises(UserError, match=r"'same' makes the same module.*deepcopy") as caught:
        SubNet(network, (), device=CPU)
    assert caught.value.everywhere


def test_a_block_without_its_branch_changes_nothing() -> None:
    settings = ModelSettings(sections="1,1,3,1", width_factor=1 / 16)
    with_blocks, without = make(settings, (2,), scales=(0.0,)), make(settings, (0,))
    assert torch.equal(with_blocks.trunk, without.trunk)
    torch.testing.assert_close(with_blocks(images()), without(images()))


def test_float32_is_the_default() -> None:
    subnet = SubNet(parts_of(CASES[0].values[0]), (3,), device=CPU)  # type: ignore[arg-type]
    assert {p.dtype for p in subnet.parameters()} == {subnet.gradients_flat.dtype} == {torch.float32}


def test_a_lent_block_computes_what_the_slot_it_is_filled_from_does() -> None:
    subnet = make(*CASES[0].values)
    block, flat = make_block(subnet.network, subnet.network.decks[0], CPU, torch.float64)
    module = subnet.slot_modules[0]
    assert {p.grad for p in block.parameters()} == {None}
    flat.copy_(subnet.slots[0])
    x = torch.randn(4, 16, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(block(x), module(x))


@pytest.mark.parametrize("convert", [lambda net: net.double(), lambda net: net.to("meta"), lambda net: net.half()])
def test_its_parameters_stay_in_their_buffer(convert: Callable[[SubNet], object]) -> None:
    subnet = make(*CASES[0].values)
    with pytest.raises(UserError, match="one buffer"):
        convert(subnet)
    assert subnet.parameters_flat.data_ptr() == next(subnet.parameters()).data_ptr()
