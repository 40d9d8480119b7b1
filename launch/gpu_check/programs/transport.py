"""Averages and exchanges of a world's ranks, on one way of travel, compared with what they must come to.

Ways: `nccl` (as ranks decide, who should decide for NCCL), `host` (through pinned host memory), `bound` (each rank sees
one GPU alone, as under SLURM's --gpus-per-task=1), `uneven` (rank 0 has a Horovod without NCCL, so that all take host
memory). On CPUs all ways are one.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from gpu_check.programs import answering
from resist_hvd.comm.devices import gpu_identity
from resist_hvd.comm.transport import Transport
from resist_hvd.comm.world import World
from resist_hvd.guard import failure
from resist_hvd.protocol.exchange import exchange
from resist_hvd.protocol.rule import Rule

WAYS = ("nccl", "host", "bound", "uneven")
DECKS = (7, 0, 4)
MIN_BLOCKS = 3
BLOCK = 100_003
SIZES = (1, 1000, 2_500_001)
BESIDE = 1_200_001
"""Numbers that are averaged among all while blocks travel; like the largest of the sizes, in several pieces on CPUs."""

ROUNDS = 4


def join(way: str, device: str, gpus: int) -> World:
    """Return the world as it is on this way.

    Args:
        way: one of `WAYS`.
        device: cpu or cuda.
        gpus: how many this host has.
    """
    if way == "bound" and device == "cuda":
        bind(gpus)
    if way == "uneven" and os.environ.get("OMPI_COMM_WORLD_RANK") == "0":
        import horovod.torch as hvd

        hvd.nccl_built = lambda: 0
    world = World.join(device)
    failure.watch(world)
    return replace(world, averages_on_gpus=False) if way == "host" else world


def bind(gpus: int) -> None:
    """Have this rank see one GPU alone; before CUDA starts, which is when it reads the variable."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = visible.split(",") if visible else [str(number) for number in range(gpus)]
    os.environ["CUDA_VISIBLE_DEVICES"] = names[int(os.environ.get("OMPI_COMM_WORLD_LOCAL_RANK", "0")) % len(names)]


def values(rank: int, what: int, count: int) -> Tensor:
    """Return what a rank brings along, as every rank can work out: float64 [count], in host memory."""
    generator = torch.Generator().manual_seed(1000 * rank + what)
    return torch.rand(count, generator=generator, dtype=torch.float32).double()


def mean(ranks: Any, what: int, count: int) -> Tensor:
    """Return the mean of what some ranks bring along: float64 [count]."""
    return torch.stack([values(rank, what, count) for rank in ranks]).mean(dim=0)


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest number that is expected; inf where there is none.

    Of NaN and a number, `max` returns either: it would pass for no difference.
    """
    relative = float((found.cpu().double() - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
    return relative if math.isfinite(relative) else math.inf


def averages(world: World, transport: Transport) -> tuple[float, dict[str, float]]:
    """Average buffers of several sizes among all; return the largest difference, and milliseconds of a call by size."""
    worst, milliseconds = 0.0, {}
    for count in SIZES:
        own, expected = values(world.rank, count, count), mean(range(world.size), count, count)
        seconds = []
        for dtype in (torch.float64, *5 * [torch.float32]):
            flat = own.to(world.device, dtype)
            world.barrier()
            began = perf_counter()
            transport.finish(transport.start_average(flat, f"{dtype}.{count}"))
            result = flat.cpu()
            seconds.append(perf_counter() - began)
            worst = max(worst, difference(result, expected))
        milliseconds[str(count)] = round(1e3 * median(seconds), 3)
    return worst, milliseconds


def exchanges(world: World, transport: Transport) -> float:
    """Exchange blocks for some rounds, each beside an average of all; return the largest difference."""
    before = Rule(DECKS, world.size, MIN_BLOCKS).deal(0)
    # Averages of equal values change nothing: after the first round all blocks are what the first made of them.
    means = [mean(before.holders[block], block, BLOCK) for block in range(sum(DECKS))]
    held = {b: values(world.rank, b, BLOCK).to(world.device, torch.float32) for b in before.held[world.rank]}
    worst = 0.0
    for seed in range(1, ROUNDS + 1):
        after = Rule(DECKS, world.size, MIN_BLOCKS).deal(seed)
        arriving = {b: torch.empty(BLOCK, device=world.device) for b in after.held[world.rank] if b not in held}
        trunk = values(world.rank, seed, BESIDE).to(world.device, torch.float32)
        pending = transport.start_average(trunk, "beside")
        transport.exchange(exchange(before, after), held, arriving)
        transport.finish(pending)
        held = {b: {**held, **arriving}[b] for b in after.held[world.rank]}
        worst = max(worst, difference(trunk, mean(range(world.size), seed, BESIDE)))
        worst = max(worst, *(difference(held[block], means[block]) for block in held))
        before = after
    return worst


def broadcasts(world: World, transport: Transport) -> float:
    """Broadcast from every rank; return the largest difference."""
    worst = 0.0
    for root in range(world.size):
        flat = values(world.rank, root, BLOCK).float().to(world.device)
        transport.broadcast(flat, root)
        worst = max(worst, difference(flat, values(root, root, BLOCK)))
    return worst


def answer(world: World) -> dict[str, Any]:
    """Move tensors in every manner; return what all ranks saw together."""
    transport = Transport(world, Rule(DECKS, world.size, MIN_BLOCKS).groups)
    worst, milliseconds = averages(world, transport)
    worst = max(worst, exchanges(world, transport), broadcasts(world, transport))
    return {
        "ranks": world.size,
        "device": world.device.type,
        "by_nccl": world.averages_on_gpus,
        "shares_gpus": world.shares_gpus,
        "gpus": sorted(set(world.gather_objects(gpu_identity(world.device)))),
        "worst": max(world.gather_objects(worst)),
        "milliseconds": milliseconds,
    }


def main() -> None:
    """Do what the flags ask for; rank 0 writes the answer."""
    parser = answering.flags(__doc__)
    parser.add_argument("--way", choices=WAYS, default="host")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="how many this host has")
    given = parser.parse_args()
    world = join(given.way, given.device, given.gpus)
    found = answer(world)
    if world.is_first:
        answering.write(given.answer, found)
    world.barrier()


if __name__ == "__main__":
    failure.run(main)
