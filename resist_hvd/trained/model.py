"""Exported models with all that is needed to use them: classes, and how images are prepared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resist_hvd.data.preprocess import Preprocess
from resist_hvd.errors import UserError
from resist_hvd.nets import saved
from resist_hvd.tasks.base import Task
from resist_hvd.tasks.classification import Classification


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained model.

    Attributes:
        model: in evaluation mode: from images [batch, channels, height, width] to scores [batch, classes], or what
            `tasks.detection` takes. A network of torchvision's or timm's is of their own class. An ensemble's scores
            are the logarithms of its members' averaged probabilities; a detector's are all members' end to end.
        classes: names, in the order of the scores.
        preprocess: makes what the model takes of an image of Pillow's, of a tensor, uint8 [channels, height, width],
            or, by its `read`, of a file.
        task: what it has learnt.
    """

    model: nn.Module
    classes: tuple[str, ...]
    preprocess: Preprocess
    task: Task


class Ensemble(nn.Module):
    """Several networks, whose predictions are pooled.

    Args:
        members: the networks.
        task: what they have learnt.
    """

    def __init__(self, members: list[nn.Module], task: Task) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self._task = task

    def forward(self, images: Tensor) -> Tensor:
        """Return what stands for all members' outputs: for classes the logarithms of averaged probabilities."""
        return self._task.elected([self._task.votes(member(images).float()) for member in self.members])


def load(folder: str | Path, *, parts: str | None = None) -> Trained:
    """Return the model that a finished run has exported into its folder; of an ensemble, all members as one.

    Args:
        folder: a run's, or any other that has its `model.json` and `model.safetensors`, or its `members`.
        parts: the function that a network of one's own is made by, as `--model.parts` had it; else nothing.

    Raises:
        UserError: a file is missing or damaged, or the network's own library is missing.
    """
    folder = Path(folder)
    members = _members(folder)
    models = [saved.load(member, parts=parts) for member in members]
    with saved.understood(members[0]):
        said = saved.read_description(members[0] / "model.json")
        if not {"classes", "data", "image_size"} <= said.keys():
            raise UserError(
                "model.json says nothing of classes and images: the model was saved by a loop of someone's own",
                where=str(folder),
                mend="Read it with resist_hvd.nets.load, and prepare images as that loop did.",
            )
        try:
            classes = tuple(map(str, said["classes"]))
            preprocess = Preprocess.from_json(said)
        except (TypeError, KeyError) as error:
            raise ValueError(f"model.json does not say how images are prepared: {error}") from None
        task = task_of(said, classes)
    model = models[0] if members == [folder] else Ensemble(models, task)
    return Trained(model=model, classes=classes, preprocess=preprocess, task=task)


def task_of(said: Mapping[str, Any], classes: Sequence[str]) -> Task:
    """Return the task that a model of these classes has learnt, from what its `model.json` says.

    Raises:
        ValueError: its anchors are none.
    """
    if said.get("task") != "detection":
        return Classification()
    from resist_hvd.tasks.detection import Detection

    try:
        anchors = torch.tensor(said["anchors"], dtype=torch.float32)
    except (TypeError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"model.json does not say which anchors the detector has: {error}") from None
    if anchors.ndim != 2 or anchors.shape[1] != 2 or not len(anchors):
        raise ValueError(f"anchors are of shape {list(anchors.shape)}, and no pairs")
    return Detection(anchors, classes)


def _members(folder: Path) -> list[Path]:
    """Return the folders of a run's exported networks: its own, or those of an ensemble's members."""
    apart = folder / "members"
    if (folder / "model.json").exists() or not apart.is_dir():
        return [folder]
    found = sorted((entry for entry in apart.iterdir() if entry.name.isdecimal()), key=lambda entry: int(entry.name))
    for number, entry in enumerate(found):
        if int(entry.name) != number:
            raise UserError(
                f"Member {number} of the ensemble is missing", where=str(apart), mend="Copy the run's whole folder."
            )
    return found or [folder]
