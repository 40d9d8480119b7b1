"""The report as one HTML page that needs nothing but itself: pictures and style are in it, and it runs no script."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from resist_hvd import drawing
from resist_hvd.reporting import results
from resist_hvd.reporting.figures import Figure
from resist_hvd.reporting.reading import RunRecord
from resist_hvd.units import counted, duration, scaled


class Drawn(NamedTuple):
    """A picture as it goes into the page: SVG for a light page, and for a dark one."""

    figure: Figure
    light: bytes
    dark: bytes


def page(title: str, runs: list[RunRecord], pictures: Sequence[Drawn], version: str) -> str:
    """Return the page, of the template `page.html`; texts are escaped there.

    Args:
        title: its heading.
        runs: what it reports.
        pictures: in the order in which they stand.
        version: of the program, for the foot of the page.
    """
    environment = Environment(
        loader=PackageLoader("resist_hvd", "reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"counted": counted, "duration": duration, "scaled": scaled, "address": address}
    return environment.get_template("page.html").render(
        title=title,
        subtitle=subtitle(runs),
        runs=runs,
        columns=results.COLUMNS,
        rows=results.rows(runs),
        papers_note=results.PAPERS_NOTE,
        pictures=pictures,
        version=version,
        colour=drawing.colour,
    )


def subtitle(runs: list[RunRecord]) -> str:
    """Return how much is reported, and of which images."""
    rounds = sum(len(run.rounds) for run in runs)
    data = " and ".join(sorted({run.data for run in runs} - {""}))
    return ", ".join(filter(None, (counted(len(runs), "run"), counted(rounds, "round"), data)))


def address(svg: bytes) -> str:
    """Return an address that is the picture itself."""
    return f"data:image/svg+xml;base64,{b64encode(svg).decode()}"
