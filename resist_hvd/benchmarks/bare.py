"""The fastest training step that one writes in PyTorch without this toolkit: what ours is compared with."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from resist_hvd.data.source import DataSource
from resist_hvd.settings.optim import OptimSettings
from resist_hvd.settings.run import Settings
from resist_hvd.training.capturing import capture_stream, capturing


def optimizer_of(network: nn.Module, optim: OptimSettings, *, capturable: bool = False) -> torch.optim.Optimizer:
    """Return PyTorch's own optimizer of a network, its fastest, with a run's settings.

    Args:
        network: whose parameters it updates.
        optim: a run's.
        capturable: whether its steps can be recorded as a CUDA graph; SGD's always can.
    """
    if optim.name == "adamw":
        return torch.optim.AdamW(
            network.parameters(),
            lr=optim.lr,
            betas=optim.betas,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            capturable=capturable,
            fused=True,
        )
    return torch.optim.SGD(
        network.parameters(),
        lr=optim.lr,
        momentum=optim.momentum,
        nesterov=optim.nesterov,
        weight_decay=optim.weight_decay,
        fused=True,
    )


class BareLoop:
    """A loop with PyTorch's fused optimizer, whose gradients are dropped and made anew in each step.

    Args:
        network: in channels_last order; trained.
        source: where batches come from.
        settings: precision, compilation and optimizer, as a run has them.
        device: what it computes on.
    """

    def __init__(self, network: nn.Module, source: DataSource, settings: Settings, device: torch.device) -> None:
        self._network = network
        self._loss = torch.compile(self._loss_of, fullgraph=True, dynamic=False) if settings.compile else self._loss_of
        self._settings = settings
        self._device = device
        self._batches = source.train()
        self._optimizer = optimizer_of(network, settings.optim, capturable=settings.cuda_graphs)

    def step(self) -> None:
        """Make one training step."""
        images, labels = next(self._batches)
        self._train_on(images, labels)

    def _train_on(self, images: Tensor, labels: Tensor) -> Tensor:
        optim = self._settings.optim
        self._optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            loss = self._loss(images, labels)
        torch.autograd.backward(loss)
        if optim.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._network.parameters(), optim.clip_norm)
        self._optimizer.step()
        return loss

    def _loss_of(self, images: Tensor, labels: Tensor) -> Tensor:
        smoothing = self._settings.optim.label_smoothing
        return functional.cross_entropy(self._network(images), labels, label_smoothing=smoothing)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._settings.precision == "fp32":
            return nullcontext()
        return torch.autocast(self._device.type, dtype=torch.bfloat16)


class GraphedLoop(BareLoop):
    """The same step captured in a CUDA graph, as PyTorch's documentation has it: batches are copied into static ones.

    Its learning rate is part of the graph.
    """

    WARM_UP = 3
    """Steps that are made before one is captured, so that libraries and the optimizer have what they keep."""

    def __init__(self, network: nn.Module, source: DataSource, settings: Settings, device: torch.device) -> None:
        super().__init__(network, source, settings, device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._static: tuple[Tensor, ...] = ()

    def step(self) -> None:
        """Make one training step, the first time several."""
        batch = next(self._batches)
        graph = self._graph or self._capture(*batch)
        for static, new in zip(self._static, batch, strict=True):
            static.copy_(new)
        graph.replay()

    def _capture(self, images: Tensor, labels: Tensor) -> torch.cuda.CUDAGraph:
        self._static = static_images, static_labels = images.clone(), labels.clone()
        training, beside = torch.cuda.current_stream(self._device), capture_stream(self._device)
        beside.wait_stream(training)
        # On one stream, which autograd's nodes remember.
        with torch.cuda.stream(beside):
            for _ in range(self.WARM_UP):
                self._train_on(static_images, static_labels)
        training.wait_stream(beside)
        self._graph = torch.cuda.CUDAGraph()
        self._optimizer.zero_grad(set_to_none=True)
        with capturing(self._graph, beside):
            self._train_on(static_images, static_labels)
        return self._graph
