"""`bench compare`: ResIST beside what one would use instead, on the same network, images, samples and ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from statistics import median
from time import perf_counter

from resist_hvd import console
from resist_hvd.benchmarks import results, rivals
from resist_hvd.benchmarks.candidates import make
from resist_hvd.benchmarks.kernel import PeakMemory, sent_by_host
from resist_hvd.benchmarks.table import Column, paired_ratio, print_rows, spread
from resist_hvd.comm.world import World
from resist_hvd.data.source import DataSource
from resist_hvd.settings.bench import CompareSettings
from resist_hvd.tasks.classification import Classification
from resist_hvd.training.evaluate import evaluate
from resist_hvd.training.run import load_source
from resist_hvd.units import counted, scaled


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A candidate's seconds, bytes, memory and accuracy in one repeat.

    Attributes:
        seconds_step: of the slowest rank, the round's end included.
        seconds_communication: of a step, the mean over ranks; waiting for others is part of it.
        bytes_counted: payload that ranks handed over to be sent, by the program's own count.
        bytes_network: what hosts' interfaces sent to other hosts, by the kernel's, headers included.
        bytes_loopback: what went through loopbacks, by the kernel's; shared memory is seen by neither.
        memory: the most that a rank had more than before; None where the kernel does not tell.
        accuracy: on the test set, percent; None where it was not evaluated.
    """

    seconds_step: float
    seconds_communication: float
    bytes_counted: int
    bytes_network: int
    bytes_loopback: int
    memory: int | None
    accuracy: float | None


def run(settings: CompareSettings, world: World) -> float:
    """Measure, print a table from rank 0, and return ResIST's seconds over the best other's; all ranks together."""
    with world.agree("loading the data"):
        source = load_source(settings, world)
    with world.agree("opening the file of measurements"):
        if world.is_first:
            results.check(settings.json)
    measured: dict[str, list[Measurement]] = {name: [] for name in settings.names}
    with rivals.process_group(world, settings.interface) as backend:
        for name in measured:
            world.position = f"warming up {name}"
            warm_up(name, settings, world, source)
        for repeat in range(settings.repeats):
            for name, measurements in measured.items():
                world.position = f"comparing {name}, repeat {repeat + 1}"
                evaluates = settings.evaluate and repeat == 0
                measurements.append(measure(name, settings, world, source, evaluates=evaluates))
                if world.is_first:
                    tell(name, repeat, settings, measurements[-1])
    if world.is_first:
        show(settings, world, backend, measured)
        written = {name: [asdict(m) for m in measurements] for name, measurements in measured.items()}
        results.write(settings.json, {"ranks": world.size, "measured": written})
    return ratio_to_the_best(measured)


def tell(name: str, repeat: int, settings: CompareSettings, measured: Measurement) -> None:
    """Print what has just been measured: a comparison takes minutes, and may be cut short."""
    step, communicating = 1e3 * measured.seconds_step, 1e3 * measured.seconds_communication
    which = f"  repeat {repeat + 1}/{settings.repeats}  {name:<22}"
    console.out(f"{which}  {step:9.1f} ms a step, {communicating:.1f} communicating")


def warm_up(name: str, settings: CompareSettings, world: World, source: DataSource) -> None:
    """Train a round by a candidate, which counts for nothing.

    What libraries set up once and keep is no candidate's own; else the one that is measured first would seem to need
    it.
    """
    make(name, settings, world, source).round()
    world.barrier()


def measure(name: str, settings: CompareSettings, world: World, source: DataSource, *, evaluates: bool) -> Measurement:
    """Train by a candidate from the beginning, and return what it took."""
    memory = PeakMemory(world.device)
    candidate = make(name, settings, world, source)
    # The first round makes connections, buckets and plans of convolutions; it is neither timed nor counted.
    candidate.round()
    world.barrier()
    kernel, counted = sent_by_host(), candidate.sent
    communication, began = 0.0, perf_counter()
    for _ in range(settings.rounds):
        communication += candidate.round()
    world.barrier()
    seconds = perf_counter() - began
    sent = sent_by_host().since(kernel)
    peak = memory.above()
    world.barrier()
    steps = settings.rounds * settings.local_iterations
    first_here = world.local_rank == 0
    everyone = world.gather(
        [
            seconds / steps,
            communication / steps,
            candidate.sent - counted,
            sent.network * first_here,
            sent.loopback * first_here,
            math.nan if peak is None else peak,
        ]
    )
    accuracy = (
        evaluate(candidate.trained(), source, Classification(), world, nullcontext).accuracy if evaluates else None
    )
    return Measurement(
        seconds_step=float(everyone[:, 0].max()),
        seconds_communication=float(everyone[:, 1].mean()),
        bytes_counted=int(everyone[:, 2].sum()),
        bytes_network=int(everyone[:, 3].sum()),
        bytes_loopback=int(everyone[:, 4].sum()),
        memory=None if bool((everyone[:, 5] != everyone[:, 5]).any()) else int(everyone[:, 5].max()),
        accuracy=accuracy,
    )


def ratio_to_the_best(measured: dict[str, list[Measurement]]) -> float:
    """Return the seconds of ResIST (or of the first candidate) over those of the fastest other, repeat by repeat."""
    first = "resist" if "resist" in measured else next(iter(measured))
    seconds = {name: [m.seconds_step for m in measurements] for name, measurements in measured.items()}
    others = [values for name, values in seconds.items() if name != first]
    return paired_ratio(seconds[first], min(others, key=median)) if others else 1.0


def show(settings: CompareSettings, world: World, backend: str, measured: dict[str, list[Measurement]]) -> None:
    """Print a row a candidate."""
    baseline = [m.seconds_step for m in next(iter(measured.values()))]

    def of(attribute: Callable[[Measurement], float | None]) -> Callable[[list[Measurement]], list[float]]:
        return lambda ms: [value for m in ms if (value := attribute(m)) is not None]

    def volume(values: list[float]) -> str:
        return scaled(median(values), "B") if values else "–"  # noqa: RUF001

    columns: list[Column[list[Measurement]]] = [
        ("ms a step", lambda ms: spread([1e3 * m.seconds_step for m in ms])),
        ("communicating", lambda ms: spread([1e3 * m.seconds_communication for m in ms])),
        ("ratio", lambda ms: f"{paired_ratio([m.seconds_step for m in ms], baseline):.2f}"),
        ("counted", lambda ms: volume(of(lambda m: m.bytes_counted)(ms))),
        ("on the network", lambda ms: volume(of(lambda m: m.bytes_network)(ms))),
        ("on loopbacks", lambda ms: volume(of(lambda m: m.bytes_loopback)(ms))),
        ("memory", lambda ms: volume(of(lambda m: m.memory)(ms))),
        ("accuracy", lambda ms: "".join(f"{value:.2f} %" for value in of(lambda m: m.accuracy)(ms)[:1]) or "–"),  # noqa: RUF001
    ]
    steps = settings.rounds * settings.local_iterations
    print_rows(
        f"{counted(world.size, 'rank')} on {counted(world.size // world.local_size, 'host')}, {settings.data.name}, "
        f"batches of {settings.data.batch_size}, l = {settings.local_iterations}, {counted(steps, 'step')} each; "
        f"PyTorch over {backend}",
        measured,
        columns,
        f"{counted(settings.repeats, 'repeat')} in turn: medians, and the least and the most in brackets. Bytes of "
        "all ranks in all steps: counted is payload handed over, network and loopbacks are the kernel's. Memory: "
        "the most of a rank above what it had before.",
    )
