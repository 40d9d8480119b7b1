"""Table 1: bytes of a round, counted by runs of the paper's own network and by the plan."""

from __future__ import annotations

from typing import Literal

from resist_hvd.reporting import paper
from resist_hvd.reporting.reading import RunRecord
from resist_hvd.reproduction.experiment import Case, Experiment, Goal, Measure
from resist_hvd.reproduction.measures import PAPERS_ROUND, SENT_A_ROUND, gigabytes
from resist_hvd.settings.plan import BASE, PlanSettings
from resist_hvd.settings.reading import parse_for
from resist_hvd.settings.reproduce import ReproduceSettings

BLOCKS = {2: 11, 4: 6, 8: 4}
"""Blocks a worker that the paper's volumes are of, by S."""

ROUNDS = 4
"""The last is followed by no exchange of blocks, and left out."""

SETTINGS = {
    "data.name": "digits",
    "data.batch_size": 2,
    "data.calibration_images": 16,
    "data.validation": 0.01,
    "model.name": "preact_resnet101",
    "model.width_factor": 1.0,
    "model.final_norm": False,
    "model.zero_init_residual": False,
    "local_iterations": 1,
    "evaluate_every": 0,
}
"""ResNet-101 as it is, on images that every installation has: what is sent does not depend on them."""


def planned(run: RunRecord, what: Literal["bytes_sent", "bytes_paper"]) -> float | None:
    """Return a round's bytes by the plan of a run's settings."""
    if run.method not in ("resist", "local-sgd") or run.workers is None:
        return None
    from resist_hvd.planning.forecast import Planner  # which needs PyTorch

    settings = parse_for("plan", PlanSettings, [f"--run={run.folder}", f"--workers={run.workers}"], base=BASE)
    cost = Planner(settings).round("resist" if run.method == "resist" else "local-sgd", run.workers)
    return float(getattr(cost, what))


def _of_plan(name: str, what: Literal["bytes_sent", "bytes_paper"]) -> Measure:
    def read(run: RunRecord, _: Goal) -> float | None:
        return planned(run, what)

    return Measure(name=name, read=read, show=gigabytes, relative=True, own=True)


def _rows(_: ReproduceSettings) -> list[Case]:
    return [
        Case(
            name=f"{method}, S = {workers}",
            workers=workers,
            group=f"S = {workers}",
            settings={
                **SETTINGS,
                "method": method,
                "min_blocks": BLOCKS[workers],
                "max_rounds": ROUNDS,
            },
            paper={PAPERS_ROUND.name: 1e9 * told.gigabytes},
        )
        for workers in BLOCKS
        for method in ("local-sgd", "resist")
        if (told := paper.result(method, "cifar100", workers)) is not None and told.gigabytes is not None
    ]


TABLE1 = Experiment(
    name="table1",
    title="Bytes of a round",
    source="Table 1",
    about="ResNet-101 itself, for a few rounds. The paper counts each parameter once up and once down for each worker "
    "that holds it, 8 bytes: so counted, of the blocks that workers held. Sent is the payload that workers handed "
    "over, by the transport's count. And both by the plan, which runs nothing.",
    cases=_rows,
    measures=(
        PAPERS_ROUND,
        _of_plan("so counted, by the plan", "bytes_paper"),
        SENT_A_ROUND,
        _of_plan("sent a round, by the plan", "bytes_sent"),
    ),
    lasts={"minutes": "5 min"},
    notes=(
        "Images have one channel, and 10 classes instead of 100: 47,322 of 41,396,900 parameters fewer.",
        "With 11, 6 and 4 blocks a worker, of which the paper's volumes are.",
    ),
)
