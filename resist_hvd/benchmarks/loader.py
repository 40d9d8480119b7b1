"""`bench loader`: images a second of this project's ImageNet loader, against bare DALI and torchvision's DataLoader."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from time import perf_counter
from typing import Any

import torch

from resist_hvd import data
from resist_hvd.benchmarks.bare_loaders import bare_dali, torchvision_loader
from resist_hvd.benchmarks.table import paired_ratio, show_rates
from resist_hvd.comm.devices import record_event
from resist_hvd.comm.world import World
from resist_hvd.data.source import Shard
from resist_hvd.data.tree import ImageTree
from resist_hvd.errors import UserError
from resist_hvd.settings.bench import LoaderSettings
from resist_hvd.settings.data import DataSettings
from resist_hvd.stopwatch import Stopwatch
from resist_hvd.training.arithmetic import with_precision
from resist_hvd.training.compiling import check_compiler
from resist_hvd.training.loop import LocalTraining
from resist_hvd.training.rounds import Clock
from resist_hvd.training.run import begin
from resist_hvd.units import counted

OURS, DALI, TORCHVISION = "this loader", "bare DALI, the same operators", "torchvision's DataLoader"


def run(settings: LoaderSettings, world: World) -> float:
    """Measure, print a table from rank 0, and return the ratio to bare DALI; all ranks call it together.

    Where several ways are tried, the ratio is of this loader's best to bare DALI's best.

    Raises:
        UserError: shares of a GPU's hardware are to be tried without a GPU, or there is no compiler.
    """
    if settings.hardware_load and world.device.type != "cuda":
        raise UserError("--hardware_load is for a GPU, and this runs on CPUs", mend="Leave it out.", everywhere=True)
    if settings.compile and settings.steps:
        with world.agree("looking for a compiler"):
            check_compiler(world.device)
    ways = settings.ways(world.cores)
    listed = Listed(world)
    rates: dict[str, dict[str, list[float]]] = {}
    for way, own in ways.items():
        with opened(own, settings, world, listed) as source:
            rates[way] = measured(own, settings, world, source, torchvision=len(ways) == 1)
    best = world.broadcast_object({name: max(ways, key=lambda way: median(rates[way][name])) for name in (OURS, DALI)})
    own, beside = ways[best[OURS]], ""
    if settings.steps:
        with opened(own, settings, world, listed) as source:
            beside = training_beside(replace(settings, data=own), world, source)
    if world.is_first:
        show(rates, own, settings, world, beside)
    return paired_ratio(rates[best[OURS]][OURS], rates[best[DALI]][DALI])


class Listed:
    """Lists the images once for all ways of loading; a `Share`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._tree: ImageTree | None = None

    def __call__(self, make: Callable[[], ImageTree], digest: Callable[[ImageTree], str]) -> ImageTree:
        """Return what was listed, or have it listed once a host."""
        if self._tree is None:
            self._tree = self._world.once_a_host(make, digest)
        return self._tree


@contextmanager
def opened(own: DataSettings, settings: LoaderSettings, world: World, listed: Listed) -> Iterator[data.DataSource]:
    """The data, loaded one of the ways that are timed."""
    shard = Shard(rank=world.rank, size=world.size)
    with world.agree("loading the data"):
        source = data.load(own, shard=shard, seed=settings.seed, device=world.device, share=listed)
    with source:
        yield source
    if world.device.type == "cuda":
        torch.cuda.empty_cache()  # of batches that were made this way: the next one has streams, and memory, of its own


def measured(
    own: DataSettings, settings: LoaderSettings, world: World, source: data.DataSource, *, torchvision: bool
) -> dict[str, list[float]]:
    """Return the images a second of each candidate in each pass."""
    shard = Shard(rank=world.rank, size=world.size)
    candidates: dict[str, Iterator[Any]] = {
        DALI: bare_dali(own, shard=shard, seed=settings.seed, device=world.device),
        OURS: source.train(),
    }
    if torchvision:
        candidates[TORCHVISION] = torchvision_loader(own, seed=settings.seed, device=world.device)
    with world.agree("making first batches"):
        settle = {name: first_batches(batches, own) for name, batches in candidates.items()}
    rates: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(settings.passes):
        # There and back, so that none gains by what comes before it.
        order = list(candidates.items())
        for name, batches in reversed(order) if number % 2 else order:
            world.barrier()
            rates[name].append(images_a_second(batches, own, settings.batches, world.device, settle[name]))
    return rates


