"""Classes of single images, by a trained model; one process, without MPI."""

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
from resist_hvd.trained.model import Trained, load

BATCH = 32
"""Images that pass through the network at once."""

BROKEN = 1
"""Exit status where an image could not be read; all others have been classified."""


def run(folder: Path, places: Sequence[Path], settings: PredictSettings) -> None:
    """Print the classes of images, and end with status 1 where one could not be read.

    Raises:
        UserError: the model cannot be read, or a folder has no image.
    """
    images = [path for place in places for path in files_at(place)]
    trained = load(folder, parts=settings.parts)
    device = device_of(settings)
    trained.model.to(device)
    complete = True
    for start in range(0, len(images), BATCH):
        read: dict[Path, Tensor] = {}
        faults: dict[Path, UserError] = {}
        for path in images[start : start + BATCH]:
            try:
                read[path] = trained.preprocess.read(path)
            except UserError as error:
                faults[path] = error
        probabilities = dict(zip(read, classified(trained, list(read.values()), device), strict=True))
        for path in images[start : start + BATCH]:
            if path in faults:
                complete = False
                console.err(f"resist_hvd: {faults[path]}")
                if settings.json:
                    console.out(json.dumps({"image": str(path), "error": faults[path].seen}))
            else:
                told(path, probabilities[path], trained.classes, settings)
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


def classified(trained: Trained, images: list[Tensor], device: torch.device) -> Tensor:
    """Return the probability of each class [images, classes]."""
    if not images:
        return torch.empty(0, len(trained.classes))
    with torch.inference_mode():
        scores: Tensor = trained.model(torch.stack(images).to(device))
        return torch.softmax(scores.float(), dim=1).cpu()


def told(path: Path, probabilities: Tensor, classes: Sequence[str], settings: PredictSettings) -> None:
    """Print an image's most probable classes."""
    highest, places = probabilities.topk(min(settings.top, len(classes)))
    found = [(classes[place], value) for place, value in zip(places.tolist(), highest.tolist(), strict=True)]
    if settings.json:
        named = [{"class": name, "probability": value} for name, value in found]
        console.out(json.dumps({"image": str(path), "classes": named}))
    else:
        console.out(f"{path}: " + ", ".join(f"{name} {100 * value:.2f} %" for name, value in found))
