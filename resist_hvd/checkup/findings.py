"""Findings from all ranks' views: what is sound, what could be better, what must be mended. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal, TypeVar

from resist_hvd.checkup.view import View
from resist_hvd.comm.devices import Choice, shares_gpus
from resist_hvd.comm.probe import Link
from resist_hvd.comm.resources import memory as memory_shares
from resist_hvd.comm.resources import shared_cores

T = TypeVar("T", bound=Hashable)

MIB, GIB = 2**20, 2**30
SHARED_MEMORY = 32 * MIB
"""Bytes that a rank needs in /dev/shm: Open MPI's and NCCL's buffers for ranks of the same host."""
LOCKED_MEMORY = 64 * MIB
"""Bytes that a process must be able to lock for InfiniBand."""
MEMORY = 2 * GIB
"""Bytes of memory that a rank should find available: PyTorch and its libraries take about half of it."""
DISK_LEAST, DISK_WELL = 256 * MIB, 10 * GIB
"""Bytes that must be free at the run's folder, and those that leave room for checkpoints of a large network."""
CLOCK_LEAST, CLOCK_WELL = 30.0, 1.0
"""Seconds that clocks may be apart."""
ROUNDING = 1e-6
SLOW_LINK = 0.5
"""A link with less than this share of the median bandwidth is out of line."""

Level = Literal["ok", "note", "mend"]


@dataclass(frozen=True)
class Finding:
    """A line of the table.

    Attributes:
        level: sound; could be better, and runs all the same; must be mended.
        mend: what to do, empty where it is sound.
    """

    check: str
    seen: str
    level: Level = "ok"
    mend: str = ""


def judge(views: Sequence[View], links: Sequence[Link], clocks: Mapping[str, float]) -> list[Finding]:
    """Return a finding for each check.

    Args:
        views: every rank's.
        links: between hosts, empty where they were not measured.
        clocks: seconds that each host's is ahead of rank 0's, empty where they were not measured.
    """
    checks: list[Callable[[Sequence[View]], Finding | None]] = [
        ranks,
        cores,
        memory,
        mpi,
        horovod,
        told,
        pytorch,
        gpus,
        precision,
        dali,
        code,
        config,
        shared_memory,
        locked_memory,
        output,
    ]
    found = [finding for check in checks if (finding := check(views)) is not None]
    return [*found, *network(links), *clock(clocks)]


def by_value(views: Sequence[View], value: Callable[[View], T]) -> dict[T, list[str]]:
    """Return the hosts on which each value was seen, the most common value first."""
    seen: dict[T, list[str]] = {}
    for view in views:
        hosts = seen.setdefault(value(view), [])
        if view.host not in hosts:
            hosts.append(view.host)
    counts = {key: sum(value(view) == key for view in views) for key in seen}
    return {key: seen[key] for key in sorted(seen, key=lambda key: -counts[key])}


def listed(hosts: Sequence[str]) -> str:
    """Return names of hosts, the first few of many."""
    return ", ".join(hosts[:3]) + (f" and {len(hosts) - 3} more" if len(hosts) > 3 else "")


def alike(check: str, views: Sequence[View], value: Callable[[View], str], mend: str, shown: int = 60) -> Finding:
    """Return the finding that something is, or is not, the same for all ranks."""
    seen = by_value(views, value)
    if len(seen) == 1:
        return Finding(check, next(iter(seen))[:shown])
    parts = [f"{(text or 'none')[:shown]} on {listed(hosts)}" for text, hosts in seen.items()]
    return Finding(check, "; ".join(parts), "mend", mend)


def hosts_of(views: Sequence[View]) -> dict[str, list[View]]:
    """Return the views of each host, in the order of their ranks."""
    hosts: dict[str, list[View]] = {}
    for view in views:
        hosts.setdefault(view.host, []).append(view)
    return hosts


def ranks(views: Sequence[View]) -> Finding:
    """Check that every host has as many ranks as the others."""
    hosts = hosts_of(views)
    counts = sorted({len(there) for there in hosts.values()})
    noun = "rank" if len(views) == 1 else "ranks"
    seen = f"{len(views)} {noun} on {listed(list(hosts))}"
    if len(counts) > 1:
        return Finding(
            "ranks",
            f"{seen}: between {counts[0]} and {counts[-1]} a host",
            "note",
            "A round waits for the slowest rank: give each host as many.",
        )
    return Finding("ranks", f"{seen}: {counts[0]} a host" if len(hosts) > 1 else seen)


