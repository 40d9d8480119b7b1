"""Writing the global network as a plain model, stage by stage, since no worker could hold all of it.

Scales are folded into the weights and the exact batch-norm statistics lie beside them, so `models.ResNet.load` needs
nothing of ResIST.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resist_hvd.comm.world import World
from resist_hvd.data.source import DataSource
from resist_hvd.errors import UserError
from resist_hvd.methods.base import Method
from resist_hvd.models.architecture import Architecture
from resist_hvd.models.resnet import Block, Norm, ResNet
from resist_hvd.training.disk import disk_errors, removed_on_failure
from resist_hvd.training.evaluate import Statistics, calibrate, inference, norms_of


class SafetensorsStream:
    """A safetensors file that is written tensor by tensor, in any order, without ever holding more than one.

    The format: eight bytes of the header's length, a JSON header of names, types, shapes and offsets, then the data
    (https://huggingface.co/docs/safetensors, "Format").

    Args:
        path: the file to write.
        shapes: of every float32 tensor that will be written, by name.
    """

    def __init__(self, path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
        header: dict[str, dict[str, Any]] = {}
        end = 0
        for name, shape in sorted(shapes.items()):
            begin, end = end, end + 4 * math.prod(shape)
            header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._header = header
        self._missing = set(shapes)
        self._data_start = 8 + len(text)
        self._file = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, tensor: Tensor) -> None:
        """Write one of the announced tensors."""
        entry = self._header[name]
        if list(tensor.shape) != entry["shape"]:
            raise ValueError(f"{name} was announced with shape {entry['shape']}, not {list(tensor.shape)}")
        self._file.seek(self._data_start + entry["data_offsets"][0])
        self._file.write(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
        self._missing.remove(name)

    def close(self) -> None:
        """Flush to the disk and close.

        Raises:
            ValueError: a tensor that was announced has not been written.
        """
        if self._missing:
            raise ValueError(f"never written: {sorted(self._missing)}")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def export(folder: Path, method: Method, source: DataSource, world: World, autocast: Callable[[], Any]) -> list[Path]:
    """Write `model.safetensors` and `model.json` to a run's folder; all ranks must call it together.

    An ensemble has no global network: each member is written by its worker, in `members/RANK`.

    Returns:
        The folders that were written, on the ranks that wrote.

    Raises:
        UserError: a file cannot be written.
    """
    writes = method.members_apart or world.is_first
    target = folder / "members" / str(world.rank) if method.members_apart else folder
    architecture = replace(method.subnet.architecture, sections=evaluated_sections(method))
    failure: UserError | None = None
    stream: SafetensorsStream | None = None
    partial = target / "model.safetensors.partial"
    with world.agree("exporting the model"), disk_errors(partial):
        if writes:
            target.mkdir(parents=True, exist_ok=True)
            stream = SafetensorsStream(partial, shapes_of(architecture))
    with inference(method), torch.no_grad(), autocast():
        for name, stage, statistics in calibrate(method, source, world):
            if stream is not None and failure is None:
                # A disk that fills up here must not leave the other ranks alone on their walk: told afterwards.
                try:
                    with disk_errors(partial):
                        for tensor_name, tensor in tensors_of(stage, statistics):
                            stream.write(f"{name}.{tensor_name}", tensor)
                except UserError as error:
                    failure = error
    with world.agree("exporting the model"), removed_on_failure(partial), disk_errors(partial):
        if failure is not None:
            raise failure
        if stream is not None:
            stream.close()
            write_description(target, architecture, source)
            os.replace(partial, target / "model.safetensors")
    return [target] if writes else []


def evaluated_sections(method: Method) -> tuple[int, ...]:
    """Return the blocks of each section of the network that is evaluated: the global one, or an ensemble's member."""
    network = method.subnet.network
    if method.members_apart:
        return tuple(len(network.blocks(section)) for section in range(len(network.sections)))
    return method.subnet.architecture.sections


def shapes_of(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of an exported model, by name."""
    with torch.device("meta"):
        model = ResNet(architecture)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for name, module in model.named_modules():
        if isinstance(module, Norm):
            shapes |= {f"{name}.{kind}": (module.num_features,) for kind in ("running_mean", "running_var")}
    return shapes


def tensors_of(stage: nn.Module, statistics: Statistics) -> Iterator[tuple[str, Tensor]]:
    """Yield what an exported model has of a stage: parameters with the scale folded in, and statistics."""
    scale = stage.scale if isinstance(stage, Block) else 1.0
    scaled = f"units.{len(stage.units) - 1}.conv.weight" if isinstance(stage, Block) else None
    for name, parameter in stage.named_parameters():
        yield name, parameter * scale if name == scaled else parameter
    names = {id(module): name for name, module in stage.named_modules()}
    for norm, (mean, variance) in zip(norms_of(stage), statistics, strict=True):
        yield f"{names[id(norm)]}.running_mean", mean
        yield f"{names[id(norm)]}.running_var", variance


def write_description(target: Path, architecture: Architecture, source: DataSource) -> None:
    """Write `model.json`: the architecture, the classes in the order of the scores, and the images it takes."""
    spec = source.spec
    description = {
        "architecture": architecture.to_json(),
        "classes": list(spec.classes),
        "data": spec.name,
        "image_size": spec.image_size,
        "mean": list(spec.mean),
        "std": list(spec.std),
    }
    (target / "model.json").write_text(json.dumps(description, indent=2) + "\n")
