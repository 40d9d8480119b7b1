"""Learning curves on scikit-learn's digits, and those that are stored: what each method's arithmetic comes to.

Where a change is meant to change what is learnt, they are made anew, for each number of workers from 1 to 4:

    RESIST_HVD_NEW_CURVES=1 mpirun -np 4 python -m pytest tests/parallel/test_learning_curves.py -k stored
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from resist_hvd.comm.world import World
from resist_hvd.data.memory import digits
from resist_hvd.data.memory.resident import ImageSet, ResidentSource
from resist_hvd.data.source import Shard
from resist_hvd.settings.data import DataSettings
from resist_hvd.settings.exchange import ExchangeSettings
from resist_hvd.settings.model import ModelSettings
from resist_hvd.settings.optim import OptimSettings
from resist_hvd.settings.run import Settings
from resist_hvd.training.evaluate import evaluate
from resist_hvd.training.loop import LocalTraining, train_round
from resist_hvd.training.run import Run

from . import tiny

STORED = Path(__file__).parent / "learning_curves.json"
RENEW = bool(os.environ.get("RESIST_HVD_NEW_CURVES"))

ITERATIONS = 20
BATCH = 32
DATA = DataSettings(name="digits", image_size=8, crop_padding=0, batch_size=BATCH, test_batch_size=360)
EVALUATED_AFTER = 2
"""Rounds after which the global network is evaluated first; it is again at the end."""

WAYS: dict[str, dict[str, Any]] = {
    "resist": {},
    "resist+int4": {"exchange": ExchangeSettings(trunk="int4", blocks="int8")},
    "resist+outer": {"outer_momentum": 0.4},
    "local-sgd": {"method": "local-sgd"},
    "data-parallel": {"method": "data-parallel"},
    "ensemble": {"method": "ensemble"},
}

Curve = Mapping[str, float]


def settings(way: str, world: World) -> Settings:
    """Six blocks, of which each of four workers has four: they are shared by two or three, and move."""
    base = Settings(
        local_iterations=5,
        min_blocks=4,
        epochs=ITERATIONS * BATCH * world.size / len(images().train),
        seed=1,
        model=ModelSettings(parts=f"{Path(__file__).with_name('residual_mlp.py')}:parts"),
        data=DATA,
        optim=OptimSettings(lr=0.1),
    )
    return replace(base, **WAYS[way])


@cache
def images() -> ImageSet:
    """The digits as they were scanned, 8 x 8 pixels."""
    return digits.read(DATA)


def begin_run(way: str, world: World, folder: Path, shard: Shard | None = None) -> Run:
    """A run at its beginning, on the images of its rank, or of another shard."""
    own, shard = settings(way, world), shard or Shard(rank=world.rank, size=world.size)
    source = ResidentSource(images(), own.data, shard=shard, seed=own.seed, device=world.device)
    return tiny.make_run(own, world, folder, data=source)


def points(run: Run) -> Iterator[tuple[str, float]]:
    """Train, and yield the curve's points as they come: the mean loss of each round, and figures on the test set."""
    local = LocalTraining(run)
    while not run.finished:
        yield f"loss of round {run.progress.round + 1}", train_round(local).loss
        if run.progress.round == EVALUATED_AFTER or run.finished:
            found = evaluate(run.method, run.source, run.task, run.world, run.autocast)
            yield f"test loss after round {run.progress.round}", found.loss
            yield f"accuracy after round {run.progress.round}", found.accuracy


def stored(way: str, world: World) -> Curve:
    """The curve that was stored of this way of training by so many workers."""
    curve: Curve = json.loads(STORED.read_text())[str(world.size)][way]
    return curve


def store(way: str, curve: Curve, world: World) -> None:
    """Put a curve in the place of the stored one."""
    if world.is_first:
        curves = json.loads(STORED.read_text()) if STORED.exists() else {}
        curves.setdefault(str(world.size), {})[way] = dict(curve)
        STORED.write_text(json.dumps(dict(sorted(curves.items())), indent=1) + "\n")
    world.barrier()
