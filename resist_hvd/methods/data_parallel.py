"""Data-parallel training: gradients are averaged in every step, as Horovod's optimizer does it."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from resist_hvd.comm.transport import PendingAverage
from resist_hvd.methods.base import Setup
from resist_hvd.methods.local_sgd import Replicated
from resist_hvd.protocol.exchange import BUCKET_BYTES


class DataParallel(Replicated):
    """Average gradients among all workers in every step, each bucket as soon as the backward pass has filled it.

    Gradients lie in one flat buffer, so a bucket is a slice of it: nothing is packed or unpacked.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._buckets = self._cut_buckets()
        self._waiting = [0] * len(self._buckets)
        self._pending: dict[int, PendingAverage | None] = {}
        for number, (_, parameters) in enumerate(self._buckets):
            self._waiting[number] = len(parameters)
            for parameter in parameters:
                hook = partial(self._count_down, number)
                parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def _cut_buckets(self) -> list[tuple[Tensor, list[nn.Parameter]]]:
        """Cut the gradients into slices that end where a parameter's does, each with the parameters in it."""
        flat = self.subnet.gradients_flat
        start = flat.data_ptr()
        parameters = sorted(self.subnet.parameters(), key=lambda p: p.grad.data_ptr())  # type: ignore[union-attr]
        buckets: list[tuple[Tensor, list[nn.Parameter]]] = []
        first, members = 0, []
        for parameter in parameters:
            members.append(parameter)
            end = (parameter.grad.data_ptr() - start) // flat.itemsize + parameter.numel()  # type: ignore[union-attr]
            if (end - first) * flat.itemsize >= BUCKET_BYTES or parameter is parameters[-1]:
                buckets.append((flat[first:end], members))
                first, members = end, []
        return buckets

    def _count_down(self, number: int, _: Tensor) -> None:
        self._waiting[number] -= 1
        if self._waiting[number] == 0:
            self._start(number)

    def _start(self, number: int) -> None:
        bucket, parameters = self._buckets[number]
        self._waiting[number] = len(parameters)
        self._pending[number] = self.transport.start_average(bucket, f"gradients.{number}")

    def gradients_ready(self) -> None:
        """Wait for every bucket's average, also of one with a parameter that this step's loss did not depend on."""
        for number in range(len(self._buckets)):
            if number not in self._pending:
                self._start(number)
        for pending in self._pending.values():
            self.transport.finish(pending)
        self._pending.clear()

    def depart(self, seed: int, *, early: bool = False) -> None:
        """Do nothing: all workers hold the same parameters after every step."""

    def arrive(self) -> None:
        """Do nothing."""


METHOD = DataParallel
