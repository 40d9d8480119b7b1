"""A report's pictures, each drawn for a page of one brightness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from resist_hvd import drawing
from resist_hvd.drawing import Theme
from resist_hvd.reporting import detectors
from resist_hvd.reporting.curves import Curve, Link, Point, curves
from resist_hvd.reporting.panels import WIDTH, Figure, legend, legend_of_runs
from resist_hvd.reporting.phases import seconds_of_ranks
from resist_hvd.reporting.reading import RunRecord, figure_name
from resist_hvd.units import counted, scaled

MOST_ROUNDS = 60
"""So many rounds of a deal are shown, so that each can be told from the next."""

MOST_RANKS = 32
"""So many ranks of a run have bars of their own."""


MEANS = "Runs that differ in their seeds alone are one curve: the mean, and a band from the least to the most."


def figures(runs: list[RunRecord], link: Link | None = None) -> list[Figure]:
    """Return the pictures that these runs give.

    Args:
        runs: in the order in which they are shown.
        link: the network for which accuracy's seconds are computed; None for those that were measured.
    """
    made = []
    if drawn := curves(runs, link):
        made.append(_of_accuracy(runs, drawn, link))
    if any(detectors.precisions_of(run) for run in runs):
        made.append(detectors.of_precision(runs))
    if any(run.rounds for run in runs):
        made.append(
            Figure(
                "loss",
                "Training loss",
                "The mean over a round's iterations and all workers: faint, each round's; bold, a running mean. "
                "Workers of ResIST train shallow sub-networks, so its loss is not that of the global network.",
                lambda theme: loss(runs, theme),
            )
        )
        made.append(
            Figure(
                "time",
                "Where a round's time went",
                "The mean round of every rank. Waiting is for the slowest rank to come to the synchronisation; blocks "
                "and trunk are what synchronising took besides, the trunk's average being under way while blocks are "
                "exchanged.",
                lambda theme: time(runs, theme),
            )
        )
    made += [_of_deal(number, run) for number, run in enumerate(runs, 1) if _is_dealt(run)]
    if any(run.peak_memory_bytes for run in runs):
        made.append(
            Figure(
                "memory",
                "Memory",
                "The most that each rank had, in a whole run: on a GPU PyTorch's, else the process's, libraries and "
                "images included.",
                lambda theme: memory(runs, theme),
            )
        )
    return made


def _of_accuracy(runs: list[RunRecord], drawn: list[Curve], link: Link | None) -> Figure:
    name = figure_name(runs)
    return Figure(
        "accuracy",
        "Mean average precision" if name == "mAP" else "Accuracy",
        "Of the global network, on the test set or the images held out by --data.validation, against rounds, seconds "
        "of training, and payload sent by all workers together."
        + (f" {MEANS}" if any(run.curve != run.label for run in runs) else "")
        + (f" {link.says}" if link else ""),
        lambda theme: accuracy(drawn, theme, link, name),
    )


def _of_deal(number: int, run: RunRecord) -> Figure:
    shown = min(len(run.rounds), MOST_ROUNDS)
    return Figure(
        f"deal-{number}",
        f"The deal: {run.label}",
        f"Left: who held which block in the first {counted(shown, 'round')}, in the workers' colours; a block with "
        "several holders is divided among them. Right: in how many of all rounds a worker held a block.",
        lambda theme: deal(run, theme),
    )


def accuracy(drawn: list[Curve], theme: Theme, link: Link | None, name: str) -> Any:
    """Draw accuracy, or what networks are judged by in its place, against rounds, seconds and bytes."""
    plt = drawing.pyplot(theme)
    figure, panels = plt.subplots(1, 3, figsize=(WIDTH, 3.7), sharey=True, layout="constrained")
    against: dict[str, Callable[[Point], float]] = {
        "rounds": lambda point: point.round,
        f"seconds, computed for {scaled(8 * link.rate, 'bit/s')}" if link else "seconds": lambda point: point.seconds,
        "sent, GB": lambda point: point.bytes_sent / 1e9,
    }
    for axes, (label, x_of) in zip(panels, against.items(), strict=True):
        for curve in drawn:
            x, colour = [x_of(point) for point in curve.points], drawing.colour(curve.colour)
            axes.plot(x, [point.accuracy for point in curve.points], color=colour, marker="o", markersize=4)
            least, most = [point.least for point in curve.points], [point.most for point in curve.points]
            axes.fill_between(x, least, most, color=colour, alpha=0.2, linewidth=0)
        axes.set_xlabel(label)
        axes.set_xlim(left=0)
    drawing.whole_numbers(panels[0].xaxis)
    panels[0].set_ylabel(f"{name}, %")
    if len(drawn) > 1:
        legend(figure, [(curve.colour, curve.label) for curve in drawn])
    return figure


def loss(runs: list[RunRecord], theme: Theme) -> Any:
    """Draw the training loss against rounds and seconds."""
    plt = drawing.pyplot(theme)
    figure, panels = plt.subplots(1, 2, figsize=(WIDTH, 3.4), sharey=True, layout="constrained")
    for run in runs:
        if not run.rounds:
            continue
        values = [line.loss for line in run.rounds]
        seconds = list(accumulate(line.seconds for line in run.rounds))
        rounds = [line.round + 1 for line in run.rounds]
        for axes, x in zip(panels, (rounds, seconds), strict=True):
            axes.plot(x, values, color=drawing.colour(run.colour), alpha=0.25, linewidth=1)
            axes.plot(x, running_mean(values), color=drawing.colour(run.colour))
    for axes, label in zip(panels, ("rounds", "seconds"), strict=True):
        axes.set_xlabel(label)
        axes.set_xlim(left=0)
    drawing.whole_numbers(panels[0].xaxis)
    panels[0].set_ylabel("loss")
    legend_of_runs(figure, runs, [run for run in runs if run.rounds])
    return figure


def running_mean(values: list[float]) -> list[float]:
    """Return values smoothed over a twentieth of them."""
    half = len(values) // 40
    windows = (values[max(0, place - half) : place + half + 1] for place in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def time(runs: list[RunRecord], theme: Theme) -> Any:
    """Draw where a round's time went, a bar a rank."""
    plt = drawing.pyplot(theme)
    bars, ticks, y = [], [], 0.0
    heads = []
    for run in runs:
        ranks = seconds_of_ranks(run)
        if not ranks:
            continue
        heads.append((y, run.colour, drawing.literal(run.label)))
        y += 1
        for rank, phases in enumerate(ranks[:MOST_RANKS]):
            bars.append((y, phases))
            ticks.append((y, f"rank {rank}" if len(ranks) > 1 or "waiting" in phases else "mean rank"))
            y += 1
        y += 0.4
    figure, axes = plt.subplots(figsize=(WIDTH, 0.9 + 0.27 * y), layout="constrained")
    for phase in (*drawing.PHASES, "synchronising"):
        drawn = [(place, phases) for place, phases in bars if phases.get(phase)]
        if drawn:
            before = [_before(phases, phase) for _, phases in drawn]
            colour = drawing.PHASES.get(phase, drawing.PHASES["trunk"])
            widths = [phases[phase] for _, phases in drawn]
            axes.barh([place for place, _ in drawn], widths, left=before, color=colour, label=phase, height=0.78)
    for place, number, label in heads:
        axes.text(0, place, label, color=drawing.colour(number), weight="bold", va="center")
    axes.set_yticks([place for place, _ in ticks], [label for _, label in ticks])
    axes.set_ylim(y - 0.7, -0.7)
    axes.set_xlabel("seconds a round")
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper right", ncols=6)
    return figure


