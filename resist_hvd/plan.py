"""`python -m resist_hvd.plan`: what a run will cost by ResIST, and by what else could train the same network."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from resist_hvd import console
from resist_hvd.errors import UserError, run_alone
from resist_hvd.planning import tables
from resist_hvd.planning.forecast import SCALE, Forecast, Planner
from resist_hvd.planning.inputs import machine_of
from resist_hvd.planning.measured import measured_rates
from resist_hvd.settings import flags
from resist_hvd.settings.plan import ALIASES, BASE, PlanSettings
from resist_hvd.settings.reading import parse_for, plain

WIDTH = 130
"""Columns of the tables where the output is no terminal."""


def main() -> None:
    """Print the plan that the flags ask for, and write it where they say."""
    run_alone(run_from_flags)


def run_from_flags() -> None:
    """Make the plan.

    Raises:
        UserError: a flag is wrong, a run to measure by cannot be read, or a file cannot be written.
    """
    settings = parse(sys.argv[1:])
    planner = Planner(settings, measured_rates(settings))
    tables.show(planner, console.screen(width=None if sys.stdout.isatty() else WIDTH))
    for path, write in ((settings.json, write_json), (settings.plot, write_picture)):
        if path is not None:
            try:
                write(planner)
            except OSError as error:
                raise UserError(
                    f"Cannot write the plan: {error.strerror}", where=str(path), mend="Give a file that can be written."
                ) from None
            console.out(f"Written: {path}")


def parse(arguments: Sequence[str]) -> PlanSettings:
    """Return the plan's settings, from a recipe, a run, or the paper's on CIFAR-100, and from flags.

    Raises:
        UserError: a flag is unknown or wrong, or a recipe or a run cannot be read.
    """
    return parse_for("python -m resist_hvd.plan", PlanSettings, arguments, base=BASE, aliases=ALIASES)


def write_json(planner: Planner) -> None:
    """Write the plan as JSON: every method on every number of workers asked for, ResIST's growth, and advice."""
    settings = planner.settings
    assert settings.json is not None
    plan = {
        "settings": {name: plain(value) for name, value in flags.values_of(settings).items()},
        "model": asdict(settings.model),
        "machine": asdict(machine_of(settings, planner.rate("resist"))),
        "parameters_global": planner.network.whole.parameters,
        "parameters_trunk": planner.network.trunk.parameters,
        "partitionable": planner.network.partitionable,
        "runs": [describe(run) for workers in settings.worker_counts for run in planner.compare(workers)],
        "growth": [describe(next(iter(planner.compare(workers)))) for workers in SCALE],
        "advice": [asdict(planner.advise(workers)) for workers in settings.worker_counts],
        "pays_up_to": planner.stops_paying()._asdict(),
    }
    settings.json.write_text(json.dumps(plan, indent=2) + "\n")


def describe(run: Forecast) -> dict[str, object]:
    """Return a forecast as plain values, with what its round's cost derives."""
    described = asdict(run)
    once = run.round
    described["round"] |= {"seconds": once.seconds, "seconds_sync": once.seconds_sync, "bound": once.bound}
    return {**described, "reservation": run.reservation}


def write_picture(planner: Planner) -> None:
    """Draw the plan."""
    from resist_hvd.planning import picture

    assert planner.settings.plot is not None
    picture.draw(planner, planner.settings.plot)


if __name__ == "__main__":
    main()
