"""What runs in these tests train on, and a run that others go on from: small, so that a run takes seconds."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from . import runs

CLASSES = ("circle", "cross", "square", "triangle")


def make_images(root: Path) -> Path:
    """Write a data folder of 128 training and 32 test images, 8 x 8 pixels; each of its 4 classes is a brightness."""
    random = np.random.default_rng(1)
    for half, count in (("train", 32), ("test", 8)):
        for number, name in enumerate(CLASSES):
            folder = root / half / name
            folder.mkdir(parents=True)
            for image in range(count):
                pixels = random.integers(0, 64, size=(8, 8, 3)) + 48 * number
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{image:03d}.png")
    return root


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound data folder; tests leave it as it is."""
    return make_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="session")
def tiny(images: Path) -> list[str]:
    """The flags of a run of 4 rounds for 2 workers, with 5 partitionable blocks, and a checkpoint each 2 rounds."""
    flags = {
        "data.name": "folder",
        "data.root": images,
        "data.batch_size": 8,
        "model.sections": "1,1,6,1",
        "model.width_factor": 0.125,
        "min_blocks": 3,
        "local_iterations": 2,
        "epochs": 1,
        "evaluate_every": 2,
        "checkpoint_every": 2,
    }
    return [f"--{name}={value}" for name, value in flags.items()]


@pytest.fixture(scope="session")
def cut(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on 2 workers that was cut after 2 of its 4 rounds; tests copy it."""
    folder = tmp_path_factory.mktemp("runs") / "cut"
    ended = runs.run(*tiny, "--max_rounds=2", "--output", folder)
    assert ended.status == 0, ended
    return folder


@pytest.fixture
def copy_of_cut(cut: Path, tmp_path: Path) -> Path:
    """A copy of the cut run's folder, for one test to go on with, or to damage."""
    return Path(shutil.copytree(cut, tmp_path / "run"))


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], list[str]]:
    """Makes a program of some lines of Python, which may replace parts of the package, and the training itself."""

    def make(lines: str) -> list[str]:
        path = tmp_path / "program.py"
        path.write_text(f"{lines}\nfrom resist_hvd import train\n\ntrain.main()\n")
        return [runs.PYTHON, str(path)]

    return make
