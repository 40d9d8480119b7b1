"""Table 6: a detector on Pascal VOC."""

from __future__ import annotations

from typing import Any

from resist_hvd.reporting import paper
from resist_hvd.reproduction.experiment import Case, Experiment
from resist_hvd.reproduction.measures import PRECISION, SECONDS, SENT, TEST_LOSS
from resist_hvd.settings.reproduce import BudgetName, ReproduceSettings

LACKING = (
    "Its images are not there: give Pascal VOC's folder VOCdevkit, or any set in its layout, by --data.root. In the "
    "budget of the paper it needs the lists 2007-trainval, 2012-trainval and 2007-test, in others the first and last."
)

TINY: dict[BudgetName, dict[str, Any]] = {
    "minutes": {"recipe": "voc-tiny", "evaluate_every": 9},
    "hours": {"recipe": "voc-tiny", "epochs": 100, "evaluate_every": 40, "checkpoint_every": 40},
    "paper": {"recipe": "voc-resnet101", "checkpoint_every": 200},
}


def _rows(settings: ReproduceSettings) -> list[Case]:
    root = settings.data.root
    return [
        Case(
            name=f"{method}, S = {workers}",
            workers=workers,
            group=f"S = {workers}",
            settings={} if root is None else {**TINY[settings.budget], "method": method, "data.root": str(root)},
            paper={
                TEST_LOSS.name: paper.DETECTION[method, workers].loss,
                SECONDS.name: paper.DETECTION[method, workers].seconds,
            },
            lacking=LACKING if root is None else "",
        )
        for workers in (2, 4)
        for method in ("local-sgd", "resist")
    ]


TABLE6 = Experiment(
    name="table6",
    title="Detection on Pascal VOC",
    source="Table 6",
    about="Test loss, mean average precision at an IoU of 0.5 (VOC 2007's eleven recalls) and seconds of a detector.",
    cases=_rows,
    measures=(TEST_LOSS, PRECISION, SECONDS, SENT),
    lasts={"minutes": "15 min", "hours": "2 h"},
    notes=(
        "The paper does not say how its loss is weighted: ours is darknet's, so numbers of losses differ in scale.",
    ),
)
