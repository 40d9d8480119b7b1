"""Algorithm 1 of the paper in one process: a dictionary of global parameters, and plain PyTorch.

No worker, no flat storage, no message. Sub-networks are trained one after another by PyTorch's own SGD; then every
parameter becomes its average over the sub-networks that had it.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
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

    def round(self, partition: Partition, local_iterations: int) -> None:
        """Train every worker's sub-network, then average each parameter over those that trained it."""
        trained: dict[str, list[Tensor]] = {name: [] for name in self.parameters}
        rates = self.rates[self.iterations : self.iterations + local_iterations]
        for worker, blocks in enumerate(partition):
            for name, value in self._train_worker(worker, blocks, rates).items():
                trained[name].append(value)
        self.parameters = {name: torch.stack(values).mean(dim=0) for name, values in trained.items()}
        self.iterations += local_iterations

    def _train_worker(self, worker: int, blocks: Sequence[int], rates: Sequence[float]) -> dict[str, Tensor]:
        network = PlainNetwork(self.network, self.parameters, blocks, self.scale)
        names = network.names
        parameters = {names[name]: parameter for name, parameter in network.named_parameters()}
        kept = self.velocities[worker] if self.keep_momentum else {}
        velocities = {name: kept[name] for name in parameters if name in kept}
        for rate in rates:
            gradients = gradients_of(network, next(self.streams[worker]))
            update(
                parameters, {names[name]: g for name, g in gradients.items()}, velocities, rate=rate, optim=self.optim
            )
        self.velocities[worker] = velocities
        return {name: parameter.detach() for name, parameter in parameters.items()}
