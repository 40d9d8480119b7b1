"""Making a lab, and removing it, whatever state it is in."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

from laboratory import links, packages, processes, ssh, state
from laboratory.errors import LabError, typed
from laboratory.host import PRIVATE
from laboratory.state import HEAD, Host, Lab
from laboratory.switch import module

LAUNCH = Path(__file__).resolve().parents[1]
MOST_HOSTS = 200
PATIENCE = 60.0


def make(name: str, *, hosts: int, bandwidth: str, shares: list[str]) -> Lab:
    """Make a lab.

    Args:
        name: of the lab.
        hosts: how many besides the head; they are called n1, n2 and so on.
        bandwidth: the speed of each one's link, as tc writes it, or "none".
        shares: folders below /tmp that all hosts shall see.

    Raises:
        LabError: it is up already, or cannot be made; then nothing is left of it.
    """
    if not 1 <= hosts <= MOST_HOSTS:
        raise LabError(f"{hosts} hosts cannot be made", mend=f"Give 1 to {MOST_HOSTS}.")
    links.check_bandwidth(bandwidth)
    with state.exclusive(name):
        last = state.read(name)
        if last is not None and last.lives() and last.complete:
            raise LabError(f"the lab {name!r} is up already", mend=f"`{typed('down')}` ends it; --name makes another.")
        _clear(name)
        everyone = [Host(HEAD, "10.77.0.1"), *(Host(f"n{n}", f"10.77.1.{n}") for n in range(1, hosts + 1))]
        lab = Lab(name, bandwidth, everyone, _visible(shares), owner=os.environ.get("SUDO_USER", "root"))
        try:
            _start(lab)
        except BaseException:
            _clear(name)
            raise
    return lab


def cores_of(number: int, hosts: int, cores: list[int]) -> list[int]:
    """Return the cores of a host: its part of the machine's, or one that several have where there are too few.

    Without cores of its own a host whose ranks wait, spinning, may take one core while two that work share another.

    Args:
        number: of the host, from 0.
        hosts: how many there are.
        cores: the machine's.
    """
    each = len(cores) // hosts
    return cores[number * each : (number + 1) * each] if each else [cores[number % len(cores)]]


def _visible(shares: list[str]) -> list[str]:
    """Return the folders to share of those asked for, this one and the project's: what hosts would not see."""
    found = {Path(share).resolve() for share in shares}
    if missing := sorted(str(path) for path in found if not path.is_dir()):
        raise LabError(f"there is no folder {missing[0]} to share", mend="Make it first.")
    found |= {LAUNCH.parent, Path.cwd()} - set(map(Path, PRIVATE))
    return sorted(str(path) for path in found if any(path.is_relative_to(folder) for folder in PRIVATE))


def _start(lab: Lab) -> None:
    os.umask(0o022)  # the owner must be able to read settings, whatever root's mask is
    lab.folder.mkdir(mode=0o700, parents=True)
    ssh.prepare(lab.folder / "ssh", lab.owner)
    lab.slurm_configuration.parent.mkdir()
    environment = os.environ | {"PYTHONPATH": str(LAUNCH), "PATH": packages.system_path()}
    with (lab.folder / "log").open("wb") as log:
        process = subprocess.Popen(
            module("switch"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            cwd="/",
            text=True,
            start_new_session=True,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    lab.keeper, lab.keeper_started = process.pid, processes.started(process.pid) or 0
    # From here on another command can find and end it, should this one be killed.
    lab.write()
    names = "".join(f"{host.address} {host.name}\n" for host in lab.hosts)
    cores = sorted(os.sched_getaffinity(0))
    slurm = str(lab.slurm_configuration.parent)
    folders = {folder: folder for folder in (*lab.shares, slurm)} | {str(lab.folder / "ssh"): str(ssh.FOLDER)}
    orders = [
        {
            "name": host.name,
            "address": host.address,
            "bandwidth": "none" if host.name == HEAD else lab.bandwidth,
            "hosts": f"127.0.0.1 localhost\n{names}",
            "folders": folders,
            "cores": cores if host.name == HEAD else cores_of(number, len(lab.workers), cores),
        }
        for number, host in enumerate(lab.hosts, start=-1)
    ]
    print(json.dumps(orders), file=process.stdin, flush=True)
    answer = json.loads(process.stdout.readline() or "{}")
    if "hosts" not in answer:
        said = answer.get("error") or " ".join((lab.folder / "log").read_text().split())
        raise LabError(f"the lab cannot be made: {said.rstrip('.')}", mend="It needs Linux with namespaces, as root.")
    found = processes.within(answer["hosts"])
    firsts = [next(one.pid for one in found[inode] if processes.is_first(one.pid)) for inode in answer["hosts"]]
    made = zip(lab.hosts, answer["hosts"], firsts, strict=True)
    lab.hosts = [Host(host.name, host.address, inode, pid) for host, inode, pid in made]
    lab.switch_namespace, lab.complete = answer["pid_namespace"], True
    lab.write()


def remove(name: str) -> bool:
    """End a lab and all that runs in it, and return whether there was anything to end or to clear away.

    Raises:
        LabError: its processes do not end.
    """
    with state.exclusive(name):
        return _clear(name)


def _clear(name: str) -> bool:
    there = state.folder_of(name).exists()
    lab = state.read(name)
    if lab is not None:
        if lab.lives():
            os.kill(lab.keeper, signal.SIGKILL)
        _await_end(lab)
    state.remove(name)
    return there


def _await_end(lab: Lab) -> None:
    """Wait for the kernel to end everything that hung on a lab's keeper."""
    namespaces = [lab.switch_namespace, *(host.pid_namespace for host in lab.hosts)]
    end = time.monotonic() + PATIENCE
    while lab.lives() or any(processes.within(namespaces).values()):
        if time.monotonic() > end:
            raise LabError(f"processes of the lab {lab.name!r} do not end", mend=f"Try `{typed('down')}` in a minute.")
        time.sleep(0.02)
