"""Exported models with all that is needed to use them: classes, and how images are prepared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from resist_hvd.data.preprocess import Preprocess
from resist_hvd.errors import UserError
from resist_hvd.nets import saved
from resist_hvd.tasks.classification import Classification


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained model.

    Attributes:
        model: in evaluation mode: from images [batch, channels, height, width] to scores [batch, classes]. A network of
            torchvision's or timm's is of their own class. An ensemble's scores are the logarithms of its members'
            averaged probabilities.
        classes: names, in the order of the scores.
        preprocess: makes what the model takes of an image of Pillow's, of a tensor, uint8 [channels, height, width],
            or, by its `read`, of a file.
    """

    model: nn.Module
    classes: tuple[str, ...]
    preprocess: Preprocess


class Ensemble(nn.Module):
    """Several networks, whose predictions are averaged.

    Args:
        members: the networks.
    """

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self._task = Classification()

    def forward(self, images: Tensor) -> Tensor:
        """Return logarithms of averaged probabilities [batch, classes]."""
        votes = torch.stack([self._task.votes(member(images).float()) for member in self.members])
        return self._task.elected(votes.mean(dim=0))


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
    model = models[0] if members == [folder] else Ensemble(models)
    return Trained(model=model, classes=classes, preprocess=preprocess)


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
