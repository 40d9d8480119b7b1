"""A network as the protocol sees it: parts in a row, some of which are dealt out.

The network is the composition of its parts: each takes the output of the one before it. Parts of a *deck* are residual
blocks of equal parameters, which keep the shape, so that the network computes something sensible without any of them:
they are what ResIST deals out. All other parts together are the trunk, which every worker has.

No module is kept here but on PyTorch's meta device, where it takes no memory: a worker makes the parts that it holds.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby, zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from resist_hvd.errors import UserError

HELD_BY_FLOAT32 = (torch.float32, torch.float16, torch.bfloat16)
"""Types of parameters that lose nothing when a network is made in float32."""


@dataclass(frozen=True)
class Part:
    """A part of a network.

    Attributes:
        name: its prefix in the exported model's state dict, as "layer3.7"; "" where its parameters have none.
        make: makes the module, a new one at each call, where PyTorch's default device is: often the meta device.
        deck: the name of the deck that it is dealt from; None for a part that every worker has.
        branches: of a part that is dealt: names of its submodules that end its residual branches, each linear in its
            weight and bias (a convolution, a linear layer, a norm). The global network scales dealt blocks' branches,
            and an exported one has the scale in these weights. Without names the network computes x + s (block(x) - x).
        initialise: fills a module's parameters from a seed. Without it they are as `make` makes them on a CPU, with
            PyTorch's random numbers begun at the seed.
    """

    name: str
    make: Callable[[], nn.Module]
    deck: str | None = None
    branches: tuple[str, ...] = ()
    initialise: Callable[[nn.Module, int], None] | None = None

    def prefixed(self, name: str) -> str:
        """Return the name that a tensor of the part has in the exported model."""
        return f"{self.name}.{name}" if self.name else name


class Deck(NamedTuple):
    """Blocks that are dealt out together.

    Attributes:
        name: of the deck.
        first: the place of its first block among the parts; the others follow it without a gap.
        blocks: how many there are.
    """

    name: str
    first: int
    blocks: int


@dataclass(frozen=True)
class Network:
    """A network that can be dealt out.

    Attributes:
        parts: in the order in which inputs pass through them.
        example: inputs on the meta device, a batch of two, since norms refuse a single number a channel; None where
            they are not known.
        description: its family and all that its parts are made from, as plain JSON values: an exported model's
            `model.json` has it, and a checkpoint.
        title: what people call it, in a few words.
        remarks: sentences on how it begins, for the user.

    Raises:
        UserError: the parts cannot be dealt out; the message says which, and why.
    """

    parts: tuple[Part, ...]
    example: Tensor | None = None
    description: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check(self)

    @cached_property
    def modules(self) -> tuple[nn.Module, ...]:
        """The parts' modules, on the meta device."""
        with torch.device("meta"):
            return tuple(part.make() for part in self.parts)

    @cached_property
    def decks(self) -> tuple[Deck, ...]:
        """The decks, in the network's order."""
        found, first = [], 0
        for name, members in groupby(self.parts, key=lambda part: part.deck):
            blocks = len(list(members))
            if name is not None:
                found.append(Deck(name, first, blocks))
            first += blocks
        return tuple(found)

    @property
    def deck_sizes(self) -> tuple[int, ...]:
        """The number of blocks of each deck, as the protocol has it; blocks are numbered through."""
        return tuple(deck.blocks for deck in self.decks)

    @cached_property
    def blocks(self) -> tuple[Part, ...]:
        """The parts that are dealt out: block b of the protocol is the b-th of them."""
        return tuple(part for part in self.parts if part.deck is not None)

    @cached_property
    def parameters(self) -> int:
        """Number of parameters of the whole network."""
        return sum(parameter.numel() for module in self.modules for parameter in module.parameters())

    def parts_at(self, depths: Sequence[int]) -> tuple[Part, ...]:
        """Return the parts of a sub-network: the first so many blocks of each deck, and all that are not dealt."""
        left_out = {
            place
            for deck, blocks in zip(self.decks, depths, strict=True)
            for place in range(deck.first + blocks, deck.first + deck.blocks)
        }
        return tuple(part for place, part in enumerate(self.parts) if place not in left_out)

    def shallower(self, depths: Sequence[int]) -> Network:
        """Return the network that has only so many blocks of each deck; they are named as the first of it are."""
        if tuple(depths) == self.deck_sizes:
            return self
        description = {**self.description, "depths": list(depths)}
        return replace(self, parts=self.parts_at(depths), description=description)

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        """Each part's output for the example, on the meta device.

        They are computed on the CPU, part by part, one block for each deck: to compute on the meta device, PyTorch
        would load its compiler, which takes longer.

        Raises:
            UserError: a part does not take what the one before it puts out, or a block changes the shape.
        """
        if self.example is None:
            raise ValueError("outputs need an example of the inputs")
        outputs: list[Tensor] = []
        x, dealt = self.example, None
        for part, module in zip(self.parts, self.modules, strict=True):
            if part.deck is None or part.deck != dealt:
                shape, dealt = x.shape, part.deck
                with torch.no_grad():
                    x = passed_through(part, blank(part, module), x).to("meta")
                if part.deck is not None and x.shape != shape:
                    raise UserError(
                        f"Block {part.name!r} turns inputs of shape {list(shape)} into {list(x.shape)}",
                        mend="Deal out blocks that keep the shape; others belong to the trunk (deck=None).",
                    )
            outputs.append(x)
        return tuple(outputs)


