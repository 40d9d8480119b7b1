"""Weights from a file: part by part, by name, with what does not fit refused or begun anew."""

import io
import re
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from resist_hvd.errors import UserError
from resist_hvd.nets import Network, Part, families, preact_resnet, torchvision_nets
from resist_hvd.nets.architecture import Architecture
from resist_hvd.nets.parts import shapes
from resist_hvd.nets.subnet import SubNet
from resist_hvd.nets.weights import Weights, begun_with
from resist_hvd.settings.model import ModelSettings


def small(*, channels: int = 3, classes: int = 5, width: float = 1 / 16) -> Network:
    settings = ModelSettings(sections="1,1,3", width_factor=width)
    return preact_resnet.network(Architecture.of(settings, channels=channels, classes=classes), image_size=8)


def contents(network: Network) -> dict[str, Tensor]:
    """Random tensors by the names that an exported model has, with statistics, which are not used."""
    generator = torch.Generator().manual_seed(1)
    wanted = {
        part.prefixed(name): shape
        for part, module in zip(network.parts, network.modules, strict=True)
        for name, shape in shapes(module).items()
    }
    statistics = {name.replace("norm.weight", "norm.running_mean"): shape for name, shape in wanted.items()}
    return {name: torch.randn(shape, generator=generator) for name, shape in {**statistics, **wanted}.items()}


def filled(weights: Weights, network: Network) -> dict[str, Tensor]:
    found = {}
    for part in network.parts:
        module = part.make().double()
        for parameter in module.parameters():
            parameter.data.fill_(7.0)
        weights.fill(part, module)
        found |= {part.prefixed(name): parameter.detach() for name, parameter in module.named_parameters()}
    return found


@pytest.mark.parametrize("kind", ["safetensors", "plain", "state_dict", "model"])
def test_every_tensor_is_the_files(kind: str, tmp_path: Path) -> None:
    network, path = small(), tmp_path / "weights"
    tensors = contents(network)
    if kind == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors if kind == "plain" else {kind: tensors, "epoch": 3}, path)
    weights = Weights(path, network)
    assert weights.remarks == []
    found = filled(weights, network)
    assert all(torch.equal(tensor, tensors[name].double()) for name, tensor in found.items())
    assert {name for name in tensors if "running_mean" not in name} == found.keys()


