"""Starting ranks on this machine, or in this job, by mpirun, as `launch/run` does; and passing on what stops them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from resist_hvd.errors import UserError
from resist_hvd.guard.signals import STOPPING


class Ended(NamedTuple):
    """The end of a program.

    Attributes:
        status: of its launcher.
        signal: the first that told this program to stop meanwhile; 0 where none did.
    """

    status: int
    signal: int = 0


def find_mpirun(path: str | None = None) -> str:
    """Return the mpirun beside this Python, or the one on the PATH.

    Args:
        path: the folders to look in; by default that of this Python, then the PATH.

    Raises:
        UserError: there is none.
    """
    folders = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    found = shutil.which("mpirun", path=folders if path is None else path)
    if found is None:
        raise UserError(
            "There is no mpirun beside this Python, nor on the PATH",
            mend="Load the module of the MPI that resist_hvd was installed with; or run each run by itself: --dry "
            "prints their commands, and slurm/reproduce.sbatch starts them by srun.",
        )
    return found


def is_open_mpi(mpirun: str) -> bool:
    """Return whether a launcher is Open MPI's."""
    try:
        said = subprocess.run([mpirun, "--version"], capture_output=True, text=True, timeout=60, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    return "Open MPI" in said or "OpenRTE" in said


def launcher(mpirun: str, workers: int, environment: Mapping[str, str], *, open_mpi: bool) -> list[str]:
    """Return what starts so many ranks.

    In a job of SLURM mpirun knows the hosts. Elsewhere all ranks are on this one, as many as wanted, and each may run
    on all cores: ranks divide them by themselves.
    """
    command = [mpirun, "-np", str(workers)]
    if open_mpi and "SLURM_JOB_ID" not in environment:
        command += ["--host", f"localhost:{workers}", "--bind-to", "none", "--quiet"]
    return command


def child_environment(environment: Mapping[str, str], *, open_mpi: bool, root: bool) -> dict[str, str]:
    """Return the environment of ranks: this one, and what Open MPI needs on one machine."""
    own = {"PATH": os.pathsep.join((str(Path(sys.executable).parent), environment.get("PATH", "")))}
    if open_mpi and "SLURM_JOB_ID" not in environment and "OMPI_MCA_oob_tcp_if_exclude" not in environment:
        # Whatever becomes of the host's network and name, mpirun and ranks find each other.
        own["OMPI_MCA_oob_tcp_if_include"] = environment.get("OMPI_MCA_oob_tcp_if_include") or "lo"
    if root:  # Open MPI refuses it otherwise; in a container there may be no other user
        for mpi in ("OMPI", "PRTE"):
            own |= {f"{mpi}_ALLOW_RUN_AS_ROOT": "1", f"{mpi}_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return {**environment, **own}


class Launcher:
    """Starts ranks, and has those who are told to stop write a checkpoint first.

    Ranks are in a session of their own, so that Ctrl-C reaches this program alone. The first signal is passed on as
    USR2, upon which a run ends its round and writes a checkpoint; a later one as TERM, which ends it at once.

    Args:
        mpirun: the program that starts ranks.

    Raises:
        UserError: there is none.
    """

    def __init__(self, mpirun: str | None = None) -> None:
        self.mpirun = mpirun or find_mpirun()
        self._open_mpi = is_open_mpi(self.mpirun)

    def command(self, workers: int, arguments: Sequence[str]) -> list[str]:
        """Return the whole command of a Python program on so many ranks."""
        start = launcher(self.mpirun, workers, os.environ, open_mpi=self._open_mpi)
        return [*start, sys.executable, *arguments]

    def start(self, workers: int, arguments: Sequence[str], log: Path) -> Ended:
        """Run a Python program on so many ranks to its end, with all of its output in a file."""
        environment = child_environment(os.environ, open_mpi=self._open_mpi, root=os.geteuid() == 0)
        command = self.command(workers, arguments)
        told: list[int] = []
        running: list[subprocess.Popen[bytes]] = []

        def pass_on(number: int, _: FrameType | None = None) -> None:
            told.append(number)
            for process in running:  # none while it is being started
                process.send_signal(signal.SIGUSR2 if len(told) == 1 else signal.SIGTERM)

        before = {number: signal.signal(number, pass_on) for number in STOPPING}
        try:
            with log.open("ab") as output:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                )
            running.append(process)
            if told:  # meanwhile; one that is told twice at once was told once
                process.send_signal(signal.SIGUSR2)
            status = process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return Ended(status if status >= 0 else 128 - status, told[0] if told else 0)
