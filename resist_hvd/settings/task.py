"""Settings of the task: the flags `--task.*`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from resist_hvd.settings.group import Amount, Count, Group, Natural, Share, settings_of

TaskName = Literal["classification", "detection"]
Anchors = tuple[float, ...] | Literal["auto", "voc"]

VOC_ANCHORS = 5
"""Number of those of Pascal VOC."""

LARGEST_SIDE = 1000.0
"""Cells of 32 pixels; no image has as many."""


@dataclass(frozen=True, kw_only=True)
class TaskSettings(Group):
    """The task that the network learns.

    Those of detection are YOLOv2's (Redmon, Farhadi 2017), with the constants of darknet's `yolov2-voc.cfg`.
    """

    PREFIX: ClassVar = "task."

    name: TaskName | None = None
    """classification (each image is of one class), or detection (objects in images, each with a box and a class).
    Default: what the data have, of voc detection. --task is short for it."""

    anchors: Anchors = "auto"
    """detection's shapes to begin with: auto finds them by k-means of 1 - IoU over the boxes of the training set; voc
    is those of Pascal VOC; or widths and heights in cells of 32 pixels, in turn, as [1.3,1.7,3.2,4.0]."""

    anchor_count: Count = 5
    """How many anchors auto finds."""

    empty: Amount = 1.0
    """Weight of the objectness of predictors that are to find nothing."""

    objectness: Amount = 5.0
    """Weight of the objectness of predictors that are to find an object."""

    coordinates: Amount = 1.0
    """Weight of boxes' places and sizes, times 2 less the object's share of the image."""

    classes: Amount = 1.0
    """Weight of the classes' cross-entropy."""

    right: Share = 0.6
    """A predictor whose box has a greater IoU with any object need not say that it has found nothing."""

    pull: Amount = 0.01
    """Weight by which boxes that are to find nothing are pulled to their anchors at the beginning; 0 turns it off."""

    pulled_images: Natural = 12_800
    """Images, summed over workers, for which boxes are pulled."""

    @property
    def anchors_in_a_cell(self) -> int:
        """Number of anchors."""
        if self.anchors == "auto":
            return self.anchor_count
        return VOC_ANCHORS if self.anchors == "voc" else len(self.anchors) // 2

    def check(self) -> None:
        """Refuse anchors that are no pairs."""
        if isinstance(self.anchors, tuple) and (
            not self.anchors or len(self.anchors) % 2 or not all(0 < side < LARGEST_SIDE for side in self.anchors)
        ):
            raise ValueError(
                f"--task.anchors is {list(self.anchors)}; give widths and heights in turn, each above 0 and in cells"
            )

    def check_of(self, task: TaskName) -> None:
        """Refuse a task that the data have nothing of, and settings of another one.

        Args:
            task: what the data have.

        Raises:
            ValueError: with the setting.
        """
        if self.name not in (None, task):
            have = "boxes" if task == "detection" else "classes"
            raise ValueError(f"--task is {self.name}, and the data have {have}; give --task {task}, or other data")
        of_detection = [name for name in settings_of(type(self)) if name != "name" and self.changed(name)]
        if task == "classification" and of_detection:
            name = of_detection[0]
            raise ValueError(f"--task.{name} is {getattr(self, name)}, which is for --task detection; leave it out")
