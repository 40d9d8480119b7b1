"""`bench cycle`: how Horovod's cycle and yielding ranks tell on rounds of an idle machine, and of a full one.

Both are read as MPI and Horovod start. So each way of waiting is measured in worlds of its own, started in turn.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from shutil import which
from statistics import median
from time import perf_counter

import torch

from resist_hvd import console
from resist_hvd.benchmarks import results
from resist_hvd.benchmarks.spinners import Spinners
from resist_hvd.benchmarks.sync import slowest
from resist_hvd.benchmarks.table import Column, print_rows, spread
from resist_hvd.comm.launch import CORES, CYCLE_VARIABLE, YIELD_VARIABLE
from resist_hvd.comm.world import World
from resist_hvd.errors import UserError
from resist_hvd.methods.base import Setup
from resist_hvd.methods.resist import Resist
from resist_hvd.nets import families
from resist_hvd.seeds import derive
from resist_hvd.settings.bench import CycleSettings
from resist_hvd.units import counted

IDLE, FULL = "idle", "full"
SIDE = 256
"""Rows and columns of the matrices that stand for a round's arithmetic."""

Measured = dict[str, dict[str, list[float]]]
"""By state, idle or full: milliseconds of each measured round's arithmetic, and of its synchronisation."""


# -- many worlds, in turn ------------------------------------------------------------------------------------------


def compare(settings: CycleSettings) -> float:
    """Measure each way of waiting in worlds of its own, print a table, and return the chosen way's ratio to the best.

    The ratio is of rounds on a full machine.

    Raises:
        UserError: there is no mpirun, a world ended with an error, or the file of measurements cannot be written.
    """
    results.check(settings.json)
    ways: dict[str, dict[str, str]] = {"as chosen here": {}}
    for cycle in settings.cycles.split(","):
        for yields in ("0", "1"):
            name = f"{float(cycle):g} ms, {'yield' if yields == '1' else 'keep the core'}"
            ways[name] = {CYCLE_VARIABLE: cycle, YIELD_VARIABLE: yields}
    worlds: dict[str, list[Measured]] = {name: [] for name in ways}
    for start in range(settings.starts):
        # There and back, so that none gains by what comes before it.
        for name in reversed(ways) if start % 2 else ways:
            worlds[name].append(measure_apart(settings, ways[name]))
            # It takes minutes, and may be cut short.
            figures = ", ".join(f"{median(whole(worlds[name][-1], state)):.1f} ms {state}" for state in (IDLE, FULL))
            console.out(f"  start {start + 1}/{settings.starts}  {name:<22}  {figures}")
    results.write(settings.json, worlds)
    show(settings, worlds)
    full = {name: median(median(whole(world, FULL)) for world in of) for name, of in worlds.items()}
    return full["as chosen here"] / min(full.values())


def measure_apart(settings: CycleSettings, variables: dict[str, str]) -> Measured:
    """Return what a world that is started with these variables measures.

    Raises:
        UserError: there is no mpirun, or the world ended with an error.
    """
    mpirun = which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if mpirun is None:
        raise UserError("There is no mpirun on the PATH", mend="Load the module of the site's MPI.")
    flags = {
        name: getattr(settings, name) for name in ("repeats", "rounds", "work", "spinners", "min_blocks", "seed")
    } | {f"model.{name}": getattr(settings.model, name) for name in ("sections", "width_factor")}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "measured.json")
        launcher = [mpirun, "-np", str(settings.ranks), "--host", f"localhost:{settings.ranks}", "--bind-to", "none"]
        words = [f"--{name}={value}" for name, value in flags.items() if value is not None]
        done = subprocess.run(
            [*launcher, "--quiet", sys.executable, "-m", "resist_hvd.bench", "cycle", f"--json={file}", *words],
            env=os.environ | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            check=False,
        )
        if done.returncode != 0:
            raise UserError(f"A world of {settings.ranks} ranks ended with status {done.returncode}", mend="See above.")
        measured: Measured = json.loads(file.read_text())
    return measured


