"""`bench sync`: what a synchronisation costs, against one MPI_Allreduce of the trunk alone."""

from __future__ import annotations

import torch

from resist_hvd.benchmarks.table import paired_ratio, show
from resist_hvd.benchmarks.timing import slowest
from resist_hvd.comm.probe import allreduce_by_mpi
from resist_hvd.comm.world import World
from resist_hvd.methods.base import Setup
from resist_hvd.methods.resist import Resist
from resist_hvd.nets import families
from resist_hvd.seeds import derive
from resist_hvd.settings.bench import LinkSettings, SyncSettings
from resist_hvd.units import counted


def run(settings: SyncSettings, world: World) -> float:
    """Measure, print a table from rank 0, and return the ratio; all ranks call it together."""
    method = begin(settings, world, classes=100)
    # A copy, since a sum over ranks grows in each repeat.
    trunk = torch.zeros_like(method.subnet.trunk, device="cpu")
    seconds: dict[str, list[float]] = {"MPI_Allreduce of the trunk alone": [], "ResIST's synchronisation": []}
    rounds = 0

    def synchronise() -> None:
        nonlocal rounds
        rounds += 1
        method.synchronise(derive(settings.seed, "round", rounds))

    candidates = [lambda: allreduce_by_mpi(world, trunk), synchronise]
    for repeat in range(-2, settings.repeats):
        for values, candidate in zip(seconds.values(), candidates, strict=True):
            elapsed = slowest(world, candidate)
            if repeat >= 0:
                values.append(elapsed)
    baseline, measured = seconds.values()
    if world.is_first:
        sent = method.transport.sent
        blocks = method.subnet.slots
        show(
            f"{counted(world.size, 'rank')}: trunk of {method.subnet.trunk.numel():,} parameters, "
            f"{counted(len(blocks), 'block')} a worker",
            seconds,
            f"{counted(settings.repeats, 'repeat')} in turn, each the slowest rank's; sent a round by rank 0: trunk "
            f"{sent.trunk / rounds / 1e6:.1f} MB, blocks {sent.blocks / rounds / 1e6:.1f} MB",
        )
    return paired_ratio(measured, baseline)


def begin(settings: SyncSettings | LinkSettings, world: World, *, classes: int) -> Resist:
    """Return ResIST on the settings' network, for images of 32 x 32 pixels, before its first round."""
    setup = Setup(
        network=families.chosen(settings.model, channels=3, image_size=32, classes=classes),
        world=world,
        seed=settings.seed,
        min_blocks=settings.min_blocks,
        exchange=settings.exchange,
    )
    return Resist(setup, derive(settings.seed, "round", 0))
