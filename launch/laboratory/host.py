"""The first process of a host, in namespaces of its own: gives it a name, a network, folders and an sshd."""

import json
import os
import re
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

from laboratory import links, ssh
from laboratory.errors import LabError, do
from laboratory.switch import stay

PRIVATE = ("/tmp", "/dev/shm", "/run")
"""Folders that each host has for itself, in memory; everything else is the machine's, as on a shared file system."""


def settle(order: dict[str, Any]) -> None:
    """Make this process's namespaces a host.

    Args:
        order: its `name`, `address`, `bandwidth` and `cores`, the text of `hosts` for /etc/hosts, and `folders`: those
            that it shall see, and where.
    """
    os.sched_setaffinity(0, order["cores"])
    socket.sethostname(order["name"])
    links.set_up_port(order["address"], order["bandwidth"])
    # Held by a handle, a folder can still be bound to its place after something was mounted over it.
    handles = {place: os.open(folder, os.O_PATH) for folder, place in order["folders"].items()}
    for folder in PRIVATE:
        mode = "0755" if folder == "/run" else "1777"
        do("mount", "-t", "tmpfs", "-o", f"mode={mode}", "tmpfs", folder)
    for place, handle in handles.items():
        Path(place).mkdir(parents=True, exist_ok=True)
        do("mount", "--no-canonicalize", "--bind", f"/proc/{os.getpid()}/fd/{handle}", place)
        os.close(handle)
    _replace("/etc/hosts", order["hosts"], 0o644)
    # sshd refuses users whose password is locked, as root's is on many systems, even by key.
    _replace("/etc/shadow", re.sub(r"(?m)^([^:]*):!+", r"\1:*", Path("/etc/shadow").read_text()), 0o600)
    ssh.start_daemon(order["address"])


def _replace(path: str, text: str, mode: int) -> None:
    """Give this host a text of its own in a file's place."""
    with tempfile.NamedTemporaryFile("w", dir="/run", delete=False) as file:
        file.write(text)
    os.chmod(file.name, mode)
    do("mount", "--bind", file.name, path)


def main() -> None:
    """Take the order from standard input, answer on standard output, and stay until killed."""
    print("here", flush=True)
    text = sys.stdin.readline()
    if not text:
        return
    order = json.loads(text)
    try:
        settle(order)
    except (LabError, OSError) as error:
        print(json.dumps({"error": f"{order['name']}: {error}"}), flush=True)
        return
    print(json.dumps({"pid_namespace": os.stat("/proc/self/ns/pid").st_ino}), flush=True)
    stay()


if __name__ == "__main__":
    main()
