"""The network computes what He et al. (2016b) describe, written out here once more; a bad export is refused."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from resist_hvd.errors import UserError
from resist_hvd.nets import Architecture, ResNet
from resist_hvd.nets.preact_resnet import LONGEST_DESCRIPTION, Norm, Projection, initialise, network, shapes_of
from resist_hvd.settings.model import ModelSettings
from resist_hvd.training.tensors import SafetensorsStream

CASES = [
    ModelSettings(sections="2,2,3,1", width_factor=1 / 16),
    ModelSettings(sections="1,2,2", width_factor=1 / 4, final_norm=False),
    ModelSettings(sections="2,1,2", width_factor=1 / 16, block="bottleneck", stem="imagenet"),
]


def make(settings: ModelSettings) -> ResNet:
    """A network in double precision whose parameters, norms' too, are random."""
    network = ResNet(Architecture.of(settings, channels=3, classes=5)).double()
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.data.normal_(0.0, 0.5, generator=generator)
    return network


def images(size: int) -> Tensor:
    return torch.randn(6, 3, size, size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def norm_relu(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    mean = x.mean(dim=(0, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
    scaled = (x - mean) / (variance + 1e-5).sqrt() * weights[f"{name}.weight"][:, None, None]
    return (scaled + weights[f"{name}.bias"][:, None, None]).clamp_min(0)


def convolve(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    return functional.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)


def written_out(network: ResNet, x: Tensor) -> Tensor:
    """The scores of a network in training, from its parameters alone."""
    weights = dict(network.named_parameters())
    architecture = network.architecture
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
    network = make(settings)
    x = images(32 if settings.stem == "imagenet" else 8)
    expected = written_out(network, x)
    scores = network.to(memory_format=layout)(x.contiguous(memory_format=layout))
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


@pytest.mark.parametrize("settings", [*CASES, replace(CASES[0], partition="all")])
def test_parts_are_the_network(settings: ModelSettings) -> None:
    whole = make(settings)
    architecture = whole.architecture
    size = 32 if settings.stem == "imagenet" else 8
    parts = network(architecture, image_size=size)
    assert parts.deck_sizes == tuple(blocks for blocks in architecture.decks if blocks)
    assert [part.name for part in parts.blocks] == [
        "sections.{}.{}".format(*architecture.place(block)) for block in range(architecture.partitionable)
    ]
    weights = whole.state_dict()
    x = images(size)
    for part in parts.parts:
        module = part.make().double()
        module.load_state_dict({name: weights.pop(part.prefixed(name)) for name in module.state_dict()})
        x = module(x)
    assert not weights
    assert torch.equal(x, whole(images(size)))
    assert parts.parameters == sum(parameter.numel() for parameter in whole.parameters())


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
    network = make(CASES[0])
    network(images(8))
    assert all(norm.running_mean is None for norm in network.modules() if isinstance(norm, Norm))
    assert set(network.state_dict()) == {name for name, _ in network.named_parameters()}


def test_statistics_that_are_set_are_used_in_evaluation_alone() -> None:
    norm = Norm(2)
    x = torch.tensor([[[[1.0]], [[10.0]]], [[[3.0]], [[30.0]]]])
    by_batch = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    norm.eval()
    norm.set_statistics(torch.tensor([1.0, 10.0]), torch.tensor([4.0, 100.0]))
    torch.testing.assert_close(norm(x)[:, :, 0, 0], torch.tensor([[0.0, 0.0], [1.0, 2.0]]), rtol=1e-4, atol=1e-4)
    norm.clear_statistics()
    torch.testing.assert_close(norm(x)[:, :, 0, 0], by_batch, rtol=1e-4, atol=1e-4)


def export_to(folder: Path, *, without: str = "") -> Architecture:
    """Write an exported model of zeros and ones to a folder, but for one tensor."""
    architecture = Architecture.of(CASES[0], channels=3, classes=5)
    shapes = shapes_of(architecture)
    tensors = {name: torch.ones(shape) for name, shape in shapes.items() if name != without}
    save_file(tensors, folder / "model.safetensors")
    (folder / "model.json").write_text(json.dumps({"architecture": architecture.to_json()}))
    return architecture


def test_an_export_is_loaded(tmp_path: Path) -> None:
    architecture = export_to(tmp_path)
    model = ResNet.load(tmp_path)
    assert model.architecture == architecture
    assert not model.training
    assert all(torch.equal(parameter, torch.ones_like(parameter)) for parameter in model.parameters())
    with torch.no_grad():
        one, both = model(images(8)[:1].float()), model(images(8)[:2].float())
    # In evaluation no image's scores depend on what else is in the batch.
    torch.testing.assert_close(one, both[:1])


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_an_export_of_which_a_file_is_missing(name: str, tmp_path: Path) -> None:
    export_to(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=rf"No exported model: {name} is missing \[{tmp_path}\]"):
        ResNet.load(tmp_path)


@pytest.mark.parametrize("name", ["head.linear.bias", "head.norm.running_var"])
def test_an_export_that_lacks_a_tensor(name: str, tmp_path: Path) -> None:
    export_to(tmp_path, without=name)
    with pytest.raises(UserError, match=rf"cannot be read: .*{name}.*\[{tmp_path}\]"):
        ResNet.load(tmp_path)


def test_an_export_whose_files_do_not_fit(tmp_path: Path) -> None:
    architecture = export_to(tmp_path)
    description = {"architecture": {**architecture.to_json(), "classes": 6}}
    (tmp_path / "model.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=r"cannot be read: .*head\.linear"):
        ResNet.load(tmp_path)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_an_export_that_was_cut_short(name: str, tmp_path: Path) -> None:
    export_to(tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=rf"The exported model cannot be read: .*\[{tmp_path}\]"):
        ResNet.load(tmp_path)


FOREIGN = [
    pytest.param({"sections": [1, 1, 10**9, 1]}, r"1,000,000,003 blocks.* \d+ tensors", id="a-billion-blocks"),
    pytest.param({"width": 10**9}, "larger than any can be", id="a-billion-channels"),
    pytest.param({"width": 10**30}, "larger than any can be", id="channels-beyond-any-integer"),
    pytest.param({"width": 100}, r"is 5 x 32 in model.safetensors, and 5 x 800 by model.json", id="wider"),
    pytest.param({"sections": [1] * 40}, r"40 blocks|cannot be read", id="forty-sections"),
    pytest.param({"sections": "2,2,3,1"}, "sections", id="sections-in-words"),
    pytest.param({"sections": [2, 2, 0, 1]}, "sections", id="no-blocks"),
    pytest.param({"sections": [2, 2, 3.0, 1]}, "sections", id="broken-numbers"),
    pytest.param({"width": True}, r"width is 'True'", id="no-width"),
    pytest.param({"classes": -5}, r"classes is '-5'", id="less-than-no-classes"),
    pytest.param({"block": "transformer"}, r"block is 'transformer', none of .*bottleneck", id="another-kind-of-block"),
    pytest.param({"dropout": 0.1}, "nothing else", id="another-versions"),
]


@pytest.mark.parametrize(("changes", "words"), FOREIGN)
def test_a_description_of_something_else(changes: dict[str, object], words: str, tmp_path: Path) -> None:
    architecture = export_to(tmp_path)
    described = {"architecture": {**architecture.to_json(), **changes}}
    (tmp_path / "model.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match=rf"(?s){words}.*\[{tmp_path}\]"):
        ResNet.load(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "null", "{}", '{"architecture": []}', "\x00"])
def test_a_description_that_is_none(text: str, tmp_path: Path) -> None:
    export_to(tmp_path)
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(UserError, match=r"cannot be read: .*Export it again"):
        ResNet.load(tmp_path)


def test_a_description_without_end(tmp_path: Path) -> None:
    export_to(tmp_path)
    with (tmp_path / "model.json").open("r+b") as file:
        file.truncate(LONGEST_DESCRIPTION + 1)
    with pytest.raises(UserError, match=r"model\.json has 67,108,865 bytes"):
        ResNet.load(tmp_path)


def test_files_that_may_not_be_read_are_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_to(tmp_path)

    def refuse(path: Path) -> dict[str, Tensor]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("resist_hvd.nets.preact_resnet.read_tensors", refuse)
    with pytest.raises(UserError, match=r"Permission denied \[.*model.safetensors\]") as caught:
        ResNet.load(tmp_path)
    assert "Export it again" not in str(caught.value)


def test_tensors_of_something_else(tmp_path: Path) -> None:
    architecture = export_to(tmp_path)
    ones = {name: torch.ones(shape) for name, shape in shapes_of(architecture).items()}
    save_file({name: tensor.half() for name, tensor in ones.items()}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"is of type torch.float16, not torch.float32"):
        ResNet.load(tmp_path)
    save_file({**ones, "anchors": torch.ones(5)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"anchors is 5 in model\.safetensors, and missing by model\.json"):
        ResNet.load(tmp_path)
    header = b"[" * 100_000
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match=r"cannot be read: "):
        ResNet.load(tmp_path)


def test_a_stream_and_the_library_write_the_same_export(tmp_path: Path) -> None:
    architecture = export_to(tmp_path)
    (tmp_path / "streamed").mkdir()
    shapes = shapes_of(architecture)
    stream = SafetensorsStream(tmp_path / "streamed" / "model.safetensors", shapes)
    for name, shape in reversed(shapes.items()):
        stream.write(name, torch.ones(shape))
    stream.close()
    (tmp_path / "model.json").rename(tmp_path / "streamed" / "model.json")
    assert ResNet.load(tmp_path / "streamed").architecture == architecture
