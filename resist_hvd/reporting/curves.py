"""Curves of accuracy: a run's, or the mean of runs that differ in nothing but their seeds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

from resist_hvd.console import printable
from resist_hvd.reporting.reading import RunRecord
from resist_hvd.units import PAYLOAD, counted, scaled

OF_NO_RESULT = frozenset(
    ("seed", "output", "resume", "trace", "watchdog", "evaluate_every", "checkpoint_every", "keep_checkpoints")
)
"""Settings in which runs of one curve may differ."""


class Point(NamedTuple):
    """An evaluation, the mean over a curve's runs; least and most are accuracies."""

    round: int
    seconds: float
    bytes_sent: float
    accuracy: float
    least: float
    most: float


class Curve(NamedTuple):
    """A line of a picture.

    Attributes:
        label: for the legend.
        colour: the number of its colour.
        points: in the order of rounds.
    """

    label: str
    colour: int
    points: list[Point]


@dataclass(frozen=True, kw_only=True)
class Link:
    """A network that runs are taken to have had: each worker has a link of its own, on which nothing is hidden.

    Attributes:
        rate: of a link each way, in bytes a second, raw; headers take a part of it.
        step: seconds of a local iteration; None for those that the runs measured.
    """

    rate: float
    step: float | None = None

    @property
    def says(self) -> str:
        """The way in which seconds are computed, in a sentence."""
        steps = "arithmetic and data as measured" if self.step is None else f"{self.step:g} s a local iteration"
        return (
            f"Seconds are computed, not measured: {steps}, and the mean worker's payload over {PAYLOAD:.0%} of a link "
            f"of {scaled(8 * self.rate, 'bit/s')} that is its own; nothing is hidden."
        )

    def seconds(self, run: RunRecord, rounds: int) -> float:
        """Return the seconds of a run's first rounds on it: arithmetic and data, and a worker's payload."""
        return sum(
            (line.seconds_compute + line.seconds_data if self.step is None else line.iterations * self.step)
            + line.bytes_sent / line.workers / (PAYLOAD * self.rate)
            for line in run.rounds
            if line.round < rounds
        )


def group(runs: list[RunRecord]) -> None:
    """Have runs that differ in no setting of a result share a name and a colour."""
    alike: dict[object, list[RunRecord]] = {}
    for run in runs:
        key = tuple(sorted(_settings(run).items())) or id(run)
        alike.setdefault(key, []).append(run)
    told_apart = _that_differ([_settings(members[0]) for members in alike.values()])
    for colour, members in enumerate(alike.values()):
        own = _settings(members[0])
        words = [own[name] if name == "method" else f"{name} {own[name]}" for name in told_apart if name in own]
        for run in members:
            run.colour = colour
            run.curve = printable(", ".join(words)) if words else run.label


def curves(runs: list[RunRecord], link: Link | None = None) -> list[Curve]:
    """Return the curves of runs that were evaluated, in the order of their colours."""
    found = []
    for colour in sorted({run.colour for run in runs}):
        members = [run for run in runs if run.colour == colour and run.evaluations]
        if points := list(_points(members, link)):
            several = f" ({counted(len(members), 'run')})" if len(members) > 1 else ""
            found.append(Curve(f"{members[0].curve}{several}", colour, points))
    return found


def _points(runs: list[RunRecord], link: Link | None) -> Iterator[Point]:
    """Yield the means of evaluations that all these runs had."""
    by_round = [{line.round: line for line in run.evaluations} for run in runs]
    for number in sorted(set[int]().union(*by_round).intersection(*by_round)):
        lines = [own[number] for own in by_round]
        seconds = [line.seconds for line in lines] if link is None else [link.seconds(run, number) for run in runs]
        accuracies = [line.figure for line in lines]
        sent = fmean(line.bytes_sent for line in lines)
        yield Point(number, fmean(seconds), sent, fmean(accuracies), min(accuracies), max(accuracies))


def _settings(run: RunRecord) -> dict[str, str]:
    """Return the settings that make a run's result, by their names with dots in them."""

    def flat(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
        for name, value in values.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", str(value)

    return {name: value for name, value in flat(run.config, "") if name not in OF_NO_RESULT}


def _that_differ(groups: list[dict[str, str]]) -> list[str]:
    """Return the names of the settings that differ between groups, in the order in which settings stand."""
    names = dict.fromkeys(name for settings in groups for name in settings)
    return [name for name in names if len({settings.get(name) for settings in groups}) > 1]
