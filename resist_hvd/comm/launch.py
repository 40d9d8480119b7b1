"""Facts of a launch that a process knows before MPI is up, and what MPI and Horovod are told before they start.

The package imports this first of all: cores are noted before PyTorch changes them, and MPI is loaded before it where a
site needs that.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from resist_hvd.errors import UserError

CORES = frozenset(os.sched_getaffinity(0))
"""Cores this process might run on when it started. Where OMP_PROC_BIND or OMP_PLACES is set, PyTorch's OpenMP library
ties the thread that loads it to one of them, so that the mask says too little afterwards."""

RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "HOROVOD_RANK", "SLURM_PROCID")
LOCAL_SIZE_VARIABLES = (
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MPI_LOCALNRANKS",
    "HOROVOD_LOCAL_SIZE",
    "SLURM_NTASKS_PER_NODE",
)
MPI_VARIABLES = (
    *("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    *("PMIX_RANK", "PMIX_NAMESPACE", "PMIX_ID"),
    *("PMI_RANK", "PMI_SIZE", "PMI_FD", "PMI_PORT", "PMI_ID", "PMI_CONTROL_PORT", "PMI_CONTROL_FD"),
    *("PALS_RANKID", "PALS_APID"),
    *("MPI_LOCALNRANKS", "MPI_LOCALRANKID"),
)
"""Variables by which a launcher tells a rank how to find the others by MPI. Others of such names are settings, which a
module or a batch script may export: PMIX_MCA_psec, PMI_MMAP_SYNC_WAIT_TIME."""

RULES = Path(__file__).with_name("allreduce.rules")
"""The algorithms by which Open MPI averages between hosts. Its own choice for some MB, recursive doubling among other
things, fills half of a slow link; messages above 64 KiB wait for answers that are queued behind others' bytes."""

IN_EFFECT = (
    "OMPI_MCA_btl",
    "OMPI_MCA_mpi_yield_when_idle",
    "OMPI_MCA_coll_tuned_use_dynamic_rules",
    "OMPI_MCA_coll_tuned_dynamic_rules_filename",
    "HOROVOD_CYCLE_TIME",
    "HOROVOD_FUSION_THRESHOLD",
)
"""Variables that this program sets where nobody else has."""

SPINNING_THREADS = 2
"""Threads of a rank that keep a core busy while they wait: the main one in MPI, and Horovod's."""


def first_integer(variables: tuple[str, ...], default: int, environment: Mapping[str, str] = os.environ) -> int:
    """Return the first of the environment's variables that holds a number, else `default`."""
    for variable in variables:
        value = environment.get(variable, "")
        if value.isdecimal():
            return int(value)
    return default


def launched_rank() -> int:
    """Return this process's rank as its launcher says, 0 where none does."""
    if processes_of_pytorch(os.environ):
        return first_integer(("RANK",), 0)
    return first_integer(RANK_VARIABLES, 0)


def launched_local_size(environment: Mapping[str, str] = os.environ) -> int:
    """Return how many ranks the launcher started on this host, 1 where it does not say."""
    return first_integer(LOCAL_SIZE_VARIABLES, 1, environment)


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


# -- launches in which every process would be a world of its own ---------------------------------------------------


def refuse_separate_worlds(environment: Mapping[str, str] = os.environ, prefix: Path = Path(sys.prefix)) -> None:
    """Refuse a launch whose processes cannot find one another by MPI, before MPI is asked to.

    Args:
        environment: this process's.
        prefix: its Python's folder, which may hold an Open MPI.

    Raises:
        UserError: with the command that starts them as one world; all of them raise it.
    """
    size = environment.get("HOROVOD_SIZE", "1")
    if environment.get("HOROVOD_CONTROLLER") == "gloo" and size != "1":
        raise UserError(
            f"Horovod was launched over Gloo with {size} ranks, each of which has an MPI world of its own",
            mend="Blocks travel by MPI: launch without --gloo (horovodrun --mpi, mpirun, or srun --mpi=pmix).",
            everywhere=True,
        )
    if processes := processes_of_pytorch(environment):
        raise UserError(
            f"PyTorch's launcher (torchrun) started {processes} processes, each with an MPI world of its own",
            mend=f"Start them by MPI: launch/run -np {processes} FLAGS, or mpirun -np {processes} python -m "
            "resist_hvd.train FLAGS.",
            everywhere=True,
        )
    # With a site's own MPI a bare srun may well be right, which is seen once MPI is up.
    if has_open_mpi(prefix) and (tasks := tasks_without_mpi(environment)):
        raise UserError(
            f"srun started {tasks} tasks without an MPI, so that each has a world of its own",
            mend=f"Give srun --mpi=pmix --ntasks={tasks} (srun --mpi=list shows what there is), or start mpirun "
            f"-np {tasks} inside the allocation.",
            everywhere=True,
        )