def cores(views: Sequence[View]) -> Finding:
    """Check that ranks and their threads have a core each, and that no core is left out."""
    hosts = hosts_of(views)
    for look in (tied_to_the_same, too_few, left_out):
        for host, there in hosts.items():
            if found := look(host, there):
                return found
    own = shared_cores([view.resources for view in hosts[views[0].host]])[0]
    seen = f"{count(own, 'core')}{limits(views[:1])} for rank 0, {views[0].threads} of its threads compute"
    return Finding("cores", seen)


def tied_to_the_same(host: str, there: Sequence[View]) -> Finding | None:
    """Return a finding if OpenMP ties threads of several ranks to the same cores."""
    masks = [view.resources.cores for view in there if view.resources.omp_bound]
    if len(set().union(*masks)) == sum(map(len, masks)):
        return None
    seen = f"OMP_PROC_BIND or OMP_PLACES ties the threads of {len(masks)} ranks on {host} to the same cores"
    return Finding("cores", seen, "note", "Unset both, or have the launcher give each rank cores of its own.")


def too_few(host: str, there: Sequence[View]) -> Finding | None:
    """Return a finding if ranks of a host compute with more threads than they have cores."""
    shares = shared_cores([view.resources for view in there])
    wanted, available = sum(view.threads for view in there), sum(shares)
    if wanted <= available + ROUNDING:
        excess = [(view.threads, share) for view, share in zip(there, shares, strict=True)]
        wanted, available = max(excess, key=lambda pair: pair[0] - pair[1])
        if wanted < available + 1 - ROUNDING:  # a rank with a part of a core has a thread all the same
            return None
    seen = f"{count(wanted, 'thread')} on {count(available, 'core')}{limits(there)} on {host}"
    return Finding("cores", seen, "note", "Start fewer ranks, bind fewer to a core, or set OMP_NUM_THREADS lower.")


def left_out(host: str, there: Sequence[View]) -> Finding | None:
    """Return a finding if mpirun ties the ranks of a host to a part of its cores."""
    bound = len(set().union(*(view.resources.cores for view in there)))
    around = max(view.resources.launcher_cores for view in there)
    if bound >= around:
        return None
    return Finding(
        "cores",
        f"mpirun ties the ranks on {host} to {bound} of {around} cores",
        "note",
        "Give mpirun --bind-to none, as launch/run does, or --map-by slot:PE=N for N cores a rank.",
    )


def count(number: float, noun: str) -> str:
    """Return a number with its noun: 1 core, 0.5 cores."""
    return f"{number:.3g} {noun}" + ("" if number == 1 else "s")


def limits(there: Sequence[View]) -> str:
    """Return what control groups limit ranks to, in brackets; empty if they do not."""
    amounts = [limit.amount for view in there for limit in view.resources.core_limits]
    return f" (a control group's limit: {min(amounts):.3g})" if amounts else ""


def memory(views: Sequence[View]) -> Finding:
    """Check that ranks find enough memory."""
    shares = {host: min(memory_shares([v.resources for v in there])) for host, there in hosts_of(views).items()}
    host = min(shares, key=lambda name: shares[name])
    there = hosts_of(views)[host]
    limited = shares[host] < min(view.resources.memory for view in there) // len(there)
    seen = f"{shares[host] / GIB:.1f} GiB available to each rank on {host}"
    seen += ", as its control group limits it" if limited else ""
    if shares[host] < MEMORY:
        mend = "Ask for more (--mem, docker run --memory)." if limited else "Start fewer ranks, or end what else runs."
        return Finding("memory", seen, "note", mend)
    return Finding("memory", seen)


def mpi(views: Sequence[View]) -> Finding:
    """One MPI library, that takes calls from several threads."""
    levels = by_value(views, lambda view: view.libraries.threads)
    if set(levels) != {"multiple"}:
        return Finding(
            "MPI",
            f"thread level {' and '.join(levels)}",
            "mend",
            "Use an MPI built for MPI_THREAD_MULTIPLE: launch/setup brings one.",
        )
    found = alike("MPI", views, lambda view: view.libraries.mpi, "Load the same MPI on all hosts.")
    return replace(found, seen=f"one library for mpi4py and Horovod: {found.seen}")


