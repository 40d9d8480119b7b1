"""The network of a run's newest checkpoint, evaluated in each precision: every rank lends its blocks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from gpu_check.programs import answering
from resist_hvd.comm.world import World
from resist_hvd.guard import failure
from resist_hvd.settings import reading
from resist_hvd.training.checkpoint import find_newest
from resist_hvd.training.evaluate import evaluate
from resist_hvd.training.program import make_run
from resist_hvd.training.run import load_source

PRECISIONS: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")


def answer(folder: Path, device: str) -> dict[str, Any]:
    """Return accuracy in percent and loss for each precision; all ranks call it together."""
    settings = reading.parse(["--resume", "--output", str(folder), "--device", device])
    world = World.join(settings.device)
    failure.watch(world)
    source = load_source(settings, world)
    with source:
        run = make_run(settings, world, source, folder, find_newest(folder)[0])
        found: dict[str, Any] = {}
        for precision in PRECISIONS:
            run.settings = replace(settings, precision=precision)
            evaluation = evaluate(run.method, source, run.task, world, run.autocast)
            found[precision] = {"accuracy": evaluation.accuracy, "loss": evaluation.loss}
    return {**found, "images": evaluation.images, "first": world.is_first}


def main() -> None:
    """Evaluate what the flags name; rank 0 writes the answer."""
    parser = answering.flags(__doc__)
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="the run's folder")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    given = parser.parse_args()
    found = answer(given.run, given.device)
    if found.pop("first"):
        answering.write(given.answer, found)


if __name__ == "__main__":
    failure.run(main)
