"""What a run is given besides its settings: images, checkpoints, a folder to write to, a device."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from resist_hvd.errors import UserError
from resist_hvd.training.checkpoint import find_newest, verify

from . import runs
from .conftest import make_images


def where(path: Path | str, position: str, *, ranks: int) -> str:
    """Return what a message says of the place that something was seen at, by all ranks."""
    who = f"all {ranks} ranks" if ranks > 1 else f"rank 0 of 1 on {runs.HOST}"
    return f"[{path}, {who}, {position}]"


# Images


def test_missing_data_folder_is_told_by_all_ranks_together(tiny: list[str], tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    ended = runs.run(*tiny, "--data.root", missing, "--output", tmp_path / "run")
    assert ended.mistake == (
        f"There is no such folder {where(missing, 'loading the data', ranks=2)}. "
        "Give the folder that holds train and test or val with --data.root."
    )
    assert ended.status == 2


def test_unreadable_image_is_named_and_the_run_left_as_it_was(
    tiny: list[str], copy_of_cut: Path, tmp_path: Path
) -> None:
    before = runs.contents(copy_of_cut)
    root = make_images(tmp_path / "images")
    damaged = root / "train/cross/007.png"
    damaged.write_bytes(damaged.read_bytes()[:40])
    ended = runs.run(*tiny, "--resume", "--data.root", root, "--output", copy_of_cut)
    assert ended.mistake == (
        f"The image file is no image, or one of an unknown format {where(damaged, 'loading the data', ranks=2)}. "
        "Put a sound copy in its place, or pass over broken files with --data.broken_files skip."
    )
    assert runs.contents(copy_of_cut) == before


# Checkpoints


def flip_trunk(checkpoint: Path) -> str:
    runs.flip_byte(checkpoint / "trunk.safetensors")
    return "trunk.safetensors is not what was written (its SHA-256 differs)"


def cut_blocks(checkpoint: Path) -> str:
    path = checkpoint / "blocks-0000.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    return "blocks-0000.safetensors is missing or cut short"


def change_manifest(checkpoint: Path) -> str:
    path = checkpoint / "manifest.json"
    text = path.read_text()
    assert '"samples": 64' in text
    path.write_text(text.replace('"samples": 64', '"samples": 65'))
    return "manifest.json is not what was written (its SHA-256 differs)"


def cut_manifest(checkpoint: Path) -> str:
    path = checkpoint / "manifest.json"
    path.write_bytes(path.read_bytes()[:-20])
    return "manifest.json is cut short, or is no manifest"


@pytest.mark.parametrize("damage", [flip_trunk, cut_blocks, change_manifest, cut_manifest])
def test_damage_to_any_file_of_a_checkpoint_is_found(damage: Callable[[Path], str], copy_of_cut: Path) -> None:
    checkpoint = copy_of_cut / "checkpoints/round-000002"
    assert verify(checkpoint).folder == checkpoint
    how = damage(checkpoint)
    with pytest.raises(UserError, match=re.escape(f"The checkpoint is damaged: {how} [{checkpoint}]. Start anew")):
        find_newest(copy_of_cut)


def test_run_with_no_good_checkpoint_is_refused_and_left_as_it_is(tiny: list[str], copy_of_cut: Path) -> None:
    checkpoint = copy_of_cut / "checkpoints/round-000002"
    how = flip_trunk(checkpoint)
    before = runs.contents(copy_of_cut)
    ended = runs.run(*tiny, "--resume", "--output", copy_of_cut)
    assert ended.mistake == (
        f"The checkpoint is damaged: {how} [{checkpoint}, rank 0 of 2 on {runs.HOST}, opening the run's folder]. "
        "Start anew with another --output."
    )
    assert ended.status == 2
    assert runs.contents(copy_of_cut) == before


# A place to write to, and a device


def test_output_that_cannot_be_written_is_told(tiny: list[str], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    ended = runs.run(*tiny, "--output", file / "run", launcher="none")
    assert ended.mistake.startswith(f"Cannot write: Not a directory [{file}/run, rank 0 of 1 on {runs.HOST}, opening")
    assert "Give an --output that can be written." in ended.mistake


def test_gpu_that_is_asked_for_and_not_there_is_told_by_all_ranks_together(tiny: list[str], tmp_path: Path) -> None:
    ended = runs.run(*tiny, "--device=cuda", "--output", tmp_path / "run", CUDA_VISIBLE_DEVICES="")
    for fact in ("--device is cuda", "sees no GPU", "all 2 ranks", "nvidia-smi", "--device cpu"):
        assert fact in ended.mistake
    assert not (tmp_path / "run").exists()
