"""YOLOv2's loss beside a plain one that is written from its definition, case by case; boxes, detections, anchors."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from resist_hvd.errors import UserError
from resist_hvd.tasks import yolo
from resist_hvd.tasks.anchors import find_anchors, mean_overlap
from resist_hvd.tasks.objects import Objects, padded
from resist_hvd.tasks.yolo import VOC_ANCHORS, Weights, detections, predictions, shape_iou

ANCHORS = torch.tensor(VOC_ANCHORS[:3], dtype=torch.float64)
CLASSES = 4


def random_batch(seed: int, *, images: int = 3, most: int = 6) -> tuple[Tensor, Objects]:
    """Outputs, and objects of each image, from none on; some share a cell and a shape."""
    random = torch.Generator().manual_seed(seed)
    depth = len(ANCHORS) * (5 + CLASSES)
    outputs = torch.randn(images, depth, 3, 4, generator=random, dtype=torch.float64)
    boxes, labels = [], []
    for _ in range(images):
        count = int(torch.randint(0, most + 1, (), generator=random))
        corners = torch.rand(count, 2, 2, generator=random, dtype=torch.float64).sort(dim=1).values
        own = corners.flatten(1) + torch.tensor([0, 0, 1e-3, 1e-3])
        if count > 2:
            own[-1] = own[0]  # one predictor for two objects
        boxes.append(own.clamp(max=1))
        labels.append(torch.randint(0, CLASSES, (count,), generator=random))
    return outputs, padded(boxes, labels)


def iou(one: list[float], other: list[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared)


def logistic(value: Tensor) -> Tensor:
    return 1 / (1 + (-value).exp())


def decoded(values: Tensor, anchor: Tensor, row: int, column: int, rows: int, columns: int) -> list[float]:
    x, y = (column + logistic(values[0])) / columns, (row + logistic(values[1])) / rows
    width, height = anchor[0] * values[2].exp() / columns, anchor[1] * values[3].exp() / rows
    return [each.item() for each in (x - width / 2, y - height / 2, x + width / 2, y + height / 2)]


def plain_loss(outputs: Tensor, objects: Objects, weights: Weights, *, pull: float | None) -> Tensor:
    """The loss as its definition has it, one predictor after another."""
    images, _, rows, columns = outputs.shape
    total = torch.zeros((), dtype=outputs.dtype)
    for image in range(images):
        true = objects.boxes[image][objects.labels[image] >= 0].tolist()
        labels = objects.labels[image, : len(true)].tolist()
        owners = {}
        for number, (left, top, right, bottom) in enumerate(true):
            size = ((right - left) * columns, (bottom - top) * rows)
            shapes = [iou([0, 0, *size], [0, 0, *anchor.tolist()]) for anchor in ANCHORS]
            column = min(int((left + right) / 2 * columns), columns - 1)
            row = min(int((top + bottom) / 2 * rows), rows - 1)
            owners[shapes.index(max(shapes)), row, column] = number
        for place in product(range(len(ANCHORS)), range(rows), range(columns)):
            anchor, row, column = place
            values = outputs[image].view(len(ANCHORS), 5 + CLASSES, rows, columns)[anchor, :, row, column]
            box = decoded(values, ANCHORS[anchor], row, column, rows, columns)
            offsets, stretches, objectness = logistic(values[:2]), values[2:4], logistic(values[4])
            if place not in owners:
                if all(iou(box, other) <= weights.right for other in true):
                    total = total + weights.empty * objectness**2 / 2
                if pull is not None:
                    total = total + pull * (((offsets - 0.5) ** 2).sum() + (stretches**2).sum()) / 2
                continue
            left, top, right, bottom = true[owners[place]]
            total = total + weights.objectness * (objectness - iou(box, true[owners[place]])) ** 2 / 2
            wanted = [(left + right) / 2 * columns - column, (top + bottom) / 2 * rows - row]
            shape = [(right - left) * columns / ANCHORS[anchor, 0], (bottom - top) * rows / ANCHORS[anchor, 1]]
            far = sum((offsets[side] - wanted[side]) ** 2 for side in (0, 1))
            far = far + sum((stretches[side] - math.log(shape[side])) ** 2 for side in (0, 1))
            larger = 2 - (right - left) * (bottom - top)
            total = total + weights.coordinates * larger * far / 2
            total = total - weights.classes * values[5:].log_softmax(0)[labels[owners[place]]]
    return total / images


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    weights=st.builds(Weights, **{name: st.floats(0, 8) for name in ("empty", "objectness", "coordinates", "classes")}),
    pull=st.none() | st.floats(0, 8),
)
def test_the_loss_and_its_gradient_are_the_plain_ones(seed: int, weights: Weights, pull: float | None) -> None:
    outputs, objects = random_batch(seed)
    of_both = []
    outputs.requires_grad_()
    for loss in (
        yolo.loss(outputs, objects, ANCHORS, weights, pull=None if pull is None else outputs.new_tensor(pull)),
        plain_loss(outputs, objects, weights, pull=pull),
    ):
        (gradient,) = torch.autograd.grad(loss, outputs)
        of_both.append((loss.detach(), gradient))
    torch.testing.assert_close(of_both[0], of_both[1], rtol=1e-9, atol=1e-9)


def test_a_batch_without_objects_has_to_say_so() -> None:
    outputs, _ = random_batch(1)
    none = padded([torch.zeros(0, 4)] * 3, [torch.zeros(0, dtype=torch.int64)] * 3)
    objectness = outputs.view(3, len(ANCHORS), 5 + CLASSES, 3, 4)[:, :, 4].sigmoid()
    torch.testing.assert_close(yolo.loss(outputs, none, ANCHORS), objectness.square().sum() / 2 / 3)


def test_worked_by_hand_one_cell_one_anchor() -> None:
    outputs = torch.zeros(1, 6, 1, 1)  # centre in the middle, the anchor's size, objectness 1/2, one class
    objects = padded([torch.tensor([[0.25, 0.25, 0.75, 0.75]])], [torch.tensor([0])])
    # An anchor of half the image is that very box: only objectness is wrong, which is to be 1.
    assert yolo.loss(outputs, objects, torch.tensor([[0.5, 0.5]])).item() == pytest.approx(5 * 0.5**2 / 2)
    # An anchor of the whole image has an IoU of 1/4, and twice its sides: (ln 1/2)^2 each, times 2 - 1/4.
    expected = 5 * 0.25**2 / 2 + 1.75 * 2 * math.log(2) ** 2 / 2
    assert yolo.loss(outputs, objects, torch.tensor([[1.0, 1.0]])).item() == pytest.approx(expected)


def test_a_box_that_is_right_need_not_say_that_it_is_empty() -> None:
    anchors = torch.tensor([[0.5, 0.5], [0.52, 0.52]])
    outputs = torch.zeros(1, 12, 1, 1)
    objects = padded([torch.tensor([[0.25, 0.25, 0.75, 0.75]])], [torch.tensor([0])])
    beside = yolo.loss(outputs, objects, anchors).item()  # the other anchor's box has an IoU of 0.92
    assert beside == pytest.approx(5 * 0.5**2 / 2)
    assert yolo.loss(outputs, objects, anchors, Weights(right=0.95)).item() == pytest.approx(beside + 0.5**2 / 2)


def test_half_precision_is_left_before_anything_is_computed() -> None:
    outputs, objects = random_batch(2)
    half = outputs.bfloat16()
    objects = Objects(objects.boxes.float(), objects.labels)
    exact = yolo.loss(half.float(), objects, ANCHORS)
    assert yolo.loss(half, objects, ANCHORS).dtype == torch.float32
    torch.testing.assert_close(yolo.loss(half, objects, ANCHORS), exact, rtol=0, atol=0)


def places(boxes: Tensor, labels: Tensor) -> set[tuple[float, ...]]:
    """Classes and edges, to a tenth of the image."""
    found = zip(boxes.tolist(), labels.tolist(), strict=True)
    return {(label, *(round(edge, 1) for edge in box)) for box, label in found}


def test_gradients_descend_to_the_objects() -> None:
    _, objects = random_batch(5)
    outputs = torch.zeros(3, len(ANCHORS) * (5 + CLASSES), 3, 4, requires_grad=True)
    optimizer = torch.optim.Adam([outputs], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        yolo.loss(outputs, objects, ANCHORS).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    found = detections(predictions(outputs.detach(), ANCHORS), least_score=0.5)
    for image, each in enumerate(found):
        there = objects.labels[image] >= 0
        true = places(objects.boxes[image][there], objects.labels[image][there])
        assert places(each.boxes, each.labels) <= true
    assert sum(len(each.boxes) for each in found) >= 5


def test_detections_are_the_surest_of_each_class_and_in_the_image() -> None:
    boxes = torch.tensor([[0.1, 0.1, 0.5, 0.5], [0.12, 0.1, 0.5, 0.5], [0.8, 0.8, 1.2, 1.1]])
    said = yolo.Predictions(
        offsets=torch.zeros(1, 3, 2),
        stretches=torch.zeros(1, 3, 2),
        objectness=torch.tensor([[0.9, 0.8, 0.5]]),
        classes=torch.tensor([[[9.0, 0], [9, 0], [0, 9]]]),
        boxes=boxes[None],
    )
    (found,) = detections(said, least_score=0.1)
    assert found.labels.tolist() == [0, 1]
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.5]), rtol=1e-3, atol=0)
    torch.testing.assert_close(found.boxes[1], torch.tensor([0.8, 0.8, 1.0, 1.0]))
    (both,) = detections(said, least_score=0.1, most_overlap=1.0)
    assert both.labels.tolist() == [0, 0, 1]
    (one,) = detections(said, least_score=0.1, most=1)
    assert one.scores.tolist() == pytest.approx([0.9], rel=1e-3)


def test_shapes_overlap_as_boxes_with_one_centre() -> None:
    found = shape_iou(torch.tensor([[2.0, 4.0], [1.0, 1.0]]), torch.tensor([[2.0, 4.0], [4.0, 2.0]]))
    torch.testing.assert_close(found, torch.tensor([[1.0, 4 / 12], [1 / 8, 1 / 8]]))


def test_anchors_are_found_where_boxes_gather() -> None:
    random = np.random.default_rng(3)
    wanted = np.array([[1, 1], [2, 6], [8, 3]], dtype=np.float32)
    sizes = (np.repeat(wanted, 200, axis=0) * random.uniform(0.9, 1.1, (600, 2))).astype(np.float32)
    found = find_anchors(sizes, 3)
    np.testing.assert_allclose(found, wanted[[0, 1, 2]], rtol=0.03)
    assert mean_overlap(sizes, found) > 0.88 > mean_overlap(sizes, found[:2])
    np.testing.assert_array_equal(found, find_anchors(sizes, 3))


def test_too_few_shapes_for_so_many_anchors_are_refused() -> None:
    with pytest.raises(UserError, match="2 sizes are too few for 3 anchors"):
        find_anchors(np.array([[1, 1], [1, 1], [2, 2]], dtype=np.float32), 3)
