"""Writing the global network as a plain model, stage by stage, since no worker could hold all of it.

Scales are folded into the weights and the exact batch-norm statistics lie beside them, so `models.ResNet.load` needs
nothing of ResIST.
"""

from __future__ import annotations

import json
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
from resist_hvd.nets.architecture import Architecture
from resist_hvd.nets.preact_resnet import Block, shapes_of
from resist_hvd.training.disk import disk_errors, removed_on_failure, write_whole
from resist_hvd.training.evaluate import Statistics, calibrate, inference, norms_of
from resist_hvd.training.tensors import SafetensorsStream


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
                    with world.activity.long_limit_for("writing the model"), disk_errors(partial):
                        for tensor_name, tensor in tensors_of(stage, statistics):
                            stream.write(f"{name}.{tensor_name}", tensor)
                except UserError as error:
                    failure = error
    with world.agree("exporting the model"), removed_on_failure(partial), disk_errors(partial):
        if failure is not None:
            raise failure
        if stream is not None:
            with world.activity.long_limit_for("writing the model"):
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
    write_whole(target / "model.json", json.dumps(description, indent=2) + "\n")
