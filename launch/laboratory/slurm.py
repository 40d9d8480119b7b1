"""A real SLURM in a lab: munge on all hosts, slurmctld on the head, a slurmd on each other; accounts if asked for."""

import os
import subprocess
import time
from pathlib import Path

from laboratory import programs
from laboratory.errors import LabError, typed
from laboratory.state import HEAD, Lab
from laboratory.switch import NAMESPACES

PATIENCE = 120.0
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
AuthInfo=cred_expire=5
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
{accounting}{gpu_type}NodeName=n[1-{count}] CPUs={slots} State=UNKNOWN{gpus}
PartitionName=lab Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""

# GPUs are devices of no use, by whose numbers SLURM tells tasks which is theirs.
GPU_FILE = "/run/slurm/gpu"
MOST_GPUS = 16

ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={head}
"""
DATABASE_DAEMON = """\
DbdHost={head}
SlurmUser=root
AuthType=auth/munge
StorageType=accounting_storage/mysql
StorageUser=root
PidFile=/run/slurm/slurmdbd.pid
LogFile={folder}/slurmdbd.log
"""
DATABASE = "/run/slurm/database"
SOCKET = "/run/mysqld/mysqld.sock"
SMALL = ("--innodb-data-file-path=ibdata1:4M:autoextend", "--innodb-log-file-size=8M", "--aria-log-file-size=8M")

MUNGED = (
    "munged",
    "--key-file={key}",
    "--pid-file=/run/munge/munged.pid",
    "--log-file=/run/munge/munged.log",
    "--seed-file=/run/munge/munged.seed",
)


def start(lab: Lab, *, gpus: int, accounting: bool) -> None:
    """Start SLURM, and wait until all hosts are idle in it.

    Args:
        lab: where.
        gpus: how many each host shall seem to have.
        accounting: whether to keep accounts of jobs, in a database on the head.

    Raises:
        LabError: a daemon does not start, or a host does not appear.
    """
    if not 0 <= gpus <= MOST_GPUS:
        raise LabError(f"a host cannot have {gpus} GPUs", mend=f"Give 0 to {MOST_GPUS}.")
    folder = lab.slurm_configuration.parent
    if lab.slurm_configuration.exists():
        raise LabError("SLURM runs in this lab already", mend=f"`{typed('run sinfo')}` shows it.")
    os.umask(0o022)
    key = folder / "munge.key"
    key.touch(0o400)
    key.write_bytes(os.urandom(128))
    configuration = CONFIGURATION.format(
        head=HEAD,
        folder=folder,
        count=len(lab.workers),
        slots=SLOTS,
        accounting=ACCOUNTING.format(head=HEAD) if accounting else "",
        gpu_type="GresTypes=gpu\n" if gpus else "",
        gpus=f" Gres=gpu:{gpus}" if gpus else "",
    )
    lab.slurm_configuration.write_text(configuration, encoding="ascii")
    files = [f"{GPU_FILE}{number}" for number in range(gpus)]
    if gpus:
        # The head has no GPUs, and its daemon would refuse files that it does not see.
        lines = [f"NodeName=n[1-{len(lab.workers)}] Name=gpu File={file}\n" for file in files]
        (folder / "gres.conf").write_text("".join(lines), encoding="ascii")
    for host in lab.hosts:
        _daemon(lab, host.name, "mkdir", "-m", "0755", "/run/munge", "/run/slurm")
        _daemon(lab, host.name, *(word.format(key=key) for word in MUNGED))
        if host.name != HEAD:
            for file in files:
                _daemon(lab, host.name, "ln", "-s", "/dev/null", file)
            _daemon(lab, host.name, "slurmd")
            continue
        if accounting:
            _start_database(lab, folder)
        _daemon(lab, host.name, "slurmctld")
    command = ("sinfo", "--noheader", "--partition=lab", "--states=idle", "--format=%D")
    count = str(len(lab.workers))
    _await(lab, f"{count} idle hosts in SLURM", "sh", "-c", 'test "$("$@")" = "$0"', count, *command)


def _start_database(lab: Lab, folder: Path) -> None:
    """Start a database in the head's memory, and the daemon that keeps accounts in it."""
    file = folder / "slurmdbd.conf"
    file.touch(0o600)
    file.write_text(DATABASE_DAEMON.format(head=HEAD, folder=folder), encoding="ascii")
    # Where the client looks for the server by default.
    _daemon(lab, HEAD, "mkdir", DATABASE, "/run/mysqld")
    own = ("--no-defaults", f"--datadir={DATABASE}", "--user=root", *SMALL)
    _daemon(lab, HEAD, "mariadb-install-db", *own, "--skip-test-db")
    _daemon(lab, HEAD, "sh", "-c", '"$@" &', "sh", "mariadbd", *own, f"--socket={SOCKET}", "--skip-networking")
    _await(lab, "the database", "test", "-S", SOCKET)
    _daemon(lab, HEAD, "slurmdbd")
    _await(lab, "accounts", "sacctmgr", "--readonly", "show", "cluster")


def _status(lab: Lab, host: str, *command: str) -> int:
    """Run a command on a host as root, on the host's cores, and return its exit status; what it prints is logged."""
    pid = lab.first(host)
    cores = ",".join(map(str, os.sched_getaffinity(pid)))
    words = ["taskset", "--cpu-list", cores, "nsenter", f"--target={pid}", *NAMESPACES, *command]
    with (lab.slurm_configuration.parent / "start.log").open("ab") as log:
        return subprocess.call(words, env=programs.environment(lab), stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _daemon(lab: Lab, host: str, *command: str) -> None:
    """Run a command on a host as root; daemons return when they run."""
    status = _status(lab, host, *command)
    if status != 0:
        raise LabError(f"{command[0]} on {host} ended with status {status}", mend=_look(lab))


def _await(lab: Lab, what: str, *command: str) -> None:
    """Repeat a command on the head until it succeeds.

    Raises:
        LabError: it never does; the message says what was waited for.
    """
    end = time.monotonic() + PATIENCE
    while _status(lab, HEAD, *command) != 0:
        if time.monotonic() > end:
            raise LabError(f"waited {PATIENCE:.0f} s in vain for {what}", mend=_look(lab))
        time.sleep(0.05)


def _look(lab: Lab) -> str:
    logs = lab.slurm_configuration.parent / "*.log"
    return f"`{typed('run sinfo -R')}` and {logs} may say why; `{typed('down')}` removes the lab."
