"""Draw ResIST in one picture, from a real deal and a real exchange: `python docs/draw_round.py docs/pictures`."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from resist_hvd.protocol.exchange import exchange
from resist_hvd.protocol.hands import give
from resist_hvd.protocol.partition import Partition
from resist_hvd.protocol.rule import Rule

BLOCKS, WORKERS, MIN_BLOCKS = 8, 4, 3
COLOURS = ("#3b76af", "#ef8636", "#519d3e", "#8d69b8")
THEMES = {"light": ("#ffffff", "#1f2328", "#c9ced6"), "dark": ("#0d1117", "#e6edf3", "#4b535d")}
LEFT, RIGHT = 2.6, 13.4


def column(block: int) -> float:
    """Return where a block stands, from left to right."""
    return LEFT + 1.9 + block * 0.92


def box(axes: Axes, x: float, y: float, width: float, text: str, face: str, ink: str, edge: str) -> None:
    """Draw a labelled box, centred."""
    shape = FancyBboxPatch(
        (x - width / 2, y - 0.26), width, 0.52, boxstyle="round,pad=0.02,rounding_size=0.1", fc=face, ec=edge, lw=1.2
    )
    axes.add_patch(shape)
    axes.text(x, y, text, ha="center", va="center", color=ink, fontsize=10)


def worker_row(axes: Axes, y: float, rank: int, partition: Partition, theme: tuple[str, str, str]) -> None:
    """Draw a worker's sub-network: the shared trunk, and the blocks it holds in their places."""
    _, ink, faint = theme
    axes.text(LEFT - 0.95, y, f"worker {rank}", ha="right", va="center", color=COLOURS[rank], fontsize=11)
    ends = (LEFT, RIGHT - 1.2)
    axes.plot(ends, (y, y), color=COLOURS[rank], lw=1.2, zorder=0)
    for end, text in zip(ends, ("trunk", "trunk"), strict=True):
        box(axes, end, y, 1.3, text, faint, ink, faint)
    for block in range(partition.blocks):
        if block in partition.held[rank]:
            box(axes, column(block), y, 0.62, str(block), COLOURS[rank], "#ffffff", COLOURS[rank])


def draw(theme: tuple[str, str, str]) -> plt.Figure:
    """Return the picture: a round's deal, what happens at its end, and the next deal."""
    paper, ink, faint = theme
    rule = Rule((BLOCKS,), WORKERS, MIN_BLOCKS)
    before = rule.deal(4)
    after = give(rule, before, rule.deal(5), (1,) * BLOCKS)
    plan = exchange(before, after)
    figure, axes = plt.subplots(figsize=(12.6, 8.4), facecolor=paper)
    axes.set_axis_off()
    axes.set_xlim(0, RIGHT)
    axes.set_ylim(-0.7, 10.6)

    top, rows, later = 9.6, [8.0, 7.3, 6.6, 5.9], [2.6, 1.9, 1.2, 0.5]
    axes.text(0.05, top + 0.75, "The global network: on no worker", color=ink, fontsize=13, weight="bold")
    box(axes, LEFT, top, 1.3, "stem,\nsections 1, 2", faint, ink, faint)
    box(axes, RIGHT - 1.2, top, 1.3, "section 4,\nhead", faint, ink, faint)
    for block in range(BLOCKS):
        box(axes, column(block), top, 0.62, str(block), paper, ink, ink)
    text = f"Round t: each worker trains the trunk and {len(before.held[0])} blocks for l local iterations"
    axes.text(0.05, 8.62, text, color=ink, fontsize=13, weight="bold")
    for rank, y in enumerate(rows):
        worker_row(axes, y, rank, before, theme)

    axes.text(0.05, 5.12, "Synchronise", color=ink, fontsize=13, weight="bold")
    several = [(block, ranks) for block, ranks in enumerate(plan.holders) if len(ranks) > 1]
    shared = ", ".join(f"{block} ({'+'.join(map(str, ranks))})" for block, ranks in several)
    arrivals = [fetch for fetch in plan.fetches if fetch.block not in before.held[fetch.destination]]
    moved = len({(fetch.block, fetch.destination) for fetch in arrivals})
    lines = (
        "trunk: averaged among all workers by Horovod, one flat buffer",
        f"blocks with several holders, averaged among them: {shared}",
        f"{moved} times a block, or its parts, go straight to a next holder that lacks it (arrows in senders' colours)",
    )
    for place, line in enumerate(lines):
        ground = {"facecolor": paper, "edgecolor": "none", "pad": 2.0, "alpha": 0.9}
        axes.text(0.3, 4.72 - 0.37 * place, line, color=ink, fontsize=10.5, bbox=ground)
    axes.text(
        0.05, 3.22, "Round t + 1: dealt anew, given out so that most blocks stay", color=ink, fontsize=13, weight="bold"
    )
    for rank, y in enumerate(later):
        worker_row(axes, y, rank, after, theme)
    for transfer in arrivals:
        x = column(transfer.block)
        bend = 0.12 * (transfer.destination - transfer.source)
        arrow = FancyArrowPatch(
            (x, rows[transfer.source] - 0.3),
            (x, later[transfer.destination] + 0.3),
            arrowstyle="-|>",
            mutation_scale=11,
            lw=1.4,
            color=COLOURS[transfer.source],
            alpha=0.75,
            connectionstyle=f"arc3,rad={bend}",
            zorder=0.5,
        )
        axes.add_patch(arrow)
    figure.tight_layout(pad=0.4)
    return figure


def main() -> None:
    """Write the picture for light and for dark pages."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/pictures")
    folder.mkdir(parents=True, exist_ok=True)
    plt.rcParams.update({"font.family": "DejaVu Sans", "svg.hashsalt": "resist_hvd"})
    for name, theme in THEMES.items():
        figure = draw(theme)
        figure.savefig(folder / f"round-{name}.svg", metadata={"Date": None}, facecolor=figure.get_facecolor())
        plt.close(figure)


if __name__ == "__main__":
    main()
