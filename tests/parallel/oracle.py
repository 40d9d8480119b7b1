"""Algorithm 1 of the paper in one process: a dictionary of global parameters, and plain PyTorch.

No worker, no flat storage, no message. Sub-networks are trained one after another by PyTorch's own SGD; then every
parameter becomes its average over the sub-networks that had it.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.optim.sgd import sgd

from resist_hvd.data.source import Batch
from resist_hvd.nets.parts import Network, Part
from resist_hvd.nets.subnet import SubNet
from resist_hvd.settings.optim import OptimSettings

Partition = Sequence[Sequence[int]]


def initial_parameters(network: Network, seed: int) -> dict[str, Tensor]:
    """The initial global network, whole."""
    blocks = range(len(network.blocks))
    whole = SubNet(network, network.deck_sizes, device=torch.device("cpu"), dtype=torch.float64)
    whole.initialise(seed, blocks)
    return {
        part.prefixed(name): parameter.detach().clone()
        for part, module in whole.held(blocks)
        for name, parameter in module.named_parameters()
    }


def cosine(lr: float, iterations: int) -> list[float]:
    """The learning rate of each local iteration of a run."""
    return [lr * 0.5 * (1 + math.cos(math.pi * done / iterations)) for done in range(iterations)]


class PlainNetwork(nn.Module):
    """A sub-network with copies of its global parameters.

    Args:
        network: the global network.
        parameters: its parameters by name.
        blocks: those that the sub-network has.
        scale: by what residual branches of dealt blocks are multiplied.

    Attributes:
        names: the global name of each parameter.
    """

    def __init__(self, network: Network, parameters: Mapping[str, Tensor], blocks: Sequence[int], scale: float) -> None:
        super().__init__()
        own = {network.blocks[block].name for block in blocks}
        self.held = [part for part in network.parts if part.deck is None or part.name in own]
        self.layers = nn.ModuleList(part.make().to_empty(device="cpu").double() for part in self.held)
        self.names = {}
        for place, (part, layer) in enumerate(zip(self.held, self.layers, strict=True)):
            for name, parameter in layer.named_parameters():
                self.names[f"layers.{place}.{name}"] = part.prefixed(name)
                parameter.data.copy_(parameters[part.prefixed(name)])
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        for part, layer in zip(self.held, self.layers, strict=True):
            x = layer(x) if part.deck is None or self.scale == 1 else self.scaled(part, layer, x)
        return x

    def scaled(self, part: Part, layer: nn.Module, x: Tensor) -> Tensor:
        """The block, computed with scaled copies of the weights that end its branches."""
        ends = {f"{branch}.{kind}" for branch in part.branches for kind in ("weight", "bias")}
        weights = {
            name: parameter * self.scale if name in ends else parameter for name, parameter in layer.named_parameters()
        }
        output: Tensor = functional_call(layer, weights, (x,))
        return output


def gradients_of(network: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The gradient of the loss on a batch, by the parameters' names."""
    images, labels = batch
    named = dict(network.named_parameters())
    loss = functional.cross_entropy(network(images), labels)
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


@torch.no_grad()
def update(
    parameters: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    velocities: dict[str, Tensor],
    *,
    rate: float,
    optim: OptimSettings,
) -> None:
    """Make a step of PyTorch's SGD, by the function behind the class, whose construction loads its compiler."""
    if optim.name == "adamw":
        update_by_adamw(parameters, gradients, velocities, rate=rate, optim=optim)
        return
    names = list(parameters)
    buffers = [velocities.get(name) for name in names]
    sgd(
        [parameters[name] for name in names],
        [gradients[name] for name in names],
        buffers,
        foreach=False,
        lr=rate,
        momentum=optim.momentum,
        weight_decay=optim.weight_decay,
        dampening=0.0,
        nesterov=optim.nesterov,
        maximize=False,
    )
    velocities.update({name: buffer for name, buffer in zip(names, buffers, strict=True) if buffer is not None})


def update_by_adamw(
    parameters: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    kept: dict[str, Tensor],
    *,
    rate: float,
    optim: OptimSettings,
) -> None:
    """Make a step of AdamW as Loshchilov and Hutter (2019) write it, algorithm 2; of a parameter [3, ...] are kept."""
    beta1, beta2 = optim.betas
    for name, parameter in parameters.items():
        gradient = gradients[name]
        steps, average, square = kept.get(name, torch.zeros(3, *parameter.shape, dtype=parameter.dtype))
        steps = steps + 1
        average = beta1 * average + (1 - beta1) * gradient
        square = beta2 * square + (1 - beta2) * gradient**2
        kept[name] = torch.stack([steps, average, square])
        corrected = average / (1 - beta1**steps)
        step = corrected / ((square / (1 - beta2**steps)).sqrt() + optim.eps)
        parameter -= rate * (step + optim.weight_decay * parameter)


