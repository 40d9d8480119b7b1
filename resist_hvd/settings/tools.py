"""Settings of the programs that look at machines and at runs: `doctor` and `report`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from resist_hvd.settings.group import Group, Positive


@dataclass(frozen=True, kw_only=True)
class DoctorSettings(Group):
    """Look at every rank's machine before a long run, and say what must be mended: then the status is 1."""

    output: Path = Path("runs")
    """The folder that the run will write to."""

    config: Path | None = None
    """The file of settings that the run will be given: it must be the same on all hosts."""

    seconds: Positive = 20.0
    """About how long to measure the network between hosts."""

    quick: bool = False
    """Leave the network and the clocks out: a health check for a container."""


@dataclass(frozen=True, kw_only=True)
class ReportSettings(Group):
    """Show what runs did: give their folders, then flags.

    Runs that are unfinished, damaged, or of an older version are reported as far as they go.
    """

    output: Path | None = None
    """The folder for report.html and the pictures. Default: report in the folder of the first run."""

    title: str = "ResIST: what runs did"
    """The page's heading."""
