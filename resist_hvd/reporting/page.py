"""The report as one HTML page that needs nothing but itself: pictures and style are in it, and it runs no script."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import NamedTuple

from resist_hvd import drawing
from resist_hvd.reporting import results
from resist_hvd.reporting.figures import Figure
from resist_hvd.reporting.reading import RunRecord
from resist_hvd.units import counted, duration, scaled

STYLE = resources.files("resist_hvd.reporting").joinpath("page.css").read_text()

HINT = '<p class="hint">Scroll sideways to see all of it.</p>'
"""Shown on narrow screens, where a picture as wide as the screen could not be read."""


class Drawn(NamedTuple):
    """A picture as it goes into the page: SVG for a light page, and for a dark one."""

    figure: Figure
    light: bytes
    dark: bytes


def page(title: str, runs: list[RunRecord], pictures: Sequence[Drawn], version: str) -> str:
    """Return the page.

    Args:
        title: its heading.
        runs: what it reports.
        pictures: in the order in which they stand.
        version: of the program, for the foot of the page.
    """
    body = "\n".join(
        [
            f"<header><h1>{escape(title)}</h1>{_subtitle(runs)}</header>",
            f'<div class="cards">{"".join(_card(number, run) for number, run in enumerate(runs))}</div>',
            _missing(runs),
            f'<section><h2>Results</h2>{HINT}<div class="scroll table" tabindex="0">{_table(runs)}</div>',
            f"{_note(runs)}</section>",
            *(_picture(drawn) for drawn in pictures),
            f"<footer>Made by resist_hvd {escape(version)}, <code>python -m resist_hvd.report</code>.</footer>",
        ]
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Nothing may be fetched, whatever a run's names contain.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n<style>\n{STYLE}</style>\n</head>\n'
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _subtitle(runs: list[RunRecord]) -> str:
    data = {run.data for run in runs} - {""}
    rounds = sum(len(run.rounds) for run in runs)
    said = f"{counted(len(runs), 'run')}, {counted(rounds, 'round')}"
    return f'<p class="quiet">{escape(said + (", " + " and ".join(sorted(data)) if data else ""))}</p>'


def _card(number: int, run: RunRecord) -> str:
    accuracy = f"{run.evaluations[-1].accuracy:.2f} %" if run.evaluations else "not evaluated"
    state = "accuracy" if run.finished else "accuracy so far"
    facts = {
        "training": duration(run.seconds),
        "sent": scaled(run.bytes_sent, "B"),
        "rounds": f"{len(run.rounds):,}",
    }
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    workers = f" on {counted(run.workers, 'worker')}" if run.workers else ""
    return (
        f'<div class="card" style="--run: {drawing.colour(number)}"><h3>{escape(run.label)}</h3>'
        f'<div class="quiet">{escape(run.method)}{workers}</div>'
        f'<div class="big">{escape(accuracy)}</div><div class="quiet">{state if run.evaluations else ""}</div>'
        f"<dl>{listed}</dl></div>"
    )


def _missing(runs: list[RunRecord]) -> str:
    said = "".join(
        f"<strong>{escape(run.label)}</strong><ul>{''.join(f'<li>{escape(text)}</li>' for text in run.missing)}</ul>"
        for run in runs
        if run.missing
    )
    return f'<section class="missing"><p><strong>What is missing</strong></p>{said}</section>' if said else ""


def _table(runs: list[RunRecord]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in results.COLUMNS)
    lines = []
    for row in results.rows(runs):
        first, *others = row.cells
        dot = "" if row.is_paper else f'<span class="dot" style="--run: {drawing.colour(row.run)}"></span>'
        cells = f"<td>{dot}{escape(first)}</td>" + "".join(f"<td>{escape(cell)}</td>" for cell in others)
        lines.append(f"<tr class={'paper' if row.is_paper else 'ours'}>{cells}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _note(runs: list[RunRecord]) -> str:
    return f"<p><small>{escape(results.PAPERS_NOTE)}</small></p>" if results.has_papers_rows(runs) else ""


def _picture(drawn: Drawn) -> str:
    light, dark = (f"data:image/svg+xml;base64,{b64encode(svg).decode()}" for svg in (drawn.light, drawn.dark))
    figure = drawn.figure
    return (
        f'<section><h2>{escape(figure.title)}</h2>{HINT}<figure><div class="scroll" tabindex="0"><picture>'
        f'<source media="screen and (prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(figure.title)}"></picture></div>'
        f"<figcaption>{escape(figure.caption)}</figcaption></figure></section>"
    )
