"""TensorBoard's files: written to the last scalar, and no reason to end a run where TensorBoard is broken."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from resist_hvd.training.board import Board


def written(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The scalars that a folder holds, by name: steps and values."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder))
    found.Reload()
    return {name: [(event.step, event.value) for event in found.Scalars(name)] for name in found.Tags()["scalars"]}


def test_scalars_are_there_once_it_is_closed_and_a_resumed_run_goes_on_with_them(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for first, last in ((1, 4), (3, 5)):
        board = Board(tmp_path, first_step=first)
        for step in range(first, last + 1):
            board.add({"loss": step / 2, "lr": 0.5}, step)
        board.close()
    assert written(tmp_path)["loss"] == [(step, step / 2) for step in range(1, 6)]


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A TensorBoard that cannot be imported, before any other on the path."""
    package = tmp_path / "site" / "tensorboard"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise TypeError('Descriptors cannot be created')")
    monkeypatch.syspath_prepend(str(package.parent))
    for name in [name for name in sys.modules if name.startswith(("tensorboard", "torch.utils.tensorboard"))]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def test_a_broken_tensorboard_is_told_once_and_left_out(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    board = Board(broken / "run", first_step=1)
    board.add({"loss": 1.0}, 1)
    board.close()
    (told,) = capsys.readouterr().err.splitlines()
    assert "TypeError: Descriptors cannot be created" in told
    assert str(broken / "run") in told


@pytest.mark.parametrize("fails", ["add_scalar", "close"])
def test_one_that_breaks_in_use_is_told_once_and_left_out(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Writer:
        def __init__(self, *_: object, **__: object) -> None:
            self.scalars: list[object] = []

        def add_scalar(self, *scalar: object) -> None:
            if fails == "add_scalar":
                raise OSError(28, "No space left on device")

        def close(self) -> None:
            raise RuntimeError("the writer's thread has died")

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    board = Board(tmp_path, first_step=1)
    board.add({"loss": 1.0}, 1)
    board.add({"loss": 1.0}, 2)
    board.close()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_without_tensorboard_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    board = Board(tmp_path, first_step=1)
    board.add({"loss": 1.0}, 1)
    board.close()
    assert capsys.readouterr().err == ""
    assert list(tmp_path.iterdir()) == []
