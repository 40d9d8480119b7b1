"""Disks that fill up while a run writes: it ends with the file's name, and what it had saved stays as it is.

Where the tests may mount file systems, the disk is a small one that is really full. Elsewhere the files of a rank may
not grow beyond a limit, which the operating system refuses in the same way.
"""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from resist_hvd.training.checkpoint import verify

from . import runs

KIBIBYTE = 1024
CHECKPOINT = 700 * KIBIBYTE
"""What a checkpoint of the tiny network takes, and its exported model too: a little less than this."""


@contextmanager
def disk(folder: Path, size: int) -> Iterator[Path]:
    """Mount a file system in memory of a size in bytes; skip the test where this is not allowed."""
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if mount.returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def fill(folder: Path) -> None:
    """Leave no free page on the disk that a folder is on."""
    descriptor = os.open(folder / "filler", os.O_CREAT | os.O_WRONLY)
    try:
        while True:
            os.write(descriptor, bytes(4 * KIBIBYTE))
    except OSError:
        os.close(descriptor)


def test_checkpoint_that_does_not_fit_leaves_the_one_before(tiny: list[str], tmp_path: Path) -> None:
    with disk(tmp_path / "disk", CHECKPOINT * 4 // 3) as small:
        ended = runs.run(*tiny, "--output", small / "run")
        partial = small / "run/checkpoints/.round-000004.partial"
        assert re.fullmatch(
            rf"Cannot write: No space left on device \[{re.escape(str(partial))}\S*, "
            rf"(all 2 ranks|rank \d of 2 on {runs.HOST}), writing the checkpoint of round 4\]\. "
            r"Free space there, then go on with --resume\. What was saved before is untouched\.",
            ended.mistake,
        ), ended
        assert ended.status == 2
        assert not partial.exists()
        assert (small / "run/checkpoints/latest").read_text() == "round-000002\n"
        assert verify(small / "run/checkpoints/round-000002").progress.round == 2


def test_model_that_does_not_fit_leaves_the_checkpoint_and_no_part_of_itself(tiny: list[str], tmp_path: Path) -> None:
    with disk(tmp_path / "disk", CHECKPOINT * 5 // 3) as small:
        ended = runs.run(*tiny, "--checkpoint_every=0", "--output", small / "run")
        assert ended.mistake == (
            f"Cannot write: No space left on device [{small}/run/model.safetensors.partial, rank 0 of 2 on "
            f"{runs.HOST}, exporting the model]. "
            "Free space there, then go on with --resume. What was saved before is untouched."
        )
        assert ended.status == 2
        assert not list((small / "run").glob("model.*"))
        assert verify(small / "run/checkpoints/round-000004").progress.round == 4


def test_line_that_does_not_fit_ends_the_run(tiny: list[str], tmp_path: Path) -> None:
    with disk(tmp_path / "disk", 8 * CHECKPOINT) as small:
        folder = small / "run"
        endless = ("--epochs=100000", "--evaluate_every=0", "--checkpoint_every=0")
        with runs.started(*tiny, *endless, "--output", folder) as running:
            running.wait_for(r"round +3/")
            fill(small)
            ended = running.end()
        assert f"Cannot write: No space left on device [{folder}/rounds.jsonl, rank 0 of 2 on " in ended.mistake
        assert ended.mistake.endswith("What was saved before is untouched.")
        assert ended.status == 2


LIMITED = """
import resource
from resist_hvd.training import checkpoint

write = checkpoint.write_tensors


def write_within_limit(path, tensors):
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    return write(path, tensors)


checkpoint.write_tensors = write_within_limit
"""


def test_checkpoint_beyond_a_limit_leaves_the_one_before(
    tiny: list[str], copy_of_cut: Path, program: Callable[[str], list[str]]
) -> None:
    before = runs.contents(copy_of_cut / "checkpoints")
    ended = runs.run(*tiny, "--resume", "--output", copy_of_cut, program=program(LIMITED), launcher="none")
    assert ended.mistake.startswith(f"Cannot write: File too large [{copy_of_cut}/checkpoints/.round-00000")
    assert "Free space there, then go on with --resume." in ended.mistake
    assert ended.status == 2
    assert runs.contents(copy_of_cut / "checkpoints") == before