def show(settings: CycleSettings, worlds: dict[str, list[Measured]]) -> None:
    """Print a row for each way of waiting."""
    first = next(iter(worlds.values()))

    def columns(state: str) -> list[Column[list[Measured]]]:
        def part(name: str) -> Column[list[Measured]]:
            return f"{state}: {name} ms", lambda of: spread([value for world in of for value in world[state][name]])

        def ratio(of: list[Measured]) -> str:
            pairs = zip(of, first, strict=True)
            return f"{median(median(whole(a, state)) / median(whole(b, state)) for a, b in pairs):.2f}"

        return [part("arithmetic"), part("synchronising"), ("ratio", ratio)]

    spinners = len(CORES) if settings.spinners is None else settings.spinners
    print_rows(
        f"Rounds of {counted(settings.ranks, 'rank')} on {counted(len(CORES), 'core')}, idle but for them, or kept "
        f"full by {counted(spinners, 'spinner')}",
        worlds,
        [*columns(IDLE), *columns(FULL)],
        f"median (least to most) of {settings.starts} worlds in turn, {settings.repeats} measurements in each, of "
        f"{settings.rounds} rounds, the slowest rank's; ratio: of whole rounds to the first row's, start by start",
        width=170,
    )


def whole(measured: Measured, state: str) -> list[float]:
    """Return the milliseconds of whole rounds, in each measurement."""
    parts = measured[state]
    return [sum(pair) for pair in zip(parts["arithmetic"], parts["synchronising"], strict=True)]


# -- in one world --------------------------------------------------------------------------------------------------


def run(settings: CycleSettings, world: World) -> float:
    """Measure the way in which this world waits, and write it down; all ranks call it together.

    Returns:
        how many times longer rounds of a full machine take.
    """
    network = families.chosen(settings.model, channels=3, image_size=32, classes=10)
    setup = Setup(network=network, world=world, seed=settings.seed, min_blocks=settings.min_blocks)
    rounds = Rounds(settings, world, Resist(setup, derive(settings.seed, "round", 0)))
    measured: Measured = {state: {"arithmetic": [], "synchronising": []} for state in (IDLE, FULL)}
    number = len(CORES) if settings.spinners is None else settings.spinners
    with Spinners(number if world.local_rank == 0 else 0, CORES) as spinners:
        for _ in range(settings.repeats):
            for state in (IDLE, FULL):
                world.barrier()
                with spinners.running() if state == FULL else nullcontext():
                    arithmetic, synchronising = rounds.measure()
                measured[state]["arithmetic"].append(arithmetic)
                measured[state]["synchronising"].append(synchronising)
    if world.is_first:
        way = f"cycle {os.environ[CYCLE_VARIABLE]} ms, yield {os.environ.get(YIELD_VARIABLE, '0')}"
        console.out(f"{way}: {median(whole(measured, IDLE)):.1f} ms idle, {median(whole(measured, FULL)):.1f} ms full")
        results.write(settings.json, measured)
    return median(whole(measured, FULL)) / median(whole(measured, IDLE))


class Rounds:
    """Rounds of arithmetic and ResIST's synchronisation."""

    def __init__(self, settings: CycleSettings, world: World, method: Resist) -> None:
        self.settings, self.world, self.method = settings, world, method
        self.done = 0
        self.left, self.right = torch.rand(SIDE, SIDE), torch.rand(SIDE, SIDE)
        self.out = torch.empty(SIDE, SIDE)
        self.products = 1
        # The least of many is what a product takes on a core left alone.
        least = float(world.gather([min(self.seconds() for _ in range(50))]).min())
        self.products = max(1, round(settings.work / (1e3 * least)))

    def seconds(self) -> float:
        """Return what a round's arithmetic takes on this rank."""
        began = perf_counter()
        self.multiply()
        return perf_counter() - began

    def multiply(self) -> None:
        """Do a round's arithmetic."""
        for _ in range(self.products):
            torch.mm(self.left, self.right, out=self.out)

    def synchronise(self) -> None:
        """Average, and move blocks, as at a round's end."""
        self.done += 1
        self.method.synchronise(derive(self.settings.seed, "round", self.done))

    def measure(self) -> tuple[float, float]:
        """Return the milliseconds of a round's arithmetic and of its synchronisation: means, of the slowest rank."""
        self.synchronise()  # the first negotiates names anew
        arithmetic = synchronising = 0.0
        for _ in range(self.settings.rounds):
            arithmetic += slowest(self.world, self.multiply)
            synchronising += slowest(self.world, self.synchronise)
        return 1e3 * arithmetic / self.settings.rounds, 1e3 * synchronising / self.settings.rounds
