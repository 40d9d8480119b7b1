"""Detection from images to boxes: trained, resumed, evaluated, predicted, as a user does it."""

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from ..voc_images import make_squares
from . import runs


def alone(program: str, *arguments: object) -> runs.Ended:
    """Start a program of the package in one process, without a launcher."""
    return runs.run(*arguments, ranks=1, launcher="none", program=[runs.PYTHON, "-m", f"resist_hvd.{program}"])


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_squares(tmp_path_factory.mktemp("squares"))


@pytest.fixture(scope="module")
def flags(squares: Path) -> list[str]:
    """The flags of a run of 6 rounds for 2 workers, which ends in the middle of an epoch."""
    chosen = {
        "task": "detection",
        "data.name": "voc",
        "data.root": squares,
        "data.image_size": 64,
        "data.batch_size": 4,
        "data.jitter": 0.1,
        "task.anchor_count": 2,
        "model.sections": "1,1,4",
        "model.stem": "imagenet",
        "model.width_factor": 0.125,
        "min_blocks": 2,
        "local_iterations": 2,
        "epochs": 4,
        "optim.lr": 0.02,
    }
    return [f"--{name}={value}" for name, value in chosen.items()]


@pytest.fixture(scope="module")
def run(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    ended = runs.run(*flags, "--output", folder)
    assert ended.status == 0, ended
    assert ended.stdout.count("mAP") == 2
    assert "2 classes" in ended.stdout
    return folder


def test_it_is_resumed_in_the_middle_of_an_epoch_to_the_bit(flags: list[str], run: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    first = runs.run(*flags, "--max_rounds=4", "--output", cut)
    assert first.status == 0, first
    second = runs.run("--resume", "--output", cut)
    assert second.status == 0, second
    for name in ("model.safetensors", "model.json"):
        assert (cut / name).read_bytes() == (run / name).read_bytes()
    whole, summary = (json.loads((folder / "summary.json").read_text()) for folder in (run, cut))
    assert summary["mean_average_precision"] == whole["mean_average_precision"]
    assert summary["accuracy"] is None


def test_a_head_keeps_the_anchors_it_began_with(flags: list[str], squares: Path, tmp_path: Path) -> None:
    """Boxes that were put right since would have other ones."""
    copy = shutil.copytree(squares, tmp_path / "squares")
    folder = tmp_path / "run"
    first = runs.run(*flags, f"--data.root={copy}", "--max_rounds=2", "--output", folder)
    assert first.status == 0, first
    before = json.loads((folder / "model.json").read_text())["anchors"]
    for path in (copy / "VOC2007/Annotations").glob("trainval0*.xml"):
        path.write_text(re.sub(r"<(.max)>\d+", r"<\1>64", path.read_text()))
    second = runs.run("--resume", "--max_rounds=3", "--output", folder)
    assert second.status == 0, second
    assert json.loads((folder / "model.json").read_text())["anchors"] == before


@pytest.mark.parametrize("method", ["local-sgd", "data-parallel", "ensemble"])
def test_every_other_method_trains_a_detector(method: str, flags: list[str], squares: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ended = runs.run(*flags, f"--method={method}", "--max_rounds=2", "--output", folder)
    assert ended.status == 0, ended
    last = json.loads((folder / "eval.jsonl").read_text().splitlines()[-1])
    assert set(last) >= {"mean_average_precision", "mean_average_precision_area", "loss"}
    evaluated = runs.run(
        folder,
        "--data.name=voc",
        f"--data.root={squares}",
        f"--json={tmp_path / 'found.json'}",
        ranks=1,
        program=[runs.PYTHON, "-m", "resist_hvd.evaluate"],
    )
    assert evaluated.status == 0, evaluated
    (test,) = json.loads((tmp_path / "found.json").read_text())["tests"]
    assert test["loss"] == pytest.approx(last["loss"], rel=1e-5)


def test_boxes_are_told_and_drawn(run: Path, squares: Path, tmp_path: Path) -> None:
    image = squares / "VOC2007/JPEGImages/test000.jpg"
    ended = alone("predict", run, image, "--json", "--least_score=0.01", "--draw", tmp_path / "drawn")
    assert ended.status == 0, ended
    said = json.loads(ended.stdout)
    assert said["image"] == str(image)
    for found in said["objects"]:
        left, top, right, bottom = found["box"]
        assert 0 <= left < right <= 64
        assert 0 <= top < bottom <= 64
        assert found["class"] in ("red", "blue")
    with Image.open(tmp_path / "drawn/test000.png") as drawn:
        assert drawn.size == (640, 640)
    # Nothing is written over: it might be an image itself.
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    Image.open(image).save(inputs / "a.png")
    kept = (inputs / "a.png").read_bytes()
    ended = alone("predict", run, inputs, f"--draw={inputs}")
    assert ended.status == 2, ended
    assert str(inputs / "a.png") in ended.mistake
    assert (inputs / "a.png").read_bytes() == kept


def test_files_that_evaluation_passes_over_are_told(run: Path, squares: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(squares, tmp_path / "squares")
    lost = copy / "VOC2007/Annotations/test001.xml"
    lost.unlink()
    (cut := copy / "VOC2007/JPEGImages/test002.jpg").write_bytes(b"no image")
    ended = runs.run(
        run,
        f"--data.root={copy}",
        "--data.broken_files=skip",
        f"--json={tmp_path / 'found.json'}",
        program=[runs.PYTHON, "-m", "resist_hvd.evaluate"],
    )
    assert ended.status == 0, ended
    assert "on 6 images, 2 passed over" in ended.stdout
    assert set(json.loads((tmp_path / "found.json").read_text())["broken_files"]) == {str(lost), str(cut)}


def test_a_report_shows_images_with_boxes(run: Path, squares: Path, tmp_path: Path) -> None:
    def report(*flags: str) -> str:
        ended = alone("report", run, f"--output={tmp_path / 'report'}", *flags)
        assert ended.status == 0, ended
        return ended.stdout

    assert "No images" not in report("--images=4")
    html = (tmp_path / "report/report.html").read_text()
    assert "Objects found: whole" in html
    assert "Precision and recall" in html
    with Image.open(tmp_path / "report/boxes-1.png") as drawn:
        assert drawn.width > drawn.height > 500  # two rows of three
    images = squares / "VOC2007/JPEGImages"
    images.rename(elsewhere := squares / "elsewhere")
    try:
        assert "No images with boxes: " in report()
    finally:
        elsewhere.rename(images)


def test_a_detector_is_not_evaluated_on_classes_of_images(run: Path, images: Path) -> None:
    ended = alone("evaluate", run, "--data.name=folder", "--data.root", images)
    assert ended.status == 2
    assert "have classes, and the model finds boxes" in ended.mistake
