"""Candidates of `bench compare`: our methods through our loop, and PyTorch's own, on one network and its images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from time import perf_counter

import torch

from resist_hvd.benchmarks import rivals
from resist_hvd.benchmarks.bare import optimizer_of
from resist_hvd.benchmarks.timing import mean_of_steps
from resist_hvd.comm.devices import finish
from resist_hvd.comm.world import World
from resist_hvd.data.source import Batch, DataSource, Shard
from resist_hvd.methods.base import Method
from resist_hvd.nets.saved import Whole
from resist_hvd.seeds import derive
from resist_hvd.settings.bench import CompareSettings
from resist_hvd.settings.rows import GPIPE, Row
from resist_hvd.training.loop import LocalTraining
from resist_hvd.training.optim import learning_rate
from resist_hvd.training.run import Run, begin, method_setup

RIVALS: dict[str, type[rivals.Rival]] = {
    "pytorch-ddp": rivals.DataParallelRival,
    "pytorch-post-local-sgd": rivals.PostLocalSGDRival,
}


class Candidate(ABC):
    """A way of training, from its first weights on.

    Attributes:
        sent: payload in bytes that this rank has handed over, so far.
        hidden: seconds in which it communicated beside steps, so far.
    """

    sent: int
    hidden: float = 0.0

    @abstractmethod
    def round(self) -> float | None:
        """Make l steps and what ends a round.

        Returns:
            This rank's seconds of communication; None where they cannot be told but from what arithmetic takes.
        """

    @abstractmethod
    def trained(self) -> Method:
        """Return a method that holds what was trained, to be evaluated."""

    @abstractmethod
    def arithmetic(self) -> float:
        """Return this rank's seconds of a step in which nothing communicates, while all ranks make such steps."""


class Ours(Candidate):
    """One of our methods, through the loop that trains by it."""

    def __init__(self, row: Row, settings: CompareSettings, world: World, source: DataSource) -> None:
        self._run = make_run(row, settings, world, source)
        self._local = LocalTraining(self._run)
        self._settings, self._source = settings, source
        # The same network and loop; data-parallel training's steps without averages are those of local SGD.
        self._alone = Row(name="alone", method="local-sgd" if row.method == "data-parallel" else row.method)
        self._overlap = row.overlap if self._run.method.overlaps else 0
        self._rounds = 0

    def round(self) -> float:
        """Make l steps, and synchronise, beside the last of them where they overlap."""
        self._rounds += 1
        world, method = self._run.world, self._run.method
        waited = self._waited()
        for left in reversed(range(self._settings.local_iterations)):
            self._local.step()
            if left == self._overlap > 0:
                with world.stopwatch.measure("depart"):
                    method.depart(self._next_seed(), early=True)
        finish(world.device)
        waited = self._waited() - waited
        began = perf_counter()
        if not self._overlap:
            method.depart(self._next_seed())
        method.arrive()
        finish(world.device)
        return waited + perf_counter() - began

    def _waited(self) -> float:
        """Return the seconds between steps, so far, of early departures, or of data-parallel training's averages."""
        return self._run.world.stopwatch.seconds["depart" if self._overlap else "trunk"]

    def _next_seed(self) -> int:
        return self._run.world.broadcast_seed(derive(self._settings.seed, "round", self._rounds))

    @property
    def sent(self) -> int:  # type: ignore[override]
        """Payload that this rank has handed over."""
        sent = self._run.method.transport.sent
        return sent.trunk + sent.blocks

    @property
    def hidden(self) -> float:  # type: ignore[override]
        """Seconds beside steps, those of others before it included."""
        return self._run.world.stopwatch.seconds["hidden"]

    def trained(self) -> Method:
        """Return the method."""
        return self._run.method

    def arithmetic(self) -> float:
        """Return the seconds of a step of its network that never synchronises."""
        world = self._run.world
        local = LocalTraining(make_run(self._alone, self._settings, world, self._source))
        return seconds_of_steps(local.step, self._settings.local_iterations, world)


