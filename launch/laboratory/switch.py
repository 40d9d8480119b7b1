"""The process that a lab hangs on: first in namespaces of its own, with the bridge and, below it, all hosts.

When it ends, however it ends, the kernel ends all processes of all hosts, and removes their networks and mounts. The
bridge is in its network namespace, too: nothing of a lab is ever seen from this machine's own network.
"""

import json
import os
import signal
import subprocess
import sys
from typing import Any, NoReturn

from laboratory import links
from laboratory.errors import LabError, typed

NAMESPACES = ("--net", "--uts", "--ipc", "--mount", "--pid")


def module(name: str) -> list[str]:
    """Return what starts a module of the laboratory as the first process in new namespaces."""
    return [
        "unshare",
        *NAMESPACES,
        "--fork",
        "--kill-child",
        "--mount-proc",
        sys.executable,
        "-s",
        "-m",
        f"laboratory.{name}",
    ]


def make_host(order: dict[str, Any]) -> int:
    """Start a host, and return the inode of its process namespace.

    Args:
        order: what `host.settle` takes.

    Raises:
        LabError: it could not be made.
    """
    process = subprocess.Popen(module("host"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    if process.stdout.readline() != "here\n":
        raise LabError(f"the namespaces of {order['name']} could not be made", mend="This kernel may not have them.")
    links.plug_in(order["name"], process.pid, order["bandwidth"])
    print(json.dumps(order), file=process.stdin, flush=True)
    answer = json.loads(process.stdout.readline() or '{"error": "it ended"}')
    if "error" in answer:
        raise LabError(f"a host could not be made: {answer['error']}", mend=f"`{typed('down')}` removes the rest.")
    inode: int = answer["pid_namespace"]
    return inode


def main() -> None:
    """Take the orders for all hosts from standard input, answer on standard output, and stay until killed."""
    text = sys.stdin.readline()
    if not text:
        return  # the command that makes the lab was killed before it knew of this process
    try:
        links.make_switch()
        hosts = [make_host(order) for order in json.loads(text)]
    except (LabError, OSError) as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return
    print(json.dumps({"pid_namespace": os.stat("/proc/self/ns/pid").st_ino, "hosts": hosts}), flush=True)
    stay()


def stay() -> NoReturn:
    """Be the first process of a namespace from now on: hold nothing, and leave the dead to the kernel."""
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
