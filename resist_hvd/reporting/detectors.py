"""Pictures of detectors: precision against recall, and a few images with the objects in them and those found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from resist_hvd import drawing
from resist_hvd.console import printable
from resist_hvd.drawing import Theme
from resist_hvd.records import RECALLS
from resist_hvd.reporting.panels import WIDTH, Figure, legend_of_runs
from resist_hvd.reporting.reading import RunRecord

if TYPE_CHECKING:
    from resist_hvd.tasks.detection import Example

COLUMNS = 3
"""Images side by side."""


def precisions_of(run: RunRecord) -> Mapping[str, Sequence[float]]:
    """Return each class's precisions in a run's last evaluation, as in `records.Evaluation`; none for a classifier."""
    return (run.evaluations[-1].precisions if run.evaluations else None) or {}


def of_precision(runs: list[RunRecord]) -> Figure:
    """Return the picture of precision against recall; some of the runs have trained detectors."""
    return Figure(
        "precision",
        "Precision and recall",
        "In the last evaluation, at an IoU of 0.5. Left, each class's precision at a recall or a greater one, and, "
        "where there are several classes, their mean in bold. Right, each class's average precision by VOC 2007's "
        "eleven recalls, of which mAP is the mean.",
        lambda theme: precision(runs, theme),
    )


def precision(runs: list[RunRecord], theme: Theme) -> Any:
    """Draw precision against recall, and each class's average precision."""
    plt = drawing.pyplot(theme)
    drawn = [run for run in runs if precisions_of(run)]
    classes = sorted({name for run in drawn for name in precisions_of(run)})
    height = min(9.0, max(3.7, 1.2 + 0.24 * len(classes)))
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, height), layout="constrained")
    for run in drawn:
        colour, curves = drawing.colour(run.colour), list(precisions_of(run).values())
        recalls = [step / (RECALLS - 1) for step in range(RECALLS)]
        for values in curves if len(curves) > 1 else ():
            left.plot(recalls, values, color=colour, alpha=0.25, linewidth=1)
        left.plot(recalls, [fmean(values) for values in zip(*curves, strict=True)], color=colour)
    left.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    step = 0.8 / len(drawn)
    for place, run in enumerate(drawn):
        of_classes = precisions_of(run)
        y = [classes.index(name) - 0.4 + (place + 0.5) * step for name in of_classes]
        x = [100 * fmean(values[::2]) for values in of_classes.values()]
        bars = right.barh(y, x, 0.9 * step, color=drawing.colour(run.colour))
        if len(classes) * len(drawn) <= 24:
            right.bar_label(bars, [f"{value:.1f}" for value in x], fontsize=8, padding=2, color=theme.ink)
    right.set_yticks(range(len(classes)), [drawing.literal(printable(name)) for name in classes])
    right.set(xlabel="average precision, %", xlim=(0, 108), ylim=(len(classes) - 0.5, -0.5))
    right.set_xticks(range(0, 101, 20))
    right.grid(visible=False, axis="y")
    right.tick_params(axis="y", length=0)
    legend_of_runs(figure, runs, drawn)
    return figure


def of_examples(number: int, run: RunRecord, examples: Sequence[Example], classes: Sequence[str]) -> Figure:
    """Return the picture of images that a run's detector was shown.

    Args:
        number: of the picture among those of its kind, for its file's name.
        run: the run.
        examples: the images, what is in them, and what was found.
        classes: the detector's, in the order of labels.
    """
    return Figure(
        f"boxes-{number}",
        f"Objects found: {run.label}",
        "By the exported model, in images that training did not have. Dashed, the objects that are there; solid, those "
        "that were found, with their scores"
        + ("" if len(classes) == 1 else " and in their classes' colours")
        + ". Objects marked difficult are not shown.",
        lambda theme: boxes(examples, classes, theme),
    )


def boxes(examples: Sequence[Example], classes: Sequence[str], theme: Theme) -> Any:
    """Draw images with objects that are there, and those that were found."""
    plt = drawing.pyplot(theme)
    from matplotlib import patheffects
    from matplotlib.patches import Rectangle

    edged: list[patheffects.AbstractPathEffect] = [patheffects.withStroke(linewidth=2.4, foreground="black")]
    rows = -(-len(examples) // COLUMNS)
    size = (WIDTH, rows * WIDTH / COLUMNS)
    figure, panels = plt.subplots(rows, COLUMNS, figsize=size, squeeze=False, layout="constrained")
    for axes in panels.flat:
        axes.set_axis_off()
    for axes, example in zip(panels.flat, examples, strict=False):
        height, width = example.pixels.shape[:2]
        axes.imshow(example.pixels, extent=(0, width, height, 0))  # edges are counted from the first pixel's
        axes.set_title(drawing.literal(printable(example.name)), fontsize=9, weight="normal")
        for box in example.there.boxes.tolist():
            corner, width, height = _placed(box)
            there = Rectangle(corner, width, height, fill=False, edgecolor="white", linewidth=1.2, linestyle="--")
            there.set_path_effects(edged)
            axes.add_patch(there)
        for box, score, label in zip(*(values.tolist() for values in example.found), strict=True):
            corner, width, height = _placed(box)
            colour = drawing.colour(label)
            axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=colour, linewidth=1.6))
            name = "" if len(classes) == 1 else f"{drawing.literal(printable(classes[label]))} "
            axes.text(
                *corner,
                f"{name}{score:.2f}",
                color="white",
                fontsize=7,
                va="bottom",
                bbox={"facecolor": colour, "edgecolor": "none", "pad": 1},
                clip_on=True,
            )
    return figure


def _placed(box: Sequence[float]) -> tuple[tuple[float, float], float, float]:
    """Return a box's left upper corner, its width and its height, of its edges."""
    left, top, right, bottom = box
    return (left, top), right - left, bottom - top
