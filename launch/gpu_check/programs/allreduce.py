"""Horovod's average of GPU memory on one rank: right in spite of work that is under way, and how long a call takes.

One rank's average is its own input, so a call in place says nothing by itself. Doubled by Horovod, or written to
another tensor, it tells whether Horovod has waited for what the GPU was still to write.
"""

from __future__ import annotations

from statistics import median
from time import perf_counter
from typing import Any

import torch

from gpu_check.programs import answering
from resist_hvd.comm.world import World
from resist_hvd.guard import failure

SIZES = (1, 1000, 1_000_000, 25_000_000)
BUSY = 20_000_000
"""Cycles, some 10 ms, for which the GPU is kept busy before it writes what is to be averaged."""


def average(count: int, dtype: torch.dtype, stream: torch.cuda.Stream, *, in_place: bool, number: int) -> int:
    """Average a tensor that the GPU has yet to write; return how many of its numbers are wrong afterwards."""
    import horovod.torch as hvd

    name = f"{dtype}.{count}.{in_place}"
    with torch.cuda.stream(stream):
        tensor = torch.full((count,), -1.0, dtype=dtype, device="cuda")
        torch.cuda._sleep(BUSY)  # type: ignore[no-untyped-call]
        tensor.fill_(number)
        if in_place:
            result = hvd.synchronize(hvd.allreduce_async_(tensor, name=name, op=hvd.Sum, prescale_factor=2.0))
        else:
            result = hvd.synchronize(hvd.allreduce_async(tensor, name=name, op=hvd.Average))
        return int((result != (2 * number if in_place else number)).sum())


def measure(count: int, repeats: int = 20) -> float:
    """Return the median milliseconds of a call in place."""
    import horovod.torch as hvd

    tensor = torch.zeros(count, device="cuda")
    seconds = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        began = perf_counter()
        hvd.synchronize(hvd.allreduce_async_(tensor, name=f"timed.{count}", op=hvd.Average))
        torch.cuda.synchronize()
        seconds.append(perf_counter() - began)
    return 1e3 * median(seconds)


def answer(repeats: int) -> dict[str, Any]:
    """Average `repeats` times each way and size, on the default stream and on another; return what was seen."""
    wrong: dict[str, int] = {}
    calls = 0
    another = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    for title, stream in (("default", torch.cuda.default_stream()), ("another", another)):
        for dtype in (torch.float32, torch.float64):
            for count in SIZES:
                for number in range(repeats):
                    found = average(count, dtype, stream, in_place=number % 2 == 0, number=number + 1)
                    calls += 1
                    if found:
                        wrong[f"{dtype} {count} on the {title} stream"] = found
    return {"calls": calls, "wrong": wrong, "milliseconds": {str(count): round(measure(count), 3) for count in SIZES}}


def main() -> None:
    """Do what the flags ask for."""
    parser = answering.flags(__doc__)
    parser.add_argument("--repeats", type=int, default=12, metavar="N")
    given = parser.parse_args()
    failure.watch(World.join("cuda"))
    answering.write(given.answer, answer(given.repeats))


if __name__ == "__main__":
    failure.run(main)
