"""A trained model's accuracy and loss on any test set, whose images all processes share out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from resist_hvd import console
from resist_hvd.comm.world import World
from resist_hvd.data import test_sets
from resist_hvd.data.source import Batch, ExtraTest, Shard
from resist_hvd.errors import UserError
from resist_hvd.records import Evaluation
from resist_hvd.settings.tools import EvaluateSettings
from resist_hvd.trained.model import Trained, load
from resist_hvd.training.arithmetic import autocast, choose_algorithms, with_precision
from resist_hvd.training.evaluate import pooled, result
from resist_hvd.training.joining import joined
from resist_hvd.units import counted


def run(folder: Path, settings: EvaluateSettings) -> None:
    """Evaluate the model in a run's folder, and print a line for each test set.

    Raises:
        UserError: something that the user can mend is in the way.
    """
    world, watchdog = joined(settings.device, settings.watchdog)
    with watchdog:
        settings = with_precision(world.broadcast_object(settings), world)
        choose_algorithms(world.device, compiled=False)
        with world.agree("loading the model and the data"), world.activity.long_limit_for("reading the model"):
            trained = load(folder, parts=settings.parts)
            sets = test_sets.load(
                settings.data.on_cores(world.cores),
                classes=trained.classes,
                detects=trained.task.finds_boxes,
                prepare=trained.preprocess,
                device=world.device,
            )
        found = {test: evaluate(trained, test, settings, world) for test in sets.tests}
        broken = {path: fault for own in world.gather_objects(sets.broken.found) for path, fault in own.items()}
        if world.is_first:
            for remark in sets.remarks:
                console.out(remark)
            for test, result in found.items():
                console.out(line(settings.data.name, test, result))
        with world.agree("writing the results"):
            if world.is_first and settings.json is not None:
                results = [{"test": test.name, **result.as_json()} for test, result in found.items()]
                write(settings.json, folder, settings, results, broken)


def evaluate(trained: Trained, test: ExtraTest, settings: EvaluateSettings, world: World) -> Evaluation:
    """Return the model's figures on a test set; all ranks call it together, each for its share of the images.

    Raises:
        UserError: on every rank, where no image of it could be read.
    """
    world.position = f"evaluating on {test.name}"
    model = trained.model.to(world.device).to(memory_format=torch.channels_last)
    metric, images = trained.task.metric(), 0
    with torch.no_grad(), autocast(settings.precision, world.device):
        batches = test.batches(Shard(rank=world.rank, size=world.size))
        while (read := next_of(batches, world)) is not None:
            batch, labels = read
            metric.update(model(batch).float(), labels)
            images += len(labels)
            world.activity.progress()
    return result(metric, pooled(metric, images, world), test.name)


def next_of(batches: Iterator[Batch], world: World) -> Batch | None:
    """Return the next batch, for which a worker may wait long where a file server is slow; None after the last."""
    with world.activity.long_limit_for("reading test images"):
        return next(batches, None)


def line(data: str, test: ExtraTest, found: Evaluation) -> str:
    """Return the line that is printed of a test set."""
    left_out = f", {test.size - found.images:,} passed over" if test.size > found.images else ""
    return (
        f"{found.figure_name} {found.figure:.2f} %  loss {found.loss:.4f}  on {counted(found.images, 'image')}"
        f"{left_out}: {data}, {test.name}"
    )


def write(
    path: Path, folder: Path, settings: EvaluateSettings, results: Sequence[object], broken: dict[str, str]
) -> None:
    """Write the results as JSON.

    Raises:
        UserError: the file cannot be written.
    """
    root = settings.data.root
    described = {
        "run": str(folder),
        "data": settings.data.name,
        "root": None if root is None else str(root),
        "precision": settings.precision,
        "tests": results,
        "broken_files": broken,
    }
    try:
        path.write_text(json.dumps(described, indent=2) + "\n")
    except OSError as error:
        raise UserError(
            f"Cannot write the results: {error.strerror}", where=str(path), mend="Give a file that can be written."
        ) from None
