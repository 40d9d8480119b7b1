"""An outcome as tables: for a screen, for Markdown, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from resist_hvd import __version__
from resist_hvd.console import printable
from resist_hvd.reproduction.differences import differences
from resist_hvd.reproduction.experiment import Measure
from resist_hvd.reproduction.outcome import BOUND, Outcome, Row, Verdict
from resist_hvd.units import counted

UNKNOWN = "–"  # noqa: RUF001

AS_MANY = {"agrees": "agree", "differs": "differ"}
"""How comparisons came out, where they are counted."""


class Table(NamedTuple):
    """A table of texts."""

    columns: list[str]
    rows: list[list[str]]


def results(outcome: Outcome) -> Table:
    """Return a row a case: each measure here, and the paper's beside it where it has one."""
    measures = outcome.experiment.measures
    papers = {measure.name for measure in measures if any(measure.name in row.case.paper for row in outcome.rows)}
    columns = ["row", "runs"]
    for measure in measures:
        columns += [measure.name, *(["the paper"] if measure.name in papers else [])]
    rows = []
    for row in outcome.rows:
        cells = [row.case.name, UNKNOWN if row.case.lacking else f"{row.finished} of {row.wanted}"]
        for measure in measures:
            cells.append(ours(measure, row))
            if measure.name in papers:
                told = row.case.paper.get(measure.name)
                cells.append(UNKNOWN if told is None else measure.show(told))
        rows.append([printable(cell) for cell in cells])
    return Table(columns, rows)


def ours(measure: Measure, row: Row) -> str:
    """Return a row's measure as people read it: the mean, and the deviation where there are several seeds."""
    value = row.values.get(measure.name)
    if value is None:
        return UNKNOWN
    spread = "" if value.deviation is None else f" ± {measure.show(value.deviation)}"
    return f"{measure.show(value.mean)}{spread}"


def comparisons(outcome: Outcome) -> Table:
    """Return a row for each comparison of the paper's: the difference there and here, and whether they agree."""
    rows = []
    for verdict in outcome.verdicts:
        paper = ("more" if verdict.above else "less") if verdict.paper is None else change(verdict, verdict.paper)
        here = UNKNOWN if verdict.ours is None else change(verdict, verdict.ours)
        rows.append([verdict.measure.name, against(verdict.other, verdict.one), paper, here, verdict.says])
    return Table(["measure", "rows", "the paper", "here", "sign"], rows)


def against(other: str, one: str) -> str:
    """Return which row is compared with which; what both begin with, or end with, is said once."""
    parts, of_one = other.split(", "), one.split(", ")
    at_most = min(len(parts), len(of_one)) - 1
    ends = shared(parts[::-1], of_one[::-1], at_most)
    begins = shared(parts, of_one, at_most - ends)
    first, second = (", ".join(each[begins : len(each) - ends]) for each in (parts, of_one))
    before = f"{', '.join(parts[:begins])}: " if begins else ""
    after = f", {', '.join(parts[-ends:])}" if ends else ""
    return f"{before}{first} against {second}{after}"


def shared(one: Sequence[str], other: Sequence[str], at_most: int) -> int:
    """Return how many parts two names begin with alike."""
    pairs = zip(one[:at_most], other[:at_most], strict=True)
    return next((count for count, (a, b) in enumerate(pairs) if a != b), at_most)


def change(verdict: Verdict, difference: float) -> str:
    """Return a difference as people read it: +0.55 points, -31 %, or 12 times; of a bound, the number itself."""
    if verdict.one == BOUND:
        return verdict.measure.show(difference)
    if verdict.measure.relative and difference > 9:
        return f"{1 + difference:,.0f} times"
    return f"{100 * difference:+.0f} %" if verdict.measure.relative else f"{difference:+.2f}"


def summary(outcome: Outcome) -> str:
    """Return how the comparisons came out, in a sentence."""
    told = [f"{count} {AS_MANY.get(name, name)}" for name, count in outcome.tally.items() if count]
    if not told:
        return "The paper has no such rows."
    return f"Of {counted(len(outcome.verdicts), 'comparison')}: {', '.join(told)}."


def notes(outcome: Outcome) -> list[str]:
    """Return what is said of single rows."""
    said = [(row.case.name, f"{row.case.lacking} {row.case.note}".strip()) for row in outcome.rows]
    return [f"{name}: {text}" for name, text in said if text]


def markdown(outcome: Outcome) -> str:
    """Return the whole outcome as a page of Markdown."""
    experiment = outcome.experiment
    source = experiment.source or experiment.place
    lines = [f"# {experiment.title} ({source}), --budget {outcome.settings.budget}", "", experiment.about]
    if outcome.goal.accuracy is not None:
        lines += ["", f"The accuracy that all runs reach: {outcome.goal.accuracy:.2f} %."]
    lines += ["", *_markdown(results(outcome)), "", summary(outcome)]
    if outcome.verdicts:
        lines += ["", *_markdown(comparisons(outcome))]
    lines += ["", "What differs from the paper's setting:", "", *(f"- {text}" for text in differences(outcome))]
    if said := notes(outcome):
        lines += ["", "Of single rows:", "", *(f"- {text}" for text in said)]
    return "\n".join(lines) + "\n"


def _markdown(table: Table) -> list[str]:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(table.columns), line(["---"] * len(table.columns)), *map(line, table.rows)]


def as_json(outcome: Outcome) -> str:
    """Return the whole outcome as JSON."""
    rows: list[dict[str, Any]] = [
        {
            "name": row.case.name,
            "workers": row.case.workers,
            "settings": dict(row.case.settings),
            "finished": row.finished,
            "wanted": row.wanted,
            "lacking": row.case.lacking,
            "ours": {name: value._asdict() for name, value in row.values.items()},
            "paper": dict(row.case.paper),
        }
        for row in outcome.rows
    ]
    compared = [
        {"measure": each.measure.name, "relative": each.measure.relative}
        | {name: getattr(each, name) for name in ("one", "other", "paper", "ours", "says")}
        for each in outcome.verdicts
    ]
    whole = {
        "experiment": outcome.experiment.name,
        "budget": outcome.settings.budget,
        "version": __version__,
        "goal": outcome.goal.accuracy,
        "rows": rows,
        "comparisons": compared,
        "differences": differences(outcome),
        "runs": [str(record.folder) for record in outcome.records],
    }
    return json.dumps(whole, indent=2) + "\n"
