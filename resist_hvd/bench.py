"""`python -m resist_hvd.bench sync|link|step|compare|loader|codec`: measure what this costs, beside other ways."""

from __future__ import annotations

from resist_hvd.guard import starting

if __name__ == "__main__":
    starting.begin()  # before anything that takes its time is imported

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple

from resist_hvd import console
from resist_hvd.errors import UserError
from resist_hvd.guard import failure
from resist_hvd.settings import flags
from resist_hvd.settings.bench import (
    CodecSettings,
    CompareSettings,
    LinkSettings,
    LoaderSettings,
    StepSettings,
    SyncSettings,
)
from resist_hvd.settings.reading import parse_for


class Benchmark(NamedTuple):
    """A benchmark: `run` of the module of `benchmarks` of its name measures, prints a table and returns a ratio.

    Attributes:
        meaning: what the ratio is of.
    """

    settings: type[Any]
    meaning: str


BENCHMARKS = {
    "sync": Benchmark(SyncSettings, "seconds of ResIST's synchronisation, over MPI_Allreduce's of the trunk alone"),
    "link": Benchmark(
        LinkSettings,
        "seconds of trunk and blocks, over those that the busiest link takes for them (without --rate, that both "
        "take one by one)",
    ),
    "step": Benchmark(StepSettings, "seconds of a step by this toolkit, over a bare PyTorch loop's"),
    "compare": Benchmark(
        CompareSettings,
        "seconds of a step by the fastest row of ResIST (without it, by the first), over those of the fastest other",
    ),
    "loader": Benchmark(LoaderSettings, "images a second by this loader, over those by bare DALI"),
    "codec": Benchmark(CodecSettings, "GB/s of the slowest of int8's encoding and decoding, over those of a copy"),
}


def main() -> None:
    """Run the benchmark that the first argument names, on as many workers as the launcher started."""
    failure.run(run_from_flags)


def run_from_flags() -> None:
    """Measure what the flags ask for."""
    with failure.printed_once():
        name, settings = parse(sys.argv[1:])
    benchmark = BENCHMARKS[name]
    with starting.importing():  # PyTorch, for which help and mistakes need not wait
        module = import_module(f"resist_hvd.benchmarks.{name}")
    from resist_hvd.comm.world import World
    from resist_hvd.training.arithmetic import compute_fast

    with starting.limited():
        world = World.join(getattr(settings, "device", "auto"))
        failure.watch(world)
    compute_fast(world.device)
    ratio = module.run(settings, world)
    if world.is_first:
        console.out(f"ratio {ratio:.3f}: {benchmark.meaning}")


def parse(arguments: Sequence[str]) -> tuple[str, Any]:
    """Return the name of the benchmark that the arguments ask for, and its settings.

    Raises:
        UserError: there is no such benchmark, or a flag is wrong.
    """
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print(f"{__doc__}\n\n" + "\n".join(f"  {known}  {b.settings.__doc__}" for known, b in BENCHMARKS.items()))
        sys.exit(0)
    if name == "--version":
        print(flags.VERSION)
        sys.exit(0)
    if name not in BENCHMARKS:
        raise UserError(f"There is no benchmark {name!r}", mend=f"Give one of {', '.join(BENCHMARKS)}, and --help.")
    settings = BENCHMARKS[name].settings
    program = f"python -m resist_hvd.bench {name}"
    return name, parse_for(program, settings, rest, base=settings.BASE)


if __name__ == "__main__":
    main()
