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
from resist_hvd.benchmarks.table import Column, paired_ratio, print_rows
from resist_hvd.comm.world import World
from resist_hvd.data.source import DataSource
from resist_hvd.settings.bench import CompareSettings
from resist_hvd.settings.rows import GPIPE, Row
from resist_hvd.tasks.classification import Classification
from resist_hvd.training.evaluate import evaluate
from resist_hvd.training.run import load_source
from resist_hvd.units import counted, scaled


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A candidate's seconds, bytes, memory and accuracy in one repeat.

    Attributes:
        seconds_step: of the slowest rank, the round's end included.
        seconds_arithmetic: of a step in which nothing communicates, the slowest rank's.
        seconds_communication: of a step, the mean over ranks; waiting for others is part of it.
        seconds_hidden: for how long, of a step, communication went on beside steps, the mean over ranks.
        bytes_counted: payload that ranks handed over to be sent, by the program's own count.
        bytes_network: what hosts' interfaces sent to other hosts, by the kernel's, headers included.
        bytes_loopback: what went through loopbacks, by the kernel's; shared memory is seen by neither.
        memory: the most that a rank had more than before; None where the kernel does not tell.
        accuracy: on the test set, percent; None where it was not evaluated.
    """

    seconds_step: float
    seconds_arithmetic: float
    seconds_communication: float
    seconds_hidden: float
    bytes_counted: int
    bytes_network: int
    bytes_loopback: int
    memory: int | None
    accuracy: float | None


def run(settings: CompareSettings, world: World) -> float:
    """Measure, print a table from rank 0, and return the ratio to the best other; all ranks together."""
    with world.agree("loading the data"):
        source = load_source(settings, world)
    with world.agree("opening the file of measurements"):
        if world.is_first:
            results.check(settings.json)
    if GPIPE in settings.names:
        from resist_hvd.benchmarks.pipeline import settled  # PyTorch's compiler comes with it, which takes seconds

        settings = settled(settings, world, source)
    measured: dict[str, list[Measurement]] = {name: [] for name in settings.names}
    with rivals.process_group(world, settings.interface, pairs=GPIPE in settings.names) as backend:
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
        cut = {GPIPE: {"stages": settings.stages, "micro_batches": settings.micro_batches}} if settings.stages else {}
        results.write(settings.json, {"ranks": world.size, **cut, "measured": written})
    return ratio_to_the_best(measured)


def tell(name: str, repeat: int, settings: CompareSettings, measured: Measurement) -> None:
    """Print what has just been measured: a comparison takes minutes, and may be cut short."""
    step, communicating = 1e3 * measured.seconds_step, 1e3 * measured.seconds_communication
    which = f"  repeat {repeat + 1}/{settings.repeats}  {name:<{max(map(len, settings.names))}}"
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
    kernel, counted, hidden = sent_by_host(), candidate.sent, candidate.hidden
    began = perf_counter()
    communication = [candidate.round() for _ in range(settings.rounds)]
    world.barrier()
    seconds = perf_counter() - began
    sent = sent_by_host().since(kernel)
    counted, hidden = candidate.sent - counted, candidate.hidden - hidden
    peak = memory.above()
    world.barrier()
    accuracy = evaluate(candidate.trained(), source, Classification(), world, nullcontext).figure if evaluates else None
    arithmetic = candidate.arithmetic()
    steps = settings.rounds * settings.local_iterations
    told = [each for each in communication if each is not None]
    first_here = world.local_rank == 0
    everyone = world.gather(
        [
            seconds / steps,
            arithmetic,
            sum(told) / steps if told else max(0.0, seconds / steps - arithmetic),
            hidden / steps,
            counted,
            sent.network * first_here,
            sent.loopback * first_here,
            math.nan if peak is None else peak,
        ]
    )
    return Measurement(
        seconds_step=float(everyone[:, 0].max()),
        seconds_arithmetic=float(everyone[:, 1].max()),
        seconds_communication=float(everyone[:, 2].mean()),
        seconds_hidden=float(everyone[:, 3].mean()),
        bytes_counted=int(everyone[:, 4].sum()),
        bytes_network=int(everyone[:, 5].sum()),
        bytes_loopback=int(everyone[:, 6].sum()),
        memory=None if bool((everyone[:, 7] != everyone[:, 7]).any()) else int(everyone[:, 7].max()),
        accuracy=accuracy,
    )


def ratio_to_the_best(measured: dict[str, list[Measurement]]) -> float:
    """Return the seconds of the fastest row of ResIST over those of the fastest other, repeat by repeat.

    Where there is no row of ResIST the first is taken in its place, and where there is nothing else the ratio is 1.
    """
    seconds = {name: [m.seconds_step for m in measurements] for name, measurements in measured.items()}
    own = [name for name in seconds if Row.read(name).method == "resist"] or [next(iter(seconds))]
    fastest = min((seconds[name] for name in own), key=median)
    others = [values for name, values in seconds.items() if name not in own]
    return paired_ratio(fastest, min(others, key=median)) if others else 1.0


def show(settings: CompareSettings, world: World, backend: str, measured: dict[str, list[Measurement]]) -> None:
    """Print a row a candidate."""
    baseline = [m.seconds_step for m in next(iter(measured.values()))]

    def milliseconds(attribute: Callable[[Measurement], float]) -> Callable[[list[Measurement]], str]:
        return lambda ms: f"{1e3 * median(map(attribute, ms)):.1f}"

    def volume(attribute: Callable[[Measurement], int | None]) -> Callable[[list[Measurement]], str]:
        return lambda ms: scaled(median(known), "B") if (known := told(attribute, ms)) else "–"  # noqa: RUF001

    def told(attribute: Callable[[Measurement], float | None], ms: list[Measurement]) -> list[float]:
        return [value for m in ms if (value := attribute(m)) is not None]

    columns: list[Column[list[Measurement]]] = [
        ("ms a step", milliseconds(lambda m: m.seconds_step)),
        ("least", lambda ms: f"{1e3 * min(m.seconds_step for m in ms):.1f}"),
        ("most", lambda ms: f"{1e3 * max(m.seconds_step for m in ms):.1f}"),
        ("arithmetic", milliseconds(lambda m: m.seconds_arithmetic)),
        ("times it", lambda ms: f"{median(m.seconds_step / m.seconds_arithmetic for m in ms):.2f}"),
        ("waits", milliseconds(lambda m: m.seconds_communication)),
        ("hidden", milliseconds(lambda m: m.seconds_hidden)),
        ("of the first", lambda ms: f"{paired_ratio([m.seconds_step for m in ms], baseline):.2f}"),
        ("counted", volume(lambda m: m.bytes_counted)),
        ("on the network", volume(lambda m: m.bytes_network)),
        ("on loopbacks", volume(lambda m: m.bytes_loopback)),
        ("memory", volume(lambda m: m.memory)),
        ("accuracy", lambda ms: "".join(f"{value:.2f} %" for value in told(lambda m: m.accuracy, ms)[:1]) or "–"),  # noqa: RUF001
    ]
    steps = settings.rounds * settings.local_iterations
    stages = "-".join(map(str, settings.stages))
    pipe = f"; {GPIPE} in stages of {stages} parts, {settings.micro_batches} micro-batches" if stages else ""
    print_rows(
        f"{counted(world.size, 'rank')} on {counted(world.size // world.local_size, 'host')}, {settings.data.name}, "
        f"batches of {settings.data.batch_size}, l = {settings.local_iterations}, {counted(steps, 'step')} each; "
        f"PyTorch over {backend}{pipe}",
        measured,
        columns,
        f"{counted(settings.repeats, 'repeat')} in turn: medians, and the least and the most of a step. Arithmetic: "
        "ms of a step in which nothing communicates; times it: a step over it. Waits: ms of a step in which "
        "communication was waited for; hidden: in which it went on beside steps. Of the first: a step over the first "
        "row's. Bytes of all ranks in all steps: counted is payload handed over, network and loopbacks are the "
        "kernel's. Memory: the most of a rank above what it had before.",
        width=170,
    )
