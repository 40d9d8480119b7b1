"""What all benchmarks print: a row a candidate, with median, spread and the ratio to the first row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from rich.console import Console
from rich.table import Table


def paired_ratio(candidate: Sequence[float], baseline: Sequence[float]) -> float:
    """Return the median of the ratios of measurements that were taken in turn: it holds when the machine drifts."""
    return median(a / b for a, b in zip(candidate, baseline, strict=True))


def show(title: str, seconds: Mapping[str, Sequence[float]], note: str = "") -> None:
    """Print a table of seconds, the first row being what the others are compared with."""
    table = Table(title=title, title_justify="left", caption=note, caption_justify="left")
    table.add_column("")
    for heading in ("median ms", "min ms", "max ms", "ratio"):
        table.add_column(heading, justify="right")
    baseline = next(iter(seconds.values()))
    for name, values in seconds.items():
        numbers = [f"{1e3 * value:.2f}" for value in (median(values), min(values), max(values))]
        table.add_row(name, *numbers, f"{paired_ratio(values, baseline):.3f}")
    # Open MPI gives every rank a terminal of its own, whatever its own output is: no colours, so files stay readable.
    Console(width=110, force_terminal=False, color_system=None).print(table)
