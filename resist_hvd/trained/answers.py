"""The line that is told of an image once a model has seen it."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor

from resist_hvd.settings.tools import PredictSettings
from resist_hvd.trained.model import Trained


class Answers(ABC):
    """The line that is printed of each image, made of a model's outputs for it.

    Args:
        trained: the model.
        settings: what is to be told, and how.
    """

    def __init__(self, trained: Trained, settings: PredictSettings) -> None:
        self._classes, self._settings = trained.classes, settings

    @abstractmethod
    def line(self, path: Path, outputs: Tensor) -> str:
        """Return the line of an image file, of a model's outputs for it [1, ...].

        Raises:
            UserError: a picture cannot be written.
        """


class ClassNames(Answers):
    """The most probable classes."""

    def line(self, path: Path, outputs: Tensor) -> str:
        """Return names and probabilities of classes, of scores [1, classes]."""
        probabilities = torch.softmax(outputs[0], dim=0)
        highest, places = probabilities.topk(min(self._settings.top, len(self._classes)))
        found = [(self._classes[place], value) for place, value in zip(places.tolist(), highest.tolist(), strict=True)]
        if self._settings.json:
            named = [{"class": name, "probability": value} for name, value in found]
            return json.dumps({"image": str(path), "classes": named})
        return f"{path}: " + ", ".join(f"{name} {100 * value:.2f} %" for name, value in found)
