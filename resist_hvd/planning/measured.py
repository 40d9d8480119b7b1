"""Compute rates of runs that have been made: the best forecast of a worker's pace is the pace it had."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

from resist_hvd.errors import UserError
from resist_hvd.planning.cost import TRAINING, MethodCosted
from resist_hvd.planning.inputs import network_of
from resist_hvd.records import RoundRecord
from resist_hvd.settings.flags import make
from resist_hvd.settings.plan import PlanSettings
from resist_hvd.settings.reading import read_run
from resist_hvd.settings.run import Settings

MEND = "Give --measured the folder of a run of the planned network, by resist or local-sgd."


def measured_rates(settings: PlanSettings) -> dict[MethodCosted, float]:
    """Return the FLOP/s of a worker in each run that `--measured` names, by the run's method; data loading included.

    A round lasts as long as its slowest worker takes, so that one's pace counts.

    Raises:
        UserError: a folder holds no such run, or one of another network.
    """
    rates: dict[MethodCosted, float] = {}
    for folder in map(Path, filter(None, (settings.measured or "").split(","))):
        run = make(Settings, read_run(folder))
        if run.method not in ("resist", "local-sgd"):
            raise UserError(f"The run's method is {run.method}", where=str(folder), mend=MEND)
        check_same_network(run, settings, folder)
        rates[run.method] = rate(folder, run, settings)
    return rates


def check_same_network(run: Settings, settings: PlanSettings, folder: Path) -> None:
    """Check that a run's network is the planned one.

    Raises:
        UserError: it is another; the message says in which setting.
    """
    theirs, ours = (asdict(replace(each.model, weights=None)) for each in (run, settings))
    if run.model.family == settings.model.family == "preact":
        for described, each in ((theirs, run), (ours, settings)):
            described |= {"name": "", "sections": ",".join(map(str, each.model.counts))}
    for name, value in theirs.items():
        if value != ours[name] and name != "zero_init_residual":
            raise UserError(
                f"The run's model.{name} is {value}, the plan's {ours[name]}",
                where=str(folder),
                mend=f"Plan with --model.{name} {value}, or with --run {folder}.",
            )


def rate(folder: Path, run: Settings, settings: PlanSettings) -> float:
    """Return the FLOP/s of a run's slowest worker.

    Raises:
        UserError: it has no finished round.
    """
    try:
        rounds, faults = RoundRecord.read_lines(folder / "rounds.jsonl")
    except OSError:
        rounds, faults = [], []
    if not rounds:
        seen = f"No round can be read here: {faults[0]}" if faults else "There is no finished round here"
        raise UserError(seen, where=str(folder), mend=MEND)
    network = network_of(settings)
    whole = run.method == "local-sgd"
    load = network.whole if whole else network.sub_network(rounds[-1].workers, run.min_blocks)
    # The first rounds warm caches up; a median does not mind them.
    return TRAINING * load.flops * run.data.batch_size / median(slowest(done) / done.iterations for done in rounds)


def slowest(done: RoundRecord) -> float:
    """Return the seconds of a round's local training by the slowest rank, which all wait for; else the mean."""
    if done.ranks is None:
        return done.seconds_compute + done.seconds_data
    return max(map(sum, zip(done.ranks.seconds_compute, done.ranks.seconds_data, strict=True)))
