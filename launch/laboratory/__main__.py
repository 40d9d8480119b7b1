"""The commands of launch/lab."""

import argparse
import json
import os
import shlex
import signal
import sys
from dataclasses import asdict

from laboratory import links, making, packages, processes, programs, slurm, state
from laboratory.errors import DEFAULT_NAME, NAME_VARIABLE, LabError, typed
from laboratory.state import HEAD

USERS_MISTAKE = 2


def parser() -> argparse.ArgumentParser:
    """Return the parser of launch/lab."""
    whole = argparse.ArgumentParser(
        prog="launch/lab",
        description="Hosts on this one machine, each with a network, a name, /tmp and shared memory of its own, and a "
        "link of the speed you choose. Needs Linux and root. Nothing is changed outside of the lab's own namespaces.",
        epilog="docs/cluster.md shows it at work.",
    )
    common = argparse.ArgumentParser(add_help=False)
    name = os.environ.get(NAME_VARIABLE, DEFAULT_NAME)
    common.add_argument("--name", default=name, help=f"which lab (default: {NAME_VARIABLE}, else {DEFAULT_NAME})")
    installing = argparse.ArgumentParser(add_help=False)
    installing.add_argument("--install", action="store_true", help="install the Debian packages that are missing")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")

    commands.add_parser("packages", parents=[installing], help="say which Debian packages are missing")
    up = commands.add_parser("up", parents=[common, installing], help="make a lab")
    up.add_argument("--hosts", type=int, default=2, help="how many: n1, n2 ... besides the host `head` (default: 2)")
    up.add_argument("--bandwidth", default="1gbit", help="of each link: 100mbit, 10gbit, none (default: 1gbit)")
    up.add_argument(
        "--share",
        action="append",
        default=[],
        metavar="DIR",
        help="a folder below /tmp that all hosts shall see; this one and the project's they do",
    )

    run = commands.add_parser("run", parents=[common], help="run a program on the head, or ranks on all hosts")
    run.add_argument("-np", type=int, metavar="N", help="run it by mpirun as N ranks, shared out among n1, n2 ...")
    run.add_argument("--on", metavar="HOST", default=HEAD, help=f"the host of a program without -np (default: {HEAD})")
    run.add_argument("program", nargs=argparse.REMAINDER, metavar="COMMAND")

    batch = commands.add_parser("slurm", parents=[common, installing], help="start SLURM on all hosts")
    batch.add_argument("--gpus", type=int, default=0, metavar="N", help="GPUs that each host shall seem to have")
    batch.add_argument("--accounting", action="store_true", help="keep accounts of jobs, for sacct")
    count = commands.add_parser(
        "bytes",
        parents=[common],
        help="print what crossed each host's link",
        description="Print what crossed each host's link since the lab was made, by the kernel's counters. `payload` "
        "(in JSON sent_payload) is the bytes sent without the headers of Ethernet, IP and TCP. `sent again` (in JSON "
        "retransmitted_segments) is the TCP segments that the host retransmitted, because a packet was lost or its "
        f"answer late: the payload counts them too, at most {links.SEGMENT} bytes each.",
    )
    count.add_argument("--json", action="store_true", help="print it as JSON")
    list_ = commands.add_parser("ps", parents=[common], help="print the processes of each host")
    list_.add_argument("--json", action="store_true", help="print them as JSON")
    for name, text in (
        ("pause", "stop all processes of a host, or a rank, where they are"),
        ("resume", "have paused ones go on"),
        ("kill", "end a host as a power cut would, or a rank"),
    ):
        command = commands.add_parser(name, parents=[common], help=text)
        command.add_argument("target", metavar="HOST|rankN")
    for name, text in (("cut", "pull a host's cable"), ("mend", "plug it in again")):
        commands.add_parser(name, parents=[common], help=text).add_argument("target", metavar="HOST")
    commands.add_parser("down", parents=[common], help="end a lab and all that runs in it")
    return whole


