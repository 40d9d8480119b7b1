"""An outcome's folder: its page, its tables, its pictures."""

from __future__ import annotations

from pathlib import Path

from resist_hvd import __version__
from resist_hvd.errors import UserError
from resist_hvd.reporting.page import Drawn, draw, environment
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
        drawn = [draw(figure, folder) for figure in pictures(outcome)]
        with create(folder / "page.html") as file:
            file.write(html(outcome, drawn).encode(errors="backslashreplace"))
    except OSError as error:
        raise UserError(
            f"Cannot write the page: {error.strerror}", where=str(folder), mend="Give an --output that can be written."
        ) from None
    return folder / "page.html"


def html(outcome: Outcome, drawn: list[Drawn]) -> str:
    """Return the page, of the template `experiment.html`; texts are escaped there."""
    experiment, budget = outcome.experiment, outcome.settings.budget
    place = experiment.place
    return (
        environment("resist_hvd.reproduction")
        .get_template("experiment.html")
        .render(
            name=experiment.name,
            title=experiment.title,
            subtitle=f"{place[0].upper()}{place[1:]}, --budget {budget}. {experiment.about}",
            budget=budget,
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
        )
    )
