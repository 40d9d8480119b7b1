"""Detection as a task: targets, mean average precision by VOC's own rule, several networks' boxes, the early pull."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from resist_hvd.settings.task import TaskSettings
from resist_hvd.tasks import yolo
from resist_hvd.tasks.detection import Detection
from resist_hvd.tasks.objects import packed, unpacked
from resist_hvd.tasks.precision import PrecisionAndLoss
from resist_hvd.tasks.registry import anchors_of, task_of
from resist_hvd.tasks.yolo import Detections

Box = tuple[float, float, float, float]
A, B, FAR = (0.0, 0.0, 0.2, 0.2), (0.5, 0.5, 0.9, 0.9), (0.3, 0.0, 0.4, 0.1)
INSIDE_B = (0.5, 0.5, 0.7, 0.7)
"""A quarter of B: it fits no object."""


def found(*boxes: tuple[Box, float, int]) -> Detections:
    return Detections(
        torch.tensor([box for box, _, _ in boxes]).view(-1, 4),
        torch.tensor([score for _, score, _ in boxes]),
        torch.tensor([label for _, _, label in boxes], dtype=torch.int64),
    )


def wanted(*boxes: tuple[Box, int, bool]) -> Tensor:
    return packed(
        torch.tensor([box for box, _, _ in boxes]).view(-1, 4),
        torch.tensor([label for _, label, _ in boxes]),
        torch.tensor([difficult for _, _, difficult in boxes]),
        most=6,
    )


NAMES = ("crow", "dog", "pig", "tit")


def judged(images: Sequence[Detections], targets: Sequence[Tensor]) -> dict[str, Any]:
    metric = PrecisionAndLoss(
        lambda outputs: [images[int(number)] for number in outputs], lambda *_: torch.tensor(1.0), NAMES
    )
    metric.update(torch.arange(len(images)), torch.stack(list(targets)))
    return dict(metric.compute())


def test_objects_are_packed_and_unpacked() -> None:
    objects = unpacked(torch.stack([wanted((A, 3, False), (B, 0, True)), wanted()]))
    assert objects.labels.tolist() == [[3, 0, -1, -1, -1, -1], [-1] * 6]
    assert objects.boxes[0, :2].tolist() == [pytest.approx(A), pytest.approx(B)]
    assert objects.difficult is not None
    assert objects.difficult.tolist() == [[False, True, False, False, False, False], [False] * 6]


# Mean average precision, worked by hand


def test_precision_is_read_at_eleven_recalls_and_as_an_area() -> None:
    # The surest is right (recall 1/2, precision 1), the next wrong, the last right (recall 1, precision 2/3).
    figures = judged([found((A, 0.9, 0), (FAR, 0.8, 0), (B, 0.7, 0))], [wanted((A, 0, False), (B, 0, False))])
    assert figures["mean_average_precision"] == pytest.approx(100 * (6 * 1 + 5 * 2 / 3) / 11)
    assert figures["mean_average_precision_area"] == pytest.approx(100 * (1 / 2 + 1 / 2 * 2 / 3), abs=0.05)
    (of_class,) = figures["precisions"].values()
    assert of_class == (1.0,) * 11 + (0.6667,) * 10
    assert figures["loss"] == 1


def test_an_object_is_found_once() -> None:
    twice = [found((A, 0.9, 0), (A, 0.8, 0), (B, 0.7, 0))]
    figures = judged(twice, [wanted((A, 0, False), (B, 0, False))])
    assert figures["mean_average_precision"] == pytest.approx(100 * (6 * 1 + 5 * 2 / 3) / 11)


def test_difficult_objects_count_neither_as_found_nor_as_missed() -> None:
    targets = [wanted((A, 0, False), (B, 0, True))]
    for boxes in ([(A, 0.9, 0)], [(B, 0.95, 0), (B, 0.94, 0), (A, 0.9, 0)]):
        assert judged([found(*boxes)], targets)["mean_average_precision"] == pytest.approx(100)
    inside = judged([found((INSIDE_B, 0.95, 0), (A, 0.9, 0))], targets)
    assert inside["mean_average_precision"] == pytest.approx(50)
    other_class = judged([found((B, 0.95, 1), (A, 0.9, 0))], [wanted((A, 0, False), (B, 0, True), (FAR, 1, False))])
    assert other_class["mean_average_precision"] == pytest.approx(50)  # of class 1 nothing is found


def test_classes_count_alike_and_those_without_objects_not_at_all() -> None:
    boxes = [found((A, 0.9, 0), (FAR, 0.9, 2)), found()]
    figures = judged(boxes, [wanted((A, 0, False)), wanted((B, 3, False))])
    assert figures["mean_average_precision"] == pytest.approx(50)
    assert figures["precisions"] == {"crow": (1.0,) * 21, "tit": (0.0,) * 21}


def test_nothing_found_and_nothing_to_find() -> None:
    assert judged([found()], [wanted((A, 0, False))])["mean_average_precision"] == 0
    assert judged([found((A, 0.5, 0))], [wanted()])["mean_average_precision"] == 0


def test_every_object_of_a_crowded_image_counts() -> None:
    side = 20
    boxes = [(x / side, y / side, (x + 1) / side, (y + 1) / side) for x in range(side) for y in range(side)]
    asked = packed(torch.tensor(boxes), torch.zeros(len(boxes)), torch.zeros(len(boxes)), most=len(boxes))
    figures = judged([found(*((box, 0.9 - 0.001 * n, 0) for n, box in enumerate(boxes)))], [asked])
    assert figures["mean_average_precision"] == pytest.approx(100)


def area_and_eleven(images: Sequence[Detections], targets: Sequence[Tensor], label: int) -> tuple[float, float]:
    """Average precision of a class as the development kit's own evaluation computes it."""
    objects = unpacked(torch.stack(list(targets)))
    assert objects.difficult is not None
    count = int(((objects.labels == label) & ~objects.difficult).sum())
    every = [
        (score, image, box)
        for image, own in enumerate(images)
        for box, score, of in zip(*(values.tolist() for values in own), strict=True)
        if of == label
    ]
    taken: set[tuple[int, int]] = set()
    right, wrong = [], []
    for _, image, box in sorted(every, key=lambda each: -each[0]):
        overlaps = [
            (iou(box, other), place)
            for place, other in enumerate(objects.boxes[image].tolist())
            if objects.labels[image, place] == label
        ]
        most, place = max(overlaps, default=(0.0, -1))
        if most >= 0.5 and objects.difficult[image, place]:
            continue
        is_right = most >= 0.5 and (image, place) not in taken
        if is_right:
            taken.add((image, place))
        right.append(is_right)
        wrong.append(not is_right)
    hits, misses = np.cumsum(right), np.cumsum(wrong)
    recall, precision = hits / count, hits / np.maximum(hits + misses, 1)
    eleven = float(np.mean([max(precision[recall >= at], default=0.0) for at in (step / 10 for step in range(11))]))
    envelope = [max(precision[recall >= step / count], default=0.0) for step in range(1, count + 1)]
    return float(np.mean(envelope)), eleven