def horovod(views: Sequence[View]) -> Finding:
    """Horovod as this package needs it, built with MPI."""
    without = [view.host for view in views if not view.libraries.with_mpi]
    if without:
        return Finding("Horovod", f"built without MPI on {listed(without)}", "mend", "Build it anew: run launch/setup.")
    return alike(
        "Horovod",
        views,
        lambda view: f"{view.libraries.horovod}, with {'MPI and NCCL' if view.libraries.with_nccl else 'MPI'}",
        "Run the same launch/setup on all hosts.",
    )


def told(views: Sequence[View]) -> Finding:
    """Variables by which MPI and Horovod were told how to work, by this program or by others."""
    seen = by_value(views, lambda view: " ".join(view.told) or "nothing")
    ways = [words if len(seen) == 1 else f"{words} on {listed(hosts)}" for words, hosts in seen.items()]
    return Finding("told to them", "; ".join(ways))


def pytorch(views: Sequence[View]) -> Finding:
    """The same Python and PyTorch everywhere."""
    return alike(
        "Python, PyTorch",
        views,
        lambda view: f"{view.python}, {view.torch}" + (f" for CUDA {view.cuda}" if view.cuda else ""),
        "Install the same on all hosts, or share one .venv.",
    )


def gpus(views: Sequence[View]) -> Finding:
    """Check that GPUs that are there can be used, and are not shared."""
    hidden = [view.host for view in views if view.gpus_seen and not view.gpus]
    if hidden:
        drivers = ", ".join(sorted({view.driver for view in views if view.gpus_seen}))
        return Finding(
            "GPUs",
            f"PyTorch sees none on {listed(sorted(set(hidden)))}, where there is one (driver {drivers})",
            "mend",
            "Check nvidia-smi, CUDA_VISIBLE_DEVICES, and the driver: CUDA 13 wants 580 or newer.",
        )
    kinds = by_value(views, lambda view: view.gpus)
    if set(kinds) == {()}:
        return Finding("GPUs", "none: ranks compute on CPUs")
    if len(kinds) > 1:
        parts = [
            f"{len(names)} x {names[0] if names else 'no GPU'} on {listed(hosts)}" for names, hosts in kinds.items()
        ]
        return Finding("GPUs", "; ".join(parts), "note", "A round waits for the slowest rank: take hosts of one kind.")
    names = views[0].gpus
    seen = f"{len(names)} x {names[0]} for each rank to see"
    if shares_gpus([Choice(host=view.host, gpu=view.gpu, nccl=view.libraries.with_nccl) for view in views]):
        return Finding("GPUs", f"{seen}, shared by ranks", "note", "Start one rank for each GPU: NCCL refuses two.")
    if len(views) > 1 and not all(view.libraries.with_nccl for view in views):
        mend = "Build Horovod with NCCL: launch/setup --cuda yes."
        return Finding("GPUs", f"{seen}; averages pass through host memory", "note", mend)
    return Finding("GPUs", seen)


def precision(views: Sequence[View]) -> Finding:
    """Check what --precision auto stands for, and whether a few ranks decide it for all."""
    without = sorted({view.host for view in views if not view.bf16})
    if not without:
        return Finding("precision", "every rank is faster by bfloat16: --precision auto is bf16")
    if not any(view.bf16 for view in views):
        return Finding("precision", "no rank is faster by bfloat16: --precision auto is fp32")
    return Finding(
        "precision",
        f"bfloat16 is slower on {listed(without)}: --precision auto is fp32 for all",
        "note",
        "Leave these hosts out, and auto is bf16.",
    )


def dali(views: Sequence[View]) -> Finding:
    """DALI, which not every run needs, but all ranks of one that does."""
    return alike(
        "DALI", views, lambda view: view.dali or "not installed", "Run launch/setup --dali on all hosts, or on none."
    )


def code(views: Sequence[View]) -> Finding:
    """The same code everywhere."""
    return alike("code", views, lambda view: view.code, "Copy one version of the code to all hosts.", shown=12)


def config(views: Sequence[View]) -> Finding | None:
    """The same settings everywhere, if a file of them was given."""
    if not any(view.config for view in views):
        return None
    missing = [view.host for view in views if view.config == "missing"]
    if missing:
        seen = f"--config cannot be read on {listed(sorted(set(missing)))}"
        return Finding("settings", seen, "mend", "Put the file where all hosts see it.")
    return alike("settings", views, lambda view: view.config, "Copy one file of settings to all hosts.", shown=12)


