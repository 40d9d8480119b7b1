"""An exported model in plain PyTorch: rebuilt from its two files and nothing of this project.

A pre-activation residual network (He et al. 2016) of `nn.Conv2d`, `nn.BatchNorm2d` and `nn.Linear`, so that what a run
says of its model is held against what anybody else makes of the files.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional


class PlainUnit(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class PlainBlock(nn.Module):
    def __init__(self, inputs: int, width: int, outputs: int, stride: int, *, bottleneck: bool) -> None:
        super().__init__()
        if bottleneck:
            units = [
                PlainUnit(inputs, width, 1, 1),
                PlainUnit(width, width, 3, stride),
                PlainUnit(width, outputs, 1, 1),
            ]
        else:
            units = [PlainUnit(inputs, width, 3, stride), PlainUnit(width, outputs, 3, 1)]
        self.units = nn.ModuleList(units)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs or stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = self.units
        activated = functional.relu(first.norm(x))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        h = first.conv(activated)
        for unit in rest:
            h = unit.conv(functional.relu(unit.norm(h)))
        return shortcut + h


class PlainHead(nn.Module):
    def __init__(self, inputs: int, classes: int, *, norm: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs) if norm else None
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        if self.norm is not None:
            x = functional.relu(self.norm(x))
        scores: Tensor = self.linear(x.mean(dim=(2, 3)))
        return scores


class PlainNetwork(nn.Module):
    """The network that a `model.json` describes."""

    def __init__(self, described: dict[str, Any]) -> None:
        super().__init__()
        width, bottleneck = described["width"], described["block"] == "bottleneck"
        if described["stem"] == "cifar":
            self.stem = nn.Sequential(nn.Conv2d(described["channels"], width, 3, 1, 1, bias=False))
        else:
            conv = nn.Conv2d(described["channels"], width, 7, 2, 3, bias=False)
            self.stem = nn.Sequential(conv, nn.MaxPool2d(3, 2, 1))
        inputs, sections = width, []
        for number, count in enumerate(described["sections"]):
            blocks = []
            for place in range(count):
                stride = 2 if number > 0 and place == 0 else 1
                inner = width * 2**number
                outputs = 4 * inner if bottleneck else inner
                blocks.append(PlainBlock(inputs, inner, outputs, stride, bottleneck=bottleneck))
                inputs = outputs
            sections.append(nn.ModuleList(blocks))
        self.sections = nn.ModuleList(sections)
        self.head = PlainHead(inputs, described["classes"], norm=described["final_norm"])

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for section in self.sections:
            for block in section:
                x = block(x)
        scores: Tensor = self.head(x)
        return scores


def load_plain(folder: Path) -> PlainNetwork:
    """The exported model in a folder, ready to evaluate; every tensor of its file has a place, and every place one."""
    network = PlainNetwork(json.loads((folder / "model.json").read_text())["network"])
    missing, unexpected = network.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return network.eval()


@torch.no_grad()
def evaluate_plain(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], precision: str) -> tuple[float, float]:
    """Accuracy in percent and mean cross-entropy of a network on batches of images and labels."""
    images, correct, loss = 0, 0, 0.0
    for batch, labels in batches:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
            scores = network(batch)
        images += len(labels)
        correct += int((scores.argmax(dim=1) == labels).sum())
        loss += functional.cross_entropy(scores.float(), labels, reduction="sum").item()
    return 100 * correct / images, loss / images
