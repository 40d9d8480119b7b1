"""Measure Theorem 3.1 and draw it: `python docs/draw_theorem.py docs/pictures` prints the table of docs/theorem.md."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from resist_hvd.theory import convergence, picture
from resist_hvd.theory.convergence import Row

HEADINGS = (
    "varied",
    "n",
    "m",
    "S",
    "l",
    "H",
    "eta",
    "lambda_min",
    "at width m",
    "theorem",
    "all that learns",
    "measured",
    "left",
    "held",
)


def table_line(row: Row) -> str:
    """Return a row of the table."""
    shape, training = row.case.shape, row.case.training
    linear = f"{row.linear:.3g}" if row.linear > 0 else "diverges"
    measured = f"{row.measured:.3g}" if row.measured > 0 else "diverges"
    cells = (
        row.case.varied,
        row.case.samples,
        shape.width,
        training.workers,
        training.local_iterations,
        shape.depth,
        training.step,
        f"{row.lambda_min:.2e}",
        f"{max(row.lambda_width, 0.0):.2e}",
        f"{row.predicted:.2e}",
        linear,
        measured,
        f"{row.floor:.0e}",
        "yes" if row.held else "no",
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Measure all cases on one core, and write the picture."""
    torch.set_num_threads(1)
    print("| " + " | ".join(HEADINGS) + " |")
    print("|" + " --- |" * len(HEADINGS))
    rows = convergence.run(told=lambda row: print(table_line(row), flush=True))
    picture.draw(rows, Path(sys.argv[1]) / "theorem.png")


if __name__ == "__main__":
    main()
