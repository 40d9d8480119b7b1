"""Parts that all pictures of reports share: how they are described, their width, their legends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from resist_hvd import drawing
from resist_hvd.drawing import Theme
from resist_hvd.reporting.reading import RunRecord

WIDTH = 11.0
"""Inches of a picture."""


class Figure(NamedTuple):
    """A picture of a report.

    Attributes:
        name: its file's, without an ending.
        title: what it shows.
        caption: how to read it.
        draw: draws it in a theme, and returns matplotlib's figure.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Theme], Any]


def legend_of_runs(figure: Any, runs: list[RunRecord], drawn: list[RunRecord]) -> None:
    """Put the legend of the runs that are drawn above the panels, where there is more than one run."""
    if len(runs) > 1:
        legend(figure, [(run.colour, run.label) for run in drawn])


def legend(figure: Any, shown: list[tuple[int, str]]) -> None:
    """Put a legend above the panels: for each entry the number of its colour, and its name."""
    from matplotlib.lines import Line2D

    labels = [drawing.literal(label) for _, label in shown]
    handles = [Line2D([], [], color=drawing.colour(colour), linewidth=3) for colour, _ in shown]
    # Names may be long: as many columns as fit.
    columns = max(1, int(1.15 * WIDTH * 10 / (8 + max(map(len, labels)))))
    figure.legend(handles, labels, loc="outside upper left", ncols=min(4, columns))
