"""Classification: each input is of one class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from resist_hvd.tasks.base import Figures, Metric, Task


class Classification(Task):
    """Tell classes apart, by cross-entropy.

    Args:
        label_smoothing: probability that training's targets spread evenly over all classes.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self._smoothing = label_smoothing

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of scores [batch, classes] and labels [batch]."""
        return functional.cross_entropy(outputs, targets, label_smoothing=self._smoothing)

    def metric(self) -> Metric:
        """Return a new metric: accuracy in per cent, and the mean cross-entropy without smoothing."""
        return AccuracyAndLoss()

    def votes(self, outputs: Tensor) -> Tensor:
        """Return the probability of each class [batch, classes]."""
        return functional.softmax(outputs, dim=1)

    def elected(self, votes: Sequence[Tensor]) -> Tensor:
        """Return the logarithms of averaged probabilities."""
        mean = torch.stack(list(votes)).mean(dim=0)
        return mean.clamp_min(torch.finfo(mean.dtype).tiny).log()


class AccuracyAndLoss:
    """Share of inputs whose class has the highest score, in per cent, and their mean cross-entropy.

    It is torchmetrics' interface with three numbers for a state, which no library makes shorter.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self._totals = torch.zeros(3, dtype=torch.float64)

    def update(self, outputs: Tensor, targets: Tensor, /) -> None:
        """Add a batch of scores [batch, classes] and labels [batch]."""
        loss = functional.cross_entropy(outputs, targets, reduction="sum")
        correct = (outputs.argmax(dim=1) == targets).sum()
        self._totals += torch.tensor([len(targets), correct.item(), loss.item()], dtype=torch.float64)

    def compute(self) -> Figures:
        """Return accuracy and loss over all batches."""
        inputs, correct, loss = self._totals.tolist()
        return {"accuracy": 100.0 * correct / inputs, "loss": loss / inputs}

    @property
    def metric_state(self) -> dict[str, Any]:
        """Inputs, correct ones and summed loss [3]."""
        return {"totals": self._totals}

    def merge_state(self, incoming_state: dict[str, Any], /) -> None:
        """Add the batches that another such metric knows."""
        self._totals = self._totals + incoming_state["totals"]
