"""Runs with further test sets: what they report of each, and that a wrong folder ends them before they train."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from . import runs
from .conftest import CLASSES


@pytest.fixture(scope="module")
def tests(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two test sets: the run's own under numbers, and the same with all labels wrong."""
    folder = tmp_path_factory.mktemp("further")
    for label, name in enumerate(sorted(CLASSES)):
        shutil.copytree(images / "test" / name, folder / "imagenetv2-top-images-format-val" / str(label))
        wrong = (label + 1) % len(CLASSES)
        shutil.copytree(images / "test" / name, folder / "imagenetv2-threshold0.7-format-val" / str(wrong))
    return folder


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_is_reported_by_itself_and_again_when_a_run_goes_on(
    tiny: list[str], tests: Path, copy_of_cut: Path
) -> None:
    flags = (*tiny, "--data.extra_tests", tests, "--resume", "--output", copy_of_cut)
    ended = runs.run(*flags, "--max_rounds=3")
    assert ended.status == 0, ended
    ended = runs.run(*flags)
    assert ended.status == 0, ended
    summary = json.loads((copy_of_cut / "summary.json").read_text())
    found = summary["extra_tests"]
    assert list(found) == ["threshold0.7", "top-images"]
    assert found["top-images"]["accuracy"] == summary["accuracy"]
    assert all(result["images"] == 8 * len(CLASSES) for result in found.values())
    # Labels that all are wrong are hit only where the network is wrong.
    assert found["threshold0.7"]["accuracy"] <= 100 - summary["accuracy"]
    assert found["threshold0.7"]["loss"] > found["top-images"]["loss"]
    lines = read_lines(copy_of_cut / "extra_tests.jsonl")
    # What they came to after round 3 was no end of the run that has gone on.
    assert lines == [{"round": 4, "test": name, **result} for name, result in found.items()]
    assert f"  top-images, 32 images: accuracy {summary['accuracy']:6.2f} %" in ended.stdout
    # The run's own evaluations are as ever.
    assert [line["round"] for line in read_lines(copy_of_cut / "eval.jsonl")] == [2, 3, 4]


def test_an_incomplete_one_ends_the_run_before_it_trains(tiny: list[str], tests: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tests, tmp_path / "further"))
    lost = folder / "imagenetv2-top-images-format-val/3"
    shutil.rmtree(lost)
    ended = runs.run(*tiny, "--data.extra_tests", folder, "--output", tmp_path / "run")
    assert ended.mistake == (
        "The test set has 3 class folders from 0 to 2, where the training set's 4 classes ask for all from 0 to 3 "
        f"[{lost.parent}, all 2 ranks, loading the data]. "
        "Unpack its archive anew, or train on all the classes that it was made for."
    )
    assert ended.status == 2
    assert "round" not in ended.stdout
    assert not (tmp_path / "run/rounds.jsonl").exists()