def show(
    rates: dict[str, dict[str, list[float]]], own: DataSettings, settings: LoaderSettings, world: World, beside: str
) -> None:
    """Print the table.

    Args:
        rates: images a second in each pass, by the way of loading and the candidate.
        own: the way in which this loader was fastest.
        settings: of the benchmark.
        world: of the ranks.
        beside: what was seen of training beside the loader.
    """
    rows = {f"{name}, {way}" if way else name: values for way, found in rates.items() for name, values in found.items()}
    if len(rates) == 1:
        (found,) = rates.values()
        compared = f"This loader against torchvision's: {paired_ratio(found[OURS], found[TORCHVISION]):.2f}."
    else:
        each = [f"{paired_ratio(found[OURS], found[DALI]):.3f} with {way}" for way, found in rates.items()]
        compared = f"This loader against bare DALI: {', '.join(each)}."
    what = (
        f"{own.threads} threads or processes, {world.cores:.3g} cores for rank 0, {counted(world.size, 'rank')}, "
        f"{world.device.type}"
    )
    show_rates(
        f"Training batches of {own.batch_size} images of {own.size} x {own.size}: {what}",
        rows,
        "images/s",
        f"{counted(settings.passes, 'pass', 'passes')} in turn, each of "
        f"{counted(settings.batches, 'batch', 'batches')}; rank 0's. {compared}{beside}",
    )


def in_advance(settings: DataSettings) -> int:
    """Return how many batches a loader may have ready before it is asked: PyTorch's has two for each process."""
    return max(settings.prefetch, 2 * settings.threads) + 1


def first_batches(batches: Iterator[Any], settings: DataSettings) -> float:
    """Draw a loader's first batches; return the seconds in which it then surely has as many ready as it can."""
    next(batches)
    began = perf_counter()
    for _ in range(in_advance(settings)):
        next(batches)
    return max(0.5, 2 * (perf_counter() - began))


def images_a_second(
    batches: Iterator[Any], own: DataSettings, count: int, device: torch.device, settle: float
) -> float:
    """Return the images that a loader decodes a second once none of those from before are left.

    What it has made in advance is drawn first, untimed. Afterwards it is left alone until it has again what it may
    have, so that it does not work on while another one is measured. On a GPU it is timed from the point at which the
    last batch of those drawn first is made to that at which the last of all is: no batch that is under way before or
    afterwards counts.
    """
    for _ in range(in_advance(own)):
        next(batches)
    watch = Stopwatch(record_event if device.type == "cuda" else None)
    with watch.measure("batches"):
        for _ in range(count):
            next(batches)
    elapsed = watch.seconds["batches"]
    time.sleep(settle)
    return count * own.batch_size / elapsed


def training_beside(settings: LoaderSettings, world: World, source: data.DataSource) -> str:
    """Return in a sentence how fast training steps go with the loader beside them, and how long they wait for it.

    They follow one another as in training: a GPU is waited for once, at the end. Before them come as many as take what
    the loader has ready, so that it must keep up. While a GPU is waited for, at their end, the loader makes as many
    again: so there many more steps are timed.
    """
    steps = settings.timed_steps(gpu=world.device.type == "cuda")
    training, ready = with_precision(settings.training, world), settings.ready
    training = replace(training, local_iterations=max(ready, steps))
    own = begin(training, world, source)
    local, clock = LocalTraining(own), Clock(world.device)
    for _ in range(ready):
        local.step()
    clock.lap()
    before = world.stopwatch.seconds["data"]
    for _ in range(steps):
        local.step()
    elapsed = clock.lap()
    share = 100 * (world.stopwatch.seconds["data"] - before) / elapsed
    rate, step = steps * settings.data.batch_size / elapsed, 1e3 * elapsed / steps
    parameters = f"{own.method.subnet.parameters_flat.numel():,} parameters ({training.precision})"
    return (
        f" Beside training {parameters}: {rate:.1f} images/s, a step of {step:.0f} ms "
        f"(mean of {steps}), of which {share:.2f} % wait for data."
    )