def _before(phases: dict[str, float], phase: str) -> float:
    order = [name for name in (*drawing.PHASES, "synchronising") if name in phases]
    return sum(phases[name] for name in order[: order.index(phase)])


def deal(run: RunRecord, theme: Theme) -> Any:
    """Draw who held which block over the rounds."""
    plt = drawing.pyplot(theme)
    from matplotlib.colors import LinearSegmentedColormap, to_rgb
    from matplotlib.patches import Patch

    workers = run.rounds[-1].workers
    dealt = [line.partition for line in run.rounds if line.workers == workers]
    blocks = 1 + max(max(map(max, filter(None, held)), default=0) for held in dealt)
    turbo = plt.get_cmap("turbo")
    few = workers <= len(drawing.COLOURS)
    colours = [to_rgb(drawing.colour(rank)) if few else turbo((rank + 0.5) / workers)[:3] for rank in range(workers)]
    figure, (left, right) = plt.subplots(
        1,
        2,
        figsize=(WIDTH, min(9.0, 1.3 + 0.26 * blocks)),
        width_ratios=(3.2, 1),
        layout="constrained",
    )
    shown = dealt[:MOST_ROUNDS]
    tiles = mosaic(shown, blocks, colours, to_rgb(theme.paper))
    left.imshow(tiles, aspect="auto", extent=(0.5, len(shown) + 0.5, blocks - 0.5, -0.5), interpolation="none")
    left.set(xlabel="round", ylabel="block")
    drawing.whole_numbers(left.xaxis, left.yaxis)
    left.set(xlim=(0.5, len(shown) + 0.5), ylim=(blocks - 0.5, -0.5))
    left.grid(visible=False)
    if workers <= 16:
        patches = [Patch(color=colours[rank], label=f"worker {rank}") for rank in range(workers)]
        figure.legend(handles=patches, loc="outside upper left", ncols=8)
    counts = [[sum(block in held[rank] for held in dealt) for rank in range(workers)] for block in range(blocks)]
    shades = LinearSegmentedColormap.from_list("held", [to_rgb(theme.paper), to_rgb(drawing.COLOURS[0])])
    image = right.imshow(counts, aspect="auto", cmap=shades, vmin=0, interpolation="nearest")
    right.set(xlabel="worker", yticks=[], title=f"of {counted(len(dealt), 'round')}")
    right.grid(visible=False)
    drawing.whole_numbers(right.xaxis)
    if workers <= 16:
        right.set_xticks(range(workers))
    bar = figure.colorbar(image, ax=right, fraction=0.06)
    bar.outline.set_visible(False)
    drawing.whole_numbers(bar.ax.yaxis)
    return figure


