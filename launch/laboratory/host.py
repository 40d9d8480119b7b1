"""The first process of a host, in namespaces of its own: gives it a name, a network and folders, then answers calls."""

import json
import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

from laboratory import links
from laboratory.calls import Server
from laboratory.errors import LabError, do

PRIVATE = ("/tmp", "/dev/shm", "/run")
"""Folders that each host has for itself, in memory; everything else is the machine's, as on a shared file system."""


def settle(order: dict[str, Any]) -> None:
    """Make this process's namespaces a host.

    Args:
        order: its `name`, `address`, `bandwidth` and `cores`, the text of `hosts` for /etc/hosts, the `shares` that
            stay visible below its private folders, the lab's `folder`, and the `owner` who may run programs.
    """
    os.sched_setaffinity(0, order["cores"])
    socket.sethostname(order["name"])
    links.set_up_port(order["address"], order["bandwidth"])
    # Held by a handle, a folder can still be bound to its place after something was mounted over it.
    hidden = [path for path in (*order["shares"], order["folder"]) if _is_private(path)]
    handles = {path: os.open(path, os.O_PATH) for path in hidden}
    for folder in PRIVATE:
        mode = "0755" if folder == "/run" else "1777"
        do("mount", "-t", "tmpfs", "-o", f"mode={mode}", "tmpfs", folder)
    for path, handle in handles.items():
        Path(path).mkdir(parents=True, exist_ok=True)
        do("mount", "--no-canonicalize", "--bind", f"/proc/{os.getpid()}/fd/{handle}", path)
        os.close(handle)
    with tempfile.NamedTemporaryFile("w", dir="/run", prefix="hosts-", delete=False) as file:
        file.write(order["hosts"])
    os.chmod(file.name, 0o644)
    do("mount", "--bind", file.name, "/etc/hosts")


def _is_private(path: str) -> bool:
    return any(Path(path).is_relative_to(folder) for folder in PRIVATE)


def main() -> None:
    """Take the order from standard input, answer on standard output, and serve until killed."""
    print("here", flush=True)
    text = sys.stdin.readline()
    if not text:
        return
    order = json.loads(text)
    try:
        settle(order)
        server = Server(Path(order["folder"], f"{order['name']}.socket"), order["owner"])
    except (LabError, OSError) as error:
        print(json.dumps({"error": f"{order['name']}: {error}"}), flush=True)
        return
    print(json.dumps({"pid_namespace": os.stat("/proc/self/ns/pid").st_ino}), flush=True)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.chdir("/")
    server.serve()


if __name__ == "__main__":
    main()
