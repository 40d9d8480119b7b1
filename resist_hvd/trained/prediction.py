"""Answers of a trained model for single images; one process, without MPI."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from resist_hvd import console
from resist_hvd.data.folders import SUFFIXES
from resist_hvd.errors import UserError
from resist_hvd.settings.tools import PredictSettings
from resist_hvd.trained.answers import Answers, ClassNames
from resist_hvd.trained.model import Trained, load

BATCH = 32
"""Images that pass through the network at once."""

BROKEN = 1
"""Exit status where an image could not be read; all others have been told of."""


def run(folder: Path, places: Sequence[Path], settings: PredictSettings) -> None:
    """Print what a model sees in images, and end with status 1 where one could not be read.

    Raises:
        UserError: the model cannot be read, or a folder has no image.
    """
    images = [path for place in places for path in files_at(place)]
    trained = load(folder, parts=settings.parts)
    device = device_of(settings)
    trained.model.to(device)
    answers, complete = answers_of(trained, settings), True
    for start in range(0, len(images), BATCH):
        read: dict[Path, Tensor] = {}
        faults: dict[Path, UserError] = {}
        for path in images[start : start + BATCH]:
            try:
                read[path] = trained.preprocess.read(path)
            except UserError as error:
                faults[path] = error
        outputs = dict(zip(read, outputs_of(trained, list(read.values()), device), strict=True))
        for path in images[start : start + BATCH]:
            if path in faults:
                complete = False
                console.err(f"resist_hvd: {faults[path]}")
                if settings.json:
                    console.out(json.dumps({"image": str(path), "error": faults[path].seen}))
            else:
                console.out(answers.line(path, outputs[path][None]))
    if not complete:
        sys.exit(BROKEN)


def files_at(place: Path) -> Iterator[Path]:
    """Yield a file, or all image files below a folder, in the order of their names.

    Raises:
        UserError: the folder has none.
    """
    if not place.is_dir():
        yield place
        return
    found = False
    for folder, folders, names in os.walk(place):
        folders.sort()
        for name in sorted(names):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                found = True
                yield Path(folder, name)
    if not found:
        raise UserError("The folder has no image in it", where=str(place), mend="Give images, or a folder of images.")


def device_of(settings: PredictSettings) -> torch.device:
    """Return the device to compute on.

    Raises:
        UserError: there is no such device.
    """
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device is cuda, but PyTorch finds no GPU", mend="Give --device cpu.")
    on_gpu = settings.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if on_gpu else "cpu")


def outputs_of(trained: Trained, images: list[Tensor], device: torch.device) -> Tensor:
    """Return the model's outputs [images, ...], in float32 on the CPU."""
    if not images:
        return torch.empty(0)
    with torch.inference_mode():
        outputs: Tensor = trained.model(torch.stack(images).to(device))
        return outputs.float().cpu()


def answers_of(trained: Trained, settings: PredictSettings) -> Answers:
    """Return what tells of images by a model."""
    if not trained.task.finds_boxes:
        return ClassNames(trained, settings)
    from resist_hvd.tasks.detection import Detection
    from resist_hvd.trained.boxes import FoundObjects  # with torchvision, for which class names need not wait

    assert isinstance(trained.task, Detection)
    return FoundObjects(trained, settings, trained.task)
