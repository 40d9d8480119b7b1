"""The examination of all ranks' machines, and its table."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import NoReturn

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
from resist_hvd.guard import failure, starting
from resist_hvd.settings.tools import DoctorSettings
from resist_hvd.units import counted

MUST_MEND = 1
"""Exit status where something must be mended."""

WIDTH = 120
MARKS = {"ok": ("ok", "green"), "note": ("note", "yellow"), "mend": ("MEND", "bold red")}


def run(settings: DoctorSettings) -> NoReturn:
    """Examine all ranks, print the table, and end with the status that it deserves."""
    try:
        with starting.limited():
            world = World.join("cpu")
            failure.watch(world)
    except UserError as error:
        finish([Finding("launch", error.seen, "mend", error.mend)], prints=launched_rank() == 0)
    findings = examine(settings, world)
    world.barrier()
    finish(findings, prints=world.is_first)


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


def finish(findings: Sequence[Finding], *, prints: bool) -> NoReturn:
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
