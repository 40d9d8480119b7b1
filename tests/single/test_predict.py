"""Images are classified by an exported model, in one process, whatever else is broken."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import resist_hvd
from resist_hvd import predict
from resist_hvd.errors import UserError
from resist_hvd.nets.architecture import Architecture
from resist_hvd.nets.preact_resnet import network
from resist_hvd.nets.saved import shapes_of
from resist_hvd.settings.model import ModelSettings

CLASSES = ["cat", "dog", "fox"]
PREPARED = {"image_size": 8, "channels": 3, "mean": [100.0] * 3, "std": [50.0] * 3, "test_resize": None}


def write_model(folder: Path, seed: int = 1, **changes: Any) -> Path:
    """Write an exported model of random weights, as a run does."""
    settings = ModelSettings(sections="1,1,2,1", width_factor=1 / 16)
    parts = network(Architecture.of(settings, channels=3, classes=3), image_size=8)
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.rand(shape, generator=generator) for name, shape in shapes_of(parts).items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    described = {"network": dict(parts.description), "classes": CLASSES, "data": "animals", **PREPARED, **changes}
    (folder / "model.json").write_text(json.dumps(described))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_model(tmp_path / "run")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    random = np.random.default_rng(1)
    for name in ("a.png", "sub/b.jpg", "sub/deep/c.webp", "z.tga"):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(path)
    (tmp_path / "pictures/notes.txt").write_text("none")
    return tmp_path / "pictures"


def called(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: Any) -> Any:
    """The exit status of the program, and its lines of output and of errors."""
    monkeypatch.setattr(sys, "argv", ["predict", *map(str, arguments)])
    status: Any = 0
    try:
        predict.main()
    except SystemExit as ended:
        status = ended.code
    said = capsys.readouterr()
    return status, said.out.splitlines(), said.err.splitlines()


def test_classes_are_the_models(
    run: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, lines, errors = called(monkeypatch, capsys, run, pictures, pictures / "z.tga", "--json", "--device=cpu")
    assert (status, errors) == (0, [])
    told = [json.loads(line) for line in lines]
    # A folder's files of other names are passed over; a file that is named is read whatever its name.
    assert [Path(each["image"]).name for each in told] == ["a.png", "b.jpg", "c.webp", "z.tga"]
    trained = resist_hvd.load(run)
    for each in told:
        with torch.no_grad(), Image.open(each["image"]) as image:
            (expected,) = torch.softmax(trained.model(trained.preprocess(image)[None]), dim=1)
        found = {entry["class"]: entry["probability"] for entry in each["classes"]}
        assert list(found) == [CLASSES[place] for place in expected.argsort(descending=True)]
        assert [found[name] for name in CLASSES] == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_broken_image_is_named_and_all_others_are_classified(
    run: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "sub/a.png").write_bytes((pictures / "a.png").read_bytes()[:60])
    status, lines, errors = called(monkeypatch, capsys, run, "gone.jpg", pictures, "--top", "2")
    assert status == 1
    assert [line.split(": ")[0] for line in lines] == [
        str(pictures / name) for name in ("a.png", "sub/b.jpg", "sub/deep/c.webp")
    ]
    assert all(line.count("%") == 2 for line in lines)
    assert ["gone.jpg" in errors[0], str(pictures / "sub/a.png") in errors[1]] == [True, True]
    assert len(errors) == 2
    status, lines, _ = called(monkeypatch, capsys, run, "gone.jpg", "--json")
    assert (status, json.loads(lines[0])["image"]) == (1, "gone.jpg")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no run"),
        (["{run}"], "no image"),
        (["{run}", "{run}"], "no image in it"),
        (["{pictures}", "{pictures}"], "model.json is missing"),
        (["{run}", "{pictures}", "--top=0"], "--top is 0"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str],
    words: str,
    run: Path,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    filled = [argument.format(run=run, pictures=pictures) for argument in arguments]
    status, lines, errors = called(monkeypatch, capsys, *filled)
    assert (status, lines, len(errors)) == (2, [], 1)
    assert words in errors[0]


def test_neither_mpi_nor_horovod_is_needed(run: Path, pictures: Path) -> None:
    code = (
        "import sys\nsys.modules.update(mpi4py=None, horovod=None)\n"
        f"sys.argv = ['predict', {str(run)!r}, {str(pictures)!r}]\nfrom resist_hvd import predict\npredict.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 3), done


def test_members_of_an_ensemble_vote_together(tmp_path: Path) -> None:
    members = [write_model(tmp_path / "members" / str(number), seed=number) for number in range(11)]
    images = torch.rand(4, 3, 8, 8)
    with torch.no_grad():
        average = torch.softmax(resist_hvd.load(tmp_path).model(images), dim=1)
        alone = [torch.softmax(resist_hvd.load(member).model(images), dim=1) for member in members]
    torch.testing.assert_close(average, torch.stack(alone).mean(dim=0))
    (tmp_path / "members/3").rename(tmp_path / "gone")
    with pytest.raises(UserError, match="Member 3"):
        resist_hvd.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"mean": 5}, "how images are prepared"), ({"image_size": None}, "how images are prepared")],
)
def test_a_description_that_does_not_say_how_to_prepare_images(changes: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        resist_hvd.load(write_model(tmp_path, **changes))


def test_a_model_that_a_users_loop_saved_is_refused_with_a_sentence(run: Path) -> None:
    said = json.loads((run / "model.json").read_text())
    (run / "model.json").write_text(json.dumps({"network": said["network"]}))
    with pytest.raises(UserError, match="nothing of classes"):
        resist_hvd.load(run)


def test_an_unfinished_run_is_to_be_finished(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="--resume"):
        resist_hvd.load(tmp_path)