def test_a_network_as_torchvision_saves_it(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        model = torchvision.models.resnet18(num_classes=7)
    torch.save(model.state_dict(), tmp_path / "resnet18.pth")
    network = torchvision_nets.network("resnet18", channels=3, image_size=32, classes=5)
    weights = Weights(tmp_path / "resnet18.pth", network)
    assert len(weights.remarks) == 2
    assert "fc.weight begins anew: it is [7, 512] in" in weights.remarks[0]
    part = network.blocks[0]
    module = part.make()
    weights.fill(part, module)
    assert torch.equal(module.get_parameter("conv2.weight"), model.get_parameter("layer3.1.conv2.weight"))


def resident(path: Path) -> int:
    """Bytes of a file that this process has mapped and read."""
    found, own = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            own = line.endswith(str(path))
        elif own and line.startswith("Rss:"):
            found += 1024 * int(line.split()[1])
    return found


def test_a_worker_reads_of_resnet_50_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "resnet50.pth"
    with torch.random.fork_rng(devices=[]):
        published = torchvision.models.resnet50().state_dict()
    torch.save(published, path)
    plain = families.chosen(
        ModelSettings(name="torchvision/resnet50"), channels=3, image_size=224, classes=20, anchors=5
    )
    network = begun_with(plain, path)
    subnet = SubNet(network, [2], device=torch.device("cpu"))
    subnet.initialise(1, (1, 4))
    held = 0
    for part, module in subnet.held((1, 4)):
        for name, parameter in module.named_parameters():
            if not part.prefixed(name).startswith("detector"):
                assert torch.equal(parameter, published[part.prefixed(name)]), name
                held += parameter.nbytes
    assert len(network.blocks) == 5
    three_blocks = 3 * sum(p.numel() * p.element_size() for p in network.blocks[0].make().parameters())
    assert held < path.stat().st_size - three_blocks
    assert held <= resident(path) < held + three_blocks / 4


def test_a_head_of_other_classes_and_a_stem_of_other_channels_begin_anew(tmp_path: Path) -> None:
    save_file(contents(small()), tmp_path / "weights")
    network = small(classes=9, channels=1)
    weights = Weights(tmp_path / "weights", network)
    wanted = [("stem.0.weight", [4, 3, 3, 3], [4, 1, 3, 3]), ("head.linear.weight", [5, 16], [9, 16])]
    wanted.append(("head.linear.bias", [5], [9]))
    assert [remark.replace(str(tmp_path), "") for remark in weights.remarks] == [
        f"{name} begins anew: it is {there} in /weights, and {here} in the network" for name, there, here in wanted
    ]
    found = filled(weights, network)
    assert {name for name, tensor in found.items() if bool((tensor == 7).all())} == {name for name, *_ in wanted}


def test_a_network_that_begins_with_them(tmp_path: Path) -> None:
    """A worker that holds two blocks of three fills what it holds; what begins anew begins as from the seed."""
    path = tmp_path / "weights"
    tensors = contents(small())
    save_file(tensors, path)
    network = small(classes=9)
    begun = begun_with(network, path)
    assert any("head.linear.bias" in remark for remark in begun.remarks)
    found, usual = (SubNet(one, [1], device=torch.device("cpu")) for one in (begun, network))
    for subnet in (found, usual):
        subnet.initialise(3, (1,))
    for (part, module), (_, other) in zip(found.held((1,)), usual.held((1,)), strict=True):
        for name, parameter in module.named_parameters():
            anew = name.startswith("linear.")
            expected = other.get_parameter(name) if anew else tensors[part.prefixed(name)]
            assert torch.equal(parameter, expected), name


def test_tensors_that_have_no_place_are_told(tmp_path: Path) -> None:
    network = small()
    save_file({**contents(network), "sections.2.3.units.0.conv.weight": torch.ones(3)}, tmp_path / "weights")
    (remark,) = Weights(tmp_path / "weights", network).remarks
    assert "1 tensor" in remark
    assert "sections.2.3.units.0.conv.weight" in remark


def refused(words: str, tensors: dict[str, Tensor], path: Path, network: Network) -> None:
    save_file(tensors, path)
    with pytest.raises(UserError, match=rf"(?s){words}.*{path}.*--model\.weights"):
        Weights(path, network)


def test_weights_of_another_network(tmp_path: Path) -> None:
    network, path = small(), tmp_path / "weights"
    whole = contents(network)
    block, norm, head = "sections.2.1.units.0.conv.weight", "sections.2.0.units.1.norm.bias", "head.linear.weight"
    without = {name: tensor for name, tensor in whole.items() if name != block}
    refused(
        rf"{block} is \[16, 16, 3, 3\] in this one, and not in the file.*head\.linear\.bias", without, path, network
    )
    refused(rf"{norm} is \[16\] .* \[17\] in the file", {**whole, norm: torch.ones(17)}, path, network)
    # Classes are the first dimension of a head alone, and channels the second of a first convolution.
    refused(rf"{head} .* \[5, 17\] in", {**whole, head: torch.ones(5, 17)}, path, network)
    refused(r"stem\.0\.weight .* \[5, 3, 3, 3\]", {**whole, "stem.0.weight": torch.ones(5, 3, 3, 3)}, path, network)
    refused(rf"{head} .* \[\] in", {**whole, head: torch.tensor(1.0)}, path, network)
    refused(r"stem\.0\.weight", {f"module.{name}": tensor for name, tensor in whole.items()}, path, network)


def test_position_embeddings_of_another_size_do_not_begin_anew(tmp_path: Path) -> None:
    def network(tokens: int) -> Network:
        return Network((Part("embed", lambda: nn.Embedding(tokens, 4)), Part("head", lambda: nn.Linear(4, 5))))

    refused(r"embed\.weight is \[9, 4\]", contents(network(5)), tmp_path / "weights", network(9))


def legacy() -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": torch.ones(3)}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def whole_module() -> bytes:
    buffer = io.BytesIO()
    torch.save(nn.Linear(2, 2), buffer)
    return buffer.getvalue()


def nothing_of_use() -> bytes:
    buffer = io.BytesIO()
    torch.save({"epoch": 3}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "neither a whole safetensors file nor a state dict"),
        (b"PK\x03\x04 and nothing else", "neither"),
        (legacy(), "neither"),
        (whole_module(), "neither.*objects beside tensors"),
        (nothing_of_use(), "no state dict"),
    ],
)
def test_files_of_something_else(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(content)
    with pytest.raises(UserError, match=rf"{words}.*{tmp_path}.*state_dict\(\)"):
        Weights(tmp_path / "weights", small())


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"No such file.*{tmp_path}/weights.*--model\.weights"):
        Weights(tmp_path / "weights", small())
