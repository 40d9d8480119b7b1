"""The report as one HTML page that needs nothing but itself: pictures and style are in it, and it runs no script."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from resist_hvd import drawing
from resist_hvd.drawing import Theme
from resist_hvd.reporting import results
from resist_hvd.reporting.panels import Figure
from resist_hvd.reporting.reading import RunRecord
from resist_hvd.training.disk import create
from resist_hvd.units import counted, duration, scaled


class Drawn(NamedTuple):
    """A picture as it goes into the page: SVG for a light page, and for a dark one."""

    figure: Figure
    light: bytes
    dark: bytes


def draw(figure: Figure, folder: Path) -> Drawn:
    """Draw a picture for a page, and for itself as a PNG into a folder.

    Raises:
        OSError: it cannot be written.
    """
    render(figure, drawing.LIGHT, folder / f"{figure.name}.png")
    return Drawn(figure, render(figure, drawing.LIGHT), render(figure, drawing.DARK))


def render(figure: Figure, theme: Theme, path: Path | None = None) -> bytes:
    """Draw a picture; return it as SVG, or write it as PNG where a path is given."""
    plt = drawing.pyplot(theme)
    drawn = figure.draw(theme)
    buffer = BytesIO()
    if path is None:
        drawn.savefig(buffer, format="svg", metadata={"Date": None})
    else:
        with create(path) as file:
            drawn.savefig(file, format="png", dpi=160)
    plt.close(drawn)
    return buffer.getvalue()


def environment(*packages: str) -> Environment:
    """Return what fills in templates: those of some packages, and those here, `base.html` among them.

    Whatever is filled in is escaped.
    """
    found = Environment(
        loader=ChoiceLoader([PackageLoader(package, "") for package in (*packages, "resist_hvd.reporting")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters |= {"counted": counted, "duration": duration, "scaled": scaled, "address": address}
    found.globals["colour"] = drawing.colour
    return found


def page(title: str, runs: list[RunRecord], pictures: Sequence[Drawn], version: str) -> str:
    """Return the page, of the template `page.html`; texts are escaped there.

    Args:
        title: its heading.
        runs: what it reports.
        pictures: in the order in which they stand.
        version: of the program, for the foot of the page.
    """
    return (
        environment()
        .get_template("page.html")
        .render(
            title=title,
            subtitle=subtitle(runs),
            runs=runs,
            columns=results.columns(runs),
            rows=results.rows(runs),
            papers_note=results.PAPERS_NOTE,
            pictures=pictures,
            version=version,
        )
    )


def subtitle(runs: list[RunRecord]) -> str:
    """Return how much is reported, and of which images."""
    rounds = sum(len(run.rounds) for run in runs)
    data = " and ".join(sorted({run.data for run in runs} - {""}))
    return ", ".join(filter(None, (counted(len(runs), "run"), counted(rounds, "round"), data)))


def address(svg: bytes) -> str:
    """Return an address that is the picture itself."""
    return f"data:image/svg+xml;base64,{b64encode(svg).decode()}"
