"""A worker's network: the shared trunk and k block slots of each deck, on flat storage.

Parameters lie in one contiguous buffer, the trunk in one piece and a block a slot; gradients lie alike in
another. The modules' parameters are views into them (convolutions in channels_last order). So the trunk's average is
one collective, a block is one message that needs no packing, and the optimizer makes one fused update. A round fills
the same slots with other blocks, so modules, views and any compiled graph stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, count, groupby
from typing import Any, Self

import torch
from torch import Tensor, nn

from resist_hvd.errors import UserError
from resist_hvd.nets.parts import Deck, Network, Part, seeded
from resist_hvd.seeds import derive


class SubNet(nn.Module):
    """A network of which a worker holds the trunk and a few blocks of each deck.

    With as many slots as there are blocks it is the whole network, as local SGD and data-parallel training have it.

    Args:
        network: the global network.
        depths: for each deck how many slots it has.
        scales: for each deck what the residual branches of every block in a slot are multiplied by; 1 by default.
        device: where the buffers are.
        dtype: of parameters and gradients; float32 but in tests.

    Attributes:
        parameters_flat: [P], all parameters, in the order that `trunk_lies_last` has them.
        gradients_flat: [P], all gradients, laid out alike.
        trunk: [T], the view of what all workers share.
        slots: a view for each slot, in depth order.
        trunk_gradients, slot_gradients: the same of the gradients.
        frozen: the slots that stand still, ascending: backward passes leave their gradients alone.
    """

    def __init__(
        self,
        network: Network,
        depths: Sequence[int],
        *,
        scales: Sequence[float] = (),
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.network = network
        self.depths = tuple(depths)
        self.parts = network.parts_at(depths)
        self.layers = nn.ModuleList(make_on_meta(part, dtype) for part in self.parts)
        for part, module in zip(self.parts, self.layers, strict=True):
            refuse_same(network, part, module)
        slot_modules = self.slot_modules
        in_slots = {id(p) for module in slot_modules for p in module.parameters()}
        trunk = [p for p in self.layers.parameters() if id(p) not in in_slots]
        sizes = [sum(p.numel() for p in m.parameters()) for m in slot_modules]
        self._trunk_place = len(sizes) if trunk_lies_last(device) else 0
        sizes.insert(self._trunk_place, sum(p.numel() for p in trunk))
        self.parameters_flat = torch.zeros(sum(sizes), dtype=dtype, device=device)
        self.gradients_flat = torch.zeros_like(self.parameters_flat)
        self._sizes = sizes
        self.frozen: tuple[int, ...] = ()
        self.trunk, self.slots = self.cut(self.parameters_flat)
        self.trunk_gradients, self.slot_gradients = self.cut(self.gradients_flat)
        bind(self.layers, trunk, self.trunk, self.trunk_gradients)
        for module, slot, gradients in zip(slot_modules, self.slots, self.slot_gradients, strict=True):
            bind(module, list(module.parameters()), slot, gradients)
        self._slot_parameters = [[(p, p.grad) for p in module.parameters()] for module in slot_modules]
        for part, module in zip(self.parts, self.layers, strict=True):
            fill_buffers(part, module, device)
        for part, module, scale in zip(self.slot_parts, slot_modules, self.of_slots(scales), strict=True):
            scale_outputs(part, module, scale)

    @property
    def slot_modules(self) -> list[nn.Module]:
        """The modules that stand for slots, in depth order."""
        return [module for part, module in zip(self.parts, self.layers, strict=True) if part.deck is not None]

    @property
    def slot_parts(self) -> list[Part]:
        """The parts that stand for slots, in depth order; those of a deck are alike."""
        return [part for part in self.parts if part.deck is not None]

    def of_slots(self, of_decks: Sequence[float]) -> list[float]:
        """Return for each slot what its deck has; 1 where decks have nothing."""
        return [
            value
            for value, slots in zip(of_decks or [1.0] * len(self.depths), self.depths, strict=True)
            for _ in range(slots)
        ]

    def cut(self, flat: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the views of the trunk and of each slot in a buffer [P] that is laid out like the parameters."""
        slots = list(torch.split(flat, self._sizes))
        trunk = slots.pop(self._trunk_place)
        return trunk, slots

    def pieces(self, flat: Tensor) -> list[Tensor]:
        """Return the same views in one list, the trunk first: the order in which a checkpoint has their numbers."""
        trunk, slots = self.cut(flat)
        return [trunk, *slots]

    def freeze(self, slots: Iterable[int]) -> None:
        """Have these slots stand still, and train all others.

        Their parameters have no gradients meanwhile, so that any optimizer of PyTorch's leaves them alone.
        """
        before, self.frozen = self.frozen, tuple(sorted(slots))
        for slot in {*before} ^ {*self.frozen}:
            stands_still = slot in self.frozen
            for parameter, gradient in self._slot_parameters[slot]:
                parameter.requires_grad_(not stands_still)
                parameter.grad = None if stands_still else gradient

    def trained(self, flat: Tensor) -> list[Tensor]:
        """Return the views of what is trained in a buffer [P] laid out like the parameters, as few as can be."""
        if not self.frozen:
            return [flat]
        kept = [True] * len(self._sizes)
        for slot in self.frozen:
            kept[slot + (slot >= self._trunk_place)] = False
        edges = list(accumulate(self._sizes, initial=0))
        runs = groupby(range(len(kept)), key=kept.__getitem__)
        pieces = [list(run) for is_kept, run in runs if is_kept]
        return [flat[edges[piece[0]] : edges[piece[-1] + 1]] for piece in pieces]

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """Refuse what would give parameters other memory: to(), double(), cuda() and the like."""
        raise UserError(
            "The parameters of a dealt network cannot be converted or moved: they lie in one buffer",
            mend="Leave out to(), cuda(), double() and the like; the world's device is where the network is made.",
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs for a batch of inputs."""
        for layer in self.layers:
            x = layer(x)
        return x

    def initialise(self, seed: int, blocks: Sequence[int]) -> None:
        """Fill trunk and slots with their initial weights; `blocks` says which block each slot holds.

        The trunk's parts and each block have a seed of their own: every holder makes the same ones alone, and the
        initial global network is the same for any number of workers.
        """
        for (part, module), own in zip(self.held(blocks), part_seeds(self.parts, seed, blocks), strict=True):
            initialise(part, module, own)

    def held(self, blocks: Sequence[int]) -> Iterator[tuple[Part, nn.Module]]:
        """Yield each part of the global network that this worker holds, with its module.

        Args:
            blocks: which block each slot holds.
        """
        numbers = iter(blocks)
        for part, module in zip(self.parts, self.layers, strict=True):
            yield (part if part.deck is None else self.network.blocks[next(numbers)]), module


def part_seeds(parts: Iterable[Part], seed: int, blocks: Iterable[int]) -> Iterator[int]:
    """Yield the seed of each part's initial weights.

    Args:
        parts: all of the trunk and some blocks, in the network's order.
        seed: the run's.
        blocks: which block each of them is that is dealt.
    """
    trunk, places, numbers = derive(seed, "trunk"), count(), iter(blocks)
    for part in parts:
        yield derive(trunk, next(places)) if part.deck is None else derive(seed, "block", next(numbers))


def refuse_same(network: Network, part: Part, module: nn.Module) -> None:
    """Refuse a part that makes one module again and again: it would be bound to several memories.

    Raises:
        UserError: it does.
    """
    if any(module is other for other in network.modules):
        raise UserError(
            f"Part {part.name!r} makes the same module at each call",
            mend="Have make return a new one: copy.deepcopy of it does.",
            everywhere=True,
        )


def make_on_meta(part: Part, dtype: torch.dtype) -> nn.Module:
    """Return a part's module on the meta device."""
    with torch.device("meta"):
        return part.make().to(dtype)


def make_block(network: Network, deck: Deck, device: torch.device, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    """Return a block of a deck, on flat storage of its own, and that storage.

    Evaluation passes the blocks that a worker does not hold through one such block, one after another.
    """
    return make_part(network.parts[deck.first], device, dtype)


def make_part(part: Part, device: torch.device, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    """Return a part's module, on flat storage of its own, and that storage."""
    module = make_on_meta(part, dtype)
    parameters = list(module.parameters())
    flat = torch.zeros(sum(p.numel() for p in parameters), dtype=dtype, device=device)
    bind(module, parameters, flat, None)
    fill_buffers(part, module, device)
    return module, flat


def seeds_of_parts(network: Network, seed: int) -> Iterator[int]:
    """Yield the seed of each part's initial weights, as `SubNet.initialise` gives them to those that a worker has."""
    trunk, places, blocks = derive(seed, "trunk"), count(), count()
    for part in network.parts:
        shared = part.deck is None
        yield derive(trunk, next(places)) if shared else derive(seed, "block", next(blocks))


def trunk_lies_last(device: torch.device) -> bool:
    """Return whether the slots lie before the trunk, not behind it.

    On GPUs they do, whose kernels load 16 bytes at a time. The size of a block is a multiple of 64 numbers if its width
    is one of 16; that of the trunk is as odd as the number of classes. With the trunk last, all begin at a multiple of
    64, and nothing needs padding. To CPUs it matters little where a number lies, but for how the last few of a buffer
    are rounded: there the order stays, and so do the results of earlier versions, to the bit.
    """
    return device.type != "cpu"


def bind(module: nn.Module, parameters: Iterable[nn.Parameter], flat: Tensor, gradients: Tensor | None) -> None:
    """Replace parameters of `module` by views into `flat`, whose gradients, if any, are views into `gradients`."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    offset = 0
    for parameter in parameters:
        end = offset + parameter.numel()
        owner, _, name = names[id(parameter)].rpartition(".")
        bound = nn.Parameter(view_as(parameter, flat[offset:end]))
        if gradients is not None:
            bound.grad = view_as(parameter, gradients[offset:end])
        setattr(module.get_submodule(owner), name, bound)
        offset = end


def view_as(parameter: Tensor, flat: Tensor) -> Tensor:
    """Return `flat` as a tensor of the parameter's shape; convolutions' weights in channels_last order."""
    if parameter.dim() == 4:
        outputs, inputs, height, width = parameter.shape
        return flat.view(outputs, height, width, inputs).permute(0, 3, 1, 2)
    return flat.view(parameter.shape)


def fill_buffers(part: Part, module: nn.Module, device: torch.device) -> None:
    """Give a module that was made on the meta device the buffers of one that is made on a CPU: masks and the like.

    Raises:
        UserError: the part makes them on the meta device alone.
    """
    if not any(buffer.is_meta for buffer in module.buffers()):
        return
    with seeded(0), torch.device("cpu"):
        contents = dict(part.make().named_buffers())
    for name, content in contents.items():
        if content.is_meta:
            raise UserError(
                f"Buffer {name!r} of part {part.name!r} has no content: the part is made on the meta device alone",
                mend="Have make return a module on PyTorch's default device, or one without buffers.",
            )
        owner, _, last = name.rpartition(".")
        setattr(module.get_submodule(owner), last, content.to(device))


@torch.no_grad()
def initialise(part: Part, module: nn.Module, seed: int) -> None:
    """Fill a module's parameters with the initial weights that a part has from a seed."""
    if part.initialise is not None:
        part.initialise(module, seed)
        return
    with seeded(seed), torch.device("cpu"):
        made = dict(part.make().named_parameters())
    for name, parameter in module.named_parameters():
        parameter.copy_(made[name])


def scale_outputs(part: Part, block: nn.Module, scale: float) -> None:
    """Have a block compute as it does with its residual branches multiplied by `scale`, by hooks."""
    if scale == 1:
        return

    def scaled(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output * scale

    def between(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        # In mixed precision a block that ends in a norm puts out another type than it takes in.
        return torch.lerp(inputs[0].to(output.dtype), output, scale)

    for branch in part.branches:
        block.get_submodule(branch).register_forward_hook(scaled)
    if not part.branches:
        block.register_forward_hook(between)


@torch.no_grad()
def scale_weights(part: Part, block: nn.Module, scale: float) -> None:
    """Multiply a block's residual branches by `scale`, in the weights that end them.

    Raises:
        UserError: the part does not name them.
    """
    if not part.branches:
        raise UserError(
            f"Block {part.name!r} names no weights that end its branches, into which another scale could go",
            mend="Name its branches, or go on with the number of workers and the min_blocks that there were.",
            everywhere=True,
        )
    for branch in part.branches:
        for parameter in block.get_submodule(branch).parameters(recurse=False):
            parameter.mul_(scale)
