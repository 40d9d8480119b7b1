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
from torch.nn.modules.batchnorm import _BatchNorm

from resist_hvd.comm.world import World
from resist_hvd.data.source import Batch, DataSource, ExtraTest, Shard
from resist_hvd.errors import UserError
from resist_hvd.methods.base import Method, Stage
from resist_hvd.nets.norms import clear_statistics, norms_of, set_statistics
from resist_hvd.nets.parts import Network
from resist_hvd.records import Evaluation
from resist_hvd.tasks.base import Metric, Task

Statistics = dict[str, tuple[Tensor, Tensor]]
"""Mean and variance [channels] of each batch norm of a stage, by its name there."""

ACTIVATIONS_AT_ONCE = 2 * 2**30
"""Bytes of activations that a worker has on its device at a time. If test images have more, some walk afterwards, and
partitioned blocks are lent anew; if calibration images have more, some wait in host memory."""


def evaluate(method: Method, source: DataSource, task: Task, world: World, autocast: Callable[[], Any]) -> Evaluation:
    """Return the global network's figures (for an ensemble, those of its averaged predictions) on the test set.

    All ranks must call it together.
    """
    test = ExtraTest(name="test", size=source.spec.test_size, batches=source.test)
    return evaluate_on([test], method, source, task, world, autocast)["test"]


def evaluate_on(
    tests: Sequence[ExtraTest],
    method: Method,
    source: DataSource,
    task: Task,
    world: World,
    autocast: Callable[[], Any],
) -> dict[str, Evaluation]:
    """Return figures on each of these test sets by its name; statistics are taken once for all of them.

    All ranks must call it together.

    Raises:
        UserError: on every rank, where no image of a set could be read.
    """
    shard, found = share_of(method, world), {}
    with inference(method), torch.no_grad(), autocast():
        statistics = [of_stage for _, of_stage in calibrate(method, calibration_images(source, shard), world)]
        for test in tests:
            metric = task.metric()
            images = walk(test.batches(shard), method, statistics, task, metric, world)
            found[test.name] = result(metric, images, test.name)
    return found


def result(metric: Metric, images: int, name: str) -> Evaluation:
    """Return a metric's figures on a test set of so many images.

    Raises:
        UserError: none of its images could be read.
    """
    if not images:
        raise UserError(
            f"No image of {name} can be evaluated: all of its files were passed over",
            mend="Mend its files, or leave them out.",
            everywhere=True,
        )
    return Evaluation(**metric.compute(), images=images)


def calibration_images(source: DataSource, shard: Shard) -> Iterator[Tensor]:
    """Yield a share of the calibration set, without labels."""
    return (images for images, _ in source.calibration(shard))