Colour = tuple[float, float, float]
TILE_WIDTH, TILE_HEIGHT = 8, 24


def mosaic(
    dealt: Sequence[Sequence[Sequence[int]]], blocks: int, colours: list[Colour], gap: Colour
) -> list[list[Colour]]:
    """Return a picture of deals, row by row: a tile for each block in each round, divided among its holders.

    Args:
        dealt: for each round each worker's blocks.
        blocks: how many blocks there are.
        colours: the workers'.
        gap: the colour between tiles.
    """
    rows = [[gap] * (TILE_WIDTH * len(dealt)) for _ in range(TILE_HEIGHT * blocks)]
    for column, held in enumerate(dealt):
        holders: list[list[int]] = [[] for _ in range(blocks)]
        for rank, theirs in enumerate(held):
            for block in theirs:
                holders[block].append(rank)
        for block, ranks in enumerate(holders):
            for line in range(TILE_HEIGHT - 3) if ranks else ():
                colour = colours[ranks[line * len(ranks) // (TILE_HEIGHT - 3)]]
                left = TILE_WIDTH * column
                rows[TILE_HEIGHT * block + 1 + line][left : left + TILE_WIDTH - 1] = [colour] * (TILE_WIDTH - 1)
    return rows


def memory(runs: list[RunRecord], theme: Theme) -> Any:
    """Draw every rank's peak memory."""
    plt = drawing.pyplot(theme)
    known = [(run.colour, run.peak_memory_bytes[:MOST_RANKS]) for run in runs if run.peak_memory_bytes]
    most = max(len(values) for _, values in known)
    figure, axes = plt.subplots(figsize=(WIDTH, 3.0), layout="constrained")
    width = 0.8 / len(known)
    for place, (number, values) in enumerate(known):
        x = [rank - 0.4 + (place + 0.5) * width for rank in range(len(values))]
        bars = axes.bar(x, [value / 1e9 for value in values], 0.92 * width, color=drawing.colour(number))
        if most * len(known) <= 16:
            axes.bar_label(bars, [scaled(value, "B") for value in values], fontsize=8, padding=2, color=theme.ink)
    axes.set_xticks(range(most), [f"rank {rank}" for rank in range(most)])
    axes.set_ylabel("peak memory, GB")
    axes.grid(visible=False, axis="x")
    axes.margins(y=0.15)
    legend_of_runs(figure, runs, [run for run in runs if run.peak_memory_bytes])
    return figure


def _is_dealt(run: RunRecord) -> bool:
    """Return whether a run's blocks move from worker to worker."""
    return any(line.partition != run.rounds[0].partition for line in run.rounds)