class Theirs(Candidate):
    """One of PyTorch's own, with the whole network on each rank."""

    def __init__(self, row: Row, settings: CompareSettings, world: World, source: DataSource) -> None:
        self._row, self._settings, self._world, self._source = row, settings, world, source
        # Our method lends its first weights, and is gone before anything is measured.
        lender = self._method_of_ours()
        self._length, self._optim = lender.target, lender.settings.optim
        self._samples, self._batch = 0, lender.batch
        network = Whole(lender.method.network).to(world.device)
        # For images of one channel, too: steps are faster by a tenth.
        self._network = network.to(memory_format=torch.channels_last)
        copy_parameters(lender.method.subnet, self._network)
        del lender
        self._batches = source.train()
        self._rival = RIVALS[row.name](self._network, world, self._optim, settings.local_iterations)

    def _method_of_ours(self) -> Run:
        return make_run(self._row, self._settings, self._world, self._source)

    def round(self) -> None:
        """Make l steps; what they take beyond arithmetic is communication."""
        for _ in range(self._settings.local_iterations):
            done, step = self._samples / self._length, self._batch / self._length
            self._rival.step(self._batches, learning_rate(self._optim, done, step=step))
            self._samples += self._batch
        finish(self._world.device)

    @property
    def sent(self) -> int:  # type: ignore[override]
        """Payload that this rank has handed over."""
        return self._rival.sent

    def trained(self) -> Method:
        """Return our method with their weights."""
        method = self._method_of_ours().method
        copy_parameters(self._network, method.subnet)
        return method

    def arithmetic(self) -> float:
        """Return the seconds of a step of a copy, of whose gradients DistributedDataParallel hears nothing."""
        network = deepcopy(self._network)
        optimizer = optimizer_of(network, self._optim)

        def step() -> None:
            rivals.train_step(network, optimizer, self._batches, self._optim.lr, self._optim)

        return seconds_of_steps(step, self._settings.local_iterations, self._world)


class Pipe(Candidate):
    """PyTorch's GPipe: a stage of the network on each rank, through which the images of all ranks pass.

    Args:
        row: its row.
        settings: they say how many parts each stage has, and how many micro-batches there are.
        world: all ranks.
        source: of images; the first stage's rank draws those of all.
    """

    def __init__(self, row: Row, settings: CompareSettings, world: World, source: DataSource) -> None:
        from resist_hvd.benchmarks.pipeline import GPipe  # PyTorch's compiler comes with it, which takes seconds

        self._row, self._settings, self._world, self._source = row, settings, world, source
        training = settings.training(row)
        with world.agree("making the network"):
            network = method_setup(training, source, world).network
        assert settings.stages
        assert settings.micro_batches is not None
        self._optim, self._length, self._samples = training.optim, images_of(settings, world), 0
        self._batch = settings.data.batch_size * world.size
        self._batches = source.train(shard=Shard(rank=0, size=1))
        self._pipe = GPipe(
            network,
            settings.stages,
            world,
            training.optim,
            seed=settings.seed,
            batch=self._batch,
            micro_batches=settings.micro_batches,
        )

    def _draw(self) -> Batch:
        """Return the batches of all ranks as one, in the order in which they draw them."""
        images, labels = zip(*(next(self._batches) for _ in range(self._world.size)), strict=True)
        return torch.cat(images), torch.cat(labels)

    def round(self) -> None:
        """Make l steps; what they take beyond the slowest stage's arithmetic is communication, and waiting for it."""
        for _ in range(self._settings.local_iterations):
            done, step = self._samples / self._length, self._batch / self._length
            self._pipe.step(self._draw, learning_rate(self._optim, done, step=step))
            self._samples += self._batch
        finish(self._world.device)

    @property
    def sent(self) -> int:  # type: ignore[override]
        """Payload that this rank has handed over."""
        return self._pipe.sent

    def trained(self) -> Method:
        """Return our method with the weights of all stages."""
        method = make_run(self._row, self._settings, self._world, self._source).method
        self._pipe.collect(list(method.subnet.layers))
        return method

    def arithmetic(self) -> float:
        """Return the seconds of a step of this rank's stage by itself."""
        return seconds_of_steps(self._pipe.alone(self._draw), self._settings.local_iterations, self._world)


def seconds_of_steps(step: Callable[[], object], steps: int, world: World) -> float:
    """Return this rank's seconds of a step, the mean of some that all ranks begin together, after one."""
    step()
    finish(world.device)
    return mean_of_steps(world, step, steps)


def make(name: str, settings: CompareSettings, world: World, source: DataSource) -> Candidate:
    """Return the candidate of a row at its beginning; all ranks make it together."""
    row = Row.read(name)
    kind = Ours if row.method else Pipe if row.name == GPIPE else Theirs
    return kind(row, settings, world, source)


def make_run(row: Row, settings: CompareSettings, world: World, source: DataSource) -> Run:
    """Return a run of a row's method, local SGD's for PyTorch's, as long as a measurement is."""
    epochs = images_of(settings, world) / source.spec.train_size
    return begin(replace(settings.training(row), epochs=epochs), world, source)


def images_of(settings: CompareSettings, world: World) -> int:
    """Return the images of a measurement, summed over ranks, with its round that is not timed."""
    return (settings.rounds + 1) * settings.local_iterations * settings.data.batch_size * world.size


def copy_parameters(origin: torch.nn.Module, target: torch.nn.Module) -> None:
    """Give a network the parameters of another of the same shape."""
    with torch.no_grad():
        for there, here in zip(target.parameters(), origin.parameters(), strict=True):
            there.copy_(here)
