"""`python -m resist_hvd.doctor`: look at every rank's machine before a long run, and say what must be mended.

Start it as the run will be started: by the same mpirun, srun or horovodrun, on the same hosts. The status is 1 where
something must be mended.
"""

from __future__ import annotations

from resist_hvd.guard import starting

if __name__ == "__main__":
    starting.begin()  # before PyTorch and all else that takes its time is imported

import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from resist_hvd import console
from resist_hvd.checkup.findings import Finding, judge
from resist_hvd.checkup.view import look
from resist_hvd.comm.launch import launched_rank, person_watches
from resist_hvd.comm.probe import clock_offsets, first_ranks, probe
from resist_hvd.comm.world import World
from resist_hvd.errors import UserError
from resist_hvd.guard import failure
from resist_hvd.settings import flags
from resist_hvd.settings.tools import DoctorSettings
from resist_hvd.units import counted

MUST_MEND = 1
"""Exit status where something must be mended."""

WIDTH = 120
MARKS = {"ok": ("ok", "green"), "note": ("note", "yellow"), "mend": ("MEND", "bold red")}


def main() -> None:
    """Examine what the flags ask for, and end with the status that it deserves."""
    failure.run(run_from_flags)


def run_from_flags() -> None:
    """Examine all ranks and print the table."""
    with failure.printed_once():
        settings = parse(sys.argv[1:])
    try:
        with starting.limited():
            world = World.join("cpu")
            failure.watch(world)
    except UserError as error:
        finish([Finding("launch", error.seen, "mend", error.mend)], prints=launched_rank() == 0)
    findings = examine(settings, world)
    world.barrier()
    finish(findings, prints=world.is_first)


def parse(arguments: Sequence[str]) -> DoctorSettings:
    """Return the settings that the flags ask for.

    Raises:
        UserError: a flag is unknown or wrong.
    """
    return flags.parse_settings("python -m resist_hvd.doctor", DoctorSettings, arguments)


def examine(settings: DoctorSettings, world: World) -> list[Finding]:
    """Return what all ranks find together; all ranks call it together."""
    world.position = "looking at this host"
    views = world.gather_objects(look(world, settings.output, settings.config))
    if settings.quick:
        return judge(views, [], {})
    world.position = "measuring the network between hosts"
    links, offsets = probe(world, settings.seconds), clock_offsets(world, time.time)
    hosts = [view.host for view in views]
    return judge(views, links, {hosts[rank]: offsets[rank] for rank in first_ranks(hosts)})


def finish(findings: Sequence[Finding], *, prints: bool) -> None:
    """Print the table, on one rank, and end with the status it deserves."""
    to_mend = sum(finding.level == "mend" for finding in findings)
    if prints:
        show(findings, console.screen(width=WIDTH, force_terminal=person_watches()))
    sys.exit(MUST_MEND if to_mend else 0)


def show(findings: Sequence[Finding], screen: Console) -> None:
    """Print findings as a table, and what they come to."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("", "check", "seen", "what to do"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        mark, style = MARKS[finding.level]
        table.add_row(Text(mark, style=style), Text(finding.check), Text(finding.seen), Text(finding.mend))
    screen.print(table)
    to_mend = sum(finding.level == "mend" for finding in findings)
    if to_mend:
        screen.print(Text(f"{counted(to_mend, 'thing')} must be mended.", style="bold red"))
    else:
        screen.print(Text("Nothing must be mended.", style="bold green"))


if __name__ == "__main__":
    main()