def iou(one: Sequence[float], other: Sequence[float]) -> float:
    width, height = (min(one[2 + axis], other[2 + axis]) - max(one[axis], other[axis]) for axis in (0, 1))
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_it_is_what_the_development_kit_computes(seed: int) -> None:
    random = np.random.default_rng(seed)
    images, targets = [], []
    for _ in range(4):
        # Objects of one class lie apart, in cells of a grid.
        cells = random.permutation(9)[: random.integers(1, 6)]
        corners = np.stack([cells % 3, cells // 3], axis=1) / 3 + 0.02
        boxes = np.concatenate([corners, corners + 0.25], axis=1).astype(np.float32)
        labels, difficult = random.integers(0, 2, len(cells)), random.random(len(cells)) < 0.3
        targets.append(packed(torch.from_numpy(boxes), torch.from_numpy(labels), torch.from_numpy(difficult), most=6))
        near = boxes[random.integers(0, len(cells), 7)] + random.normal(0, 0.04, (7, 4)).astype(np.float32)
        scores = random.permutation(1000)[:7] / 1000 + len(images) * 1e-5
        order = np.argsort(-scores)
        own = (near[order], scores[order], random.integers(0, 2, 7)[order])
        images.append(Detections(*(torch.from_numpy(np.ascontiguousarray(values)) for values in own)))
    objects = unpacked(torch.stack(targets))
    assert objects.difficult is not None
    there = [label for label in (0, 1) if ((objects.labels == label) & ~objects.difficult).any()]
    by_rule = np.array([area_and_eleven(images, targets, label) for label in there]).reshape(-1, 2)
    figures = judged(images, targets)
    area, eleven = 100 * by_rule.mean(axis=0) if there else (0.0, 0.0)
    assert figures["mean_average_precision"] == pytest.approx(eleven, abs=1e-3)
    assert figures["mean_average_precision_area"] == pytest.approx(area, abs=0.2)


def test_several_ranks_judge_what_one_does() -> None:
    boxes = [found((A, 0.9, 0)), found((FAR, 0.8, 0)), found((B, 0.7, 0))]
    targets = [wanted((A, 0, False)), wanted((B, 0, False)), wanted((B, 0, False))]

    def metric(images: list[int]) -> PrecisionAndLoss:
        made = PrecisionAndLoss(
            lambda outputs: [boxes[int(number)] for number in outputs],
            lambda outputs, _: outputs.double().mean(),
            NAMES,
        )
        made.update(torch.tensor(images), torch.stack([targets[image] for image in images]))
        return made

    whole, one, other = metric([0, 1, 2]), metric([0]), metric([1, 2])
    one.merge_state(other.metric_state)
    together, alone = dict(one.compute()), dict(whole.compute())
    assert together.pop("precisions") == alone.pop("precisions")
    assert together == pytest.approx(alone)


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(5)))
def test_detections_of_one_score_count_alike_whoever_judged_which_image(order: list[int]) -> None:
    places = [A, FAR, B, FAR, A]
    boxes = [found((box, 0.5, 0)) for box in places]
    targets = [wanted((A, 0, False)), wanted((A, 0, False)), wanted((B, 0, False)), wanted(), wanted((B, 0, False))]
    first = judged(boxes, targets)["mean_average_precision"]
    assert judged([boxes[n] for n in order], [targets[n] for n in order])["mean_average_precision"] == first


