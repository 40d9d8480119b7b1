"""Objects that a trained detector finds in an image: told, and drawn."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from resist_hvd import drawing
from resist_hvd.data.broken import read_trusted
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
        try:
            picture = Image.fromarray(read_trusted(os.fsencode(path), None))
        except ValueError as fault:
            raise UserError(
                f"The image file {fault}, although it was read before",
                where=str(path),
                mend="Give a file that stays: a pipe can be read once.",
            ) from None
        width, height = picture.size
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

    def _write(self, folder: Path, path: Path, picture: Image.Image) -> None:
        """Write a picture under its image's name; of several of one name with a number behind it."""
        name, number = path.stem, 1
        while name in self._drawn:
            number += 1
            name = f"{path.stem}-{number}"
        self._drawn.add(name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / f"{name}.png").open("xb") as file:
                picture.save(file, "PNG")
        except FileExistsError:
            raise UserError(
                "A file of the picture's name is there, perhaps an image itself: it stays as it is",
                where=str(folder / f"{name}.png"),
                mend="Give a new folder as --draw.",
            ) from None
        except OSError as error:
            raise UserError(
                f"Cannot write the picture: {error.strerror}", where=str(folder), mend="Give another folder as --draw."
            ) from None


def font_of(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return a font of letters so many pixels high: DejaVu, which has those of most languages, where it is found."""
    for name in ("DejaVuSans.ttf", drawing.font_file()):
        if name is not None:
            with suppress(OSError):
                return ImageFont.truetype(name, size)
    return ImageFont.load_default(size)


def drawn(picture: Image.Image, found: Detections, classes: Sequence[str]) -> Image.Image:
    """Return a picture with objects' boxes in their classes' colours, and names and scores above them.

    Args:
        picture: the image, RGB; one that is small is enlarged.
        found: with edges in pixels.
        classes: names.
    """
    larger = max(1, -(-SMALLEST // max(picture.size)))
    picture = picture.resize((picture.width * larger, picture.height * larger), Image.Resampling.NEAREST)
    draw, font = ImageDraw.Draw(picture), font_of(max(picture.size) / 45)
    for box, score, label in zip(*(values.tolist() for values in found), strict=True):
        left, top, right, bottom = (edge * larger for edge in box)
        colour, text = drawing.colour(label), f"{classes[label]} {score:.2f}"
        draw.rectangle((left, top, right, bottom), outline=colour, width=2)
        # Above the box, or within it where there is no room.
        height = draw.textbbox((0, 0), text, font=font)[3] + 4
        place = left, top - height if top >= height else top
        draw.rectangle((*place, place[0] + draw.textlength(text, font=font) + 6, place[1] + height), fill=colour)
        draw.text((place[0] + 3, place[1] + 1), text, fill="white", font=font)
    return picture
