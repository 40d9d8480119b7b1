"""Arithmetic of a run: its precision, and the algorithms of PyTorch's that it takes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Literal, TypeVar

import torch

from resist_hvd import console
from resist_hvd.comm.devices import gains_by_bf16
from resist_hvd.comm.world import World
from resist_hvd.errors import UserError
from resist_hvd.settings.run import Precision, Settings

S = TypeVar("S", bound=Settings)


def with_precision(settings: S, world: World) -> S:
    """Return the settings with the precision that all ranks compute in; all ranks call it together.

    Raises:
        UserError: another setting does not go with it.
    """
    precision, sentence = settled(settings.precision, world)
    if sentence and world.is_first:
        console.out(sentence)
    try:
        return replace(settings, precision=precision)
    except ValueError as error:
        seen, _, mend = str(error).partition("; ")
        raise UserError(seen, mend=f"{mend[0].upper()}{mend[1:]}.", everywhere=True) from None


def settled(asked: Precision, world: World) -> tuple[Literal["fp32", "bf16"], str]:
    """Return the precision that all ranks compute in, and what a person should know of it; all call it together.

    Returns:
        bf16 or fp32: auto is bf16 where the device of every rank is faster by it. And a sentence, empty where there is
        nothing to say: hosts differ, or bfloat16 that is asked for is slower.
    """
    everyone = world.gather_objects((world.host, gains_by_bf16(world.device)))
    without = sorted({host for host, able in everyone if not able})
    listed = ", ".join(without[:4]) + (f" and {len(without) - 4} more" if len(without) > 4 else "")
    if asked == "auto":
        differ = without and any(able for _, able in everyone)
        sentence = f"--precision auto is fp32 for all: bfloat16 is slower on {listed}" if differ else ""
        return "fp32" if without else "bf16", sentence
    slower = asked == "bf16" and without
    sentence = f"bfloat16 is slower on {listed} than --precision fp32" if slower else ""
    return asked, sentence


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which forward passes compute with a precision.

    Autocast's cache of converted weights is off. It knows a weight by its tensor, so it does not notice a change in
    place: a block that is lent would compute with the weights of the one that was lent before it. Training converts
    each weight once in a step anyway.
    """
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)


def choose_algorithms(device: torch.device, *, compiled: bool) -> None:
    """Have PyTorch compute the same every time on a CPU, and fast on a GPU."""
    if device.type == "cpu":
        compute_deterministically(compiled=compiled)
    compute_fast(device)


def compute_deterministically(*, compiled: bool) -> None:
    """Have PyTorch take only algorithms that give the same result every time.

    `use_deterministic_algorithms` tells the compiler too, and loads it for that: nearly half of what a start takes.
    """
    if compiled:
        torch.use_deterministic_algorithms(True)
    else:
        torch.set_deterministic_debug_mode("error")


def compute_fast(device: torch.device) -> None:
    """Have cuDNN try its algorithms for each convolution, and keep the fastest: training's shapes never change."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
