"""Settings of the benchmarks: the flags of `python -m resist_hvd.bench NAME`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

from resist_hvd.settings.data import DataSettings
from resist_hvd.settings.model import ModelSettings
from resist_hvd.settings.optim import OptimSettings
from resist_hvd.settings.run import DeviceName, MethodName, Precision, Settings
from resist_hvd.units import counted

OURS: tuple[MethodName, ...] = ("resist", "local-sgd", "data-parallel")
THEIRS = ("pytorch-ddp", "pytorch-post-local-sgd")
"""Candidates of `compare`: our methods, and PyTorch's."""

STEPS_A_BATCH_READY = 8
"""Steps that `loader` times on a GPU for each batch that may be ready: those are few of them then."""


@dataclass(frozen=True, kw_only=True)
class SyncSettings:
    """Time ResIST's synchronisation: trunk average, block averages and moves."""

    min_blocks: int = 5
    """m, the fewest partitionable blocks a sub-network has."""

    repeats: int = 20
    """Number of times that each is measured, in turn."""

    seed: int = 1
    """Partitions and weights come from it."""

    device: DeviceName = "auto"
    """Device to compute on; auto is cuda where there is a GPU."""

    model: ModelSettings = field(default_factory=lambda: ModelSettings(final_norm=False))


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """Time a local step of ResIST: data, forward, backward, update.

    One rank trains the whole network. Images are a data set's, or, with --image_size, noise in memory.
    """

    recipe: str | None = None
    """A recipe whose settings to begin with: network, batches, optimizer, precision."""

    image_size: int | None = None
    """Train on noise of this height and width in pixels, on the device, instead of a data set: no reader is in the
    way."""

    channels: int = 3
    """Channels of this noise."""

    classes: int = 1000
    """Classes of this noise."""

    min_blocks: int = 5
    """m, the fewest partitionable blocks a sub-network has."""

    steps: int = 5
    """Steps in one measurement."""

    repeats: int = 15
    """How often each is measured, in turn; as many steps as in one measurement precede them, and do not count."""

    seed: int = 1
    """Partitions, weights and data come from it."""

    precision: Precision = "fp32"
    """What both loops compute convolutions in; auto as in training."""

    compile: bool = False
    """Compile both networks with torch.compile."""

    cuda_graphs: bool = False
    """Replay both loops' steps as CUDA graphs."""

    device: DeviceName = "auto"
    """What to compute on; auto is cuda where there is a GPU."""

    json: Path | None = None
    """Write every measurement into this file as JSON."""

    model: ModelSettings = field(default_factory=lambda: ModelSettings(sections="1,1,13,1", width_factor=0.25))
    data: DataSettings = field(default_factory=lambda: DataSettings(batch_size=64))
    optim: OptimSettings = field(default_factory=OptimSettings)

    def __post_init__(self) -> None:
        for name, least in {"image_size": 1, "channels": 1, "classes": 2, "steps": 1, "repeats": 1}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name} is {value}; give {least} or more")
        _ = self.training  # settings that do not go together are told at once

    @property
    def training(self) -> Settings:
        """The settings of a run whose steps these are."""
        return Settings(
            min_blocks=self.min_blocks,
            seed=self.seed,
            precision=self.precision,
            compile=self.compile,
            cuda_graphs=self.cuda_graphs,
            epochs=1e9,
            model=self.model,
            data=self.data,
            optim=self.optim,
        )


