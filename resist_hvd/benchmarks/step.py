"""`bench step`: what a local step costs through method and loop, against the fastest bare PyTorch loop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from statistics import median
from typing import Any

import torch

from resist_hvd import api
from resist_hvd.benchmarks import results
from resist_hvd.benchmarks.bare import BareLoop, GraphedLoop
from resist_hvd.benchmarks.noise import NoiseSource
from resist_hvd.benchmarks.table import paired_ratio, show
from resist_hvd.benchmarks.timing import mean_of_steps
from resist_hvd.comm.world import World
from resist_hvd.data.source import DataSource
from resist_hvd.nets.saved import Whole
from resist_hvd.settings.bench import StepSettings
from resist_hvd.settings.run import Settings
from resist_hvd.training.arithmetic import with_precision
from resist_hvd.training.checks import refuse_graphs_without_gpu
from resist_hvd.training.compiling import check_compiler
from resist_hvd.training.loop import LocalTraining
from resist_hvd.training.run import Run, begin, load_source
from resist_hvd.units import counted

BARE, OURS, OWN = "bare PyTorch loop", "through method and loop", "through the public names"


class OwnLoop(BareLoop):
    """A user's own loop through the public names, with the optimizer of the bare one; it ends no round.

    Args:
        net: this worker's share of the network.
        source: where batches come from.
        settings: a run's.
        steps: more than are made.
    """

    def __init__(self, net: api.Net, source: DataSource, settings: Settings, steps: int) -> None:
        super().__init__(net, source, settings, net.world.device)
        self.net = net
        self._rounds = api.Rounds(net, self._optimizer, local_iterations=steps)

    def step(self) -> None:
        """Make one training step."""
        self._rounds.step(self._train_on(*next(self._batches)))


def run(settings: StepSettings, world: World) -> float:
    """Measure, print a table from rank 0, and return the ratio; all ranks call it together."""
    with world.agree("opening the file of measurements"):
        if world.is_first:
            results.check(settings.json)
    refuse_graphs_without_gpu(settings.training, world.device)
    training = with_precision(settings.training, world)
    if settings.compile:
        with world.agree("looking for a compiler"):
            check_compiler(world.device)
    with ExitStack() as opened:
        with world.agree("loading the data"):
            sources = [opened.enter_context(load(settings, world)) for _ in range(3)]
        local = ours(training, sources[0], world)
        steps: dict[str, Callable[[], Any]] = {BARE: bare(local.run, sources[1]).step, OURS: local.step}
        if not settings.cuda_graphs:
            steps[OWN] = own(local.run, sources[2], (settings.repeats + 1) * settings.steps + 1).step
        seconds = {name: list[float]() for name in steps}
        for repeat in range(-1, settings.repeats):
            for name, step in steps.items():
                elapsed = mean_of_steps(world, step, settings.steps)
                if repeat >= 0:
                    seconds[name].append(elapsed)
    if world.is_first:
        tell(settings, local.run, seconds)
    return paired_ratio(seconds[OURS], seconds[BARE])


def tell(settings: StepSettings, run: Run, seconds: dict[str, list[float]]) -> None:
    """Print the table, and write the file if there is to be one."""
    world, training, batch = run.world, run.settings, settings.data.batch_size
    side, parameters = run.source.spec.image_size, run.method.subnet.parameters_flat.numel()
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else world.device.type
    chosen = {"compiled": training.compile, "by CUDA graphs": training.cuda_graphs}
    computed = ", ".join([training.precision, *(words for words, is_so in chosen.items() if is_so)])
    show(
        f"One step of {counted(batch, 'image')} of {side} x {side}, {parameters:,} parameters: {device}, {computed}, "
        f"{counted(world.size, 'rank')}",
        seconds,
        f"{counted(settings.repeats, 'repeat')} in turn, each the mean of {counted(settings.steps, 'step')}; rank 0's",
        images=batch,
    )
    written = {
        "device": device,
        "ranks": world.size,
        "precision": training.precision,
        "compile": training.compile,
        "cuda_graphs": training.cuda_graphs,
        "batch_size": batch,
        "image_size": side,
        "parameters": parameters,
        "model": asdict(settings.model),
        "images_a_second": {name: batch / median(values) for name, values in seconds.items()},
        "seconds": seconds,
        "ratio": paired_ratio(seconds[OURS], seconds[BARE]),
        "ratio_own": paired_ratio(seconds[OWN], seconds[BARE]) if OWN in seconds else None,
    }
    results.write(settings.json, written)


def load(settings: StepSettings, world: World) -> DataSource:
    """Return the images to train on; all ranks call it together."""
    if settings.image_size is not None:
        return NoiseSource(
            settings.data,
            image_size=settings.image_size,
            channels=settings.channels,
            classes=settings.classes,
            seed=settings.seed,
            device=world.device,
        )
    return load_source(settings, world)


def ours(training: Settings, source: DataSource, world: World) -> LocalTraining:
    """Return this toolkit's local training by ResIST, at its beginning."""
    return LocalTraining(begin(training, world, source))


def bare(run: Run, source: DataSource) -> BareLoop:
    """Return a bare loop on a network of the same shape as a run's sub-network, with weights of its own."""
    network = Whole(run.method.network.shallower(run.method.subnet.depths))
    network = network.to(run.world.device).to(memory_format=torch.channels_last)
    kind = GraphedLoop if run.settings.cuda_graphs else BareLoop
    return kind(network, source, run.settings, run.world.device)


def own(run: Run, source: DataSource, steps: int) -> OwnLoop:
    """Return a user's own loop on a sub-network of the same shape as a run's."""
    net = api.deal(run.method.setup.network, run.world, min_blocks=run.settings.min_blocks, seed=run.settings.seed)
    return OwnLoop(net, source, run.settings, steps)
