"""Figure 4 and supplement A.7: bytes to the same accuracy, by ResIST and by what else trains the same network."""

from __future__ import annotations

from resist_hvd.reproduction.cifar import row
from resist_hvd.reproduction.experiment import Case, Experiment
from resist_hvd.reproduction.measures import ACCURACY, BYTES_TO_GOAL, ROUNDS_TO_GOAL, SECONDS_TO_GOAL
from resist_hvd.settings.reproduce import ReproduceSettings


def _data(settings: ReproduceSettings) -> str:
    return "cifar100" if settings.budget == "paper" and settings.data.name is None else "cifar10"


def _communication(settings: ReproduceSettings) -> list[Case]:
    data, workers = _data(settings), settings.ranks
    return [
        Case(
            name=method,
            workers=workers,
            group="all",
            settings=row(settings, method, workers, data=data).settings,
            place=place,
        )
        for method, place in (("resist", 0), ("local-sgd", 1), ("data-parallel", 1))
    ]


FIGURE4 = Experiment(
    name="figure4",
    title="Communication to the same accuracy",
    source="Figure 4",
    about="Payload, counted, until each way of training has come to the accuracy that all of them reach.",
    cases=_communication,
    measures=(BYTES_TO_GOAL, ROUNDS_TO_GOAL, SECONDS_TO_GOAL, ACCURACY),
    lasts={"minutes": "6 min", "hours": "2 h"},
    curves=True,
)
