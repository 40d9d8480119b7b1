"""Tables that all benchmarks print: a row a candidate, with medians, spreads, and ratios to the first row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import TypeVar

from rich.table import Table

from resist_hvd import console

T = TypeVar("T")
Column = tuple[str, Callable[[T], str]]
"""A heading, and what stands below it for a candidate."""


def paired_ratio(candidate: Sequence[float], baseline: Sequence[float]) -> float:
    """Return the median of the ratios of measurements that were taken in turn: it holds when the machine drifts."""
    return median(a / b for a, b in zip(candidate, baseline, strict=True))


def show(title: str, seconds: Mapping[str, Sequence[float]], note: str = "", *, images: int = 0) -> None:
    """Print a table of seconds, the first row being what the others are compared with.

    Args:
        title: what was measured.
        seconds: of each candidate.
        note: what stands below the table.
        images: how many are trained in these seconds; 0 where there are none.
    """
    milliseconds = {name: [1e3 * value for value in values] for name, values in seconds.items()}
    rate: list[Column[Sequence[float]]] = [("images/s", lambda values: f"{1e3 * images / median(values):,.0f}")]
    _show_figures(title, milliseconds, unit="ms", decimals=2, note=note, more=rate if images else [])


def show_rates(
    title: str, rates: Mapping[str, Sequence[float]], unit: str, note: str = "", *, decimals: int = 0
) -> None:
    """Print a table of what is the better the more it is, the first row being what the others are compared with."""
    _show_figures(title, rates, unit=unit, decimals=decimals, note=note)


def _show_figures(
    title: str,
    figures: Mapping[str, Sequence[float]],
    *,
    unit: str,
    decimals: int,
    note: str,
    more: Sequence[Column[Sequence[float]]] = (),
) -> None:
    baseline = next(iter(figures.values()))

    def number(pick: Callable[[Sequence[float]], float]) -> Callable[[Sequence[float]], str]:
        return lambda values: f"{pick(values):.{decimals}f}"

    columns: list[Column[Sequence[float]]] = [
        (f"median {unit}", number(median)),
        (f"min {unit}", number(min)),
        (f"max {unit}", number(max)),
        *more,
        ("ratio", lambda values: f"{paired_ratio(values, baseline):.3f}"),
    ]
    print_rows(title, figures, columns, note, width=110)


def print_rows(title: str, rows: Mapping[str, T], columns: Sequence[Column[T]], note: str, *, width: int = 150) -> None:
    """Print a table with a row a candidate."""
    table = Table(title=title, title_justify="left", caption=note, caption_justify="left")
    table.add_column("", no_wrap=True)
    for heading, _ in columns:
        table.add_column(heading, justify="right")
    for name, values in rows.items():
        table.add_row(name, *(cell(values) for _, cell in columns))
    # Open MPI gives every rank a terminal of its own, whatever its own output is: no colours, so files stay readable.
    console.screen(width=width, force_terminal=False, color_system=None).print(table)
