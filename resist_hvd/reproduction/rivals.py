"""Figure 4 and supplement A.7: bytes to the same accuracy, by ResIST and by what else trains the same network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from resist_hvd.reporting import paper
from resist_hvd.reproduction.cifar import in_order, row
from resist_hvd.reproduction.experiment import Case, Experiment, Goal
from resist_hvd.reproduction.measures import ACCURACY, BYTES_TO_GOAL, ROUNDS_TO_GOAL, SECONDS_TO_GOAL
from resist_hvd.settings.reading import merged, read_recipe
from resist_hvd.settings.reproduce import ReproduceSettings
from resist_hvd.settings.rows import GPIPE


def _data(settings: ReproduceSettings) -> str:
    return "cifar100" if settings.budget == "paper" and settings.data.name is None else "cifar10"


GPIPE_ROUNDS = 2

FEDERATED = "federated-dropout"


def _gpipe(settings: ReproduceSettings, data: str) -> Case:
    """Return GPipe's row: bytes of a step, counted, times the steps with which data-parallel training gets there."""
    method = row(settings, "data-parallel", settings.ranks, data=data)
    layer = {
        name: value
        for name, value in method.settings.items()
        if name == "recipe" or name.startswith(("model.", "data."))
    }

    def counted(measured: Mapping[str, Any], goal: Goal) -> Mapping[str, float]:
        if goal.samples is None:
            return {}
        (once, *_) = measured["measured"][GPIPE]
        whole = merged(read_recipe(layer["recipe"]), layer)
        steps, batch = GPIPE_ROUNDS * whole["local_iterations"], whole["data.batch_size"] * measured["ranks"]
        return {BYTES_TO_GOAL.name: once["bytes_counted"] / steps * goal.samples / batch}

    return Case(
        name=GPIPE,
        workers=settings.ranks,
        group="all",
        settings={**layer, "rows": GPIPE, "rounds": GPIPE_ROUNDS, "repeats": 1, "evaluate": False},
        counted=counted,
        place=1,
        note="Bytes of a step, counted by bench compare, times the steps with which data-parallel training gets there: "
        "both train on all workers' images in each step, though GPipe's batch norms see micro-batches.",
    )


def _communication(settings: ReproduceSettings) -> list[Case]:
    data = _data(settings)
    places = {"resist": 0, "local-sgd": 1, "data-parallel": 1}
    return [*in_order(settings, places, data=data), _gpipe(settings, data)]


def _dropout(settings: ReproduceSettings) -> list[Case]:
    data = _data(settings)
    return [
        replace(
            row(settings, method, settings.ranks, data=data),
            name=method,
            group="all",
            paper={BYTES_TO_GOAL.name: 1e9 * paper.GIGABYTES_TO_71[method]},
        )
        for method in ("resist", FEDERATED)
    ]


A7 = Experiment(
    name="a7",
    title="Federated dropout to the same accuracy",
    source="supplement A.7",
    about="Payload until ResIST and federated dropout have come to an accuracy that both reach; the paper's is 71 % on "
    "CIFAR-100.",
    cases=_dropout,
    measures=(BYTES_TO_GOAL, ROUNDS_TO_GOAL, SECONDS_TO_GOAL, ACCURACY),
    lasts={"minutes": "5 min", "hours": "2 h"},
    curves=True,
    notes=(
        "Workers of federated dropout have three quarters of all filters; how many the paper's had it does not say.",
    ),
)


FIGURE4 = Experiment(
    name="figure4",
    title="Communication to the same accuracy",
    source="Figure 4",
    about="Payload, counted, until each way of training has come to the accuracy that all of them reach.",
    cases=_communication,
    measures=(BYTES_TO_GOAL, ROUNDS_TO_GOAL, SECONDS_TO_GOAL, ACCURACY),
    lasts={"minutes": "12 min", "hours": "2 h"},
    curves=True,
)
