"""The arithmetic of a local iteration: forward, backward, update; as it is, compiled, or replayed as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from resist_hvd.comm.devices import finish
from resist_hvd.errors import UserError
from resist_hvd.methods.state import FlatState
from resist_hvd.training.capturing import capture_stream, capturing
from resist_hvd.training.optim import make_optimizer
from resist_hvd.training.run import Run

WARM_UPS = 3
"""Steps that precede a capture, as PyTorch's documentation has them: libraries choose algorithms and take workspace."""


def make_step(run: Run) -> Step:
    """Return the step by which the run's method is trained."""
    return GraphStep(run) if run.settings.cuda_graphs else Step(run)


class Step:
    """Forward, backward and update of a batch.

    Args:
        run: the run whose method is trained.

    Attributes:
        is_prepared: whether the first step takes no longer than others, but for caches that fill.
    """

    def __init__(self, run: Run) -> None:
        self._subnet = subnet = run.method.subnet
        self.is_prepared = not run.settings.compile and run.world.device.type == "cpu"
        self._method = run.method
        self._autocast = run.autocast
        self._loss = loss_function(run)
        self._state = flat_state(run)
        self._optimizer = make_optimizer(subnet, self._state, run.settings.optim)

    def prepare(self, images: Tensor, labels: Tensor) -> None:
        """Do what a network's first step would take longer for: compile, and have libraries choose their algorithms.

        Nothing that is trained changes, and nothing is communicated.

        Raises:
            UserError: the network cannot be compiled.
        """
        with compiler_errors():
            torch.autograd.grad(self._forward(images, labels), list(self._subnet.parameters()), allow_unused=True)

    def __call__(self, images: Tensor, labels: Tensor, rate: float) -> Tensor:
        """Make the step at a learning rate; return the mean loss of the batch, before it."""
        loss = self._differentiate(images, labels)
        self._method.gradients_ready()
        self._optimizer.step(rate)
        return loss

    def _differentiate(self, images: Tensor, labels: Tensor) -> Tensor:
        for gradients in self._subnet.trained(self._subnet.gradients_flat):
            gradients.zero_()
        loss = self._forward(images, labels)
        torch.autograd.backward(loss)
        return loss.detach()

    def _forward(self, images: Tensor, labels: Tensor) -> Tensor:
        with self._autocast():
            return self._loss(images, labels)


class StaticStep(Step):
    """The same step on tensors that stay where they are: what changes from step to step is their content.

    So all of it can be recorded once. The learning rate is a tensor, batches are copied to where the first one lay, and
    momentum restarts from a buffer of negative zeros: to add one to a number changes nothing, not even a zero's sign.
    It is the plain step to the bit, but that a GPU's rate is rounded to float32.
    """

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.is_prepared = False
        on_gpu = run.world.device.type != "cpu"
        self._rate = torch.zeros((), device=run.world.device, dtype=torch.float32 if on_gpu else torch.float64)
        self._loss_of_batch = torch.zeros((), device=run.world.device)
        self._make = self._make_in_place

    def prepare(self, images: Tensor, labels: Tensor) -> None:
        """Give batches their place, and make a few steps whose effects are undone."""
        self._images, self._labels = images.clone(), labels.clone()
        held = [self._subnet.parameters_flat, *self._state.buffers.values(), self._state.steps]
        before = [buffer.clone() for buffer in held]
        with compiler_errors(), self._as_any_step():
            for _ in range(WARM_UPS):
                self._make()
        for buffer, content in zip(held, before, strict=True):
            buffer.copy_(content)

    def __call__(self, images: Tensor, labels: Tensor, rate: float) -> Tensor:
        """Make the step at a learning rate; return the mean loss of the batch, until the next step."""
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._rate.fill_(rate)
        self._state.clear(zero=-0.0)
        self._make()
        return self._loss_of_batch

    @contextmanager
    def _as_any_step(self) -> Iterator[None]:
        """Have a step be as any other, also where the next one is the first since the optimizer restarted.

        A first step takes no account of momentum. Recorded so, no step that repeats it would.
        """
        fresh, self._state.fresh = self._state.fresh, False
        try:
            yield
        finally:
            self._state.fresh = fresh

    def _make_in_place(self) -> None:
        self._loss_of_batch.copy_(self._differentiate(self._images, self._labels))
        self._optimizer.step(self._rate)


class GraphStep(StaticStep):
    """The static step as one CUDA graph: the CPU launches it as a whole, not a thousand kernels.

    A compiled network can be part of it: it is compiled before the capture, and torch.compile's default mode makes no
    graphs of its own. What communicates between backward pass and update cannot.
    """

    def prepare(self, images: Tensor, labels: Tensor) -> None:
        """Warm up, and capture, both on a stream of their own: autograd's nodes remember the stream they were made on.

        Raises:
            UserError: CUDA refuses the capture.
        """
        training, stream = torch.cuda.current_stream(images.device), capture_stream(images.device)
        stream.wait_stream(training)
        with torch.cuda.stream(stream):
            super().prepare(images, labels)
        training.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with self._as_any_step(), capturing(graph, stream):
                self._make()
        except RuntimeError as error:
            raise UserError(
                f"CUDA cannot capture a training step as a graph: {gist(error)}",
                mend="Leave out --cuda_graphs.",
            ) from error
        self._make = graph.replay


def prepare(step: Step, images: Tensor, labels: Tensor, run: Run) -> None:
    """Prepare a step on all ranks together, so that afterwards none waits for another that still compiles.

    Raises:
        UserError: on every rank, where one could not.
    """
    world = run.world
    with world.stopwatch.measure("prepare"), run.memory.aside(), world.agree("preparing the first step"):
        step.prepare(images, labels)
        finish(world.device)
        if world.device.type == "cuda":
            torch.cuda.empty_cache()  # of what algorithms were tried out in
    step.is_prepared = True


def flat_state(run: Run) -> FlatState:
    """Return the state of the run's optimizer."""
    state = run.method.optimizer_state
    assert isinstance(state, FlatState)
    return state


def loss_function(run: Run) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the mean loss of a batch as a function of images and labels, compiled where the run asks for it.

    The loss is compiled with the network, in one graph. All batches have one shape: a graph for any would be slower.
    """
    network, task = run.method.subnet, run.task

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        return task.loss(network(images), labels)

    return torch.compile(loss, fullgraph=True, dynamic=False) if run.settings.compile else loss


@contextmanager
def compiler_errors() -> Iterator[None]:
    """Tell an error of the compiler in a sentence.

    Raises:
        UserError: with what the compiler said.
    """
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise UserError(
            f"The network cannot be compiled: {gist(getattr(error, 'inner_exception', error))}",
            mend="Install a C++ compiler and Python's headers (g++ and python3-dev), which torch.compile needs, or "
            "give --compile false.",
        ) from error


def gist(error: Exception) -> str:
    """Return the first line of an error's message and the last: its kind, and what a tool said that was called."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ... ".join(dict.fromkeys((lines[0], lines[-1])))