def passed_through(part: Part, module: nn.Module, x: Tensor) -> Tensor:
    """Return a part's output for zeros of an input's shape and type.

    Raises:
        UserError: the part does not take the input, or puts out something else than one tensor; or memory does not.
    """
    try:
        output = module(torch.zeros(x.shape, dtype=x.dtype))
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, AssertionError) as error:
        raise UserError(
            f"Part {part.name!r} of the network does not take an input of shape {list(x.shape)}: "
            f"{' '.join(str(error).split())[:300]}",
            mend="Have each part take the output of the one before it, and the first the data's images: their size is "
            "--data.image_size.",
        ) from None
    if not isinstance(output, Tensor):
        raise UserError(
            f"Part {part.name!r} of the network puts out a {type(output).__name__}",
            mend="Have each part put out one tensor.",
        )
    return output


def blank(part: Part, module: nn.Module) -> nn.Module:
    """Return a part's module on the CPU, with parameters of zeros; `module` is the same on the meta device."""
    with seeded(0), torch.device("cpu"), torch.no_grad():
        found = part.make() if list(module.buffers()) else emptied(module)
        for parameter in found.parameters():
            parameter.zero_()
    return found


def check(network: Network) -> None:
    """Refuse a network that cannot be dealt out.

    Raises:
        UserError: with the part, and the reason.
    """
    parts, modules = network.parts, network.modules
    counts = Counter(part.name for part in parts if part.name)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise UserError(f"Two parts of the network have one name, {twice[0]!r}", mend="Name each part differently.")
    apart = Counter(deck.name for deck in network.decks)
    if torn := [name for name, count in apart.items() if count > 1]:
        raise UserError(
            f"The blocks of deck {torn[0]!r} do not follow one another without others between them",
            mend="Give each chain of blocks a deck of its own.",
        )
    homes: dict[str, str] = {}
    owners: dict[int, str] = {}
    for part, module in zip(parts, modules, strict=True):
        if not isinstance(module, nn.Module):
            raise UserError(
                f"Part {part.name!r} makes a {type(module).__name__}", mend="Have make return a torch.nn.Module."
            )
        for name, parameter in module.named_parameters():
            if id(parameter) in owners:
                raise UserError(
                    f"Parameter {name!r} of part {part.name!r} is tied to part {owners[id(parameter)]!r}",
                    mend="Parts live on different workers: give each its own parameters, and have make return a new "
                    "module at each call.",
                )
            if parameter.dtype not in HELD_BY_FLOAT32:
                raise UserError(
                    f"Parameter {name!r} of part {part.name!r} is of type {parameter.dtype}",
                    mend="Have it float32, in which parameters are trained and sent.",
                )
            if not parameter.requires_grad:
                raise UserError(
                    f"Parameter {name!r} of part {part.name!r} requires no gradient, and all parameters are trained",
                    mend="Have it require one, or be a buffer that make fills.",
                )
            if (full := part.prefixed(name)) in homes:
                raise UserError(
                    f"Parts {homes[full]!r} and {part.name!r} both have a parameter {full!r}",
                    mend="Name the parts so that the exported model's names differ.",
                )
            homes[full] = part.name
        _refuse_tied(part, module)
        owners |= {id(parameter): part.name for parameter in module.parameters()}
        for name, layer in module.named_modules():
            if isinstance(layer, _BatchNorm) and layer.track_running_stats:
                raise UserError(
                    f"Layer {name!r} of part {part.name!r} keeps running statistics of its batches",
                    mend="They would differ from worker to worker: take resist_hvd.nets.Norm, or "
                    "track_running_stats=False; evaluation computes exact ones.",
                )
    for deck in network.decks:
        check_deck(network, deck)


def _refuse_tied(part: Part, module: nn.Module) -> None:
    """Refuse a part that has one parameter by two names.

    Raises:
        UserError: with both.
    """
    names: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if (first := names.setdefault(id(parameter), name)) != name:
            raise UserError(
                f"Parameter {name!r} of part {part.name!r} is tied to its {first!r}",
                mend="Have the part use one of its modules, by one name, where it needs the parameter.",
            )


