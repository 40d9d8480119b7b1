"""Settings of the programs that look at machines, at runs, and use what they trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from resist_hvd import units
from resist_hvd.settings.group import Count, Group, Natural, Positive, Share
from resist_hvd.settings.run import DeviceName, Settings


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

    group: bool = False
    """Draw the accuracy of runs that differ in their seeds alone as one curve, their mean; the others are named by the
    settings in which they differ."""

    images: Natural = 6
    """Number of images that are shown for each detector, with the objects in them and those that it finds; 0 for none.
    The model and the images must be where the run left them."""

    bandwidth: str | None = None
    """Compute accuracy's seconds for workers that each have a link of this rate, as 20mbit: arithmetic and data as
    measured, and the payload that was counted; nothing is hidden. Default: seconds as measured."""

    step: str | None = None
    """With --bandwidth: what a local iteration takes, as 150ms, instead of what runs measured, which were perhaps not
    alone on their machine."""

    def check(self) -> None:
        """Refuse quantities that are none, and a step without a link."""
        if self.step is not None and self.bandwidth is None:
            raise ValueError("--step is for seconds that are computed; give --bandwidth, too")
        _ = self.rate, self.seconds_step

    @property
    def rate(self) -> float | None:
        """The bandwidth in bytes a second."""
        if self.bandwidth is None:
            return None
        return units.quantity(self.bandwidth, units.RATES, setting="bandwidth", example="20mbit")

    @property
    def seconds_step(self) -> float | None:
        """Seconds of a local iteration."""
        return None if self.step is None else units.quantity(self.step, units.TIMES, setting="step", example="150ms")


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(Settings):
    """Evaluate the model that a run has exported on any test set.

    Give the run's folder, then flags. All processes that a launcher starts share the images out. Without flags the test
    set is the run's own. Class folders (folder, imagenet) need no training half: root holds test or val, or is a test
    set itself, or a folder of several. Classes may be a part of the model's.
    """

    TAKES: ClassVar = (
        "precision",
        "device",
        "watchdog",
        "data.name",
        "data.root",
        "data.download",
        "data.test_batch_size",
        "data.extra_tests",
        "data.decode_threads",
        "data.broken_files",
        "data.test",
        "data.ignore_exif",
    )

    parts: str | None = None
    """Function that makes the network, where the run's is one of your own (--model.parts): a model's file alone has no
    code run."""

    json: Path | None = None
    """Write the results into this file as JSON."""


@dataclass(frozen=True, kw_only=True)
class PredictSettings(Group):
    """Tell classes of images, or objects in them, by a model that a run exported.

    Give the run's folder, then images, then flags. Images are of any format that Pillow reads; of a folder all that are
    below it are taken. Where an image cannot be read the status is 1, once all others are done.
    """

    parts: str | None = None
    """Function that makes the network, where the run's is one of your own (--model.parts): a model's file alone has no
    code run."""

    top: Count = 5
    """Number of the most probable classes to name."""

    json: bool = False
    """Print a JSON object a line for each image: its path, and names and probabilities of classes; or the objects
    found, each with its class, its score, and its left, top, right and bottom edge in pixels."""

    least_score: Share = 0.25
    """A detector's objects of a lower score are left out."""

    draw: Path | None = None
    """A folder for copies of a detector's images, with the boxes drawn on them."""

    device: DeviceName = "auto"
    """Device to compute on; auto is cuda where there is a GPU."""
