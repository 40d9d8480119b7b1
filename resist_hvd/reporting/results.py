"""The table of results: a row a run, and the paper's row beside it where there is one."""

from __future__ import annotations

from typing import NamedTuple

from resist_hvd.reporting.paper import papers_row
from resist_hvd.reporting.reading import RunRecord, figure_name
from resist_hvd.units import duration, scaled

COLUMNS = (
    "run",
    "method",
    "workers",
    "rounds",
    "accuracy",
    "best",
    "training",
    "synchronising",
    "sent",
    "sent a round",
    "parameters a worker",
    "peak memory",
)
UNKNOWN = "–"  # noqa: RUF001


class Row(NamedTuple):
    """A row of the table; `run` is the number of the run that it is of, `is_paper` whether it is the paper's."""

    run: int
    is_paper: bool
    cells: tuple[str, ...]


def columns(runs: list[RunRecord]) -> tuple[str, ...]:
    """Return the table's heads: accuracy by the name of what these networks are judged by."""
    return tuple(figure_name(runs) if column == "accuracy" else column for column in COLUMNS)


def rows(runs: list[RunRecord]) -> list[Row]:
    """Return the table's rows."""
    made = []
    for number, run in enumerate(runs):
        made.append(Row(number, False, _ours(run)))
        if (paper := papers_row(run)) is not None:
            cells = dict.fromkeys(COLUMNS, "")
            cells["run"] = f"the paper, {paper.source}"
            cells["method"], cells["workers"] = run.method, str(run.workers)
            cells["best"] = f"{paper.accuracy:.2f} %"
            cells["training"] = duration(paper.seconds) if paper.seconds else UNKNOWN
            cells["sent a round"] = f"{paper.gigabytes:.3f} GB*" if paper.gigabytes else UNKNOWN
            made.append(Row(number, True, tuple(cells.values())))
    return made


PAPERS_NOTE = (
    "* The paper counts each parameter once up and once down for each worker that holds it; ours is the payload that "
    "workers hand over to be sent. Its accuracies are the best of a run, means of three."
)


def _ours(run: RunRecord) -> tuple[str, ...]:
    accuracies = [line.figure for line in run.evaluations]
    seconds = run.seconds
    sync = sum(line.seconds_sync for line in run.rounds)
    hidden = sum(line.seconds_hidden or 0.0 for line in run.rounds)
    memory = run.peak_memory_bytes
    parameters, whole = (run.summary.parameters_worker, run.summary.parameters_global) if run.summary else (0, 0)
    share = f" ({parameters / whole:.0%})" if parameters and whole else ""
    count = len(run.rounds)
    return (
        run.label if run.finished else f"{run.label} (unfinished)",
        run.method,
        str(run.workers or UNKNOWN),
        f"{count:,}",
        f"{accuracies[-1]:.2f} %" if accuracies else UNKNOWN,
        f"{max(accuracies):.2f} %" if accuracies else UNKNOWN,
        duration(seconds) if count else UNKNOWN,
        f"{sync / seconds:.0%}{f', {hidden / seconds:.0%} hidden' if hidden else ''}" if seconds else UNKNOWN,
        scaled(run.bytes_sent, "B") if count else UNKNOWN,
        scaled(run.bytes_sent / count, "B") if count else UNKNOWN,
        f"{parameters:,}{share}" if parameters else UNKNOWN,
        scaled(max(memory), "B") if memory else UNKNOWN,
    )
