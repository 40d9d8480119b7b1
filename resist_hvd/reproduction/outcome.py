"""The outcome of an experiment's runs: a row a case with the paper's beside it, and whether signs and order agree."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from statistics import fmean, stdev
from typing import Literal, NamedTuple

from resist_hvd.reporting.reading import RunRecord, read_run
from resist_hvd.reproduction.experiment import Case, Experiment, Goal, Measure, bound_of
from resist_hvd.reproduction.measures import best_accuracy, reach
from resist_hvd.reproduction.runs import Run, runs_of
from resist_hvd.settings.reproduce import ReproduceSettings

Agreement = Literal["agrees", "differs", "too close to tell", "not run"]


BOUND = "the least that the paper proves"


class Value(NamedTuple):
    """A measure of a row: the mean over seeds, their standard deviation where there are several, and how many."""

    mean: float
    deviation: float | None
    seeds: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """A case and what came of it.

    Attributes:
        values: by the measures' names; none of those that no run told.
        finished, wanted: its runs.
    """

    case: Case
    values: Mapping[str, Value]
    finished: int
    wanted: int


class Verdict(NamedTuple):
    """Two rows by a measure: how far the second is from the first, in the paper and here.

    Differences are ratios less one where the measure is relative. The paper's is None where it has an order alone. Of a
    row and its bound it is the two themselves.
    """

    measure: Measure
    one: str
    other: str
    above: bool
    paper: float | None
    ours: float | None
    says: Agreement


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """All that an experiment came to.

    Attributes:
        goal: the accuracy to which rows are compared.
        records: of all runs that are finished, in the order of rows.
    """

    experiment: Experiment
    settings: ReproduceSettings
    goal: Goal
    rows: list[Row]
    verdicts: list[Verdict]
    records: list[RunRecord]

    @property
    def tally(self) -> dict[Agreement, int]:
        """The number of comparisons that came out in each way."""
        counts: dict[Agreement, int] = {"agrees": 0, "differs": 0, "too close to tell": 0, "not run": 0}
        for verdict in self.verdicts:
            counts[verdict.says] += 1
        return counts


def outcome_of(experiment: Experiment, settings: ReproduceSettings) -> Outcome:
    """Read the runs that are finished, and compare them."""
    found = [(case, runs_of(case, settings)) for case in experiment.cases(settings)]
    finished = [[run for run in runs if run.finished] for _, runs in found]
    read = [
        [] if case.counted or case.computed else [read_run(run.folder) for run in done]
        for (case, _), done in zip(found, finished, strict=True)
    ]
    for colour, ((case, _), records) in enumerate(zip(found, read, strict=True)):
        for record in records:
            record.label, record.curve, record.colour = case.name, case.name, colour
    all_records = [record for records in read for record in records]
    goal = goal_of(all_records) if any(measure.to_goal for measure in experiment.measures) else Goal()
    rows = []
    for (case, runs), done, records in zip(found, finished, read, strict=True):
        numbers = _numbers(experiment, done, records, goal)
        rows.append(
            Row(
                case=replace(case, paper={**case.paper, **_bounds(experiment, numbers)}),
                values=_means(experiment, numbers),
                finished=len(done),
                wanted=len(runs),
            )
        )
    return Outcome(
        experiment=experiment,
        settings=settings,
        goal=goal,
        rows=rows,
        verdicts=list(verdicts(experiment, rows)),
        records=all_records,
    )


def goal_of(records: list[RunRecord]) -> Goal:
    """Return the accuracy that all runs have reached; none where runs were not evaluated on their way."""
    best = [best_accuracy(run, Goal()) for run in records if len(run.evaluations) > 1]
    goal = Goal(accuracy=min((value for value in best if value is not None), default=None))
    samples = [reach(run, goal, lambda line: float(line.samples)) for run in records if run.method == "data-parallel"]
    return replace(goal, samples=next((value for value in samples if value is not None), None))


def _numbers(
    experiment: Experiment, runs: list[Run], records: list[RunRecord], goal: Goal
) -> list[Mapping[str, float | None]]:
    """Return the numbers of each of a case's finished runs, by the measures' names."""
    if records:
        return [{measure.name: measure.read(record, goal) for measure in experiment.measures} for record in records]
    return [run.case.counted(run.numbers(), goal) if run.case.counted else run.numbers() for run in runs]


def _means(experiment: Experiment, numbers: list[Mapping[str, float | None]]) -> dict[str, Value]:
    values = {}
    for measure in experiment.measures:
        read = [value for each in numbers if (value := each.get(measure.name)) is not None]
        if read:
            values[measure.name] = Value(fmean(read), stdev(read) if len(read) > 1 else None, len(read))
    return values


def _bounds(experiment: Experiment, numbers: list[Mapping[str, float | None]]) -> dict[str, float]:
    """Return the paper's bounds on a row's measures, where they were computed with it: the means over seeds."""
    bounds = {}
    for measure in experiment.measures:
        read = [value for each in numbers if (value := each.get(bound_of(measure))) is not None]
        if read:
            bounds[measure.name] = fmean(read)
    return bounds


def verdicts(experiment: Experiment, rows: list[Row]) -> Iterator[Verdict]:
    """Yield the comparisons that the paper makes: of rows in a group that have its numbers, or a place in its order."""
    for measure in experiment.measures:
        is_first = measure is experiment.measures[0]
        told = [row for row in rows if _is_told(row.case, measure, is_first=is_first)]
        if experiment.compare == "bound":
            bound = [row for row in told if measure.name in row.case.paper and not measure.own]
            yield from (bounded(measure, row) for row in bound)
            continue
        for _, members in groupby(sorted(told, key=lambda row: row.case.group), key=lambda row: row.case.group):
            group = list(members)
            for place, row in enumerate(group[1:]):
                yield verdict(measure, group[0 if experiment.compare == "first" else place], row)


def _is_told(case: Case, measure: Measure, *, is_first: bool) -> bool:
    """Return whether the paper tells a row's measure; an order without numbers is of an experiment's first measure."""
    return measure.name in case.paper or (case.place is not None and is_first)


def verdict(measure: Measure, one: Row, other: Row) -> Verdict:
    """Compare two rows."""
    papers = [row.case.paper[measure.name] for row in (one, other) if measure.name in row.case.paper]
    paper = difference(measure, papers[0], papers[1]) if len(papers) == 2 else None
    if paper is None:
        assert one.case.place is not None
        assert other.case.place is not None
        above = other.case.place > one.case.place
    else:
        above = paper > 0
    values = [row.values[measure.name] for row in (one, other) if measure.name in row.values]
    if len(values) < 2:
        return Verdict(measure, one.case.name, other.case.name, above, paper, None, "not run")
    ours = difference(measure, values[0].mean, values[1].mean)
    noise = measure.noise / math.sqrt(min(value.seeds for value in values))
    if abs(ours) <= noise:
        says: Agreement = "too close to tell"
    else:
        says = "agrees" if (ours > 0) == above else "differs"
    return Verdict(measure, one.case.name, other.case.name, above, paper, ours, says)


def bounded(measure: Measure, row: Row) -> Verdict:
    """Compare a row with the paper's number, which it has at least."""
    value, bound = row.values.get(measure.name), row.case.paper[measure.name]
    if value is None:
        return Verdict(measure, BOUND, row.case.name, True, bound, None, "not run")
    says: Agreement = "agrees" if value.mean >= bound else "differs"
    return Verdict(measure, BOUND, row.case.name, True, bound, value.mean, says)


def difference(measure: Measure, one: float, other: float) -> float:
    """Return how far the second of two values is from the first."""
    return other / one - 1 if measure.relative else other - one
