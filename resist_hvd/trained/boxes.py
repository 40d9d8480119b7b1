"""Objects that a trained detector finds in an image: told, and drawn."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import draw_bounding_boxes

from resist_hvd import drawing
from resist_hvd.data.broken import read_trusted
from resist_hvd.data.preprocess import as_tensor
from resist_hvd.errors import UserError
from resist_hvd.settings.tools import PredictSettings
from resist_hvd.tasks.detection import Detection
from resist_hvd.tasks.yolo import Detections
from resist_hvd.trained.answers import Answers
from resist_hvd.trained.model import Trained

SMALLEST = 600
"""Pixels of the longer side of a picture that is drawn, at least: labels need their room."""


class FoundObjects(Answers):
    """The objects that are in an image.

    Args:
        trained: the model.
        settings: what is to be told, and how.
        task: by which its outputs are understood.
    """

    def __init__(self, trained: Trained, settings: PredictSettings, task: Detection) -> None:
        super().__init__(trained, settings)
        self._task = task
        self._drawn: set[str] = set()

    def line(self, path: Path, outputs: Tensor) -> str:
        """Return classes, scores and places of objects; draw them where that is asked for."""
        (found,) = self._task.detections(outputs, least_score=self._settings.least_score)
        picture = as_tensor(read_trusted(os.fsencode(path), None))
        height, width = picture.shape[1:]
        found = found._replace(boxes=found.boxes * torch.tensor([width, height, width, height]))
        if self._settings.draw is not None:
            self._write(self._settings.draw, path, drawn(picture, found, self._classes))
        objects = [
            {"class": self._classes[label], "score": score, "box": [round(edge, 1) for edge in box]}
            for box, score, label in zip(*(values.tolist() for values in found), strict=True)
        ]
        if self._settings.json:
            return json.dumps({"image": str(path), "objects": objects})
        told = (f"{each['class']} {100 * each['score']:.0f} % at {','.join(map(str, each['box']))}" for each in objects)
        return f"{path}: " + ("; ".join(told) or "nothing found")

    def _write(self, folder: Path, path: Path, picture: Tensor) -> None:
        """Write a picture under its image's name; of several of one name with a number behind it."""
        name, number = path.stem, 1
        while name in self._drawn:
            number += 1
            name = f"{path.stem}-{number}"
        self._drawn.add(name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"{name}.png")
        except OSError as error:
            raise UserError(
                f"Cannot write the picture: {error.strerror}", where=str(folder), mend="Give another folder as --draw."
            ) from None


def drawn(picture: Tensor, found: Detections, classes: Sequence[str]) -> Tensor:
    """Return a picture, uint8 [3, height, width], with objects' boxes in their classes' colours, and their scores.

    Args:
        picture: the image; one that is small is enlarged.
        found: with edges in pixels.
        classes: names.
    """
    larger = max(1, -(-SMALLEST // max(picture.shape[1:])))
    picture = picture.repeat_interleave(larger, dim=1).repeat_interleave(larger, dim=2)
    if not len(found.boxes):
        return picture
    labels = found.labels.tolist()
    boxed: Tensor = draw_bounding_boxes(
        picture,
        found.boxes * larger,
        labels=[f"{classes[label]} {score:.2f}" for label, score in zip(labels, found.scores.tolist(), strict=True)],
        colors=[drawing.colour(label) for label in labels],
        width=2,
    )
    return boxed
