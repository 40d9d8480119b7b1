"""Evaluating the global network, although no worker has all of it.

Every rank carries the activations of its share of the images through the network, stage by stage: the shared layers
are its own, and each partitioned block is lent to it for as long as it needs it (`Method.stages`). Batch norms use the
exact statistics of the calibration set, summed over all ranks, one norm after another: so all of a worker's share of it
walks together, and test images in chunks. Memory beyond training's: a block, and the activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from resist_hvd.comm.world import World
from resist_hvd.data.source import Batch, DataSource, ExtraTest, Shard
from resist_hvd.errors import UserError
from resist_hvd.methods.base import Method
from resist_hvd.nets import Architecture
from resist_hvd.nets.preact_resnet import Norm
from resist_hvd.records import Evaluation

Statistics = list[tuple[Tensor, Tensor]]
"""Mean and variance [channels] of each batch norm of a stage, in order."""

ACTIVATIONS_AT_ONCE = 2 * 2**30
"""Bytes of activations that a worker has on its device at a time. If test images have more, some walk afterwards, and
partitioned blocks are lent anew; if calibration images have more, some wait in host memory."""


def evaluate(method: Method, source: DataSource, world: World, autocast: Callable[[], Any]) -> Evaluation:
    """Return accuracy and loss of the global network (for an ensemble, of its averaged predictions) on the test set.

    All ranks must call it together.
    """
    test = ExtraTest(name="test", size=source.spec.test_size, batches=source.test)
    return evaluate_on([test], method, source, world, autocast)["test"]


def evaluate_on(
    tests: Sequence[ExtraTest], method: Method, source: DataSource, world: World, autocast: Callable[[], Any]
) -> dict[str, Evaluation]:
    """Return accuracy and loss on each of these test sets by its name; statistics are taken once for all of them.

    All ranks must call it together.
    """
    with inference(method), torch.no_grad(), autocast():
        statistics = [found for _, _, found in calibrate(method, source, world)]
        at_once = images_at_once(method.subnet.architecture, source.spec.image_size)
        return {test.name: walk(test, at_once, method, statistics, world) for test in tests}


def images_at_once(architecture: Architecture, image_size: int) -> int:
    """Return how many images have `ACTIVATIONS_AT_ONCE` after the first section, whose activations are the largest."""
    side = -(-image_size // 4) if architecture.stem == "imagenet" else image_size
    return max(1, ACTIVATIONS_AT_ONCE // (4 * architecture.outputs(0) * side**2))


class Activations:
    """A worker's batches of activations: as many on its device as may be, the rest in host memory.

    They are in host memory anyway where the device is the CPU. What is computed does not depend on where they wait.

    Args:
        batches: images, on the device.
        device: where stages compute.
    """

    def __init__(self, batches: Iterable[Tensor], device: torch.device) -> None:
        self._device = device
        self._batches: list[Tensor] = []
        self._room = ACTIVATIONS_AT_ONCE
        for images in batches:
            self._batches.append(self._placed(images))

    def _placed(self, batch: Tensor) -> Tensor:
        self._room -= batch.nbytes
        return batch if self._room >= 0 else batch.to("cpu")

    def __iter__(self) -> Iterator[Tensor]:
        """Bring each batch to the device in turn."""
        for batch in self._batches:
            yield batch.to(self._device)

    def pass_through(self, stage: nn.Module) -> None:
        """Replace every batch by what a stage makes of it, one after another: none is there twice."""
        self._room = ACTIVATIONS_AT_ONCE
        for number, batch in enumerate(self):
            self._batches[number] = self._placed(stage(batch))


def walk(test: ExtraTest, at_once: int, method: Method, statistics: Sequence[Statistics], world: World) -> Evaluation:
    """Walk a test set through the network, whose norms have these statistics; all ranks must call it together.

    Raises:
        UserError: on every rank, where no image of the set could be read.
    """
    totals = np.zeros(3)
    for batches in in_chunks(test.batches(share_of(method, world)), at_once, world):
        outputs = Activations((images for images, _ in batches), world.device)
        targets = [labels for _, labels in batches]
        # The images are not needed behind the first stage.
        batches.clear()
        for (_, stage), found in zip(method.stages(), statistics, strict=True):
            apply_statistics(stage, found)
            outputs.pass_through(stage)
            world.activity.progress()
        for output, labels in zip(outputs, targets, strict=True):
            scores = method.pool(output.float())
            loss = functional.cross_entropy(scores, labels, reduction="sum")
            totals += [len(labels), (scores.argmax(dim=1) == labels).sum().item(), loss.item()]
    images, correct, loss_sum = world.sum(totals).tolist()
    if not images:
        raise UserError(
            f"No image of {test.name} can be evaluated: all of its files were passed over",
            mend="Mend its files, or leave them out.",
            everywhere=True,
        )
    walks = world.size if method.members_apart else 1
    return Evaluation(accuracy=100.0 * correct / images, loss=loss_sum / images, images=round(images) // walks)


def share_of(method: Method, world: World) -> Shard:
    """Return which share of the images this worker evaluates: all of them where networks are evaluated apart."""
    return Shard(rank=0, size=1) if method.members_apart else Shard(rank=world.rank, size=world.size)


def calibrate(method: Method, source: DataSource, world: World) -> Iterator[tuple[str, nn.Module, Statistics]]:
    """Walk the calibration set through the network; yield each stage with its name and its exact statistics."""
    alone = method.members_apart
    with world.activity.long_limit_for("reading images to calibrate on"):
        activations = Activations((images for images, _ in source.calibration(share_of(method, world))), world.device)
    for name, stage in method.stages():
        stage.eval()
        found: Statistics = []
        for norm in norms_of(stage):
            moments = input_moments(norm, stage, activations)
            count, *sums = np.split(moments if alone else world.sum(moments), [1, 1 + norm.num_features])
            mean, square = sums[0] / count, sums[1] / count
            exact = tuple(torch.from_numpy(v).to(norm.weight) for v in (mean, np.maximum(square - mean**2, 0.0)))
            norm.set_statistics(*exact)
            world.activity.progress()
            found.append((exact[0], exact[1]))
        activations.pass_through(stage)
        yield name, stage, found


class _Reached(Exception):
    """Ends a stage's forward pass at the norm whose input was wanted."""


