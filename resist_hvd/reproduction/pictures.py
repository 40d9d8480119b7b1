"""Pictures of an outcome: its first measure beside the paper's, and curves of accuracy."""

from __future__ import annotations

from typing import Any

from resist_hvd import drawing
from resist_hvd.drawing import Theme
from resist_hvd.reporting import figures
from resist_hvd.reporting.panels import WIDTH, Figure
from resist_hvd.reproduction.experiment import Measure
from resist_hvd.reproduction.outcome import Outcome, Row


def pictures(outcome: Outcome) -> list[Figure]:
    """Return the pictures that an outcome gives; none where nothing was run."""
    made = []
    measure = outcome.experiment.measures[0]
    if any(measure.name in row.values for row in outcome.rows):
        told = any(measure.name in row.case.paper for row in outcome.rows)
        made.append(
            Figure(
                "rows",
                f"{measure.name[0].upper()}{measure.name[1:]}",
                f"{'Left, what' if told else 'What'} was measured here, with the standard deviation where there are "
                "several seeds"
                + ("; right, the paper's. The scales differ: compare signs and order." if told else "."),
                lambda theme: rows(outcome, measure, theme),
            )
        )
    if outcome.experiment.curves:
        made += [figure for figure in figures.figures(outcome.records) if figure.name == "accuracy"]
    return made


def rows(outcome: Outcome, measure: Measure, theme: Theme) -> Any:
    """Draw a measure of each row, ours and the paper's side by side."""
    plt = drawing.pyplot(theme)
    shown = [row for row in outcome.rows if measure.name in row.values or measure.name in row.case.paper]
    told = any(measure.name in row.case.paper for row in shown)
    figure, panels = plt.subplots(
        1, 2 if told else 1, figsize=(WIDTH, 1.0 + 0.32 * len(shown)), sharey=True, squeeze=False, layout="constrained"
    )
    titles = ("here", "the paper")
    for place, axes in enumerate(panels[0]):
        for y, row in enumerate(shown):
            mean, deviation = _of(row, measure, papers=place == 1)
            if mean is None:
                continue
            colour = drawing.colour(_colour(shown, row))
            if measure.relative:
                axes.barh(y, mean, color=colour, height=0.7, xerr=deviation, error_kw={"ecolor": theme.ink})
            else:  # small differences of large numbers: no bar from zero shows them
                axes.errorbar(mean, y, xerr=deviation, color=colour, marker="o", markersize=8, linestyle="none")
            axes.text(mean, y, f"   {measure.show(mean)}", va="center", fontsize=8, color=theme.ink)
        axes.set_title(titles[place])
        axes.set_xticks([])
        axes.margins(x=0.18)
        axes.grid(visible=not measure.relative, axis="y")
        axes.grid(visible=False, axis="x")
    panels[0][0].set_yticks(range(len(shown)), [drawing.literal(row.case.name) for row in shown])
    panels[0][0].set_ylim(len(shown) - 0.4, -0.6)
    return figure


def _of(row: Row, measure: Measure, *, papers: bool) -> tuple[float | None, float | None]:
    if papers:
        return row.case.paper.get(measure.name), None
    value = row.values.get(measure.name)
    return (None, None) if value is None else (value.mean, value.deviation)


def _colour(shown: list[Row], row: Row) -> int:
    """Return the number of a row's colour: rows of a method have one."""
    methods = list(dict.fromkeys(each.case.settings.get("method", "") for each in shown))
    return methods.index(row.case.settings.get("method", ""))
