"""A real SLURM in a lab: munge on all hosts, slurmctld on the head, a slurmd on each other."""

import os
import subprocess
import sys
import time
from pathlib import Path

from laboratory import calls, programs
from laboratory.errors import LabError, typed
from laboratory.state import HEAD, Lab

PATIENCE = 30.0
SLOTS = 8
"""Ranks that a host may have at once, however many cores it has."""

# Processes are followed by their parents, and nothing needs control groups, which may be missing in a container.
# Credentials expire early, since a requeued job does not start again before its old ones have.
CONFIGURATION = """\
ClusterName=lab
SlurmctldHost={head}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=/run/munge/socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,batch_sched_delay=0
StateSaveLocation=/run/slurm/state
SlurmdSpoolDir=/run/slurm/spool
SlurmctldPidFile=/run/slurm/slurmctld.pid
SlurmdPidFile=/run/slurm/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
JobRequeue=1
KillWait=30
SlurmdTimeout=15
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n[1-{count}] CPUs={slots} State=UNKNOWN
PartitionName=lab Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""

MUNGED = (
    "munged",
    "--key-file={key}",
    "--socket=/run/munge/socket",
    "--pid-file=/run/munge/munged.pid",
    "--log-file=/run/munge/munged.log",
    "--seed-file=/run/munge/munged.seed",
)


def start(lab: Lab) -> None:
    """Start SLURM, and wait until all hosts are idle in it.

    Raises:
        LabError: a daemon does not start, or a host does not appear.
    """
    folder = lab.folder / "slurm"
    if folder.exists():
        raise LabError("SLURM runs in this lab already", mend=f"`{typed('run sinfo')}` shows it.")
    folder.mkdir()
    key = folder / "munge.key"
    key.touch(0o400)
    key.write_bytes(os.urandom(128))
    configuration = folder / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(head=HEAD, folder=folder, count=len(lab.workers), slots=SLOTS), encoding="ascii"
    )
    for host in lab.hosts:
        _daemon(lab, host.name, "mkdir", "-m", "0755", "/run/munge", "/run/slurm")
        _daemon(lab, host.name, *(word.format(key=key) for word in MUNGED))
        _daemon(lab, host.name, "slurmctld" if host.name == HEAD else "slurmd")
    _await_idle(lab)


def _daemon(lab: Lab, host: str, *command: str) -> None:
    """Run a command on a host as root; daemons return when they run."""
    status = calls.call(lab.folder / f"{host}.socket", list(command), programs.environment(lab, None), "/")
    if status != 0:
        raise LabError(
            f"{command[0]} on {host} ended with status {status}",
            mend=f"{lab.folder}/slurm/*.log may say why; `{typed('down')}` removes the lab.",
        )


def _await_idle(lab: Lab) -> None:
    end = time.monotonic() + PATIENCE
    while (seen := _idle(lab)) < len(lab.workers):
        if time.monotonic() > end:
            raise LabError(
                f"{seen} of {len(lab.workers)} hosts are idle in SLURM after {PATIENCE:.0f} s",
                mend=f"`{typed('run sinfo -R')}` and {lab.folder}/slurm/*.log say why.",
            )
        time.sleep(0.3)


def _idle(lab: Lab) -> int:
    command = [sys.executable, "-s", str(Path(__file__).parents[1] / "lab"), "run", "--name", lab.name]
    command += ["sinfo", "--noheader", "--partition=lab", "--states=idle", "--format=%D"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return sum(int(word) for word in done.stdout.split())
