"""A worker's network: the shared trunk and k block slots, on flat storage.

Parameters lie in one contiguous buffer, the trunk in one piece and a block a slot; gradients lie alike in
another. The modules' parameters are views into them (convolutions in channels_last order). So the trunk's average is
one collective, a block is one message that needs no packing, and the optimizer makes one fused update. A round fills
the same slots with other blocks, so modules, views and any compiled graph stay what they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from resist_hvd.nets.architecture import Architecture
from resist_hvd.nets.preact_resnet import Block, ResNet, initialise
from resist_hvd.seeds import derive


class SubNet(nn.Module):
    """A residual network of which a worker holds the trunk and a few blocks of each deck.

    With as many slots as there are blocks it is the whole network, as local SGD and data-parallel training have it.

    Args:
        architecture: the global network's shape.
        depths: for each section how many slots it has.
        scale: what the output of every block in a slot is multiplied by.
        device: where the buffers are.
        dtype: of parameters and gradients; float32 but in tests.

    Attributes:
        parameters_flat: [P], all parameters, in the order that `trunk_lies_last` has them.
        gradients_flat: [P], all gradients, laid out alike.
        trunk: [T], the view of what all workers share.
        slots: a view for each slot, in depth order.
        trunk_gradients, slot_gradients: the same of the gradients.
    """

    def __init__(
        self,
        architecture: Architecture,
        depths: Sequence[int],
        *,
        scale: float = 1.0,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.depths = tuple(depths)
        counts = [shared + slots for shared, slots in zip(architecture.leading, depths, strict=True)]
        with torch.device("meta"):
            self.network = ResNet(architecture, counts).to(dtype)
        slot_modules = list(self.slot_modules())
        in_slots = {id(p) for block in slot_modules for p in block.parameters()}
        trunk = [p for p in self.network.parameters() if id(p) not in in_slots]
        sizes = [sum(p.numel() for p in m.parameters()) for m in slot_modules]
        self._trunk_place = len(sizes) if trunk_lies_last(device) else 0
        sizes.insert(self._trunk_place, sum(p.numel() for p in trunk))
        self.parameters_flat = torch.zeros(sum(sizes), dtype=dtype, device=device)
        self.gradients_flat = torch.zeros_like(self.parameters_flat)
        self._sizes = sizes
        self.trunk, self.slots = self.cut(self.parameters_flat)
        self.trunk_gradients, self.slot_gradients = self.cut(self.gradients_flat)
        bind(self.network, trunk, self.trunk, self.trunk_gradients)
        for module, slot, gradients in zip(slot_modules, self.slots, self.slot_gradients, strict=True):
            bind(module, list(module.parameters()), slot, gradients)
            module.scale = scale

    def cut(self, flat: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the views of the trunk and of each slot in a buffer [P] that is laid out like the parameters."""
        slots = list(torch.split(flat, self._sizes))
        trunk = slots.pop(self._trunk_place)
        return trunk, slots

    def pieces(self, flat: Tensor) -> list[Tensor]:
        """Return the same views in one list, the trunk first: the order in which a checkpoint has their numbers."""
        trunk, slots = self.cut(flat)
        return [trunk, *slots]

    def slot_modules(self) -> Iterator[Block]:
        """Yield the blocks that stand for slots, in depth order."""
        for section, slots in enumerate(self.depths):
            if slots:
                yield from self.network.blocks(section)[-slots:]

    def forward(self, images: Tensor) -> Tensor:
        """Return class scores [batch, classes] of images [batch, channels, height, width]."""
        scores: Tensor = self.network(images)
        return scores

    def initialise(self, seed: int, blocks: Sequence[int], *, zero_residual: bool = False) -> None:
        """Fill trunk and slots with their initial weights; `blocks` says which block each slot holds.

        The trunk and each block have a seed of their own: every holder makes the same ones alone, and the initial
        global network is the same for any number of workers. With `zero_residual` every block begins as the identity.
        """
        initialise_trunk(self, derive(seed, "trunk"), zero_residual=zero_residual)
        for module, block in zip(self.slot_modules(), blocks, strict=True):
            initialise(module, derive(seed, "block", block), zero_residual=zero_residual)


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


def initialise_trunk(subnet: SubNet, seed: int, *, zero_residual: bool) -> None:
    """Fill the shared layers, in the network's order, whatever the number of slots between them."""
    slots = {id(module) for module in subnet.slot_modules()}
    network = subnet.network
    every = (block for section in range(len(subnet.depths)) for block in network.blocks(section))
    shared = [block for block in every if id(block) not in slots]
    for place, module in enumerate((network.stem, *shared, network.head)):
        initialise(module, derive(seed, place), zero_residual=zero_residual)


def make_block(
    architecture: Architecture, section: int, device: torch.device, dtype: torch.dtype
) -> tuple[Block, Tensor]:
    """Return a block of a section's deck, on flat storage of its own, and that storage.

    Evaluation passes the blocks that a worker does not hold through one such block, one after another.
    """
    with torch.device("meta"):
        block = Block(architecture, section, first=False).to(dtype)
    parameters = list(block.parameters())
    flat = torch.zeros(sum(p.numel() for p in parameters), dtype=dtype, device=device)
    bind(block, parameters, flat, None)
    return block, flat
