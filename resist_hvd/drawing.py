"""Style of the pictures of plans and reports: colours, themes; and the place where matplotlib comes in."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from resist_hvd.errors import UserError


@dataclass(frozen=True)
class Theme:
    """A picture's colours on a page of one brightness."""

    name: str
    paper: str
    ink: str
    faint: str


LIGHT = Theme("light", "#ffffff", "#1f2328", "#d0d7de")
DARK = Theme("dark", "#0d1117", "#e6edf3", "#30363d")

COLOURS = ("#4c8dd6", "#ef8636", "#4fa64f", "#c25b8e", "#9a76c9", "#2fa6a1", "#c9a227", "#8c8f94")
"""For runs, methods and ranks, in order: told apart on both pages, and by most of those who see fewer colours."""

PHASES = {
    "compute": "#4c8dd6",
    "data": "#c9a227",
    "trunk": "#9a76c9",
    "blocks": "#ef8636",
    "waiting": "#8c8f94",
}
"""For what a round's time goes to."""


def colour(number: int) -> str:
    """Return a colour for the n-th of something."""
    return COLOURS[number % len(COLOURS)]


def literal(text: str) -> str:
    """Return a text of a user's as matplotlib takes it for itself, and not for a formula."""
    return text.replace("$", r"\$")


def whole_numbers(*axes: Any) -> None:
    """Have axes of a picture, of what is counted, marked at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    for axis in axes:
        axis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))


def font_file() -> str | None:
    """Return the place of DejaVu Sans, which matplotlib brings along; None without matplotlib."""
    try:
        from matplotlib import get_data_path
    except ImportError:
        return None
    return f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf"


def pyplot(theme: Theme) -> Any:
    """Return matplotlib's pyplot, with no window and in a theme's colours.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise UserError(
            "Pictures need matplotlib, which is not installed", mend="Install it: pip install matplotlib."
        ) from None
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    # A letter that the font lacks is drawn as a box; who reads the page sees it, and can do nothing about it.
    warnings.filterwarnings("ignore", message="Glyph .* missing")
    plt.rcdefaults()
    plt.rcParams.update(
        {
            "font.family": "DejaVu Sans",
            "font.size": 10,
            "svg.hashsalt": "resist_hvd",
            "figure.facecolor": theme.paper,
            "savefig.facecolor": theme.paper,
            "axes.facecolor": theme.paper,
            "axes.edgecolor": theme.faint,
            "axes.labelcolor": theme.ink,
            "axes.titlesize": 11,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.titlecolor": theme.ink,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": theme.faint,
            "grid.linewidth": 0.6,
            "grid.alpha": 0.7,
            "text.color": theme.ink,
            "xtick.color": theme.ink,
            "ytick.color": theme.ink,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "lines.solid_capstyle": "round",
        }
    )
    return plt
