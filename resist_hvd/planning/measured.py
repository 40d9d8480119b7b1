"""Compute rates of runs that have been made: the best forecast of a worker's pace is the pace it had."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import yaml

from resist_hvd.errors import UserError
from resist_hvd.planning.cost import TRAINING, MethodCosted
from resist_hvd.planning.inputs import network_of
from resist_hvd.records import RoundRecord
from resist_hvd.settings.plan import PlanSettings

MEND = "Give --measured the folder of a run of the planned network, by resist or local-sgd."
COMPARED = ("name", "sections", "block", "stem", "width_factor", "final_norm", "partition")


def measured_rates(settings: PlanSettings) -> dict[MethodCosted, float]:
    """Return the FLOP/s of a worker in each run that `--measured` names, by the run's method; data loading included.

    A round lasts as long as its slowest worker takes, so that one's pace counts.

    Raises:
        UserError: a folder holds no such run, or one of another network.
    """
    rates: dict[MethodCosted, float] = {}
    for name in filter(None, (settings.measured or "").split(",")):
        folder = Path(name)
        config = _config(folder)
        method = config.get("method")
        if method not in ("resist", "local-sgd"):
            raise UserError(f"The run's method is {method}", where=str(folder), mend=MEND)
        _check_same_network(config.get("model") or {}, settings, folder)
        rates[method] = _rate(folder, config, settings)
    return rates


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        config = None
    if not isinstance(config, dict):
        raise UserError("There is no config.yaml of a run here", where=str(folder), mend=MEND)
    return config


def _check_same_network(model: dict[str, Any], settings: PlanSettings, folder: Path) -> None:
    counts = PlanSettings(model=type(settings.model)(**{k: v for k, v in model.items() if k in COMPARED})).model.counts
    for name in COMPARED[2:]:
        if name in model and model[name] != getattr(settings.model, name):
            seen = f"The run's model.{name} is {model[name]}, the plan's {getattr(settings.model, name)}"
            raise UserError(seen, where=str(folder), mend=f"Plan with --model.{name} {model[name]}.")
    if counts != settings.model.counts:
        sections = ",".join(map(str, counts))
        raise UserError(
            f"The run's network has sections {sections}, the plan's {','.join(map(str, settings.model.counts))}",
            where=str(folder),
            mend=f"Plan with --model.sections {sections}.",
        )


def _rate(folder: Path, config: dict[str, Any], settings: PlanSettings) -> float:
    try:
        rounds, faults = RoundRecord.read_lines(folder / "rounds.jsonl")
    except OSError:
        rounds, faults = [], []
    if not rounds:
        seen = f"No round can be read here: {faults[0]}" if faults else "There is no finished round here"
        raise UserError(seen, where=str(folder), mend=MEND)
    network = network_of(settings)
    whole = config["method"] == "local-sgd"
    load = network.whole if whole else network.sub_network(rounds[-1].workers, int(config.get("min_blocks", 0)))
    batch = int((config.get("data") or {}).get("batch_size", settings.batch_size))
    # The first rounds warm caches up; a median does not mind them.
    return TRAINING * load.flops * batch / median(slowest(done) / done.iterations for done in rounds)


def slowest(done: RoundRecord) -> float:
    """Return the seconds of a round's local training by the slowest rank, which all wait for; else the mean."""
    if done.ranks is None:
        return done.seconds_compute + done.seconds_data
    return max(map(sum, zip(done.ranks.seconds_compute, done.ranks.seconds_data, strict=True)))
