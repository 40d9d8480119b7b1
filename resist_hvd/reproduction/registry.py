"""All experiments, by name."""

from __future__ import annotations

from resist_hvd.errors import UserError
from resist_hvd.reproduction.cifar import A2, A3, A4, A5, A6, TABLE2, TABLE4
from resist_hvd.reproduction.detection import TABLE6
from resist_hvd.reproduction.experiment import Experiment
from resist_hvd.reproduction.imagenet import TABLE3, TABLE5
from resist_hvd.reproduction.ladder import A1
from resist_hvd.reproduction.ours import AHEAD
from resist_hvd.reproduction.rivals import A7, FIGURE4
from resist_hvd.reproduction.theorem import THEOREM
from resist_hvd.reproduction.volumes import TABLE1

EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        TABLE1,
        FIGURE4,
        TABLE2,
        TABLE4,
        TABLE3,
        TABLE5,
        TABLE6,
        A1,
        A2,
        A3,
        A4,
        A5,
        A6,
        A7,
        THEOREM,
        AHEAD,
    )
}


def named(name: str) -> Experiment:
    """Return an experiment.

    Raises:
        UserError: there is none of this name.
    """
    if name not in EXPERIMENTS:
        raise UserError(
            f"There is no experiment {name!r}",
            mend=f"Give one of {', '.join(EXPERIMENTS)}; `python -m resist_hvd.reproduce list` says what they are.",
        )
    return EXPERIMENTS[name]