@dataclass
class Oracle:
    """The global network in training.

    Attributes:
        streams: each worker's training batches, in double precision.
        rates: the learning rate of each local iteration of the run.
        keep_momentum: whether a worker's momentum outlives a round, where it keeps the parameter.
        scale: what partitioned blocks' outputs are multiplied by while they are trained.
        overlap: how many local iterations before a round's end its averages are of.
        own: each worker's own values of what all share, where it has any.
        outer: beta of SlowMo on what all share.
        outer_blocks: beta of SlowMo on dealt blocks.
        directions: SlowMo's d, by name.
        rate: the mean learning rate of the last round.
        before: the partition of the round before; none before the first.
    """

    network: Network
    parameters: dict[str, Tensor]
    streams: Sequence[Iterator[Batch]]
    optim: OptimSettings
    rates: list[float]
    keep_momentum: bool = False
    scale: float = 1.0
    iterations: int = 0
    velocities: dict[int, dict[str, Tensor]] = field(default_factory=lambda: defaultdict(dict))
    overlap: int = 0
    own: dict[int, dict[str, Tensor]] = field(default_factory=lambda: defaultdict(dict))
    outer: float = 0.0
    directions: dict[str, Tensor] = field(default_factory=dict)
    rate: float = math.inf
    outer_blocks: float = 0.0
    before: Partition = ()

    def round(self, partition: Partition, local_iterations: int, following: Partition = ()) -> None:
        """Train every worker's sub-network, then average each parameter over those that trained it.

        With overlap the averages are of what was there some iterations earlier. Blocks that are averaged or move stand
        still from then on; what all share goes on, and gains the average minus what it was then.

        Args:
            partition: for each worker the blocks that it has.
            local_iterations: of the round.
            following: the next round's partition; none where everything is everyone's and nothing is dealt.
        """
        departure = max(1, local_iterations - self.overlap)
        early = departure < local_iterations
        still = self._names(moving(partition, following)) if early else set()
        departed: dict[str, list[Tensor]] = {name: [] for name in self.parameters}
        ends = []
        rates = self.rates[self.iterations : self.iterations + local_iterations]
        for worker, blocks in enumerate(partition):
            then, now = self._train_worker(worker, blocks, rates, departure, still)
            ends.append((then, now))
            for name, value in then.items():
                departed[name].append(value)
        before = self.parameters
        self.parameters = {name: torch.stack(values).mean(dim=0) for name, values in departed.items()}
        self.iterations += local_iterations
        dealt = self._names(range(len(self.network.blocks))) if following else set()
        self._step_by_momentum(before, dealt, self._names(kept(self.before, partition)), sum(rates) / len(rates))
        self.before = partition
        self.own.clear()
        if early:
            self._go_on(ends, dealt)

    def _step_by_momentum(self, before: Mapping[str, Tensor], dealt: set[str], kept: set[str], rate: float) -> None:
        """SlowMo, as Wang et al. (2020) write it in algorithm 1, in units of the parameters.

        On a block that is dealt it begins anew where no worker has kept it.
        """
        for name in self.parameters:
            beta = self.outer_blocks if name in dealt else self.outer
            if not beta:
                continue
            direction = self.directions.get(name, torch.zeros_like(before[name]))
            if name in dealt and name not in kept:
                direction = torch.zeros_like(direction)
            direction = beta * rate / self.rate * direction + (before[name] - self.parameters[name])
            self.parameters[name] = before[name] - direction
            self.directions[name] = direction
        self.rate = rate

    def _go_on(self, ends: Sequence[tuple[dict[str, Tensor], dict[str, Tensor]]], dealt: set[str]) -> None:
        """Add to what was averaged what each worker has trained since it departed."""
        for worker, (then, now) in enumerate(ends):
            for name, value in now.items():
                gone_on = self.parameters[name] + (value - then[name])
                if name not in dealt:
                    self.own[worker][name] = gone_on
                else:  # it stood still, or this is its only holder, with whom it stays
                    self.parameters[name] = gone_on
        for name in self.own[0]:
            self.parameters[name] = torch.stack([own[name] for own in self.own.values()]).mean(dim=0)

    def _names(self, blocks: Iterable[int]) -> set[str]:
        """The names of these blocks' parameters."""
        prefixes = tuple(self.network.blocks[block].prefixed("") for block in blocks)
        return {name for name in self.parameters if name.startswith(prefixes)}

    def _train_worker(
        self, worker: int, blocks: Sequence[int], rates: Sequence[float], departure: int, still: set[str]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Train a worker's sub-network; return its parameters as they were at the departure, and at the end."""
        network = PlainNetwork(self.network, {**self.parameters, **self.own[worker]}, blocks, self.scale)
        names = network.names
        parameters = {names[name]: parameter for name, parameter in network.named_parameters()}
        kept = self.velocities[worker] if self.keep_momentum else {}
        velocities = {name: kept[name] for name in parameters if name in kept}
        trained, then = parameters, {}
        for number, rate in enumerate(rates):
            gradients = {
                names[name]: gradient
                for name, gradient in gradients_of(network, next(self.streams[worker])).items()
                if names[name] in trained
            }
            update(trained, gradients, velocities, rate=rate, optim=self.optim)
            if number + 1 == departure:
                then = {name: parameter.detach().clone() for name, parameter in parameters.items()}
                trained = {name: parameter for name, parameter in parameters.items() if name not in still}
        self.velocities[worker] = velocities
        return then, {name: parameter.detach() for name, parameter in parameters.items()}


def kept(before: Partition, partition: Partition) -> set[int]:
    """The blocks of which a worker has a copy that it had in the round before, too."""
    return {block for earlier, now in zip(before, partition, strict=False) for block in {*earlier} & {*now}}


def moving(partition: Partition, following: Partition) -> set[int]:
    """The blocks that several workers have, or that others have next."""

    def holders(block: int, of: Partition) -> list[int]:
        return [worker for worker, blocks in enumerate(of) if block in blocks]

    every = {block for blocks in following for block in blocks}
    return {b for b in every if len(holders(b, partition)) > 1 or holders(b, partition) != holders(b, following)}
