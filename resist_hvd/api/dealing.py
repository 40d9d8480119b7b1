"""Dealing a network out to all workers, and refusing what cannot be dealt, or what ranks do not agree on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Literal

import torch
from torch import Tensor, nn

from resist_hvd.api.net import Net
from resist_hvd.comm.world import World
from resist_hvd.errors import UserError
from resist_hvd.methods.base import Setup
from resist_hvd.methods.state import FlatState
from resist_hvd.nets.parts import Network, Part, check_residual
from resist_hvd.settings.exchange import ExchangeSettings
from resist_hvd.settings.group import settings_of
from resist_hvd.settings.run import Momentum


def deal(
    parts: Network | Sequence[Part],
    world: World,
    *,
    min_blocks: int = 5,
    seed: int = 1,
    method: Literal["resist", "local-sgd"] = "resist",
    momentum: Momentum = "restart",
    exchange: Mapping[str, str | float] | None = None,
    outer_momentum: float = 0.0,
    outer_momentum_blocks: float = 0.0,
    inputs: Tensor | None = None,
) -> Net:
    """Deal a network out to all workers, and return this worker's share of it with its initial weights.

    All ranks must call it together, with the same parts.

    Args:
        parts: the network, part by part; or one of `resist_hvd.nets`, as `nets.timm("vit_small_patch16_224", ...)`.
        world: as `join` returned it.
        min_blocks: m, the fewest blocks of a deck that a worker holds; blocks are shared where that needs it.
        seed: of the initial weights and of each round's partition.
        method: local-sgd gives every worker the whole network, to compare with.
        momentum: what becomes of the optimizer's state when a round ends: it restarts, or is kept for the trunk and for
            blocks that stay with their worker.
        exchange: codecs of what workers send, and the share of the trunk that they do: `{"trunk": "int8", "keep": 0.25,
            "blocks": "int8"}`; fp32, and all, by default. The last round is encoded as others are, since nobody knows
            which it is.
        outer_momentum: beta, from 0 up to 1, of outer momentum (SlowMo) on what all workers share; see docs/runs.md.
        outer_momentum_blocks: beta of the same on the blocks that are dealt; with method resist.
        inputs: a batch of inputs, of which shape and type count; with it, parts that do not fit together are refused,
            and blocks that are not residual.

    Raises:
        UserError: on every rank, where the network cannot be dealt out, or ranks have different ones.
    """
    with world.agree("dealing out the network"):
        network = parts if isinstance(parts, Network) else Network(tuple(parts))
        if inputs is not None:
            two = inputs[:2]
            network = replace(network, example=torch.empty(two.shape, dtype=two.dtype, device="meta"))
        check_residual(network)
        setup = Setup(
            network=network,
            world=world,
            seed=seed,
            min_blocks=min_blocks,
            momentum=momentum,
            optimizer_state=lambda subnet: FlatState(subnet, ()),  # the caller's optimizer keeps its own
            exchange=_codecs(exchange or {}),
            outer_momentum=_beta("outer_momentum", outer_momentum),
            outer_momentum_blocks=_beta("outer_momentum_blocks", outer_momentum_blocks),
        )
        if method == "local-sgd":
            _refuse_of_dealt_blocks(setup)
    _refuse_others(setup, method)
    return Net(setup, method)


def _refuse_of_dealt_blocks(setup: Setup) -> None:
    """Refuse settings of blocks that are dealt, where none are."""
    if setup.exchange.blocks != "fp32":
        raise UserError(
            f"exchange.blocks is {setup.exchange.blocks}, and blocks move with method='resist' only",
            mend="Leave it out.",
        )
    if setup.outer_momentum_blocks:
        raise UserError(
            f"outer_momentum_blocks is {setup.outer_momentum_blocks}, and blocks are dealt with method='resist' only",
            mend="Leave it out: outer_momentum is of the whole network.",
        )


def _refuse_others(setup: Setup, method: str) -> None:
    """Refuse a network, or settings, that are other ones than rank 0's; all ranks call it together."""
    network = setup.network
    shape = [
        (part.name, part.deck, _shapes(module)) for part, module in zip(network.parts, network.modules, strict=True)
    ]
    betas = setup.outer_momentum, setup.outer_momentum_blocks
    everyone = setup.world.gather_objects(
        (shape, setup.seed, setup.min_blocks, method, setup.momentum, asdict(setup.exchange), betas)
    )
    for rank, theirs in enumerate(everyone):
        if theirs != everyone[0]:
            raise UserError(
                f"Rank {rank} deals out another network than rank 0, or by other settings",
                mend="Have all ranks call deal with the same parts, seed, min_blocks, method, momentum, exchange, "
                "outer_momentum and outer_momentum_blocks.",
                everywhere=True,
            )


def _shapes(module: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(parameter.shape)) for name, parameter in module.named_parameters()]


def _beta(name: str, beta: float) -> float:
    if isinstance(beta, bool) or not isinstance(beta, int | float) or not 0 <= beta < 1:
        raise UserError(f"{name} is {beta!r}", mend="Give a number from 0 up to, but not, 1.")
    return beta


def _codecs(chosen: Mapping[str, str | float]) -> ExchangeSettings:
    settings = settings_of(ExchangeSettings)
    if not isinstance(chosen, Mapping) or not set(chosen) <= set(settings):
        raise UserError(f"exchange is {chosen!r}", mend=f"Give values by name for {', '.join(settings)}.")
    for name, value in chosen.items():
        if settings[name].kind is float and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise UserError(f"exchange.{name} is {value!r}", mend=f"Give {settings[name].wanted}.")
    try:
        return ExchangeSettings(**chosen)  # type: ignore[arg-type]  # it checks them
    except ValueError as error:
        seen, _, mend = str(error).partition("; ")
        raise UserError(seen.removeprefix("--"), mend=f"{mend.capitalize()}.") from None
