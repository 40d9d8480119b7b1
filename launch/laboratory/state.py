"""A lab's state as seen from outside: one folder in /run, and whether the processes it speaks of still live.

The folder is all that a lab leaves on the machine's file systems; everything else lives in namespaces, which the kernel
removes with the last process in them.
"""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from laboratory import processes
from laboratory.errors import LabError, typed
from laboratory.processes import Process

ROOM = Path("/run/resist-hvd-lab")
HEAD = "head"
"""The host from which jobs are submitted: a login node, with SLURM's controller. Its link is not shaped."""


@dataclass(frozen=True)
class Host:
    """A host of a lab.

    Attributes:
        name: its name, in all hosts' /etc/hosts.
        address: its IPv4 address.
        pid_namespace: the inode of its process namespace, by which its processes are known; 0 before it is made.
        pid: the process that it hangs on, as this machine numbers it; 0 before it is made.
    """

    name: str
    address: str
    pid_namespace: int = 0
    pid: int = 0


@dataclass
class Lab:
    """A lab, as it was made.

    Attributes:
        name: what its folder is called; several labs can be up at once.
        bandwidth: the speed of each host's link, as tc writes it, or "none".
        hosts: all of them, the head first.
        shares: folders below /tmp that all hosts see, besides everything outside of /tmp.
        owner: the user whom programs run as, and who may go from host to host by ssh.
        keeper: the process that everything hangs on, as this machine numbers it: when it ends, the lab is gone.
        keeper_started: when it was started, in the kernel's ticks, which tells it from a later one of that number.
        switch_namespace: the inode of the process namespace that all others lie in.
    """

    name: str
    bandwidth: str
    hosts: list[Host]
    shares: list[str]
    owner: str = "root"
    keeper: int = 0
    keeper_started: int = 0
    switch_namespace: int = 0
    complete: bool = field(default=False)

    @property
    def folder(self) -> Path:
        """Folder of its state, which root alone may enter."""
        return folder_of(self.name)

    @property
    def slurm_configuration(self) -> Path:
        """SLURM's settings, once that is started, in a folder that all hosts see under this path."""
        return self.folder / "slurm/slurm.conf"

    @property
    def workers(self) -> list[Host]:
        """All hosts but the head."""
        return self.hosts[1:]

    def host(self, name: str) -> Host:
        """Return a host by its name.

        Raises:
            LabError: there is none of that name.
        """
        for host in self.hosts:
            if host.name == name:
                return host
        names = ", ".join(host.name for host in self.hosts)
        raise LabError(f"{name!r} is no host of this lab", mend=f"It has {names}.")

    def first(self, name: str) -> int:
        """Return the process that a host hangs on, as this machine numbers it.

        Raises:
            LabError: there is no host of that name, or it has ended.
        """
        host = self.host(name)
        if processes.namespace(host.pid) != host.pid_namespace:
            again = f"`{typed('down')}`, then `{typed('up')}`, makes it anew."
            raise LabError(f"the host {name} has ended", mend=again)
        return host.pid

    def processes(self) -> dict[str, list[Process]]:
        """Return the processes of each host but the one that it hangs on."""
        found = processes.within(host.pid_namespace for host in self.hosts)
        return {host.name: [one for one in found[host.pid_namespace] if one.pid != host.pid] for host in self.hosts}

    def write(self) -> None:
        """Write it into its folder, whole or not at all."""
        fresh = self.folder / "state.json.new"
        fresh.write_text(json.dumps(asdict(self), indent=2) + "\n")
        fresh.replace(self.folder / "state.json")

    def lives(self) -> bool:
        """Return whether the process that it hangs on is there."""
        return self.keeper > 0 and processes.started(self.keeper) == self.keeper_started


def folder_of(name: str) -> Path:
    """Return the folder of the lab of a name.

    Raises:
        LabError: it cannot be a lab's name.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,30}", name):
        raise LabError(f"{name!r} cannot name a lab", mend="Use small letters, digits and dashes.")
    return ROOM / name


def read(name: str) -> Lab | None:
    """Return what the folder of a lab says; None where there is none, or it was left before it said anything."""
    try:
        values = json.loads((folder_of(name) / "state.json").read_text())
    except (FileNotFoundError, ValueError):
        return None
    hosts = [Host(**host) for host in values.pop("hosts")]
    return Lab(hosts=hosts, **values)


def running(name: str) -> Lab:
    """Return a lab that is up.

    Raises:
        LabError: it is not.
    """
    lab = read(name)
    if lab is None or not lab.complete or not lab.lives():
        raise LabError(f"the lab {name!r} is not up", mend=f"Make it by `{typed('up')}`.")
    return lab


@contextmanager
def exclusive(name: str) -> Iterator[None]:
    """Hold off a second command that makes or removes the same lab until this one has ended."""
    ROOM.mkdir(exist_ok=True)
    folder_of(name)
    descriptor = os.open(ROOM, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def remove(name: str) -> None:
    """Remove a lab's folder, and the room if it was the last."""
    shutil.rmtree(folder_of(name), ignore_errors=True)
    if ROOM.is_dir() and not any(ROOM.iterdir()):
        ROOM.rmdir()
