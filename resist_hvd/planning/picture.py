"""A plan as a picture: bytes and seconds as workers grow, and where a round's time goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from resist_hvd import drawing
from resist_hvd.planning.forecast import FEWEST_ROUNDS, METHODS, SCALE, Planner

PARTS = {
    "seconds_compute": ("compute", drawing.PHASES["compute"]),
    "seconds_bandwidth": ("bandwidth", drawing.PHASES["blocks"]),
    "seconds_latency": ("latency", drawing.PHASES["waiting"]),
}


def draw(planner: Planner, path: Path) -> None:
    """Draw the plan into a file.

    Raises:
        UserError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    plt = drawing.pyplot(drawing.LIGHT)
    figure, (sent, seconds, shares) = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    for number, method in enumerate(METHODS):
        runs = [planner.run(method, workers) for workers in SCALE]
        style = {"color": drawing.colour(number), "label": method, "marker": "o", "markersize": 3.5}
        sent.plot(SCALE, [run.round.bytes_sent / 1e9 for run in runs], **style)
        seconds.plot(SCALE, [run.seconds for run in runs], **style)
        reserved = [run for run in runs if run.reservation]
        hollow = {**style, "label": None, "linestyle": "none", "markerfacecolor": drawing.LIGHT.paper, "zorder": 3}
        seconds.plot([run.workers for run in reserved], [run.seconds for run in reserved], **hollow)
    for axes, title, label in (
        (sent, "Sent a round, all workers", "GB"),
        (seconds, f"A run (hollow: fewer than {FEWEST_ROUNDS} rounds)", "seconds"),
    ):
        axes.set(title=title, ylabel=label, xlabel="workers", yscale="log")
        axes.set_xscale("log", base=2)
        axes.set_xticks(SCALE[::2], [f"{workers:,}" for workers in SCALE[::2]])
    sent.legend()
    _shares(planner, shares)
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def _shares(planner: Planner, axes: Any) -> None:
    """Draw where a round's time goes, for each method and each number of workers asked for."""
    rounds = [
        (f"{method}, {workers}", planner.round(method, workers))
        for method in METHODS
        for workers in planner.settings.worker_counts
    ]
    labels = [label for label, _ in rounds]
    left = [0.0] * len(rounds)
    for attribute, (name, colour) in PARTS.items():
        values = [getattr(once, attribute) for _, once in rounds]
        axes.barh(labels, values, left=left, color=colour, label=name, height=0.72)
        left = [a + b for a, b in zip(left, values, strict=True)]
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set(title="Where a round's time goes", xlabel="seconds")
    axes.legend(loc="lower right")