def check_deck(network: Network, deck: Deck) -> None:
    """Refuse a deck whose blocks do not have equal parameters.

    Raises:
        UserError: with the block, and how it differs.
    """
    first, *others = range(deck.first, deck.first + deck.blocks)
    parameters = shapes(network.modules[first])
    if not parameters:
        raise UserError(f"The blocks of deck {deck.name!r} have no parameters", mend="Deal out blocks that learn.")
    for place in others:
        here = shapes(network.modules[place])
        if here != parameters:
            names = sorted(name for name in here.keys() | parameters.keys() if here.get(name) != parameters.get(name))
            raise UserError(
                f"Blocks of deck {deck.name!r} are unequal: {names[0]} is {here.get(names[0], 'missing')} in "
                f"{network.parts[place].name!r} and {parameters.get(names[0], 'missing')} in "
                f"{network.parts[first].name!r}",
                mend="Deal out blocks of the same shape; others belong to the trunk (deck=None).",
            )
        if (own := _first_difference(network.modules[first], network.modules[place])) is not None:
            raise UserError(
                f"Blocks of deck {deck.name!r} compute differently: {own[1]} in {network.parts[place].name!r}, "
                f"{own[0]} in {network.parts[first].name!r}",
                mend="A worker's module gets the parameters of another block each round: deal out blocks that differ "
                "in nothing else.",
            )
    for place in (first, *others):
        part, module = network.parts[place], network.modules[place]
        for branch in part.branches:
            # A weight that is computed from parameters (a parametrization) would not take a scale up.
            if not isinstance(getattr(find(module, branch), "_parameters", {}).get("weight"), nn.Parameter):
                raise UserError(
                    f"Block {part.name!r} has no layer {branch!r} with a weight of its own, which is to end a residual "
                    "branch",
                    mend="Name the layers that end its branches, or none.",
                )


def check_residual(network: Network) -> None:
    """Refuse parts that do not fit together, and dealt blocks that are not residual.

    A residual block passes its input on whatever its branches are. So a block of each deck is made on the CPU, with
    zeros in the layers that end its branches, or, where it names none, in all parameters of two or more dimensions; for
    two inputs it has to put out two outputs.

    Raises:
        UserError: with the part.
    """
    if network.example is None:
        return
    inputs = (network.example, *network.outputs)
    for deck in network.decks:
        part, before = network.parts[deck.first], inputs[deck.first]
        with seeded(0), torch.device("cpu"), torch.no_grad():
            block = part.make().eval()
            if part.initialise is not None:
                part.initialise(block, 0)
            ends = [block.get_submodule(branch) for branch in part.branches]
            for parameter in nn.ModuleList(ends or [block]).parameters():
                if part.branches or parameter.dim() > 1:
                    parameter.zero_()
            inputs_of = [torch.randn(before.shape, dtype=before.dtype) for _ in range(2)]
            kept = inputs_of[0].clone()
            one, other = (block(x) for x in inputs_of)
        if not part.branches and not torch.equal(inputs_of[0], kept):
            raise UserError(
                f"Block {part.name!r} changes its input in place",
                mend="The global network needs the input beside the output: have it compute x + f(x), not x += f(x), "
                "or name the layers that end its branches.",
            )
        if torch.equal(one, other):
            raise UserError(
                f"Block {part.name!r} is not residual: with zeros in {', '.join(part.branches) or 'its weights'} its "
                "output is the same for every input",
                mend="A network must do without any of its dealt blocks: have each add to its input (x + f(x)), or "
                "give it to every worker (deck=None).",
            )


def _first_difference(one: nn.Module, other: nn.Module) -> tuple[str, str] | None:
    """Return the first line in which PyTorch describes two modules differently, as each has it."""
    lines = zip_longest(repr(one).splitlines(), repr(other).splitlines(), fillvalue="nothing")
    return next(((a.strip(), b.strip()) for a, b in lines if a != b), None)


def shapes(module: nn.Module) -> dict[str, list[int]]:
    """Return the shape of each of a module's parameters by name, in their order."""
    return {name: list(parameter.shape) for name, parameter in module.named_parameters()}


def find(module: nn.Module, name: str) -> nn.Module | None:
    """Return the submodule of a name, None where there is none."""
    try:
        return module.get_submodule(name)
    except AttributeError:
        return None


def emptied(module: nn.Module) -> nn.Module:
    """Return a copy of a module whose parameters are on PyTorch's default device, without content."""
    found = copy.deepcopy(module)
    for name, parameter in module.named_parameters():
        owner, _, last = name.rpartition(".")
        empty = torch.empty(parameter.shape, dtype=parameter.dtype)
        setattr(found.get_submodule(owner), last, nn.Parameter(empty, parameter.requires_grad))
    return found


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw a CPU's random numbers from a seed, and leave those of everyone else as they were."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)
