"""Evaluating the global network on a user's own batches, by a metric of the user's own."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from resist_hvd.api.net import Net, calibration_of
from resist_hvd.errors import UserError
from resist_hvd.tasks.base import Metric
from resist_hvd.training.evaluate import calibrate, inference, walk


def evaluate(
    net: Net,
    batches: Iterable[tuple[Tensor, Any]],
    metric: Metric,
    *,
    calibration: Iterable[Tensor] | None = None,
) -> Any:
    """Evaluate the global network, although no worker has all of it; all ranks must call it together.

    Each rank carries its batches through the network part by part; blocks that it does not hold are lent to it.

    Args:
        net: as `deal` returned it.
        batches: this worker's share of the test set, on its device: inputs and targets. Shares may differ in length.
        metric: any of torchmetrics, or what has its `update`, `compute`, `reset`, `metric_state` and `merge_state`.
        calibration: this worker's share of inputs that batch norms take their statistics from.

    Returns:
        What the metric computes over all workers' batches, the same on all ranks.

    Raises:
        UserError: on every rank, where a network with batch norms has no inputs to calibrate on, or no rank has any to
            evaluate on.
    """
    method, world = net.method, net.world
    images = calibration_of(net, calibration)
    with world.stopwatch.measure("evaluate"), inference(method), torch.no_grad():
        statistics = [found for _, found in calibrate(method, images, world)]
        inputs = walk(iter(batches), method, statistics, None, metric, world)
    if not inputs:
        raise UserError(
            "There are no inputs to evaluate on, on any rank",
            mend="Give batches: an iterator that was used up before has none.",
            everywhere=True,
        )
    with warnings.catch_warnings():
        # torchmetrics takes no notice of states that were merged, and warns that there was no update.
        warnings.filterwarnings("ignore", message=".*``compute`` method .* was called before the ``update`` method")
        return metric.compute()
