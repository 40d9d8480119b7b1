"""GPipe (Huang et al. 2019) by `torch.distributed.pipelining`: a network in stages, one a rank.

All images of a step pass through the stages in micro-batches, forwards and then backwards. So a step is one of plain
SGD on the images of all ranks, but that batch norms see a micro-batch at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import accumulate, count, islice, pairwise
from time import perf_counter

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.nn import functional

from resist_hvd.benchmarks.bare import optimizer_of
from resist_hvd.benchmarks.stages import Load, best_cut
from resist_hvd.comm.devices import finish
from resist_hvd.comm.world import World
from resist_hvd.data.source import Batch, DataSource
from resist_hvd.errors import UserError
from resist_hvd.nets.parts import Network, Part, seeded
from resist_hvd.nets.subnet import fill_buffers, initialise, part_seeds, refuse_same
from resist_hvd.settings.bench import CompareSettings
from resist_hvd.settings.optim import OptimSettings
from resist_hvd.settings.rows import GPIPE, Row
from resist_hvd.training.run import method_setup

MEASUREMENTS = 5
"""Times that each part's passes are measured, after once that does not count; the least is taken."""

LEAVE_OUT = f"or leave {GPIPE} out of --rows"


class Stage(nn.Module):
    """Consecutive parts of a network.

    Gloo sends what is contiguous. Images are channels_last, and so they travel with channels as their last dimension:
    neither sender nor receiver copies them.

    Args:
        parts: their modules.
        is_first, is_last: whether it takes the images, whether it puts out the network's outputs.
    """

    def __init__(self, parts: Iterable[nn.Module], *, is_first: bool, is_last: bool) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.is_first, self.is_last = is_first, is_last

    def forward(self, x: Tensor) -> Tensor:
        """Return the message to the next stage for that of the one before."""
        if not self.is_first and x.dim() == 4:
            x = x.permute(0, 3, 1, 2)
        for part in self.parts:
            x = part(x)
        return x if self.is_last else as_message(x)


def as_message(x: Tensor) -> Tensor:
    """Return activations as they travel: contiguous, those of images [B, H, W, C]."""
    return (x.permute(0, 2, 3, 1) if x.dim() == 4 else x).contiguous()


