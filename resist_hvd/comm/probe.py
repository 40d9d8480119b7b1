"""Measurements of what a launch runs on: MPI and Horovod, the network between hosts, and the ranks' clocks."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from torch import Tensor

from resist_hvd.comm.world import World

PINGS = 20
"""Messages of a byte that measure a latency, or a clock."""

SMALLEST, LARGEST = 2**16, 2**26
"""Bytes of the messages that measure a bandwidth."""

THREAD_LEVELS = ("single", "funneled", "serialized", "multiple")


@dataclass(frozen=True, kw_only=True)
class Libraries:
    """An MPI library and a build of Horovod.

    Attributes:
        mpi: make and version of the MPI library: "Open MPI v4.1.8".
        threads: which calls it takes from several threads: `multiple` is what this package needs.
        horovod: its version.
        with_mpi, with_nccl: what it was built with.
    """

    mpi: str
    threads: str
    horovod: str
    with_mpi: bool
    with_nccl: bool


def libraries() -> Libraries:
    """Return what this process has loaded; `World.join` has seen to it that there is one MPI library."""
    import horovod
    import horovod.torch as hvd
    from mpi4py import MPI

    return Libraries(
        mpi=re.split(r"[,\n]", MPI.Get_library_version())[0].strip(),
        threads=THREAD_LEVELS[
            (MPI.THREAD_SINGLE, MPI.THREAD_FUNNELED, MPI.THREAD_SERIALIZED, MPI.THREAD_MULTIPLE).index(
                MPI.Query_thread()
            )
        ],
        horovod=horovod.__version__,
        with_mpi=bool(hvd.mpi_built()),
        with_nccl=bool(hvd.nccl_built()),
    )


@dataclass(frozen=True, kw_only=True)
class Link:
    """Network between two hosts.

    Attributes:
        latency: seconds that a message of a byte takes, one way.
        bandwidth: bytes a second, one way.
    """

    one: str
    other: str
    latency: float
    bandwidth: float


def first_ranks(hosts: Sequence[str]) -> list[int]:
    """Return the lowest rank of each host, given every rank's host."""
    return sorted({host: hosts.index(host) for host in hosts}.values())


def turns(players: Sequence[int]) -> Iterator[list[tuple[int, int]]]:
    """Yield, turn by turn, pairs without a player in common, until each has met each (the circle method)."""
    circle: list[int | None] = [*players, *([None] if len(players) % 2 else [])]
    for _ in range(len(circle) - 1):
        half = len(circle) // 2
        pairs = zip(circle[:half], reversed(circle[half:]), strict=True)
        yield [(min(a, b), max(a, b)) for a, b in pairs if a is not None and b is not None]
        circle = [circle[0], circle[-1], *circle[1:-1]]


def probe(world: World, seconds: float) -> list[Link]:
    """Measure every pair of hosts, by one rank each; return the links, on every rank. All ranks call it together.

    Args:
        world: all ranks.
        seconds: about how long all of it may take.
    """
    hosts = world.gather_objects(world.host)
    players = first_ranks(hosts)
    found: list[Link] = []
    for pairs in turns(players):
        for one, other in pairs:
            if world.rank == one:
                latency, bandwidth = measure(world, other, seconds / max(1, len(players) - 1))
                found.append(Link(one=hosts[one], other=hosts[other], latency=latency, bandwidth=bandwidth))
            elif world.rank == other:
                answer(world, one)
        world.barrier()
    return [link for links in world.gather_objects(found) for link in links]


def measure(world: World, other: int, seconds: float) -> tuple[float, float]:
    """Return latency in seconds and bandwidth in bytes a second to rank `other`, which calls `answer`."""
    trips = [round_trip(world, other, 1) for _ in range(PINGS)]
    size, best, end = SMALLEST, 0.0, time.monotonic() + seconds
    while True:
        taken = round_trip(world, other, size)
        best = max(best, 2 * size / taken)
        # The next size takes twice as long.
        if size == LARGEST or time.monotonic() + 2 * taken > end:
            break
        size *= 2
    send_size(world, other, 0)
    return median(trips) / 2, best


def send_size(world: World, other: int, size: int) -> None:
    """Tell rank `other` how large the next message is; 0: there is none."""
    world.comm.Send(np.array([size], dtype=np.int64), dest=other)


def round_trip(world: World, other: int, size: int) -> float:
    """Return the seconds that a message of so many bytes takes there and back."""
    buffer = np.zeros(size, dtype=np.uint8)
    send_size(world, other, size)
    began = time.perf_counter()
    world.comm.Send(buffer, dest=other)
    world.comm.Recv(buffer, source=other)
    return time.perf_counter() - began


def answer(world: World, one: int) -> None:
    """Send back to rank `one`, which calls `measure`, what comes from it."""
    size = np.zeros(1, dtype=np.int64)
    while True:
        world.comm.Recv(size, source=one)
        if size[0] == 0:
            return
        buffer = np.empty(size[0], dtype=np.uint8)
        world.comm.Recv(buffer, source=one)
        world.comm.Send(buffer, dest=one)


def clock_offsets(world: World, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Return by how many seconds each rank's clock is ahead of rank 0's, on every rank. All ranks call it together.

    Cristian's algorithm (1989): rank 0 asks a rank for its time, and takes it for the time half-way between question
    and answer. The error is at most half of the shortest exchange.

    Args:
        world: all ranks.
        clock: reads the clock, in seconds.
    """
    cell, offsets = np.zeros(1), np.zeros(world.size)
    with world.activity.waiting():
        for rank in range(1, world.size):
            shortest = np.inf
            for _ in range(PINGS):
                if world.rank == rank:
                    world.comm.Recv(cell, source=0)
                    cell[0] = clock()
                    world.comm.Send(cell, dest=0)
                elif world.is_first:
                    asked = clock()
                    world.comm.Sendrecv(cell, dest=rank, recvbuf=cell, source=rank)
                    answered = clock()
                    if answered - asked < shortest:
                        shortest = answered - asked
                        offsets[rank] = cell[0] - (asked + answered) / 2
        world.comm.Bcast(offsets, root=0)
    return [float(offset) for offset in offsets]


def allreduce_by_mpi(world: World, flat: Tensor) -> None:
    """Sum a contiguous buffer in host memory over all ranks, in place, by one MPI_Allreduce: a benchmark's baseline."""
    from mpi4py import MPI

    world.comm.Allreduce(MPI.IN_PLACE, flat.numpy())


def pass_on(world: World, leaving: Tensor, coming: Tensor) -> None:
    """Send a buffer in host memory to the next rank, and fill another with that of the rank before, by one MPI call.

    It is the least that can be asked of MPI between hosts, and so a benchmark's baseline.
    """
    after, before = (world.rank + 1) % world.size, (world.rank - 1) % world.size
    with world.activity.waiting():
        world.comm.Sendrecv(leaving.numpy(), dest=after, recvbuf=coming.numpy(), source=before)
