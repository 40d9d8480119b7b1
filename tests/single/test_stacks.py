"""What a rank writes when a world stands still: every thread's stack, into the run's folder and nowhere else."""

import os
import threading
from pathlib import Path

import pytest

from resist_hvd.guard import stacks


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "_folder", tmp_path)


def waits_here(event: threading.Event) -> None:
    event.wait()


def test_stacks_of_all_threads_are_written(tmp_path: Path) -> None:
    event = threading.Event()
    thread = threading.Thread(target=waits_here, args=(event,), name="other", daemon=True)
    thread.start()
    path = tmp_path / "stalled-rank0003.txt"
    path.write_text("what was written when it stood still before\n" * 1000)
    try:
        stacks.write(3, "rank 3 of 4: round 7, synchronising; wait 12", patience=30)
    finally:
        event.set()
    text = path.read_text()
    assert "rank 3 of 4: round 7, synchronising; wait 12" in text
    assert "in waits_here" in text
    assert "in test_stacks_of_all_threads_are_written" in text or "in _write" in text
    assert f"\n{os.getpid()}  " in text  # the main thread, as the kernel knows it
    assert "stood still before" not in text
    assert stacks.place() == f"{tmp_path}/stalled-rank*.txt"


def test_it_is_never_written_through_a_link(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / "stalled-rank0000.txt").symlink_to(precious)
    stacks.write(0, "", patience=30)
    assert precious.read_text() == "precious"


def test_a_pipe_in_its_place_blocks_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "stalled-rank0000.txt")
    stacks.write(0, "", patience=30)
    assert not [thread for thread in threading.enumerate() if thread.name == "stacks"]


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "_folder", None)
    stacks.write(0, "", patience=30)
    assert stacks.place() == ""
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_gone_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "_folder", tmp_path / "gone")
    stacks.write(0, "", patience=30)