def main(arguments: list[str]) -> int:
    """Do one command and return the exit status."""
    given = parser().parse_args(arguments)
    os.environ["PATH"] = packages.system_path()
    if "name" in given:
        os.environ[NAME_VARIABLE] = given.name
    try:
        if os.geteuid() != 0:
            raise LabError("making hosts and looking after them needs root", mend="Run it as root, as by sudo.")
        return COMMANDS[given.command](given)
    except LabError as error:
        print(f"launch/lab: {error}", file=sys.stderr)
        return USERS_MISTAKE
    except KeyboardInterrupt:
        print("\nlaunch/lab: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def check_packages(given: argparse.Namespace) -> int:
    """See that all Debian packages are there."""
    packages.require(packages.FOR_HOSTS | packages.FOR_SLURM | packages.FOR_ACCOUNTING, install=given.install)
    print("all packages are there")
    return 0


def up(given: argparse.Namespace) -> int:
    """Make a lab."""
    packages.require(packages.FOR_HOSTS, install=given.install)
    lab = making.make(given.name, hosts=given.hosts, bandwidth=given.bandwidth, shares=given.share)
    last = lab.workers[-1].name
    limit = "without a limit" if lab.bandwidth == "none" else f"of {lab.bandwidth}"
    names = "n1" if last == "n1" else f"n1 to {last}"
    print(f"{names} and {HEAD} are up, with links {limit}; `{typed('down')}` ends them")
    return 0


def down(given: argparse.Namespace) -> int:
    """End a lab."""
    print("all gone" if making.remove(given.name) else f"there was no lab {given.name!r}")
    return 0


def start_slurm(given: argparse.Namespace) -> int:
    """Start SLURM."""
    accounting = packages.FOR_ACCOUNTING if given.accounting else {}
    packages.require(packages.FOR_HOSTS | packages.FOR_SLURM | accounting, install=given.install)
    lab = state.running(given.name)
    slurm.start(lab, gpus=given.gpus, accounting=given.accounting)
    submit = typed(f"run sbatch --nodes={len(lab.workers)} ...")
    print(f"SLURM runs on {len(lab.workers)} hosts: `{submit}`")
    return 0


def run(given: argparse.Namespace) -> int:
    """Run a program."""
    lab = state.running(given.name)
    if not given.program:
        raise LabError("there is no command to run", mend=f"Give it last, as in `{typed('run hostname')}`.")
    command = given.program[1:] if given.program[0] == "--" else given.program
    return programs.run(lab, given.on, command) if given.np is None else programs.run_ranks(lab, given.np, command)


def count_bytes(given: argparse.Namespace) -> int:
    """Print the links' counters."""
    lab = state.running(given.name)
    counted = {host.name: links.traffic(lab.first(host.name)) for host in lab.workers}
    if given.json:
        print(json.dumps({name: asdict(one) | {"sent_payload": one.sent_payload} for name, one in counted.items()}))
        return 0
    print(
        f"{'host':<6}{'sent bytes':>16}{'packets':>12}{'payload':>16}{'sent again':>12}"
        f"{'received bytes':>16}{'packets':>12}"
    )
    for name, one in counted.items():
        print(
            f"{name:<6}{one.sent_bytes:>16,}{one.sent_packets:>12,}{one.sent_payload:>16,}{one.retransmitted_segments:>12,}"
            f"{one.received_bytes:>16,}{one.received_packets:>12,}"
        )
    return 0


def list_processes(given: argparse.Namespace) -> int:
    """Print all hosts' processes but the first."""
    lab = state.running(given.name)
    found = lab.processes()
    if given.json:
        print(json.dumps({name: [asdict(one) for one in everyone] for name, everyone in found.items()}))
        return 0
    for name, everyone in found.items():
        print(f"{name}: {len(everyone) or 'no'} process{'es' if len(everyone) != 1 else ''}")
        for one in everyone:
            rank = "" if one.rank is None else f"rank {one.rank}"
            print(f"  {one.pid:>8} {one.state} {rank:<8}{shlex.join(one.command)[:90]}")
    return 0


def signal_target(given: argparse.Namespace) -> int:
    """Pause, resume or kill a host or a rank."""
    number = {"pause": signal.SIGSTOP, "resume": signal.SIGCONT, "kill": signal.SIGKILL}[given.command]
    lab = state.running(given.name)
    found = lab.processes()
    if given.target.startswith("rank"):
        wanted = [one.pid for everyone in found.values() for one in everyone if f"rank{one.rank}" == given.target]
    elif given.command == "kill":
        wanted = [lab.first(given.target)]
    else:
        wanted = [one.pid for one in found[lab.host(given.target).name]]
    if not processes.send(wanted, number):
        raise LabError(f"nothing runs as {given.target}", mend=f"`{typed('ps')}` shows what does.")
    return 0


def connect(given: argparse.Namespace) -> int:
    """Cut or mend a host's link."""
    lab = state.running(given.name)
    links.connect(lab.keeper, lab.host(given.target).name, up=given.command == "mend")
    return 0


COMMANDS = {
    "packages": check_packages,
    "up": up,
    "down": down,
    "slurm": start_slurm,
    "run": run,
    "bytes": count_bytes,
    "ps": list_processes,
    "pause": signal_target,
    "resume": signal_target,
    "kill": signal_target,
    "cut": connect,
    "mend": connect,
}
