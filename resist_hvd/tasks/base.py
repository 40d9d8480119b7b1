"""Interface of tasks and metrics to training and evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor


class Metric(Protocol):
    """A figure that is made from outputs and targets, batch by batch: any metric of torchmetrics is one."""

    def update(self, outputs: Tensor, targets: Any, /) -> None:
        """Add a batch."""

    def compute(self) -> Any:
        """Return the figure, of all batches since the last reset."""

    def reset(self) -> None:
        """Forget all batches."""

    @property
    def metric_state(self) -> dict[str, Any]:
        """All that it knows of the batches: tensors, or lists of them, by name."""

    def merge_state(self, incoming_state: dict[str, Any], /) -> None:
        """Add the batches that another metric of its kind knows."""


class Mean:
    """A metric: the mean of a figure of each input, or of each of its parts.

    Args:
        figures: returns a tensor of figures for a batch's outputs and targets, of any shape.
    """

    def __init__(self, figures: Callable[[Tensor, Any], Tensor]) -> None:
        self._figures = figures
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self._sum, self._count = 0.0, 0

    def update(self, outputs: Tensor, targets: Any, /) -> None:
        """Add a batch."""
        figures = self._figures(outputs, targets)
        self._sum += figures.double().sum().item()
        self._count += figures.numel()

    def compute(self) -> float:
        """Return the mean over all batches."""
        return self._sum / self._count

    @property
    def metric_state(self) -> dict[str, Any]:
        """Sum and number of the figures."""
        return {"sum": self._sum, "count": self._count}

    def merge_state(self, incoming_state: dict[str, Any], /) -> None:
        """Add the batches that another such metric knows."""
        self._sum += incoming_state["sum"]
        self._count += incoming_state["count"]


class Task(ABC):
    """A task that a network learns.

    Attributes:
        finds_boxes: whether it finds objects in images, and does not tell classes of images apart.
    """

    finds_boxes: bool = False

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Any) -> Tensor:
        """Return the mean loss of a batch, which training descends."""

    @abstractmethod
    def metric(self) -> Metric:
        """Return a new metric whose `compute` has figures by name: `accuracy` or the like, and `loss`."""

    @abstractmethod
    def votes(self, outputs: Tensor) -> Tensor:
        """Return what a member of an ensemble says."""

    @abstractmethod
    def elected(self, votes: Sequence[Tensor]) -> Tensor:
        """Return outputs that stand for what all members of an ensemble say."""

    def description(self) -> Mapping[str, Any]:
        """Return what an exported model says of its outputs, as JSON can hold it; nothing for classes of images."""
        return {}

    def at(self, samples: int) -> None:
        """Note that the run has trained on so many inputs, before a step; losses may depend on it."""


Figures = Mapping[str, Any]
"""What an evaluation came to, by the names of `records.Evaluation`."""
