"""What was trained is used: evaluated on any test set by any number of processes, and asked for single images."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from resist_hvd.data.memory import digits
from resist_hvd.settings.data import DataSettings

from . import runs

EVALUATE = (runs.PYTHON, "-m", "resist_hvd.evaluate")
PREDICT = (runs.PYTHON, "-m", "resist_hvd.predict")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on the digits."""
    folder = tmp_path_factory.mktemp("digits") / "run"
    ended = runs.run("--recipe=digits", "--max_rounds=4", "--output", folder)
    assert ended.status == 0, ended
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits' test set as class folders of files."""
    folder = tmp_path_factory.mktemp("pictures")
    images = digits.read(DataSettings()).test
    for number, (pixels, label) in enumerate(zip(images.images, images.labels.tolist(), strict=True)):
        (folder / "test" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[..., 0].numpy()).save(folder / "test" / str(label) / f"{number:03d}.png")
    return folder


def evaluated(folder: Path, tmp_path: Path, *flags: Any, ranks: int = 1) -> dict[str, Any]:
    """What is found on the one test set."""
    launcher = "none" if ranks == 1 else "mpirun"
    ended = runs.run(
        folder, *flags, "--json", tmp_path / "found.json", program=EVALUATE, ranks=ranks, launcher=launcher
    )
    assert (ended.status, ended.stderr.strip()) == (0, ""), ended
    (found,) = json.loads((tmp_path / "found.json").read_text())["tests"]
    assert f"accuracy {found['accuracy']:.2f} %" in ended.stdout
    return {name: found[name] for name in ("accuracy", "images", "loss")}


def test_evaluations_find_what_the_run_found(trained: Path, pictures: Path, tmp_path: Path) -> None:
    before = runs.contents(trained)
    summary = json.loads((trained / "summary.json").read_text())
    alone = evaluated(trained, tmp_path)
    assert (alone["accuracy"], alone["images"]) == (summary["accuracy"], 360)
    # The same images come in other batches.
    together = evaluated(trained, tmp_path, ranks=2)
    as_files = evaluated(trained, tmp_path, "--data.name=folder", "--data.root", pictures, ranks=2)
    for other in (together, as_files):
        assert other["accuracy"] == alone["accuracy"]
        assert other == pytest.approx(alone, rel=1e-4)
    assert runs.contents(trained) == before


def test_predictions_agree_with_the_evaluation(trained: Path, pictures: Path) -> None:
    ended = runs.run(trained, pictures, "--json", "--device=cpu", program=PREDICT, ranks=1, launcher="none")
    assert (ended.status, ended.stderr.strip()) == (0, ""), ended
    told = [json.loads(line) for line in ended.stdout.splitlines()]
    right = [Path(each["image"]).parent.name == each["classes"][0]["class"] for each in told]
    # The run computed in what its machine is fastest in, and this in fp32: an image or two may lie between.
    assert len(right) == 360
    summary = json.loads((trained / "summary.json").read_text())
    assert 100 * sum(right) / len(right) == pytest.approx(summary["accuracy"], abs=1.0)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--data.name=folder", "--data.root={pictures}/test/1"), "class folders"),
        (("--data.name=folder",), "--data.root"),
        (("--data.image_size=8",), "--data.image_size"),
        (("{pictures}",), "2 folders"),
    ],
)
def test_mistakes_are_one_sentence(flags: tuple[str, ...], words: str, trained: Path, pictures: Path) -> None:
    given = [flag.format(pictures=pictures) for flag in flags]
    ended = runs.run(trained, *given, program=EVALUATE)
    assert ended.status == 2
    assert words in ended.mistake
