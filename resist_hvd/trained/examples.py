"""A few of the images that a run's detector was tested on, with the objects in them and those that it finds."""

from __future__ import annotations

from pathlib import Path

import torch

from resist_hvd.data.detection.source import tested_images
from resist_hvd.data.order import fixed_choice
from resist_hvd.errors import UserError
from resist_hvd.settings import flags
from resist_hvd.settings.reading import read_run
from resist_hvd.settings.run import Settings
from resist_hvd.settings.tools import PredictSettings
from resist_hvd.tasks.detection import Detection, Example
from resist_hvd.tasks.precision import Wanted
from resist_hvd.trained.model import load
from resist_hvd.trained.prediction import outputs_of


def examples(folder: Path, count: int) -> tuple[list[Example], tuple[str, ...]]:
    """Return so many examples, the same images for every run on these data, and the names of classes.

    Args:
        folder: of a run that has trained a detector, and is done.
        count: of images; one that is damaged is left out.

    Raises:
        UserError: the model or the images are not there, or cannot be read.
    """
    settings = flags.make(Settings, read_run(folder)).data
    trained = load(folder)
    if not isinstance(trained.task, Detection):
        raise UserError(
            "The exported model is no detector, although the run's evaluations are of one",
            where=str(folder),
            mend="Copy the run's whole folder anew.",
        )
    images, found = tested_images(settings, trained.classes), []
    for image in fixed_choice(len(images), count).tolist():
        path = images.paths[image]
        try:
            outputs = outputs_of(trained, [trained.preprocess.read(path)], torch.device("cpu"))
            pixels, objects = images.example(image)
        except (UserError, ValueError):  # no image, or one of a format that training does not read
            continue
        (said,) = trained.task.detections(outputs, least_score=PredictSettings.least_score)
        plain = ~objects["difficult"]
        width, height = pixels.shape[2], pixels.shape[1]
        found.append(
            Example(
                name=path.name,
                pixels=pixels.permute(1, 2, 0).numpy(),
                there=Wanted(objects["boxes"][plain].as_subclass(torch.Tensor), objects["labels"][plain]),
                found=said._replace(boxes=said.boxes * torch.tensor([width, height, width, height])),
            )
        )
    return found, trained.classes
