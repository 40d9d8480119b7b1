"""`bench codec`: how fast numbers are encoded and decoded, beside a copy of them in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter

import torch

from resist_hvd.benchmarks.table import paired_ratio, show_rates
from resist_hvd.comm.codec import CODECS, Codec
from resist_hvd.comm.devices import finish
from resist_hvd.comm.sparse import codec_of
from resist_hvd.comm.world import World
from resist_hvd.settings.bench import CodecSettings
from resist_hvd.units import counted

COPY = "a copy"

KEPT = 0.25
"""Share of the numbers that is sent, as with `--exchange.keep`."""


def run(settings: CodecSettings, world: World) -> float:
    """Measure, print a table from rank 0, and return the ratio; all ranks call it together."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(settings.seed)
    numbers = torch.randn(settings.numbers, generator=generator).to(world.device)
    candidates = dict(ways(numbers))
    rates: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(-1, settings.repeats):
        for name, candidate in candidates.items():
            began = perf_counter()
            candidate()
            finish(world.device)
            seconds = perf_counter() - began
            if repeat >= 0:
                rates[name].append(numbers.nbytes / seconds / 1e9)
    if world.is_first:
        show_rates(
            f"{settings.numbers:,} numbers of float32, rank 0",
            rates,
            "GB/s",
            f"{counted(settings.repeats, 'repeat')} in turn, on one thread; bytes are those of float32",
            decimals=2,
        )
    slowest = [min(pair) for pair in zip(rates["int8 encode"], rates["int8 decode"], strict=True)]
    return paired_ratio(slowest, rates[COPY])


def ways(numbers: torch.Tensor) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield what is measured, by name: a copy, and both ways of each codec, of one for a part of the numbers, too."""
    into = torch.empty_like(numbers)
    yield COPY, partial(into.copy_, numbers)
    codecs: dict[str, Codec] = {name: make(numbers.device) for name, make in CODECS.items()}
    codecs[f"int8 of {KEPT:g}"] = codec_of("int8", numbers.device, KEPT)
    for name, codec in codecs.items():
        codes = torch.empty(codec.bytes_of(len(numbers)), dtype=torch.uint8, device=numbers.device)
        yield f"{name} encode", partial(codec.encode, numbers, codes)
        yield f"{name} decode", partial(codec.decode, codes, into)