def inputs_at_once(network: Network) -> int:
    """Return how many inputs have `ACTIVATIONS_AT_ONCE` where activations are the largest.

    Where nothing is known of them it is a number whose activations are rarely more: with few, blocks would be lent anew
    for each batch.
    """
    if network.example is None:
        return 256
    largest = max(output.numel() // len(output) for output in network.outputs)
    return max(1, ACTIVATIONS_AT_ONCE // (4 * largest))


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


def walk(
    batches: Iterator[Batch],
    method: Method,
    statistics: Sequence[Statistics],
    task: Task | None,
    metric: Metric,
    world: World,
) -> int:
    """Walk batches through the network, whose norms have these statistics; all ranks must call it together.

    Args:
        batches: this worker's share, inputs and targets; for an ensemble, all of them.
        method: it has the network.
        statistics: of each stage.
        task: by which an ensemble's members vote.
        metric: takes up outputs and targets; at the end it knows those of all ranks.
        world: all workers.

    Returns:
        The number of inputs, over all workers.
    """
    inputs = 0
    for chunk in in_chunks(batches, inputs_at_once(method.network), world):
        outputs = Activations((images for images, _ in chunk), world.device)
        targets = [labels for _, labels in chunk]
        # The images are not needed behind the first stage.
        chunk.clear()
        for (_, module), found in zip(method.stages(), statistics, strict=True):
            apply_statistics(module, found)
            outputs.pass_through(module)
            world.activity.progress()
        for output, labels in zip(outputs, targets, strict=True):
            scores = output.float()
            if task is not None and method.members_apart:
                scores = task.elected(method.pool(task.votes(scores)))
            metric.update(scores, labels)
            inputs += len(scores)
    return inputs if method.members_apart else pooled(metric, inputs, world)


def pooled(metric: Metric, inputs: int, world: World) -> int:
    """Have a metric know the batches of all ranks; return how many inputs they were, of this rank's number."""
    own = metric.metric_state
    # What lies on one rank's GPU cannot be unpacked on another's: all travels through host memory.
    states = world.gather_objects({name: moved(value, "cpu") for name, value in own.items()})
    metric.reset()
    for state in states:
        metric.merge_state({name: moved(value, device_of(own[name])) for name, value in state.items()})
    return int(world.sum(np.array([float(inputs)]))[0])


def moved(state: Any, device: torch.device | str) -> Any:
    """Return one of a metric's states, a tensor, a list of them or something else, with its tensors on a device."""
    if isinstance(state, Tensor):
        return state.to(device)
    return [moved(part, device) for part in state] if isinstance(state, list) else state


def device_of(state: Any) -> torch.device | str:
    """Return the device on which one of a metric's states is, or its first tensor."""
    if isinstance(state, list):
        return device_of(state[0]) if state else "cpu"
    return state.device if isinstance(state, Tensor) else "cpu"


def share_of(method: Method, world: World) -> Shard:
    """Return which share of the images this worker evaluates: all of them where networks are evaluated apart."""
    return Shard(rank=0, size=1) if method.members_apart else Shard(rank=world.rank, size=world.size)


def calibrate(method: Method, images: Iterable[Tensor], world: World) -> Iterator[tuple[Stage, Statistics]]:
    """Walk this worker's share of the calibration set through the network; yield each stage with its exact statistics.

    A network without batch norms needs none, and no image is read.
    """
    alone = method.members_apart
    with world.activity.long_limit_for("reading images to calibrate on"):
        has_norms = any(norms_of(module) for module in method.network.modules)
        activations = Activations(images if has_norms else (), world.device)
    for stage in method.stages():
        module = stage.module.eval()
        found: Statistics = {}
        for name, norm in norms_of(module).items():
            moments = input_moments(norm, module, activations)
            count, *sums = np.split(moments if alone else world.sum(moments), [1, 1 + norm.num_features])
            if not count[0]:
                raise UserError(
                    f"Batch norm {stage.part.prefixed(name)!r} has no inputs to take its statistics from",
                    mend="Give inputs to calibrate on: an iterator that was used up before has none.",
                    everywhere=not alone,
                )
            mean, square = sums[0] / count, sums[1] / count
            exact = tuple(torch.from_numpy(v).to(norm.weight) for v in (mean, np.maximum(square - mean**2, 0.0)))
            set_statistics(norm, *exact)
            world.activity.progress()
            found[name] = (exact[0], exact[1])
        activations.pass_through(module)
        yield stage, found


class _Reached(Exception):
    """Ends a stage's forward pass at the norm whose input was wanted."""


def input_moments(norm: _BatchNorm, stage: nn.Module, inputs: Iterable[Tensor]) -> NDArray[np.float64]:
    """Return count, sums and sums of squares of what reaches `norm` in `stage`: [1 + 2 channels]."""
    moments = np.zeros(1 + 2 * norm.num_features)

    def collect(_: nn.Module, arguments: tuple[Tensor]) -> None:
        (x,) = arguments
        count = x.numel() // norm.num_features
        others = [dim for dim in range(x.dim()) if dim != 1]
        parts = torch.var_mean(x.to(norm.weight.dtype), dim=others, correction=0)
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


def apply_statistics(stage: nn.Module, found: Statistics) -> None:
    """Have a stage evaluate with these statistics: a lent block comes without any."""
    stage.eval()
    for name, norm in norms_of(stage).items():
        set_statistics(norm, *found[name])


@contextmanager
def inference(method: Method) -> Iterator[None]:
    """Have the method's stages evaluate, not train, and leave nothing of it behind; all ranks call it together."""
    trained = [(module, module.training) for module in method.subnet.modules()]
    method.subnet.eval()
    try:
        with method.averaged():
            yield
    finally:
        for module, training in trained:
            module.training = training
        for norm in norms_of(method.subnet).values():
            clear_statistics(norm)


def in_chunks(batches: Iterator[Batch], at_once: int, world: World) -> Iterator[list[Batch]]:
    """Yield lists of batches, of about `at_once` images each, until no rank has any left.

    Every rank gets as many lists as the one with the most batches, the last ones perhaps empty: ranks walk the
    network's stages together.
    """
    while True:
        chunk: list[Batch] = []
        with world.activity.long_limit_for("reading test images"):
            while sum(len(images) for images, _ in chunk) < at_once and (batch := next(batches, None)):
                chunk.append(batch)
        if not world.sum(np.array([float(len(chunk))]))[0]:
            return
        yield chunk