def shared_memory(views: Sequence[View]) -> Finding:
    """Room in /dev/shm for what ranks of one host hand one another."""
    left = {host: min(v.shared_memory for v in there) // len(there) for host, there in hosts_of(views).items()}
    host = min(left, key=lambda name: left[name])
    seen = f"{left[host] / MIB:,.0f} MiB for each rank on {host}"
    if left[host] < SHARED_MEMORY and len(hosts_of(views)[host]) > 1:
        mend = "Give a container more by --shm-size=1g or --ipc=host; else remove old files from /dev/shm."
        return Finding("/dev/shm", seen, "mend", mend)
    return Finding("/dev/shm", seen)


def locked_memory(views: Sequence[View]) -> Finding:
    """Check that processes may lock the memory that InfiniBand needs."""
    least = min(views, key=lambda view: view.locked_memory if view.locked_memory >= 0 else float("inf"))
    limit = "no limit" if least.locked_memory < 0 else f"at most {least.locked_memory / MIB:,.0f} MiB on {least.host}"
    poor = [v.host for v in views if v.infiniband and 0 <= v.locked_memory < LOCKED_MEMORY]
    if poor:
        mend = "Raise it: ulimit -l unlimited, LimitMEMLOCK=infinity for slurmd, --ulimit memlock=-1 for a container."
        return Finding("locked memory", f"{limit}, too little for InfiniBand", "mend", mend)
    return Finding("locked memory", limit if any(view.infiniband for view in views) else f"{limit}; no InfiniBand")


def output(views: Sequence[View]) -> Finding:
    """Check that the run's folder can be written, is one folder for all, and has room."""
    wrong = by_value([view for view in views if view.output_error], lambda view: view.output_error)
    free = min(view.output_free for view in views)
    if wrong:
        reason, hosts = next(iter(wrong.items()))
        mend = "Give an --output on a file system that all hosts share and may write."
        return Finding("run's folder", f"{reason} on {listed(hosts)}", "mend", mend)
    seen = f"{free / GIB:,.1f} GiB free"
    if free < DISK_LEAST:
        return Finding("run's folder", seen, "mend", "Free space there, or give another --output.")
    if free < DISK_WELL:
        return Finding(
            "run's folder", seen, "note", "A large network's checkpoints may not fit: see --keep_checkpoints."
        )
    return Finding("run's folder", seen)


def network(links: Sequence[Link]) -> list[Finding]:
    """Latency and bandwidth between hosts, and links that are out of line."""
    if not links:
        return []
    latencies = [link.latency * 1e3 for link in links]
    bandwidths = [link.bandwidth * 8e-9 for link in links]
    usual = median(bandwidths)
    findings = [
        Finding("latency", f"{spread(latencies)} ms between hosts"),
        Finding("bandwidth", f"{spread(bandwidths)} Gbit/s between hosts"),
    ]
    slow = [link for link in links if link.bandwidth * 8e-9 < SLOW_LINK * usual]
    if slow:
        worst = min(slow, key=lambda link: link.bandwidth)
        seen = f"{worst.one} to {worst.other} {worst.bandwidth * 8e-9:.3g} Gbit/s, where the median is {usual:.3g}"
        mend = f"Look at this link{f' and {len(slow) - 1} more' if len(slow) > 1 else ''}, or leave the host out."
        findings[1] = Finding("bandwidth", seen, "note", mend)
    return findings


def spread(values: Sequence[float]) -> str:
    """Return one number, or the lowest and highest of several, in three digits."""
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"


def clock(clocks: Mapping[str, float]) -> list[Finding]:
    """Check that clocks agree: what different hosts write down must be comparable."""
    if len(clocks) < 2:
        return []
    host = max(clocks, key=lambda name: abs(clocks[name]))
    apart = abs(clocks[host])
    seen = f"at most {apart * 1e3:,.0f} ms apart" if apart < CLOCK_WELL else f"{host} is {apart:,.0f} s off rank 0's"
    level: Level = "mend" if apart > CLOCK_LEAST else "note" if apart > CLOCK_WELL else "ok"
    return [Finding("clocks", seen, level, "" if level == "ok" else "Run chrony or ntpd on all hosts.")]
