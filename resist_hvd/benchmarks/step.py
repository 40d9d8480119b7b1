"""`bench step`: what a local step costs through method and loop, against a bare PyTorch loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import torch
from torch.nn import functional

from resist_hvd import data
from resist_hvd.benchmarks.table import paired_ratio, show
from resist_hvd.comm.world import World
from resist_hvd.config import Settings
from resist_hvd.data.settings import DataSettings
from resist_hvd.data.source import DataSource, Shard
from resist_hvd.methods import registry
from resist_hvd.models import ModelSettings, ResNet
from resist_hvd.seeds import derive
from resist_hvd.training.loop import LocalTraining
from resist_hvd.training.run import Run, method_setup
from resist_hvd.units import counted


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """Time a local step of ResIST: data, forward, backward, update."""

    min_blocks: int = 5
    """m, the fewest partitionable blocks a sub-network has."""

    steps: int = 5
    """Steps in one measurement."""

    repeats: int = 15
    """How often each is measured, in turn."""

    seed: int = 1
    """Partitions, weights and data come from it."""

    model: ModelSettings = field(default_factory=lambda: ModelSettings(sections="1,1,13,1", width_factor=0.25))
    data: DataSettings = field(default_factory=lambda: DataSettings(batch_size=64))


def run(settings: StepSettings, world: World) -> float:
    """Measure, print a table from rank 0, and return the ratio; all ranks call it together."""
    training = Settings(
        min_blocks=settings.min_blocks, seed=settings.seed, model=settings.model, data=settings.data, epochs=1e9
    )
    shard = Shard(rank=world.rank, size=world.size)
    sources = [data.load(settings.data, shard=shard, seed=settings.seed, device=world.device) for _ in range(2)]
    setup = method_setup(training, sources[0], world)
    method = registry.make("resist", setup, seed=derive(settings.seed, "round", 0))
    local = LocalTraining(Run(training, world, sources[0], method, Path()))
    counts = [len(method.subnet.network.blocks(section)) for section in range(len(setup.architecture.sections))]
    bare = bare_loop(ResNet(setup.architecture, counts).to(world.device), sources[1], training)
    seconds: dict[str, list[float]] = {"bare PyTorch loop": [], "through method and loop": []}
    for repeat in range(-1, settings.repeats):
        for values, step in zip(seconds.values(), (bare, local.step), strict=True):
            elapsed = time_steps(step, settings.steps, world)
            if repeat >= 0:
                values.append(elapsed)
    baseline, measured = seconds.values()
    if world.is_first:
        show(
            f"One step, {counted(settings.data.batch_size, 'image')}, {method.subnet.parameters_flat.numel():,} "
            f"parameters, {counted(world.size, 'rank')}",
            seconds,
            f"{counted(settings.repeats, 'repeat')} in turn, each the mean of "
            f"{counted(settings.steps, 'step')}; rank 0's",
        )
    return paired_ratio(measured, baseline)


def bare_loop(network: ResNet, source: DataSource, settings: Settings) -> Callable[[], object]:
    """Return a step as one writes it in PyTorch without this toolkit."""
    if source.spec.channels > 1:
        network = network.to(memory_format=torch.channels_last)
    optim = settings.optim
    optimizer = torch.optim.SGD(
        network.parameters(), lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay
    )
    batches = source.train()

    def step() -> None:
        images, labels = next(batches)
        optimizer.zero_grad()
        loss = functional.cross_entropy(network(images), labels)
        torch.autograd.backward(loss)
        optimizer.step()

    return step


def time_steps(step: Callable[[], object], steps: int, world: World) -> float:
    """Return the mean seconds of a few steps, once all ranks are ready."""
    world.barrier()
    began = perf_counter()
    for _ in range(steps):
        step()
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)
    return (perf_counter() - began) / steps
