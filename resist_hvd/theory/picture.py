"""The experiment of Theorem 3.1 as a picture: loss by round, and rates as the network and the training change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resist_hvd import drawing
from resist_hvd.theory.convergence import Row

RATES = {
    "measured": ("measured", "o"),
    "linear": ("by the Gram matrix of all that learns", None),
    "predicted": ("theorem", None),
}
"""Attributes of a row that are drawn, their labels and markers."""


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the rows into a file.

    Raises:
        UserError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    plt = drawing.pyplot(drawing.LIGHT)
    figure, axes = plt.subplots(2, 3, figsize=(14, 8), layout="constrained")
    draw_losses(rows, axes[0, 0])
    draw_rates(rows, axes[0, 1], "width", "m, width", lambda row: row.case.shape.width)
    draw_rates(
        rows, axes[0, 2], "local iterations", "l, local iterations", lambda row: row.case.training.local_iterations
    )
    draw_rates(rows, axes[1, 0], "depth", "H, depth", lambda row: row.case.shape.depth)
    draw_rates(rows, axes[1, 1], "depth, blocks alone", "H, depth", lambda row: row.case.shape.depth)
    draw_rates(rows, axes[1, 2], "workers, blocks alone", "S, workers", lambda row: row.case.training.workers)
    axes[0, 1].legend(loc="center right")
    figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def draw_losses(rows: Sequence[Row], axes: Any) -> None:
    """Draw the loss by round for each number of workers, without the scale, and the theorem's line."""
    by_workers = [row for row in rows if row.case.varied == "workers"]
    for number, row in enumerate(by_workers):
        share = np.array(row.losses) / row.losses[0]
        axes.plot(share, color=drawing.colour(number), label=f"S = {row.case.training.workers}")
    for row in rows:
        if row.case.varied == "without the scale k / N":
            share = np.array(row.losses) / row.losses[0]
            label = f"S = {row.case.training.workers}, without the scale k / N"
            axes.plot(share, color=drawing.LIGHT.ink, linestyle=":", label=label)
    if by_workers:
        line = (1 - by_workers[0].predicted) ** np.arange(by_workers[0].case.rounds + 1)
        axes.plot(line, color=drawing.LIGHT.ink, linestyle="--", linewidth=1.2, label="theorem's line")
    axes.set(title="Loss, as a share of the first", xlabel="round", yscale="log")
    axes.legend()


def draw_rates(rows: Sequence[Row], axes: Any, varied: str, label: str, at: Callable[[Row], int]) -> None:
    """Draw rates of the rows in which one thing varies."""
    drawn = [row for row in rows if row.case.varied == varied]
    axes.set(title=f"Rate a round: {varied}", xlabel=label)
    if not drawn:
        return
    places = [at(row) for row in drawn]
    for number, (attribute, (name, marker)) in enumerate(RATES.items()):
        # A rate below zero has no place on a logarithmic axis.
        values = [rate if (rate := getattr(row, attribute)) > 0 else np.nan for row in drawn]
        style = {"linestyle": "none"} if marker else {"linestyle": ("-", "--")[number - 1]}
        axes.plot(places, values, color=drawing.colour(number), marker=marker, label=name, zorder=3 - number, **style)
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(places, [str(place) for place in places])
    axes.minorticks_off()
