"""Measures the network between hosts, and how far their clocks are apart."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from resist_hvd.comm.world import World

PINGS = 20
SMALLEST, LARGEST = 2**16, 2**26


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


def clock_offsets(world: World) -> dict[str, float]:
    """Return how many seconds each host's clock is ahead of rank 0's, on every rank. All ranks call it together."""
    hosts = world.gather_objects(world.host)
    offsets = {hosts[0]: 0.0}
    there = np.zeros(1)
    for rank in first_ranks(hosts)[1:]:
        best = float("inf")
        for _ in range(PINGS):
            if world.rank == 0:
                began = time.time()
                world.comm.Sendrecv(there, dest=rank, recvbuf=there, source=rank)
                ended = time.time()
                if ended - began < best:
                    best, offsets[hosts[rank]] = ended - began, float(there[0]) - (began + ended) / 2
            elif world.rank == rank:
                world.comm.Recv(there, source=0)
                there[0] = time.time()
                world.comm.Send(there, dest=0)
    return world.broadcast_object(offsets)
