"""The training of each budget: settings that an experiment's own are laid over."""

from __future__ import annotations

from typing import Any

from resist_hvd.settings.model import SECTIONS
from resist_hvd.settings.reproduce import BudgetName, ReproduceSettings

THIN: dict[BudgetName, dict[str, Any]] = {
    "minutes": {"recipe": "cifar10-tiny", "epochs": 1, "evaluate_every": 0},
    "hours": {"recipe": "cifar10-tiny", "epochs": 12, "evaluate_every": 0, "checkpoint_every": 40},
}
"""CIFAR on a thin, deep network."""

PAPERS_RECIPE = {"cifar10": "cifar10-resnet101", "cifar100": "cifar100-resnet101"}

THIN_SECTIONS = {"preact_resnet101": "1,1,13,1", "preact_resnet152": "1,1,21,1", "preact_resnet200": "1,1,29,1"}
"""The thin networks in the place of the paper's: blocks to deal out in about their proportion."""

WATCHED: dict[BudgetName, int] = {"minutes": 8, "hours": 20, "paper": 40}
"""Rounds between evaluations, where accuracy on the way is asked for."""


def data_sets(settings: ReproduceSettings, *wanted: str) -> list[str]:
    """Return those of some data sets that are trained on: in minutes, or from a folder, the first alone."""
    alone = settings.budget == "minutes" or settings.data.name is not None
    return list(wanted[:1] if alone else wanted)


def images(settings: ReproduceSettings, data: str) -> dict[str, Any]:
    """Return the settings of a data set, or of what stands in its place."""
    own, layer = settings.data, {"data.name": settings.data.name or data}
    if own.root is not None:
        layer["data.root"] = str(own.root)
    if own.download:
        layer["data.download"] = True  # type: ignore[assignment]
    return layer


def cifar(
    settings: ReproduceSettings,
    method: str,
    *,
    data: str = "cifar10",
    network: str = "preact_resnet101",
    **changes: Any,
) -> dict[str, Any]:
    """Return the settings of a run on CIFAR-10 or CIFAR-100.

    Args:
        settings: the budget, and where images are.
        method: of training.
        data: cifar10 or cifar100.
        network: the paper's; a thin one stands in its place in all budgets but its own.
        changes: over all of these; a dot in a name is two underscores.
    """
    if settings.budget == "paper":
        layer: dict[str, Any] = {"recipe": PAPERS_RECIPE[data]}
        if network != "preact_resnet101":
            layer["model.name"] = network
    else:
        layer = dict(THIN[settings.budget])
        if network != "preact_resnet101":
            layer["model.sections"] = THIN_SECTIONS[network]
    own = {name.replace("__", "."): value for name, value in changes.items()}
    return {**layer, "method": method, **images(settings, data), **own}


def watched(settings: ReproduceSettings) -> dict[str, Any]:
    """Return the settings by which a run is evaluated on its way."""
    return {"evaluate_every": WATCHED[settings.budget]}


def network_sections(name: str) -> tuple[int, ...]:
    """Return the blocks of each section of one of the paper's networks."""
    return SECTIONS[name]
