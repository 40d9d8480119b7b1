"""Cores and memory a rank may use: affinity masks and control groups' limits of all ranks of its host.

A launcher may tie each rank to cores of its own or let all of them share the host's, and a container, a batch job or a
service may be limited further. `threads` and `memory` divide what the ranks of a host have among them; they are pure.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import psutil

from resist_hvd.comm.launch import CORES, launcher_cores

UNLIMITED = 2**60
"""A version 1 control group without a limit has one of nearly 2^63 bytes."""


@dataclass(frozen=True)
class Limit:
    """Bound that a control group sets for all of its processes together.

    Attributes:
        group: the control group; equal for ranks of a host that are in the same one.
        amount: cores, or bytes that are left.
    """

    group: str
    amount: float


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Share of its host that one rank may use.

    Attributes:
        cores: those it may run on.
        core_limits: of its control group and of those above it, in cores.
        memory: available on the machine, in bytes.
        memory_limits: of its control group and of those above it, in bytes that are left.
        omp_threads: OMP_NUM_THREADS, 0 where it is not set.
        omp_bound: whether OMP_PROC_BIND or OMP_PLACES ties OpenMP's threads to cores.
        launcher_cores: how many cores the mpirun that started this rank may run on, 0 where there is none.
    """

    cores: frozenset[int]
    core_limits: tuple[Limit, ...] = ()
    memory: int = UNLIMITED
    memory_limits: tuple[Limit, ...] = ()
    omp_threads: int = 0
    omp_bound: bool = False
    launcher_cores: int = 0


def shared_cores(there: Sequence[Resources]) -> list[float]:
    """Return how many cores each rank of a host has: a core that several may run on is divided among them.

    Args:
        there: every rank of one host.
    """
    contenders = Counter(core for rank in there for core in rank.cores)
    shares = [sum((Fraction(1, contenders[core]) for core in rank.cores), Fraction()) for rank in there]
    least = _least_shares([rank.core_limits for rank in there])
    return [min(float(share), limit) for share, limit in zip(shares, least, strict=True)]


def threads(there: Sequence[Resources]) -> list[int]:
    """Return with how many threads each rank of a host computes: OMP_NUM_THREADS, else one for each core it has.

    Args:
        there: every rank of one host.
    """
    shares = shared_cores(there)
    return [rank.omp_threads or max(1, math.floor(share)) for rank, share in zip(there, shares, strict=True)]


def memory(there: Sequence[Resources]) -> list[int]:
    """Return how many bytes each rank of a host finds: its share of the machine's, or of its control groups' if less.

    Args:
        there: every rank of one host.
    """
    least = _least_shares([rank.memory_limits for rank in there])
    return [int(min(rank.memory / len(there), limit)) for rank, limit in zip(there, least, strict=True)]


def _least_shares(limits: Sequence[Sequence[Limit]]) -> list[float]:
    """Return each rank's share of the tightest of its limits, each divided among the ranks under it."""
    members = Counter(group for own in limits for group in {limit.group for limit in own})
    return [min((limit.amount / members[limit.group] for limit in own), default=math.inf) for own in limits]


# -- as this process finds them ------------------------------------------------------------------------------------


def own_resources() -> Resources:
    """Return what this process may use, without regard to others."""
    omp_bound = os.environ.get("OMP_PROC_BIND", "false").lower() != "false" or "OMP_PLACES" in os.environ
    omp_threads = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    folders = list(control_groups(Path("/proc/self")))
    return Resources(
        cores=CORES if omp_bound else frozenset(os.sched_getaffinity(0)),
        core_limits=tuple(limit for folder in folders for limit in core_limit(folder)),
        memory=psutil.virtual_memory().available,
        memory_limits=tuple(limit for folder in folders for limit in memory_limit(folder)),
        omp_threads=int(omp_threads) if omp_threads.isdecimal() else 0,
        omp_bound=omp_bound,
        launcher_cores=launcher_cores(),
    )


def control_groups(process: Path) -> Iterator[Path]:
    """Yield the folders of a process's control groups for cores and memory, and of all groups above them.

    Args:
        process: its folder in /proc.
    """
    try:
        groups = [line.split(":", 2) for line in (process / "cgroup").read_text().splitlines()]
        mounts = [line.split() for line in (process / "mountinfo").read_text().splitlines()]
    except OSError:
        return
    for mount in mounts:
        separator = mount.index("-")
        kind, options = mount[separator + 1], set(mount[-1].split(","))
        root, point = mount[3], Path(mount[4])
        for _, controllers, path in groups:
            # Version 2 has one hierarchy, without a list of controllers; version 1 one for each.
            belongs = not controllers if kind == "cgroup2" else bool({"cpu", "memory"} & set(controllers.split(",")))
            if kind not in ("cgroup", "cgroup2") or not belongs:
                continue
            if kind == "cgroup" and not set(controllers.split(",")) <= options:
                continue
            # In a container only a part of the hierarchy may be mounted, with the group's own folder on top.
            below = Path(path).relative_to(root) if Path(path).is_relative_to(root) else Path()
            folder = point / below
            yield from (each for each in (folder, *folder.parents) if each.is_relative_to(point) and each.is_dir())


def core_limit(folder: Path) -> Iterator[Limit]:
    """Yield the limit of cores that a control group sets, if it does: its quota in each period."""
    whole = _words(folder / "cpu.max")  # version 2
    if len(whole) != 2:
        whole = _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
    if len(whole) == 2 and all(word.isdecimal() for word in whole) and int(whole[1]) > 0:
        yield Limit(_identity(folder), int(whole[0]) / int(whole[1]))


def memory_limit(folder: Path) -> Iterator[Limit]:
    """Yield the bytes that a control group has left, if it limits them; what it can give back counts as left."""
    names = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
    for limit, used in names:
        words = _words(folder / limit) + _words(folder / used)
        if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[0]) < UNLIMITED:
            statistics = _words(folder / "memory.stat")
            counts = dict(zip(statistics[::2], statistics[1::2], strict=False))
            cached = int(counts.get("total_inactive_file") or counts.get("inactive_file") or 0)
            yield Limit(_identity(folder), max(0, int(words[0]) - max(0, int(words[1]) - cached)))


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []


def _identity(folder: Path) -> str:
    """Return what is the same for one control group wherever it is mounted."""
    status = folder.stat()
    return f"{status.st_dev}:{status.st_ino}"
