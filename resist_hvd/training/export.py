"""Writing the global network as a plain model, part by part, since no worker could hold all of it.

Scales are folded into the weights and the exact batch-norm statistics lie beside them, so the file needs nothing of
ResIST: `nets.saved.load` reads it, and for a network of torchvision's or timm's their own `load_state_dict` does.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resist_hvd.comm.world import World
from resist_hvd.data.source import DataSource
from resist_hvd.errors import UserError
from resist_hvd.methods.base import Method, Stage
from resist_hvd.nets.saved import shapes_of
from resist_hvd.tasks.base import Task
from resist_hvd.training.disk import disk_errors, removed_on_failure, write_whole
from resist_hvd.training.evaluate import Statistics, calibrate, calibration_images, inference, share_of
from resist_hvd.training.tensors import SafetensorsStream


def export(
    folder: Path, method: Method, source: DataSource, task: Task, world: World, autocast: Callable[[], Any]
) -> list[Path]:
    """Write `model.safetensors` and `model.json` to a run's folder; all ranks must call it together.

    An ensemble has no global network: each member is written by its worker, in `members/RANK`.

    Returns:
        The folders that were written, on the ranks that wrote.

    Raises:
        UserError: a file cannot be written.
    """
    target = folder / "members" / str(world.rank) if method.members_apart else folder
    images = calibration_images(source, share_of(method, world))
    with autocast():
        writes = write_model(
            target / "model.safetensors",
            method,
            images,
            world,
            beside=lambda: write_description(target, method, source, task),
        )
    return [target] if writes else []


def write_model(
    path: Path, method: Method, images: Iterable[Tensor], world: World, *, beside: Callable[[], None] = lambda: None
) -> bool:
    """Write a network's tensors into a file; all ranks must call it together.

    Args:
        path: the file, the same on all ranks but for an ensemble.
        method: it has the network.
        images: this worker's share of the calibration set.
        world: all workers.
        beside: writes what belongs to the file, before it has its name.

    Returns:
        Whether this rank has written it: all ranks where networks stay apart, else the first.

    Raises:
        UserError: a file cannot be written.
    """
    writes = method.members_apart or world.is_first
    failure: UserError | None = None
    stream: SafetensorsStream | None = None
    partial = path.with_name(f"{path.name}.partial")
    with world.agree("exporting the model"), disk_errors(partial):
        if writes:
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = SafetensorsStream(partial, shapes_of(method.network))
    with inference(method), torch.no_grad():
        for stage, statistics in calibrate(method, images, world):
            if stream is not None and failure is None:
                # A disk that fills up here must not leave the other ranks alone on their walk: told afterwards.
                try:
                    with world.activity.long_limit_for("writing the model"), disk_errors(partial):
                        for name, tensor in tensors_of(stage, statistics):
                            stream.write(stage.part.prefixed(name), tensor)
                except UserError as error:
                    failure = error
    with world.agree("exporting the model"), removed_on_failure(partial), disk_errors(partial):
        if failure is not None:
            raise failure
        if stream is not None:
            with world.activity.long_limit_for("writing the model"):
                stream.close()
                beside()
                os.replace(partial, path)
    return writes


def tensors_of(stage: Stage, statistics: Statistics) -> Iterator[tuple[str, Tensor]]:
    """Yield what an exported model has of a stage: parameters, which have the scale, buffers and statistics."""
    yield from stage.module.named_parameters()
    for name, (mean, variance) in statistics.items():
        yield f"{name}.running_mean", mean
        yield f"{name}.running_var", variance


def network_of(method: Method) -> dict[str, Any]:
    """Return what a description says of the network, as `nets.saved.load` reads it.

    Where blocks do not name the weights that a scale is folded into, `scales` has it for each deck.
    """
    network = method.network
    folded = all(part.branches for part in network.blocks)
    return {"network": dict(network.description), **({} if folded else {"scales": list(method.scales)})}


def write_plain_description(path: Path, method: Method) -> None:
    """Write what the network is, beside its tensors; nothing for parts that have no description."""
    if method.network.description:
        write_whole(path, json.dumps(network_of(method), indent=2) + "\n")


def write_description(target: Path, method: Method, source: DataSource, task: Task) -> None:
    """Write `model.json`: the network, classes in the order of the scores, the task, and how images are prepared."""
    spec = source.spec
    description = {
        **network_of(method),
        "classes": list(spec.classes),
        "data": spec.name,
        **task.description(),
        **spec.preprocess.to_json(),
    }
    write_whole(target / "model.json", json.dumps(description, indent=2) + "\n")
