"""Settings of `python -m resist_hvd.reproduce`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from resist_hvd.settings.data import DataName
from resist_hvd.settings.group import Count, Group, Natural

BudgetName = Literal["minutes", "hours", "paper"]


@dataclass(frozen=True, kw_only=True)
class ImagesSettings(Group):
    """Images, as training takes them."""

    PREFIX: ClassVar = "data."

    name: DataName | None = None
    """The data set in the place of CIFAR-10: folder, for CIFAR-10 as class folders. Default: the experiment's own."""

    root: Path | None = None
    """The folder that holds the data. Default: ./data; ImageNet's rows need one."""

    download: bool = False
    """Fetch CIFAR-10 and CIFAR-100 into root where they are missing."""

    extra_tests: Path | None = None
    """ImageNetV2's three test sets, for table3."""


@dataclass(frozen=True, kw_only=True)
class ReproduceSettings(Group):
    """Make a table or a figure of the paper again.

    Give its name, then flags; `list` says which there are. Started again, it goes on where it was stopped: finished
    runs are not run again, whatever experiment they were run for.
    """

    budget: BudgetName = "minutes"
    """minutes: within 20 on two cores, by a thin network in few epochs; hours: the same for longer, by three seeds;
    paper: the paper's settings, for GPUs."""

    ranks: Count = 4
    """Workers of rows for which the paper has no table by S."""

    seeds: Count | None = None
    """Runs of each row that differ in their seeds alone. Default: 1 in minutes, else 3."""

    output: Path = Path("reproduced")
    """The folder for runs, which experiments share, and for a folder of each experiment: its page and its tables."""

    dry: bool = False
    """Print each run's command, and start nothing."""

    part: Natural | None = None
    """Run only the run of this number, counted from 0, and make no page: for the elements of a job array."""

    describe: bool = False
    """With --part: print the number of workers, the folder and the flags of a run of training, one a line, and start
    nothing; print nothing of a run that is none."""

    page: bool = False
    """Run nothing: make page and tables of the runs that there are."""

    data: ImagesSettings = field(default_factory=ImagesSettings)

    def check(self) -> None:
        """Refuse flags that contradict one another."""
        if self.describe and self.part is None:
            raise ValueError("--describe is for one run; give its number by --part N")
        if self.page and (self.part is not None or self.dry):
            raise ValueError(f"--page runs nothing; leave --{'dry' if self.dry else 'part'} out")

    @property
    def seeds_taken(self) -> int:
        """Runs of each row."""
        return self.seeds or (1 if self.budget == "minutes" else 3)
