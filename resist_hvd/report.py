"""`python -m resist_hvd.report RUN...`: what runs did, as one page, pictures, and a table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from resist_hvd import __version__, console
from resist_hvd.errors import UserError, run_alone
from resist_hvd.reporting import results
from resist_hvd.reporting.curves import Link, group
from resist_hvd.reporting.detectors import of_examples
from resist_hvd.reporting.figures import figures
from resist_hvd.reporting.page import draw, page
from resist_hvd.reporting.panels import Figure
from resist_hvd.reporting.reading import RunRecord, read_runs
from resist_hvd.settings import flags
from resist_hvd.settings.tools import ReportSettings
from resist_hvd.training.disk import create


def main() -> None:
    """Make the report that the arguments ask for."""
    run_alone(run_from_flags)


def run_from_flags() -> None:
    """Read the runs, print the table, and write the page and the pictures.

    Raises:
        UserError: a flag is wrong, a folder is no run's, matplotlib is missing, or the report cannot be written.
    """
    places, rest = flags.places(sys.argv[1:])
    settings = flags.parse_settings("python -m resist_hvd.report RUN...", ReportSettings, rest)
    if not places:
        raise UserError("There is no run to report", mend="Give the folders of runs before any flag.")
    runs = read_runs([Path(place) for place in places])
    if settings.group:
        group(runs)
    found = found_objects(runs, settings.images)
    show(runs, console.screen(width=None if sys.stdout.isatty() else 170))
    folder = settings.output or runs[0].folder / "report"
    link = Link(rate=settings.rate, step=settings.seconds_step) if settings.rate else None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write(runs, settings.title, folder, link, found)
    except OSError as error:
        raise UserError(
            f"Cannot write the report: {error.strerror}",
            where=str(folder),
            mend="Give an --output that can be written.",
        ) from None
    console.out(f"Written: {folder / 'report.html'}")


def show(runs: list[RunRecord], screen: Console) -> None:
    """Print the table of results, and what is missing."""
    table = Table()
    for place, column in enumerate(results.columns(runs)):
        table.add_column(column, justify="left" if place < 2 else "right", overflow="fold")
    rows = results.rows(runs)
    for row in rows:
        table.add_row(*row.cells, style="italic dim" if row.is_paper else None)
    screen.print(table)
    if any(row.is_paper for row in rows):
        screen.print(results.PAPERS_NOTE)
    for run in runs:
        for sentence in run.missing:
            screen.print(f"{run.label}: {sentence}")


def found_objects(runs: list[RunRecord], images: int) -> list[Figure]:
    """Return a picture for each detector, of so many images with objects in them and objects found.

    Where that cannot be had, the reason is added to what is missing of the run.
    """
    pictures = []
    for number, run in enumerate(runs, 1):
        if not run.detects or not images:
            continue
        try:
            from resist_hvd.trained.examples import examples  # PyTorch, for which other reports need not wait

            seen, classes = examples(run.folder, images)
            if seen:
                pictures.append(of_examples(number, run, seen, classes))
        except UserError as error:
            run.missing.append(f"No images with boxes: {console.printable(str(error))}")
    return pictures


def write(
    runs: list[RunRecord], title: str, folder: Path, link: Link | None = None, found: Sequence[Figure] = ()
) -> None:
    """Write the page, and every picture as a PNG file beside it.

    Args:
        runs: what is reported.
        title: the page's heading.
        folder: where to.
        link: the network for which accuracy's seconds are computed.
        found: pictures of images with boxes.

    Raises:
        UserError: matplotlib is not installed.
        OSError: a file cannot be written.
    """
    pictures = [draw(figure, folder) for figure in (*figures(runs, link), *found)]
    html = page(console.printable(title), runs, pictures, __version__)
    with create(folder / "report.html") as file:
        file.write(html.encode(errors="backslashreplace"))


if __name__ == "__main__":
    main()