@dataclass(frozen=True, kw_only=True)
class LoaderSettings:
    """Time an ImageNet loader, and how long a training step waits for it."""

    batches: int = 24
    """Batches in one pass."""

    passes: int = 7
    """How often each is measured, in turn."""

    steps: int = 4
    """Training steps that are timed with the loader beside them, on a GPU at least eight for each batch that the loader
    may have ready; 0 leaves them out."""

    min_blocks: int = 5
    """m, the fewest blocks of the sub-network that these steps train."""

    precision: Precision = "fp32"
    """What these steps compute convolutions in; auto as in training."""

    compile: bool = False
    """Compile the network that these steps train with torch.compile."""

    device: DeviceName = "auto"
    """What to compute on; auto is cuda where there is a GPU."""

    threads: tuple[int, ...] = ()
    """Numbers of decoding threads to try one after the other, as [4,8,16]. Default: --data.decode_threads alone."""

    hardware_load: tuple[float, ...] = ()
    """Shares of a GPU's JPEG hardware to try with each of them, as [0.65,0.8,0.95]. Default: --data.dali.hardware_load
    alone."""

    seed: int = 1
    """Order, windows and weights come from it."""

    model: ModelSettings = field(
        default_factory=lambda: ModelSettings(name="preact_resnet50", block="bottleneck", stem="imagenet")
    )
    data: DataSettings = field(
        default_factory=lambda: DataSettings(name="imagenet", root=Path("imagenet"), batch_size=64)
    )

    def __post_init__(self) -> None:
        for name, least in {"batches": 1, "passes": 1, "steps": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"--{name} is {getattr(self, name)}; give {least} or more")
        if self.data.name != "imagenet":
            raise ValueError(f"--data.name is {self.data.name}, which has no loader to be timed; leave it out")
        if any(threads < 1 for threads in self.threads):
            raise ValueError(f"--threads is {list(self.threads)}; give numbers of at least 1")
        if any(not 0 <= load <= 1 for load in self.hardware_load):
            raise ValueError(f"--hardware_load is {list(self.hardware_load)}; give shares from 0 to 1")
        _ = self.training  # settings that do not go together are told at once

    @property
    def ready(self) -> int:
        """Batches that the loader has made before they are asked for, and the one that it is at."""
        return self.data.prefetch + 1

    def timed_steps(self, *, gpu: bool) -> int:
        """Return how many steps are timed: on a GPU so many that few of them take what was ready before."""
        return max(self.steps, STEPS_A_BATCH_READY * self.ready) if gpu else self.steps

    @property
    def training(self) -> Settings:
        """The settings of a run whose steps are timed."""
        return Settings(
            min_blocks=self.min_blocks,
            local_iterations=max(self.ready, self.steps),
            seed=self.seed,
            precision=self.precision,
            compile=self.compile,
            epochs=1e9,
            model=self.model,
            data=self.data,
        )

    def ways(self, cores: float) -> dict[str, DataSettings]:
        """Return the ways of loading that are timed, by what tells them apart: nothing where there is one.

        Args:
            cores: that this rank has.
        """
        own = self.data.on_cores(cores)
        tried = product(self.threads or (own.threads,), self.hardware_load or (own.dali.hardware_load,))
        return {
            self._name(threads, load): replace(own, decode_threads=threads, dali=replace(own.dali, hardware_load=load))
            for threads, load in tried
        }

    def _name(self, threads: int, load: float) -> str:
        parts = [counted(threads, "thread")] if self.threads else []
        return ", ".join([*parts, f"hardware load {load:g}"] if self.hardware_load else parts)


@dataclass(frozen=True, kw_only=True)
class CompareSettings:
    """Train by ResIST and by what one would use instead, in turn.

    Local SGD and data-parallel training on Horovod, PyTorch's DistributedDataParallel and its PostLocalSGDOptimizer.
    """

    candidates: str = ",".join((*OURS, *THEIRS))
    """Names of the candidates, with commas between."""

    local_iterations: int = 10
    """l, the local iterations of a round."""

    rounds: int = 4
    """Timed rounds of each measurement, after one that is not; each begins anew from the same weights and images."""

    repeats: int = 3
    """Number of times that each is measured, in turn."""

    min_blocks: int = 5
    """m, the fewest partitionable blocks a sub-network has."""

    seed: int = 1
    """Partitions, weights and images come from it."""

    evaluate: bool = True
    """Evaluate what each has trained, once."""

    interface: str | None = None
    """The network interface for PyTorch's collectives; Open MPI's is chosen by its own options."""

    device: DeviceName = "auto"
    """Device to compute on; auto is cuda where there is a GPU."""

    json: Path | None = None
    """Write every measurement into this file as JSON."""

    model: ModelSettings = field(default_factory=lambda: ModelSettings(sections="1,1,13,1", width_factor=0.25))
    data: DataSettings = field(default_factory=DataSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)

    def __post_init__(self) -> None:
        for name in ("local_iterations", "rounds", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}; give 1 or more")
        unknown = set(self.names) - {*OURS, *THEIRS}
        if unknown or not self.names:
            raise ValueError(f"--candidates is {self.candidates!r}; give some of {', '.join((*OURS, *THEIRS))}")

    @property
    def names(self) -> list[str]:
        """The candidates' names."""
        return [name for name in self.candidates.split(",") if name]


@dataclass(frozen=True, kw_only=True)
class CycleSettings:
    """Time rounds by Horovod's cycle, and by whether ranks that wait yield."""

    ranks: int = 4
    """Ranks of the worlds to start, on this machine."""

    cycles: str = "0.1,0.5,1,5"
    """Horovod's cycles to compare, in milliseconds."""

    starts: int = 3
    """Worlds started for each way of waiting, in turn."""

    repeats: int = 3
    """Measurements in each world, of the idle and of the full machine in turn."""

    rounds: int = 3
    """Rounds in one measurement."""

    work: float = 50.0
    """Milliseconds of arithmetic in a round, on a core left alone."""

    spinners: int | None = None
    """Processes that keep a host full. Default: as many as it has cores."""

    min_blocks: int = 3
    """m, the fewest partitionable blocks a sub-network has."""

    seed: int = 1
    """Partitions and weights come from it."""

    json: Path | None = None
    """File that what was measured is written to."""

    model: ModelSettings = field(default_factory=lambda: ModelSettings(sections="1,1,9,1", width_factor=0.125))

    def __post_init__(self) -> None:
        for name, least in {"ranks": 1, "starts": 1, "repeats": 1, "rounds": 1, "spinners": 0, "work": 0}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name} is {value}; give {least} or more")
        try:
            sound = all(0 < float(cycle) < 1000 for cycle in self.cycles.split(","))
        except ValueError:
            sound = False
        if not sound:
            raise ValueError(f"--cycles is {self.cycles}; give milliseconds above 0, as 0.1,1")
