"""Tables 3 and 5: ImageNet, its three V2 sets, and the time to an accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from resist_hvd.reporting import paper
from resist_hvd.reporting.reading import RunRecord
from resist_hvd.reproduction.experiment import Case, Experiment, Goal, Measure
from resist_hvd.reproduction.measures import ACCURACY, SECONDS, SECONDS_TO_GOAL, SENT, percent
from resist_hvd.settings.reproduce import BudgetName, ReproduceSettings

LACKING = (
    "Its images are not there: give a folder by --data.root, with train/ and val/, each with a folder of JPEG files "
    "for each class; launch/prepare-imagenet makes one."
)

WARM_UP = {2: 24, 4: 36}
"""Epochs of local SGD before ResIST, which the volumes of Table 5 imply."""

SMALL: dict[BudgetName, dict[str, Any]] = {
    "minutes": {
        "data.image_size": 64,
        "data.batch_size": 16,
        "model.sections": "1,1,9,1",
        "model.width_factor": 0.25,
        "min_blocks": 4,
        "local_iterations": 5,
        "epochs": 4,
        "max_rounds": 60,
        "evaluate_every": 8,
    },
    "hours": {
        "data.image_size": 112,
        "data.batch_size": 32,
        "model.sections": "2,2,13,2",
        "model.width_factor": 0.5,
        "min_blocks": 5,
        "local_iterations": 15,
        "epochs": 10,
        "max_rounds": 400,
        "evaluate_every": 40,
        "checkpoint_every": 40,
    },
}
"""For a part of ImageNet, on small images; a whole one is not gone through: rounds are bounded."""

V2_SETS = {"V2 MF, %": "matched", "V2 T-0.7, %": "threshold", "V2 TI, %": "top"}
"""Columns of ImageNetV2's sets, and a word of their folders' names."""


def _layer(settings: ReproduceSettings, method: str, workers: int) -> dict[str, Any]:
    layer: dict[str, Any] = {"recipe": "imagenet-resnet101", "method": method, "data.root": str(settings.data.root)}
    if settings.budget != "paper":
        # Of a few hundred rounds a share of all epochs may be more than all of them: they go without a warm-up.
        layer |= {**SMALL[settings.budget], "compile": False, "warmup_epochs": 0}
    else:
        layer["warmup_epochs"] = WARM_UP[workers] if method == "resist" else 0
    if settings.data.extra_tests is not None:
        layer["data.extra_tests"] = str(settings.data.extra_tests)
    return layer


def _rows(settings: ReproduceSettings, told: Mapping[str, str]) -> list[Case]:
    """Return the rows of a table.

    Args:
        settings: the budget, and where images are.
        told: its columns, each with the field of the paper's row.
    """
    factors = {"hours": 3600.0, "hours_to_goal": 3600.0, "gigabytes": 1e9}
    return [
        Case(
            name=f"{method}, S = {workers}",
            workers=workers,
            group=f"S = {workers}",
            settings={} if settings.data.root is None else _layer(settings, method, workers),
            paper={
                column: factors.get(name, 1.0) * getattr(paper.IMAGENET[method, workers], name)
                for column, name in told.items()
            },
            lacking=LACKING if settings.data.root is None else "",
        )
        for workers in (2, 4)
        for method in ("local-sgd", "resist")
    ]


def _on(word: str, name: str) -> Measure:
    def read(run: RunRecord, _: Goal) -> float | None:
        tests = (run.summary.extra_tests if run.summary else None) or {}
        return next((found.figure for test, found in tests.items() if word in test.lower()), None)

    return Measure(name=name, read=read, show=percent, noise=ACCURACY.noise)


TABLE3 = Experiment(
    name="table3",
    title="ImageNet and ImageNetV2",
    source="Table 3",
    about="Top-1 accuracy of ResNet-101 on ImageNet, and, with --data.extra_tests, on ImageNetV2's three sets.",
    cases=lambda settings: _rows(
        settings,
        {
            ACCURACY.name: "accuracy",
            **dict(zip(V2_SETS, ("matched_frequency", "threshold", "top_images"), strict=True)),
        },
    ),
    measures=(ACCURACY, *(_on(word, name) for name, word in V2_SETS.items())),
    lasts={"minutes": "4 min", "hours": "6 h"},
)

TABLE5 = Experiment(
    name="table5",
    title="ImageNet: time and volume",
    source="Table 5",
    about="The runs of table3, by seconds, bytes, and seconds to an accuracy that all of them reach.",
    cases=lambda settings: _rows(
        settings, {SECONDS.name: "hours", SENT.name: "gigabytes", SECONDS_TO_GOAL.name: "hours_to_goal"}
    ),
    measures=(SECONDS, SENT, SECONDS_TO_GOAL),
    lasts={"minutes": "4 min", "hours": "6 h"},
    notes=("Volumes are payload as our transport counts it; the paper counts each parameter up and down.",),
)
