"""An exported model is read as it was written, and refused where its files are damaged or say something else."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from resist_hvd import nets
from resist_hvd.errors import UserError
from resist_hvd.nets.architecture import Architecture
from resist_hvd.nets.preact_resnet import network
from resist_hvd.nets.saved import LONGEST_DESCRIPTION, shapes_of
from resist_hvd.settings.model import ModelSettings
from resist_hvd.training.tensors import SafetensorsStream

SETTINGS = ModelSettings(sections="2,2,3,1", width_factor=1 / 16)
NETWORK = network(Architecture.of(SETTINGS, channels=3, classes=5), image_size=8)


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def export_to(folder: Path, *, without: str = "") -> None:
    """Write an exported model of ones to a folder, but for one tensor."""
    tensors = {name: torch.ones(shape) for name, shape in shapes_of(NETWORK).items() if name != without}
    save_file(tensors, folder / "model.safetensors")
    describe(folder)


def describe(folder: Path, **changes: Any) -> None:
    """Write what an exported model is of, changed."""
    (folder / "model.json").write_text(json.dumps({"network": {**NETWORK.description, **changes}}))


@pytest.mark.parametrize("older", [False, True])
def test_an_export_is_loaded(older: bool, tmp_path: Path) -> None:
    export_to(tmp_path)
    if older:  # as earlier versions wrote it, which knew one family of networks
        description = dict(NETWORK.description)
        del description["family"]
        (tmp_path / "model.json").write_text(json.dumps({"architecture": description}))
    model = nets.load(tmp_path)
    assert model.network.description == NETWORK.description
    assert not model.training
    assert {name: tensor.shape for name, tensor in model.tensors().items()} == shapes_of(NETWORK)
    assert all(torch.equal(tensor, torch.ones_like(tensor)) for tensor in model.tensors().values())
    with torch.no_grad():
        one, both = model(images(1)), model(images(2))
    # In evaluation no image's scores depend on what else is in the batch.
    torch.testing.assert_close(one, both[:1])


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_an_export_of_which_a_file_is_missing(name: str, tmp_path: Path) -> None:
    export_to(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=rf"No exported model: {name} is missing \[{tmp_path}\]"):
        nets.load(tmp_path)


@pytest.mark.parametrize("name", ["head.linear.bias", "head.norm.running_var"])
def test_an_export_that_lacks_a_tensor(name: str, tmp_path: Path) -> None:
    export_to(tmp_path, without=name)
    with pytest.raises(UserError, match=rf"cannot be read: .*{name}.*\[{tmp_path}\]"):
        nets.load(tmp_path)


def test_an_export_whose_files_do_not_fit(tmp_path: Path) -> None:
    export_to(tmp_path)
    describe(tmp_path, classes=6)
    with pytest.raises(UserError, match=r"cannot be read: .*head\.linear"):
        nets.load(tmp_path)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_an_export_that_was_cut_short(name: str, tmp_path: Path) -> None:
    export_to(tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=rf"The exported model cannot be read: .*\[{tmp_path}\]"):
        nets.load(tmp_path)


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
    pytest.param({"family": "perceptron"}, "family", id="another-family"),
    pytest.param({"family": "timm", "options": {"depth": 10**9}}, r"1,000,000,0\d\d blocks", id="a-billion-of-timms"),
]


@pytest.mark.parametrize(("changes", "words"), FOREIGN)
def test_a_description_of_something_else(changes: dict[str, object], words: str, tmp_path: Path) -> None:
    export_to(tmp_path)
    describe(tmp_path, **changes)
    with pytest.raises(UserError, match=rf"(?s){words}.*\[{tmp_path}\]"):
        nets.load(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "null", "{}", '{"network": []}', '{"architecture": []}', "\x00"])
def test_a_description_that_is_none(text: str, tmp_path: Path) -> None:
    export_to(tmp_path)
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(UserError, match=r"cannot be read: .*Export it again"):
        nets.load(tmp_path)


def test_a_description_without_end(tmp_path: Path) -> None:
    export_to(tmp_path)
    with (tmp_path / "model.json").open("r+b") as file:
        file.truncate(LONGEST_DESCRIPTION + 1)
    with pytest.raises(UserError, match=r"model\.json has 67,108,865 bytes"):
        nets.load(tmp_path)


def test_files_that_may_not_be_read_are_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_to(tmp_path)

    def refuse(path: Path) -> dict[str, Tensor]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("resist_hvd.nets.saved.read_tensors", refuse)
    with pytest.raises(UserError, match=r"Permission denied \[.*model.safetensors\]") as caught:
        nets.load(tmp_path)
    assert "Export it again" not in str(caught.value)


def test_tensors_of_something_else(tmp_path: Path) -> None:
    export_to(tmp_path)
    ones = {name: torch.ones(shape) for name, shape in shapes_of(NETWORK).items()}
    save_file({name: tensor.half() for name, tensor in ones.items()}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"is of type torch.float16, not torch.float32"):
        nets.load(tmp_path)
    save_file({**ones, "anchors": torch.ones(5)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"anchors is 5 in model\.safetensors, and missing by model\.json"):
        nets.load(tmp_path)
    header = b"[" * 100_000
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match=r"cannot be read: "):
        nets.load(tmp_path)


def test_a_stream_and_the_library_write_the_same_export(tmp_path: Path) -> None:
    export_to(tmp_path)
    (tmp_path / "streamed").mkdir()
    shapes = shapes_of(NETWORK)
    stream = SafetensorsStream(tmp_path / "streamed" / "model.safetensors", shapes)
    for name, shape in reversed(shapes.items()):
        stream.write(name, torch.ones(shape))
    stream.close()
    describe(tmp_path / "streamed")
    library, streamed = (nets.load(folder).tensors() for folder in (tmp_path, tmp_path / "streamed"))
    assert library.keys() == streamed.keys()
    assert all(torch.equal(library[name], streamed[name]) for name in library)


def test_a_file_alone_has_no_code_run(tmp_path: Path) -> None:
    own, mark = tmp_path / "own.py", tmp_path / "it-ran"
    own.write_text(
        f"open({str(mark)!r}, 'w').close()\n"
        "from torch import nn\nfrom resist_hvd.nets import Part\n\n\n"
        "def parts(channels, image_size, classes):\n"
        "    return [Part('flat', nn.Flatten), Part('head', lambda: nn.Linear(channels * image_size**2, classes))]\n"
    )
    said = {"family": "parts", "parts": f"{own}:parts", "channels": 1, "image_size": 2, "classes": 3, "options": {}}
    (tmp_path / "model.json").write_text(json.dumps({"network": said}))
    save_file({"head.weight": torch.ones(3, 4), "head.bias": torch.zeros(3)}, tmp_path / "model.safetensors")
    for parts in (None, f"{own}:others"):
        with pytest.raises(UserError, match=f"--parts {own}:parts"):
            nets.load(tmp_path, parts=parts)
        assert not mark.exists()
    model = nets.load(tmp_path, parts=f"{own}:parts")
    assert torch.equal(model(torch.ones(1, 1, 2, 2)), torch.full((1, 3), 4.0))
    export_to(tmp_path)
    with pytest.raises(UserError, match="made by no function"):
        nets.load(tmp_path, parts=f"{own}:parts")
