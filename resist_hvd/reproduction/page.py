"""An outcome's folder: its page, its tables, its pictures."""

from __future__ import annotations

from importlib import resources
from io import BytesIO
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from resist_hvd import __version__, drawing
from resist_hvd.drawing import Theme
from resist_hvd.errors import UserError
from resist_hvd.reporting.figures import Figure
from resist_hvd.reporting.page import Drawn, address
from resist_hvd.reproduction import tables
from resist_hvd.reproduction.differences import differences
from resist_hvd.reproduction.outcome import Outcome
from resist_hvd.reproduction.pictures import pictures
from resist_hvd.training.disk import create

COLOURS = {"agrees": 2, "differs": 1, "too close to tell": 6, "not run": 7}
"""The number of the colour of each way in which a comparison comes out."""


def write(outcome: Outcome, folder: Path) -> Path:
    """Write page, tables and pictures into a folder; return the page's place.

    Raises:
        UserError: they cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in (("table.md", tables.markdown(outcome)), ("table.json", tables.as_json(outcome))):
            with create(folder / name) as file:
                file.write(text.encode(errors="backslashreplace"))
        drawn = []
        for figure in pictures(outcome):
            _render(figure, drawing.LIGHT, folder / f"{figure.name}.png")
            drawn.append(Drawn(figure, _render(figure, drawing.LIGHT), _render(figure, drawing.DARK)))
        with create(folder / "page.html") as file:
            file.write(html(outcome, drawn).encode(errors="backslashreplace"))
    except OSError as error:
        raise UserError(
            f"Cannot write the page: {error.strerror}", where=str(folder), mend="Give an --output that can be written."
        ) from None
    return folder / "page.html"


def html(outcome: Outcome, drawn: list[Drawn]) -> str:
    """Return the page, of the template `page.html`; texts are escaped there."""
    environment = Environment(
        loader=PackageLoader("resist_hvd", "reproduction"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["address"] = address
    experiment = outcome.experiment
    style = resources.files("resist_hvd.reporting").joinpath("page.css").read_text(encoding="utf-8")
    return environment.get_template("page.html").render(
        name=experiment.name,
        title=experiment.title,
        source=experiment.source,
        about=experiment.about,
        budget=outcome.settings.budget,
        style=Markup(style),
        tally=[
            (tables.AS_MANY.get(name, name), count, COLOURS[name]) for name, count in outcome.tally.items() if count
        ],
        results=tables.results(outcome),
        comparisons=tables.comparisons(outcome),
        differences=differences(outcome),
        notes=tables.notes(outcome),
        goal=outcome.goal.accuracy,
        pictures=drawn,
        version=__version__,
        colour=drawing.colour,
    )


def _render(figure: Figure, theme: Theme, path: Path | None = None) -> bytes:
    """Draw a picture; return it as SVG, or write it as PNG where a path is given."""
    plt = drawing.pyplot(theme)
    picture = figure.draw(theme)
    buffer = BytesIO()
    if path is None:
        picture.savefig(buffer, format="svg", metadata={"Date": None})
    else:
        with create(path) as file:
            picture.savefig(file, format="png", dpi=160)
    plt.close(picture)
    return buffer.getvalue()
