"""Running programs in a lab: one on a host, or ranks on all hosts by mpirun."""

import os
import shutil
from pathlib import Path

from laboratory import calls, packages
from laboratory.calls import User
from laboratory.errors import LabError
from laboratory.links import PORT
from laboratory.state import Lab

ROOT = Path(__file__).resolve().parents[2]


def environment(lab: Lab, user: User | None) -> dict[str, str]:
    """Return the environment of programs in a lab: the caller's, with what ranks on shared cores need."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("SUDO_", "SLURM_"))}
    # A folder for temporary files that the caller has named is not there on hosts.
    variables.pop("TMPDIR", None)
    programs = ROOT / ".venv/bin"
    path = packages.system_path()
    variables["PATH"] = f"{programs}{os.pathsep}{path}" if programs.is_dir() else path
    # Hosts may share a core: a rank that waits must leave it to those that work.
    variables.setdefault("OMP_NUM_THREADS", "1")
    variables.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
    if user is None:
        variables |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    configuration = lab.folder / "slurm/slurm.conf"
    if configuration.exists():
        variables["SLURM_CONF"] = str(configuration)
    return variables


def caller() -> User | None:
    """Return whom programs run as: the one who has called sudo, and None for root himself."""
    uid = os.environ.get("SUDO_UID", "0")
    if uid == "0" or not uid.isdecimal():
        return None
    return User.of(int(uid), int(os.environ.get("SUDO_GID", uid)))


def run(lab: Lab, host: str, command: list[str]) -> int:
    """Run a program on a host, in the caller's folder if the host sees it, and return its exit status."""
    user = caller()
    path = lab.folder / f"{lab.host(host).name}.socket"
    return calls.call(path, command, environment(lab, user), str(Path.cwd()), user)


def run_ranks(lab: Lab, ranks: int, command: list[str]) -> int:
    """Run a program as so many ranks, shared out evenly among all hosts, and return mpirun's exit status.

    Raises:
        LabError: there is no mpirun.
    """
    path = environment(lab, None)["PATH"]
    mpirun = shutil.which("mpirun", path=path)
    if mpirun is None:
        raise LabError("there is no mpirun", mend="Run launch/setup, or bring a site's MPI onto the PATH.")
    return run(lab, lab.workers[0].name, [mpirun, *mpirun_flags(lab, ranks), *command])


def mpirun_flags(lab: Lab, ranks: int) -> list[str]:
    """Return the flags by which Open MPI's mpirun starts ranks on the lab's hosts, and talks on their links only."""
    fewest, more = divmod(ranks, len(lab.workers))
    slots = {host.name: fewest + (number < more) for number, host in enumerate(lab.workers)}
    hosts = ",".join(f"{name}:{count}" for name, count in slots.items() if count)
    settings = {
        "plm_rsh_agent": str(lab.folder / "rsh"),
        "btl_tcp_if_include": PORT,
        "oob_tcp_if_include": PORT,
        # A host that is cut off is noticed by both sides in some ten seconds, not after the kernel's two hours.
        "oob_tcp_keepalive_time": "4",
        "oob_tcp_keepalive_intvl": "2",
        "oob_tcp_keepalive_probes": "3",
    }
    chosen = [word for name, value in settings.items() for word in ("--mca", name, value)]
    return ["-np", str(ranks), "--host", hosts, "--bind-to", "none", *chosen]
