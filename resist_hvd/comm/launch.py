"""What a process can know of its launch before MPI is up: from the environment that launchers set.

Nothing here imports MPI or Horovod, so that a mistake in the settings is told before the world is made.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "HOROVOD_RANK", "SLURM_PROCID")
LOCAL_SIZE_VARIABLES = (
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MPI_LOCALNRANKS",
    "HOROVOD_LOCAL_SIZE",
    "SLURM_NTASKS_PER_NODE",
)


def first_integer(variables: tuple[str, ...], default: int) -> int:
    """Return the first of the environment's variables that holds a number, else `default`."""
    for variable in variables:
        value = os.environ.get(variable, "")
        if value.isdecimal():
            return int(value)
    return default


def launched_rank() -> int:
    """Return this process's rank as its launcher says, 0 where none does."""
    return first_integer(RANK_VARIABLES, 0)


def launched_local_size() -> int:
    """Return how many ranks the launcher started on this host, 1 where it does not say."""
    return first_integer(LOCAL_SIZE_VARIABLES, 1)


def host_name() -> str:
    """Return this host's name, short."""
    return socket.gethostname().split(".")[0]


def person_watches() -> bool:
    """Return whether what this process prints goes straight to a person's terminal.

    Open MPI gives each rank a terminal of its own, whatever becomes of the output: so its launcher's counts, unless
    that puts tags before lines, as under horovodrun.
    """
    if not sys.stdout.isatty() or "OMPI_COMM_WORLD_RANK" not in os.environ:
        return sys.stdout.isatty()
    launcher = Path(f"/proc/{os.getppid()}")
    try:
        tagged = any(b"tag-output" in word for word in (launcher / "cmdline").read_bytes().split(b"\0"))
        return not tagged and os.readlink(launcher / "fd" / "1").startswith(("/dev/pts/", "/dev/tty"))
    except OSError:
        return False


def prepare_environment() -> None:
    """Set what Open MPI and Horovod read when they start; what the user has set stays.

    With more ranks than cores a rank that waits must yield its core. Horovod's cycle of 1 ms is the price of each of
    our few collectives, so it is shortened. Buffers are flat already, so that fusing them would only copy them. A
    stalled collective ends the world instead of waiting for ever.
    An Open MPI that lies in the virtual environment is told its folder by its `mpirun`; a single worker, started
    without one, has nobody else to tell it.
    """
    if Path(sys.prefix, "bin", "orted").exists():
        os.environ.setdefault("OPAL_PREFIX", sys.prefix)
    if launched_local_size() > len(os.sched_getaffinity(0)):
        os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
    os.environ.setdefault("HOROVOD_CYCLE_TIME", "0.1")
    os.environ.setdefault("HOROVOD_FUSION_THRESHOLD", "0")
    os.environ.setdefault("HOROVOD_STALL_CHECK_TIME_SECONDS", "60")
    os.environ.setdefault("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", "600")
