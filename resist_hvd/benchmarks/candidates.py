"""Candidates of `bench compare`: our methods through our loop, and PyTorch's own, on one network and its images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from statistics import median
from time import perf_counter

import torch

from resist_hvd.benchmarks import rivals
from resist_hvd.benchmarks.bare import sgd
from resist_hvd.comm.devices import finish
from resist_hvd.comm.world import World
from resist_hvd.data.source import DataSource
from resist_hvd.methods.base import Method
from resist_hvd.nets.saved import Whole
from resist_hvd.seeds import derive
from resist_hvd.settings.bench import OURS, THEIRS, CompareSettings
from resist_hvd.settings.exchange import ExchangeSettings
from resist_hvd.settings.run import AVERAGING, MethodName, Settings
from resist_hvd.training.loop import LocalTraining
from resist_hvd.training.optim import learning_rate
from resist_hvd.training.run import Run, begin

RIVALS: dict[str, type[rivals.Rival]] = dict(
    zip(THEIRS, (rivals.DataParallelRival, rivals.PostLocalSGDRival), strict=True)
)
PROBES = 3
"""Number of times that a PyTorch loop's arithmetic is measured alone, by which communication is told from it."""


class Candidate(ABC):
    """A way of training, from its first weights on."""

    sent: int

    @abstractmethod
    def round(self) -> float:
        """Make l steps and what ends a round; return this rank's seconds of communication."""

    @abstractmethod
    def trained(self) -> Method:
        """Return a method that holds what was trained, to be evaluated."""


class Ours(Candidate):
    """One of our methods, through the loop that trains by it."""

    def __init__(self, name: MethodName, settings: CompareSettings, world: World, source: DataSource) -> None:
        self._run = make_run(name, settings, world, source)
        self._local = LocalTraining(self._run)
        self._settings = settings
        self._overlap = settings.overlap if self._run.method.overlaps else 0
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

    def trained(self) -> Method:
        """Return the method."""
        return self._run.method


class Theirs(Candidate):
    """One of PyTorch's own."""

    def __init__(self, kind: type[rivals.Rival], settings: CompareSettings, world: World, source: DataSource) -> None:
        self._settings, self._world, self._source = settings, world, source
        # Our method lends its first weights, and is gone before anything is measured.
        lender = self._method_of_ours()
        self._length = lender.target
        self._samples, self._batch = 0, lender.batch
        network = Whole(lender.method.network).to(world.device)
        # For images of one channel, too: steps are faster by a tenth.
        self._network = network.to(memory_format=torch.channels_last)
        copy_parameters(lender.method.subnet, self._network)
        del lender
        self._batches = source.train()
        self._arithmetic = self._probe()
        self._rival = kind(self._network, world, settings.optim, settings.local_iterations)

    def _method_of_ours(self) -> Run:
        return make_run("local-sgd", self._settings, self._world, self._source)

    def _probe(self) -> float:
        """Return the seconds of a step without communication; weights and images are then what they were."""
        optimizer = sgd(self._network, self._settings.optim)
        # As many steps at once as in a round: a GPU that is waited for after each one would seem slower than it is.
        steps = self._settings.local_iterations if self._world.device.type == "cuda" else 1
        seconds = []
        for _ in range(PROBES):
            began = perf_counter()
            for _ in range(steps):
                rivals.train_step(self._network, optimizer, self._batches, rate=0.0)
            finish(self._world.device)
            seconds.append((perf_counter() - began) / steps)
        self._network.zero_grad()
        self._batches = self._source.train()
        return median(seconds)

    def round(self) -> float:
        """Make l steps; what they take beyond arithmetic is communication."""
        steps = self._settings.local_iterations
        began = perf_counter()
        for _ in range(steps):
            done, step = self._samples / self._length, self._batch / self._length
            self._rival.step(self._batches, learning_rate(self._settings.optim, done, step=step))
            self._samples += self._batch
        finish(self._world.device)
        return max(0.0, perf_counter() - began - steps * self._arithmetic)

    @property
    def sent(self) -> int:  # type: ignore[override]
        """Payload that this rank has handed over."""
        return self._rival.sent

    def trained(self) -> Method:
        """Return our method with their weights."""
        method = self._method_of_ours().method
        copy_parameters(self._network, method.subnet)
        return method


def make(name: str, settings: CompareSettings, world: World, source: DataSource) -> Candidate:
    """Return a candidate at its beginning; all ranks make it together."""
    for ours in OURS:
        if ours == name:
            return Ours(ours, settings, world, source)
    return Theirs(RIVALS[name], settings, world, source)


def make_run(name: MethodName, settings: CompareSettings, world: World, source: DataSource) -> Run:
    """Return a run of a method, as long as a measurement is."""
    images = (settings.rounds + 1) * settings.local_iterations * settings.data.batch_size * world.size
    training = Settings(
        method=name,
        local_iterations=settings.local_iterations,
        min_blocks=settings.min_blocks,
        seed=settings.seed,
        epochs=images / source.spec.train_size,
        model=settings.model,
        data=settings.data,
        optim=settings.optim,
        overlap=settings.overlap if name in AVERAGING else 0,
        exchange=ExchangeSettings(
            trunk=settings.exchange.trunk if name in AVERAGING else "fp32",
            blocks=settings.exchange.blocks if name == "resist" else "fp32",
        ),
    )
    return begin(training, world, source)


def copy_parameters(origin: torch.nn.Module, target: torch.nn.Module) -> None:
    """Give a network the parameters of another of the same shape."""
    with torch.no_grad():
        for there, here in zip(target.parameters(), origin.parameters(), strict=True):
            there.copy_(here)