def launched_by_mpi(environment: Mapping[str, str]) -> bool:
    """Return whether a launcher has told this process how to find others by MPI."""
    return any(name in environment for name in MPI_VARIABLES)


def processes_of_pytorch(environment: Mapping[str, str]) -> int:
    """Return how many processes torchrun, or another launcher of PyTorch's kind, started; 0 where none or one did."""
    launched = all(environment.get(name, "").isdecimal() for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    if not launched or launched_by_mpi(environment):
        return 0
    size = int(environment["WORLD_SIZE"])
    return size if size > 1 else 0


def in_step_without_mpi(environment: Mapping[str, str]) -> bool:
    """Return whether this process runs in a step that `srun` started without an MPI.

    The batch script of a job is in none, nor is what its mpirun starts.
    """
    return environment.get("SLURM_STEP_ID", "").isdecimal() and not launched_by_mpi(environment)


def tasks_without_mpi(environment: Mapping[str, str]) -> int:
    """Return of how many tasks of a bare `srun` this process is one; 0 where it is the only one.

    What a person starts by hand in the shell of `srun --pty` is none.
    """
    if not in_step_without_mpi(environment) or "SLURM_PTY_PORT" in environment:
        return 0
    tasks = first_integer(("SLURM_STEP_NUM_TASKS",), 1, environment)
    return tasks if tasks > 1 else 0


# -- loading MPI ---------------------------------------------------------------------------------------------------


def import_mpi_first() -> None:
    """Load the MPI library if RESIST_HVD_IMPORT_MPI_FIRST is 1; by default where Cray's MPICH is loaded as a module.

    Sites with Cray's MPI ask for mpi4py before PyTorch. Nothing is started, and nothing is loaded elsewhere, so that
    help is quick.
    """
    by_default = "1" if "CRAY_MPICH_VERSION" in os.environ else "0"
    if os.environ.get("RESIST_HVD_IMPORT_MPI_FIRST", by_default) == "1":
        load_mpi()


def load_mpi() -> None:
    """Load mpi4py without starting MPI, which `World.join` does; what the user's program has loaded stays as it is."""
    if "mpi4py.MPI" not in sys.modules:
        import mpi4py

        mpi4py.rc.initialize = False
        mpi4py.rc.finalize = True
        from mpi4py import MPI  # noqa: F401


# -- what Open MPI reads when it starts ----------------------------------------------------------------------------


def has_open_mpi(prefix: Path) -> bool:
    """Return whether an Open MPI is installed in a Python's folder: it is then the one that mpi4py loads."""
    return (prefix / "bin" / "orted").exists()


def prepare_environment() -> None:
    """Set what Open MPI reads when it starts.

    Raises:
        UserError: the environment names an Open MPI that is not there.
    """
    refuse_missing_open_mpi()
    os.environ.update(open_mpi_variables(os.environ, len(CORES), launcher_cores()))
    if in_step_without_mpi(os.environ):
        # This process is alone in its step. Open MPI would take it for one of several, and end it.
        del os.environ["SLURM_STEP_ID"]


def in_effect(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return what MPI and Horovod have been told by variables that this program sets, or found set: NAME=VALUE each."""
    return tuple(f"{name}={environment[name]}" for name in IN_EFFECT if name in environment)


def refuse_missing_open_mpi(environment: Mapping[str, str] = os.environ, prefix: Path = Path(sys.prefix)) -> None:
    """Refuse an OPAL_PREFIX without an Open MPI, which would end MPI's start with pages of text.

    Raises:
        UserError: there is none in the folder, and none in the Python's own, which would go before it.
    """
    named = environment.get("OPAL_PREFIX", "")
    if named and not has_open_mpi(prefix) and not Path(named, "share", "openmpi").is_dir():
        raise UserError(
            f"OPAL_PREFIX is {named}, where there is no Open MPI",
            mend="Unset it, or set it to the folder of the Open MPI that launch/setup was run with.",
        )


def open_mpi_variables(
    environment: Mapping[str, str], cores: int, around: int, prefix: Path = Path(sys.prefix)
) -> dict[str, str]:
    """Return the variables to set for Open MPI, which are none that a user has set.

    Its own threads: where a host's ranks have more threads that wait than cores, those yield their core. All ranks'
    masks are not known yet, so of the launcher's cores each rank is taken to have a part as large as its own.

    An Open MPI in the virtual environment is told its folder by its mpirun; a single worker has nobody else to tell it,
    and a module may have named another. It is kept from listening on the network where all ranks are on one host, and a
    single worker needs no daemon, which would listen, too. In this a site's Open MPI is left as its files have it.

    Between hosts any Open MPI averages what is large in a ring of small segments, which fills a slow link, unless the
    user or the site has set anything about collectives.

    Args:
        environment: this process's.
        cores: how many it may run on.
        around: how many its launcher may run on, 0 where that is not known.
        prefix: the Python's folder.
    """
    found: dict[str, str] = {}
    local = launched_local_size(environment)
    sharing = max(1, math.ceil(local * cores / around)) if around > cores else local
    if sharing * SPINNING_THREADS > cores:
        found["OMPI_MCA_mpi_yield_when_idle"] = "1"
    if has_open_mpi(prefix):
        found["OPAL_PREFIX"] = str(prefix)
        if on_one_host(environment):
            found["OMPI_MCA_btl"] = "^tcp"
        if not launched_by_mpi(environment):
            found["OMPI_MCA_ess_singleton_isolated"] = "1"
    in_files = parameters_in_files(prefix)
    given = in_files | {name.removeprefix("OMPI_MCA_") for name in environment if name.startswith("OMPI_MCA_")}
    if not on_one_host(environment) and not any(name == "coll" or name.startswith("coll_") for name in given):
        found["OMPI_MCA_coll_tuned_use_dynamic_rules"] = "1"
        found["OMPI_MCA_coll_tuned_dynamic_rules_filename"] = str(RULES)
    return {
        name: value
        for name, value in found.items()
        if name == "OPAL_PREFIX" or (name not in environment and name.removeprefix("OMPI_MCA_") not in in_files)
    }


def on_one_host(environment: Mapping[str, str]) -> bool:
    """Return whether the launcher started all ranks on this host, as far as it says; or there is no launcher."""
    if not launched_by_mpi(environment):
        return True
    size = environment.get("OMPI_COMM_WORLD_SIZE")
    if size is None:  # srun says how many hosts its step has
        return environment.get("SLURM_STEP_NUM_NODES") == "1"
    return size == environment.get("OMPI_COMM_WORLD_LOCAL_SIZE")


def parameters_in_files(prefix: Path) -> set[str]:
    """Return the parameters that Open MPI's files set: the user's and its own, or those of the site's on the path."""
    found = set()
    program = shutil.which("ompi_info")
    own = Path(program).parent.parent if program and not has_open_mpi(prefix) else prefix
    for file in (Path("~/.openmpi/mca-params.conf").expanduser(), own / "etc" / "openmpi-mca-params.conf"):
        with contextlib.suppress(OSError):
            lines = file.read_text(errors="replace").splitlines()
            found |= {line.partition("=")[0].strip() for line in lines if "=" in line}
    return found


def launcher_cores() -> int:
    """Return how many cores the mpirun that started this process may run on, 0 where there is none."""
    if "OMPI_COMM_WORLD_RANK" not in os.environ:
        return 0
    try:
        return len(os.sched_getaffinity(os.getppid()))
    except OSError:
        return 0


# -- what Horovod reads when it starts -----------------------------------------------------------------------------

CYCLE, GPU_CYCLE = "0.1", "1"
"""Milliseconds between two times at which Horovod's thread asks all ranks what is to be averaged."""


def prepare_horovod(*, on_gpus: bool) -> None:
    """Set what Horovod reads when it starts; what the user has set stays.

    Its cycle is the price of each of our few collectives, so it is short. On GPUs, whose rounds are long, a thread that
    asks ten times less often leaves its core to those that feed them. On CPUs this gains nothing, even where ranks
    outnumber cores, as long as threads that wait yield (docs/measuring.md has figures). Buffers are flat already, so
    that fusing them would only copy them. A stalled collective ends the world instead of waiting for ever.

    Args:
        on_gpus: whether GPUs compute.
    """
    os.environ.setdefault("HOROVOD_CYCLE_TIME", GPU_CYCLE if on_gpus else CYCLE)
    os.environ.setdefault("HOROVOD_FUSION_THRESHOLD", "0")
    os.environ.setdefault("HOROVOD_STALL_CHECK_TIME_SECONDS", "60")
    os.environ.setdefault("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", "600")