def input_moments(norm: Norm, stage: nn.Module, inputs: Iterable[Tensor]) -> NDArray[np.float64]:
    """Return count, sums and sums of squares of what reaches `norm` in `stage`: [1 + 2 channels]."""
    moments = np.zeros(1 + 2 * norm.num_features)

    def collect(_: nn.Module, arguments: tuple[Tensor]) -> None:
        (x,) = arguments
        count = x.numel() // norm.num_features
        parts = torch.var_mean(x.to(norm.weight.dtype), dim=(0, 2, 3), correction=0)
        variance, mean = (part.double().cpu().numpy() for part in parts)
        moments[:] += np.concatenate([[count], mean * count, (variance + mean**2) * count])
        raise _Reached

    hook = norm.register_forward_pre_hook(collect)
    try:
        for images in inputs:
            try:
                stage(images)
            except _Reached:
                continue
    finally:
        hook.remove()
    return moments


def norms_of(stage: nn.Module) -> list[Norm]:
    """Return a stage's batch norms, in the order in which activations reach them."""
    return [module for module in stage.modules() if isinstance(module, Norm)]


def apply_statistics(stage: nn.Module, found: Statistics) -> None:
    """Have a stage evaluate with these statistics: a lent block comes without any."""
    stage.eval()
    for norm, (mean, variance) in zip(norms_of(stage), found, strict=True):
        norm.set_statistics(mean, variance)


@contextmanager
def inference(method: Method) -> Iterator[None]:
    """Have the method's stages evaluate, not train, and leave nothing of it behind."""
    method.subnet.eval()
    try:
        yield
    finally:
        method.subnet.train()
        for norm in norms_of(method.subnet):
            norm.clear_statistics()


def in_chunks(batches: Iterator[Batch], at_once: int, world: World) -> Iterator[list[Batch]]:
    """Yield lists of batches, of about `at_once` images each, until no rank has any left.

    Every rank gets as many lists as the one with the most batches, the last ones perhaps empty: ranks walk the
    network's stages together.
    """
    while True:
        chunk: list[Batch] = []
        with world.activity.long_limit_for("reading test images"):
            while sum(len(labels) for _, labels in chunk) < at_once and (batch := next(batches, None)):
                chunk.append(batch)
        if not world.sum(np.array([float(len(chunk))]))[0]:
            return
        yield chunk