class GPipe:
    """This rank's stage, and the schedule by which all are trained.

    Args:
        network: the whole one.
        cut: how many parts each stage has.
        world: all ranks; PyTorch's processes know one another.
        optim: the optimizer's settings.
        seed: of the initial weights.
        batch: images of a step.
        micro_batches: into how many they are cut, a divisor of their number above 1: with one the schedule hangs.
        dtype: of parameters; float32 but in tests.

    Attributes:
        stage: this rank's.
        sent: payload in bytes that this rank has handed over: activations, their gradients, labels.
    """

    def __init__(
        self,
        network: Network,
        cut: Sequence[int],
        world: World,
        optim: OptimSettings,
        *,
        seed: int,
        batch: int,
        micro_batches: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._world, self._optim, self._micro_batches = world, optim, micro_batches
        self._edges = list(accumulate(cut, initial=0))
        first, end = self._edges[world.rank : world.rank + 2]
        self._is_first, self._is_last = world.is_first, world.rank == world.size - 1
        modules = make(network, first, end, seed, world.device, dtype)
        self.stage = Stage(modules, is_first=self._is_first, is_last=self._is_last)
        self.optimizer = optimizer_of(self.stage, optim)
        self._loss = partial(functional.cross_entropy, label_smoothing=optim.label_smoothing)
        arriving, leaving = (example(network, place, batch // micro_batches, dtype) for place in (first, end))
        # Shapes that are given need no step by which they are found.
        pipeline_stage = PipelineStage(
            self.stage, world.rank, world.size, world.device, input_args=(arriving,), output_args=(leaving,)
        )
        # The loss is a mean, and gradients are divided by the number of micro-batches.
        self._schedule = ScheduleGPipe(pipeline_stage, micro_batches, loss_fn=self._loss)
        self._arriving = arriving
        self._labels = torch.zeros(batch, dtype=torch.int64, device=world.device)
        self._sent_in_a_step = (
            (0 if self._is_first else micro_batches * arriving.nbytes)
            + (0 if self._is_last else micro_batches * leaving.nbytes)
            + (self._labels.nbytes if self._is_first else 0)
        )
        self.sent = 0

    def step(self, draw: Callable[[], Batch], rate: float) -> None:
        """Make one training step; all ranks call it together.

        Args:
            draw: returns a step's images and labels; the first stage's rank calls it, and sends the last the labels.
            rate: the learning rate.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        if self._is_first:
            images, labels = draw()
            sending = dist.isend(labels, self._world.size - 1)
            self._schedule.step(images, return_outputs=False)
            if sending is not None:
                sending.wait()
        elif self._is_last:
            dist.recv(self._labels, 0)
            self._schedule.step(target=self._labels, return_outputs=False)
        else:
            self._schedule.step(return_outputs=False)
        self.optimizer.step()
        self.sent += self._sent_in_a_step

    def alone(self, draw: Callable[[], Batch]) -> Callable[[], None]:
        """Return what makes steps of a copy of this stage that neither receives nor sends.

        Args:
            draw: returns a step's images and labels; the first stage's rank calls it.
        """
        stage, micro_batches = deepcopy(self.stage), self._micro_batches
        optimizer = optimizer_of(stage, self._optim)
        noise = [
            torch.randn(self._arriving.shape, dtype=self._arriving.dtype, device=self._world.device).requires_grad_()
            for _ in range(micro_batches)
        ]
        labels = self._labels.chunk(micro_batches)

        def step() -> None:
            optimizer.zero_grad()
            outputs = [stage(x) for x in (draw()[0].chunk(micro_batches) if self._is_first else noise)]
            for output, targets in zip(outputs, labels, strict=True):
                if self._is_last:
                    torch.autograd.backward(self._loss(output, targets))
                else:
                    torch.autograd.backward(output, torch.ones_like(output))
            for parameter in stage.parameters():
                if parameter.grad is not None:
                    parameter.grad.div_(micro_batches)
            optimizer.step()

        return step

    @torch.no_grad()
    def collect(self, layers: Sequence[nn.Module]) -> None:
        """Give a whole network the parameters of all stages; all ranks call it together.

        Args:
            layers: the modules of its parts.
        """
        for rank, (first, end) in enumerate(pairwise(self._edges)):
            targets = [parameter for layer in layers[first:end] for parameter in layer.parameters()]
            origins = list(self.stage.parameters()) if rank == self._world.rank else targets
            flat = torch.cat([parameter.reshape(-1) for parameter in origins])
            dist.broadcast(flat, rank)
            sizes = [target.numel() for target in targets]
            for target, numbers in zip(targets, torch.split(flat, sizes), strict=True):
                target.copy_(numbers.view(target.shape))


def make(
    network: Network, first: int, end: int, seed: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> Iterator[nn.Module]:
    """Yield the modules of some parts with their initial weights, convolutions in channels_last order."""
    seeds = part_seeds(network.parts, seed, count())
    for part, own in islice(zip(network.parts, seeds, strict=True), first, end):
        with seeded(0), torch.device("cpu"):
            module = part.make().to(dtype)
        refuse_same(network, part, module)
        fill_buffers(part, module, torch.device("cpu"))
        initialise(part, module, own)
        yield module.to(device).to(memory_format=torch.channels_last)


def example(network: Network, place: int, images: int, dtype: torch.dtype) -> Tensor:
    """Return on the meta device what a micro-batch is before the part at a place; behind the last part, outputs."""
    x = network.example if place == 0 else network.outputs[place - 1]
    assert x is not None
    empty = torch.empty(images, *x.shape[1:], dtype=dtype, device="meta")
    return empty if place in (0, len(network.parts)) else as_message(empty).requires_grad_()


def settled(settings: CompareSettings, world: World, source: DataSource) -> CompareSettings:
    """Return settings that say how many parts each stage has, and how many micro-batches there are.

    Where they do not say it, the network is cut by the seconds that rank 0 measures, all others waiting. All ranks call
    it together.

    Raises:
        UserError: on every rank, where there can be no such pipeline.
    """
    images = settings.data.batch_size * world.size
    with world.agree("cutting the network into stages"):
        refuse_ranks(world)
        micro_batches = settings.micro_batches or next(
            number for number in range(min(4 * world.size, images), 0, -1) if images % number == 0
        )
        if images % micro_batches:
            raise UserError(
                f"--micro_batches is {micro_batches}, which does not divide the {images} images that {world.size} "
                "ranks train in a step",
                mend=f"Give a divisor of {images} from 2 on.",
            )
        network = method_setup(settings.training(Row.read(GPIPE)), source, world).network
        if settings.stages:
            refuse_cut(settings.stages, network, world)
        stages = settings.stages
        if world.is_first and not stages:
            stages = best_cut(measured(network, images // micro_batches, settings.seed, world.device), world.size)
    return replace(settings, stages=world.broadcast_object(stages), micro_batches=micro_batches)


def refuse_ranks(world: World) -> None:
    """Refuse ranks that cannot be a pipeline.

    Raises:
        UserError: there is one, or they cannot send one another what is on GPUs.
    """
    if world.size == 1:
        raise UserError(
            f"{GPIPE} has a stage of the network on each rank, and there is one rank",
            mend=f"Start two or more, {LEAVE_OUT}.",
        )
    if world.shares_gpus:
        raise UserError(
            f"{GPIPE} sends activations from GPU to GPU by NCCL, which needs one for each rank, and ranks share GPUs",
            mend=f"Start one rank for each GPU, give --device cpu, {LEAVE_OUT}.",
        )


def refuse_cut(stages: Sequence[int], network: Network, world: World) -> None:
    """Refuse stages that do not make up the network, or have nothing to train.

    Raises:
        UserError: with the flag.
    """
    if len(stages) != world.size or sum(stages) != len(network.parts):
        raise UserError(
            f"--stages is {list(stages)}, but there are {world.size} ranks and {len(network.parts)} parts of the "
            "network",
            mend="Give a number of parts for each rank, all of them together, or leave it out.",
        )
    for number, (first, end) in enumerate(pairwise(accumulate(stages, initial=0)), start=1):
        if not any(list(module.parameters()) for module in network.modules[first:end]):
            raise UserError(
                f"--stages is {list(stages)}, whose stage {number} has no parameters to train",
                mend="Give it other parts, too, or leave the flag out.",
            )


def measured(network: Network, images: int, seed: int, device: torch.device) -> list[Load]:
    """Return the load of each part, at micro-batches of so many images; blocks of a deck are measured once."""
    known: dict[tuple[str | None, torch.Size], Load] = {}
    loads = []
    for place, part in enumerate(network.parts):
        arriving = example(network, place, images, torch.float32)
        key = part.deck, arriving.shape
        if part.deck is None or key not in known:
            (module,) = make(network, place, place + 1, seed, device)
            output = network.outputs[place]
            known[key] = Load(
                seconds=seconds_of(part, module, arriving, device),
                output=output.numel() // len(output),
                parameters=sum(parameter.numel() for parameter in module.parameters()),
            )
        loads.append(known[key])
    return loads


def seconds_of(part: Part, module: nn.Module, arriving: Tensor, device: torch.device) -> float:
    """Return the seconds of a part's forward and backward pass, as a stage makes them.

    Args:
        part: the part.
        module: its module.
        arriving: what it takes, on the meta device.
        device: where it is.

    Raises:
        UserError: it does not take a micro-batch.
    """
    stage = Stage([module], is_first=not arriving.requires_grad, is_last=False)
    x = torch.randn(arriving.shape, dtype=arriving.dtype, device=device).requires_grad_(arriving.requires_grad)
    seconds = []
    for _ in range(1 + MEASUREMENTS):
        began = perf_counter()
        try:
            output = stage(x)
            if output.requires_grad:
                torch.autograd.backward(output, torch.ones_like(output))
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"Part {part.name!r} of the network does not take a micro-batch of {len(arriving)} images as a stage "
                f"does: {' '.join(str(error).split())[:300]}",
                mend=f"Give larger --data.batch_size, fewer --micro_batches, {LEAVE_OUT}.",
            ) from None
        finish(device)
        seconds.append(perf_counter() - began)
    return min(seconds[1:])
