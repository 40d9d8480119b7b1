"""Running programs in a lab as its owner: one on a host, or ranks on all hosts by mpirun."""

import ctypes
import os
import pwd
import select
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from laboratory import packages, ssh
from laboratory.errors import LabError, typed
from laboratory.links import PORT
from laboratory.state import Lab

ROOT = Path(__file__).resolve().parents[2]
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
NAMESPACES = 0x00020000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000
"""The kernel's CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWPID and CLONE_NEWNET."""


def environment(lab: Lab) -> dict[str, str]:
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
    if lab.owner == "root":
        variables |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    else:
        variables |= {"HOME": pwd.getpwnam(lab.owner).pw_dir, "USER": lab.owner, "LOGNAME": lab.owner}
    if lab.slurm_configuration.exists():
        variables["SLURM_CONF"] = str(lab.slurm_configuration)
    return variables


def run(lab: Lab, name: str, command: list[str]) -> int:
    """Run a program on a host, in the caller's folder and with its standard streams.

    The program is the first of a session of its own, without a terminal. Signals to the caller go to all of the
    program's process group; if the caller is killed, they get TERM.

    Args:
        lab: where.
        name: the host's.
        command: the program and its arguments.

    Returns:
        The program's exit status, as a shell would give it.

    Raises:
        LabError: the host has ended, does not see the folder, or cannot run that.
    """
    host, folder, variables = lab.first(name), os.getcwd(), environment(lab)
    owner = pwd.getpwnam(lab.owner)
    groups = os.getgrouplist(lab.owner, owner.pw_gid)
    guard = _guard()
    process: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def pass_on(number: int, _frame: object = None) -> None:
        if process is None:
            early.append(number)
        elif process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    unseen = f"the folder {folder} is not seen there: `{typed('up --share DIR')}` would share it"
    try:
        descriptor = _enter(host)
        process = subprocess.Popen(
            command,
            env=variables,
            cwd=folder,
            user=owner.pw_uid,
            group=owner.pw_gid,
            extra_groups=groups,
            start_new_session=True,
        )
    except OSError as error:
        seen = unseen if error.filename == folder else error
        raise LabError(f"{command[0]} on {name}: {seen}", mend=f"`{typed('ps')}` shows what runs where.") from None
    print(process.pid, file=guard.stdin, flush=True)
    for missed in early:
        pass_on(missed)
    status = process.wait()
    guard.communicate("ended\n")
    if status == -signal.SIGKILL and select.select([descriptor], [], [], 0.5)[0]:
        raise LabError(f"{command[0]} on {name}: its host ended", mend=f"`{typed('ps')}` shows what is left.")
    return status if status >= 0 else 128 - status


def _guard() -> subprocess.Popen[str]:
    """Start what outlives this process where that is killed, and then ends the process group that it was told of."""
    return subprocess.Popen(
        ["sh", "-c", 'read -r group && ! read -r ended && kill -s TERM -- "-$group"'],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
    )


def _enter(pid: int) -> int:
    """Take this process into the namespaces of another and to its cores, and return a descriptor of that process.

    Of process namespaces it is the programs started from now on that are in the other one.
    """
    os.sched_setaffinity(0, os.sched_getaffinity(pid))
    descriptor = os.pidfd_open(pid)
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, NAMESPACES) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return descriptor


def run_ranks(lab: Lab, ranks: int, command: list[str]) -> int:
    """Run a program as so many ranks, shared out evenly among all hosts, and return mpirun's exit status.

    Raises:
        LabError: there is no mpirun.
    """
    variables = environment(lab)
    mpirun = shutil.which("mpirun", path=variables["PATH"])
    if mpirun is None:
        raise LabError("there is no mpirun", mend="Run launch/setup, or bring a site's MPI onto the PATH.")
    # mpirun itself hands on its own variables alone, and sshd none.
    handed_on = [word for name in variables if not name.startswith("OMPI_") for word in ("-x", name)]
    return run(lab, lab.workers[0].name, [mpirun, *mpirun_flags(lab, ranks), *handed_on, *command])


def mpirun_flags(lab: Lab, ranks: int) -> list[str]:
    """Return the flags by which Open MPI's mpirun starts ranks on the lab's hosts, and talks on their links only."""
    fewest, more = divmod(ranks, len(lab.workers))
    slots = {host.name: fewest + (number < more) for number, host in enumerate(lab.workers)}
    hosts = ",".join(f"{name}:{count}" for name, count in slots.items() if count)
    settings = {
        # Not by settings that a user has for other hosts of these names.
        "plm_rsh_agent": f"ssh -F {ssh.FOLDER}/ssh_config",
        "btl_tcp_if_include": PORT,
        "oob_tcp_if_include": PORT,
        # A host that is cut off is noticed by both sides in some ten seconds, not after the kernel's two hours.
        "oob_tcp_keepalive_time": "4",
        "oob_tcp_keepalive_intvl": "2",
        "oob_tcp_keepalive_probes": "3",
    }
    chosen = [word for name, value in settings.items() for word in ("--mca", name, value)]
    return ["-np", str(ranks), "--host", hosts, "--bind-to", "none", *chosen]