# The task


def task(**changes: float) -> Detection:
    chosen = TaskSettings(anchors=(2.0, 2.0, 4.0, 4.0), **changes)  # type: ignore[arg-type]
    made = task_of(
        "detection",
        chosen,
        label_smoothing=0.0,
        classes=("dog", "pig"),
        image_size=128,
        object_sizes=None,
        device=torch.device("cpu"),
    )
    assert isinstance(made, Detection)
    return made


def outputs(seed: int) -> Tensor:
    return torch.randn(3, 2 * 7, 4, 4, generator=torch.Generator().manual_seed(seed))


TARGETS = torch.stack([wanted((A, 0, False), (B, 1, True)), wanted(), wanted((FAR, 1, False))])


def test_boxes_are_pulled_to_their_anchors_in_the_first_images_alone() -> None:
    pulled, free = task(pull=0.5, pulled_images=10), task(pull=0.0)
    pulled.at(9)
    assert pulled.loss(outputs(1), TARGETS) > free.loss(outputs(1), TARGETS)
    pulled.at(10)
    torch.testing.assert_close(pulled.loss(outputs(1), TARGETS), free.loss(outputs(1), TARGETS))
    torch.testing.assert_close(pulled.plain_loss(outputs(1), TARGETS), free.loss(outputs(1), TARGETS))


def test_weights_of_the_loss_are_settings() -> None:
    usual = task(pull=0.0).loss(outputs(1), TARGETS)
    for name in ("empty", "objectness", "coordinates", "classes"):
        assert task(pull=0.0, **{name: 9.0}).loss(outputs(1), TARGETS) > usual


def test_several_networks_boxes_are_pooled_and_the_surest_stay() -> None:
    own = task()
    both = own.elected([own.votes(outputs(1)), own.votes(outputs(2))])
    (alone, other), pooled = (own.detections(outputs(seed)) for seed in (1, 2)), own.detections(both)
    boxes = [yolo.predictions(outputs(seed), own.anchors * 4).boxes for seed in (1, 2)]
    for image in range(3):
        scores = torch.cat([alone[image].scores, other[image].scores])
        assert pooled[image].scores[0] == scores.max()
        assert len(pooled[image].scores) <= len(scores)
        of_either = {tuple(box) for said in boxes for box in said[image].clamp(0, 1).tolist()}
        assert {tuple(box) for box in pooled[image].boxes.tolist()} <= of_either
    mean = (own.plain_loss(outputs(1), TARGETS) + own.plain_loss(outputs(2), TARGETS)) / 2
    torch.testing.assert_close(own.plain_loss(both, TARGETS), mean)


def test_anchors_are_given_in_cells_found_or_those_of_voc() -> None:
    given = anchors_of(TaskSettings(anchors=(2.0, 1.0, 4.0, 4.0)), None, 128)
    assert given.tolist() == [[0.5, 0.25], [1.0, 1.0]]
    voc = anchors_of(TaskSettings(anchors="voc"), None, 448)
    torch.testing.assert_close(voc * 14, torch.tensor(yolo.VOC_ANCHORS))
    sizes = np.array([[0.1, 0.1], [0.1, 0.1], [0.5, 0.4]], dtype=np.float32)
    found_ones = anchors_of(TaskSettings(anchor_count=2), sizes, 128)
    torch.testing.assert_close(found_ones, torch.tensor([[0.1, 0.1], [0.5, 0.4]]))


@pytest.mark.parametrize("anchors", [(), (1.0,), (1.0, 0.0), (1.0, -1.0)])
def test_anchors_that_are_no_shapes_are_refused(anchors: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"--task.anchors"):
        TaskSettings(anchors=anchors)


def test_a_step_makes_no_tensor_of_numbers_on_the_host() -> None:
    # On a GPU each would be a copy that the step waits for, and that no CUDA graph may record.
    own = task()
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((Tensor, "new_tensor"), (torch, "tensor")):
            patch.setattr(owner, name, lambda *_, **__: pytest.fail("a tensor is made of numbers of the host's"))
        loss = own.loss(outputs(1), TARGETS)
    assert loss > 0
