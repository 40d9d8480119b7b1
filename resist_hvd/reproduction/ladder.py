"""Supplement A.1: from a naive division of the network to ResIST, a step beside those before it."""

from __future__ import annotations

from typing import Any

from resist_hvd.reporting import paper
from resist_hvd.reproduction.budgets import cifar
from resist_hvd.reproduction.experiment import Case, Experiment
from resist_hvd.reproduction.measures import ACCURACY
from resist_hvd.settings.reproduce import ReproduceSettings

POST_ACTIVATION = "resist_hvd.reproduction.networks:post_activation"

THIN_SECTIONS, THIN_DEPTH = "3,3,9,3", 3
"""In the place of ResNet-101: unlike the other experiments' it has blocks to deal out in every section."""

STRIDED = (
    "It cannot be had: a strided block changes the shape, so that no sub-network can be without it, and all workers "
    "share it here."
)


def _post_activation(settings: ReproduceSettings, partition: str) -> dict[str, Any]:
    thin = settings.budget != "paper"
    return {
        "model.parts": POST_ACTIVATION,
        "model.options.sections": THIN_SECTIONS if thin else "3,4,23,3",
        "model.options.width": 16 if thin else 64,
        "model.options.partition": partition,
    }


def _steps(settings: ReproduceSettings) -> list[Case]:
    thin = settings.budget != "paper"
    tuned = {"minutes": 5, "hours": 5, "paper": 25}[settings.budget]
    pre = {"model.zero_init_residual": False, **({"model.sections": THIN_SECTIONS} if thin else {})}
    deep = {"min_blocks": THIN_DEPTH} if thin else {}
    even = {"min_blocks": 1}
    unscaled = {"scale_activations": False}
    steps: list[tuple[int, str, dict[str, Any], str]] = [
        (2, "strided blocks shared", {**_post_activation(settings, "all"), **even, **unscaled}, ""),
        (2, "section 3 alone", {**_post_activation(settings, "section3"), **even, **unscaled}, ""),
        (2, "activations scaled", {**_post_activation(settings, "section3"), **even}, ""),
        (2, "pre-activation", {**pre, **even}, ""),
        (8, "pre-activation", {**pre, **even}, "Without a minimum depth."),
        (8, "minimum depth", {**pre, **deep}, ""),
        (8, "tuned l", {**pre, **deep, "local_iterations": tuned}, f"l = {tuned}; the paper does not say which."),
    ]
    first = Case(
        name="S = 2, all blocks",
        workers=2,
        group="S = 2",
        paper={ACCURACY.name: paper.LADDER[2]["all blocks"]},
        lacking=STRIDED,
    )
    return [
        first,
        *(
            Case(
                name=f"S = {workers}, {step}",
                workers=workers,
                group=f"S = {workers}",
                settings=cifar(settings, "resist", **changes),
                paper={ACCURACY.name: paper.LADDER[workers][step]},
                note=note,
            )
            for workers, step, changes, note in steps
        ),
    ]


A1 = Experiment(
    name="a1",
    title="The ladder from a naive division to ResIST",
    source="supplement A.1",
    about="Each step is made beside those before it. On 2 workers: what is dealt out, the scale of activations, the "
    "order of norm and convolution; on 8: the minimum depth, and l.",
    cases=_steps,
    measures=(ACCURACY,),
    compare="before",
    lasts={"minutes": "14 min", "hours": "4 h"},
    notes=("Blocks do not begin as the identity (--model.zero_init_residual false), as the authors' do not.",),
)
