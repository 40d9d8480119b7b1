"""Finding the checkpoint to go on from: what is damaged is passed over, and what only cannot be seen is not."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch

from resist_hvd import tensor_files
from resist_hvd.errors import UserError
from resist_hvd.training import checkpoint
from resist_hvd.training.checkpoint import (
    DamagedError,
    describe_file,
    find_newest,
    put_into_place,
    restore_replaced,
    superseded,
)
from resist_hvd.training.folder import complete
from resist_hvd.training.manifest import seal
from resist_hvd.training.tensors import write_tensors

TRUNK = torch.arange(8.0)


def manifest_of(round_number: int) -> dict[str, Any]:
    return {
        "format": 2,
        "method": "resist",
        "network": {"family": "preact_resnet", "classes": 2},
        "data": "noise",
        "classes": ["a", "b"],
        "workers": 1,
        "partition": [[0]],
        "progress": {"round": round_number, "samples": 8 * round_number, "accuracy": None},
        "files": {},
    }


def make(run: Path, round_number: int, change: Callable[[dict[str, Any]], object] = lambda _: None) -> Path:
    """Write a checkpoint with a sound seal, whatever was changed in its manifest."""
    folder = run / "checkpoints" / f"round-{round_number:06d}"
    folder.mkdir(parents=True)
    manifest = manifest_of(round_number)
    files: dict[str, dict[str, list[torch.Tensor]]] = {"trunk": {"trunk": [TRUNK]}, "worker-0000": {}}
    for name, tensors in files.items():
        path = folder / f"{name}.safetensors"
        write_tensors(path, tensors)
        manifest["files"][path.name] = describe_file(path, tensors)
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps({**manifest, "sha256": seal(manifest)}))
    return folder


def unmapped(*_: Any, **__: Any) -> Any:
    raise safetensors.SafetensorError("No such device (os error 19)")


def remove(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: manifest.pop(name)


FOREIGN = {
    "an unknown field": lambda manifest: manifest["progress"].update(epoch=1),
    "a field of another type": lambda manifest: manifest["progress"].update(round="1"),
    "anchors that are no pairs": lambda manifest: manifest["progress"].update(anchors=[[0.5, 0.5], [0.5]]),
    "no position": lambda manifest: manifest["progress"].pop("samples"),
    "progress that is no object": lambda manifest: manifest.update(progress=[1]),
    "a position before the first image": lambda manifest: manifest["progress"].update(samples=-8),
    "a position within an image": lambda manifest: manifest["progress"].update(samples=8.5),
    "fewer parts": lambda manifest: manifest.update(partition=[]),
    "parts that are no lists": lambda manifest: manifest.update(partition=[0]),
    "workers in words": lambda manifest: manifest.update(workers="one"),
    "other classes": lambda manifest: manifest.update(classes=["a"]),
    "blocks scaled by nothing": lambda manifest: manifest.update(scales=[0.0]),
    "another format": lambda manifest: manifest.update(format=3),
    "a network of no classes": lambda manifest: manifest.update(network={"family": "preact_resnet"}),
    "an older one without an architecture": lambda manifest: manifest.update(format=1),
    "a file of another folder": lambda manifest: manifest["files"].update(
        {"../../outside": {"bytes": 0, "sha256": "", "tensors": []}}
    ),
    "no file of a worker": lambda manifest: manifest["files"].pop("worker-0000.safetensors"),
    "files that are a list": lambda manifest: manifest.update(files=["trunk"]),
    **{f"no {name}": remove(name) for name in manifest_of(1)},
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_sealed_manifest_of_another_version_is_passed_over_with_a_sentence(what: str, tmp_path: Path) -> None:
    make(tmp_path, 1)
    foreign = make(tmp_path, 2, FOREIGN[what])
    newest, passed_over = find_newest(tmp_path)
    assert newest is not None
    assert newest.progress.round == 1
    (sentence,) = passed_over
    assert str(foreign) in sentence
    assert "damaged" in sentence


@pytest.mark.parametrize(
    ("partition", "sections", "scales", "of_decks"),
    [
        ("section3", [1, 1, 5, 1], [1.0, 1.0, 0.25, 1.0], [0.25]),
        ("section3", [1, 1, 1], [1.0, 1.0, 1.0], []),
        ("all", [2, 1, 4, 1], [0.5, 1.0, 0.25, 1.0], [0.5, 0.25]),
        ("all", [2, 1, 4, 1], None, None),
    ],
)
def test_manifests_of_the_first_format_are_read(
    partition: Any, sections: list[int], scales: list[float] | None, of_decks: list[float] | None, tmp_path: Path
) -> None:
    architecture = {
        "sections": sections,
        "block": "basic",
        "stem": "cifar",
        "width": 64,
        "final_norm": True,
        "partition": partition,
        "channels": 3,
        "classes": 2,
    }

    def as_it_was(manifest: dict[str, Any]) -> None:
        # It had positions in the data, which are passed over, and a scale for each section.
        del manifest["network"]
        manifest.update(format=1, architecture=architecture, scales=scales)
        manifest["data_states"] = [{"samples_drawn": 8, "workers": 1}]

    make(tmp_path, 1, as_it_was)
    newest, passed_over = find_newest(tmp_path)
    assert newest is not None
    assert (newest.progress.samples, passed_over) == (8, [])
    assert newest.manifest["network"] == {"family": "preact_resnet", **architecture}
    assert newest.manifest["scales"] == of_decks


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "[]", "{", "null", '{"format": 1}', "1" * 10_000, "\ud800"]
)
def test_what_is_no_manifest_is_passed_over_with_a_sentence(text: str, tmp_path: Path) -> None:
    make(tmp_path, 1)
    damaged = make(tmp_path, 2)
    (damaged / "manifest.json").write_bytes(text.encode(errors="surrogatepass"))
    newest, passed_over = find_newest(tmp_path)
    assert newest is not None
    assert newest.progress.round == 1
    assert len(passed_over) == 1


def test_a_manifest_of_any_size_is_not_read_whole(tmp_path: Path) -> None:
    damaged = make(tmp_path, 1)
    os.truncate(damaged / "manifest.json", 2**40)
    with pytest.raises(UserError, match=r"manifest\.json"):
        find_newest(tmp_path)


def test_there_are_no_checkpoints(tmp_path: Path) -> None:
    assert find_newest(tmp_path) == (None, [])
    (tmp_path / "checkpoints").mkdir()
    assert find_newest(tmp_path) == (None, [])


def test_checkpoints_on_a_disk_that_is_not_mounted_are_not_taken_for_none(tmp_path: Path) -> None:
    link = tmp_path / "checkpoints"
    link.symlink_to(tmp_path / "not mounted")
    with pytest.raises(UserError) as caught:
        find_newest(tmp_path)
    assert str(link) in str(caught.value)
    make(tmp_path / "disk", 3)
    link.unlink()
    link.symlink_to(tmp_path / "disk" / "checkpoints")
    newest, _ = find_newest(tmp_path)
    assert newest is not None
    assert newest.folder.name == "round-000003"


def denying(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, place: Path, number: int) -> None:
    """Have a function fail for one path: the tests may be root, to whom nothing is denied."""
    really = getattr(where, name)

    def denied(path: Any, *rest: Any, **more: Any) -> Any:
        if Path(path) == place:
            raise OSError(number, os.strerror(number), str(path))
        return really(path, *rest, **more)

    monkeypatch.setattr(where, name, denied)


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE, errno.ENOTCONN])
def test_checkpoints_that_cannot_be_listed_are_not_taken_for_none(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, 1)
    denying(monkeypatch, os, "listdir", tmp_path / "checkpoints", number)
    with pytest.raises(UserError, match=os.strerror(number)) as caught:
        find_newest(tmp_path)
    assert str(tmp_path / "checkpoints") in str(caught.value)
    assert complete(tmp_path / "elsewhere") == []


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, 1)
    newest = make(tmp_path, 2)
    with monkeypatch.context() as patch:
        denying(patch, Path, "open", newest / "trunk.safetensors", errno.EACCES)
        with pytest.raises(UserError, match="Permission denied") as caught:
            find_newest(tmp_path)
    assert not isinstance(caught.value, DamagedError)
    assert "damaged" not in str(caught.value)
    assert str(newest / "trunk.safetensors") in str(caught.value)
    # A broken disk is damage, for which an older checkpoint stands in.
    denying(monkeypatch, Path, "open", newest / "trunk.safetensors", errno.EIO)
    found, passed_over = find_newest(tmp_path)
    assert found is not None
    assert (found.progress.round, len(passed_over)) == (1, 1)


def test_files_that_cannot_be_mapped_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, 1)
    found, _ = find_newest(tmp_path)
    assert found is not None
    monkeypatch.setattr(tensor_files, "safe_open", unmapped)
    trunk = torch.zeros(8)
    found.read({"trunk": list(trunk.split([5, 3]))})
    assert torch.equal(trunk, TRUNK)
    with pytest.raises(DamagedError, match="trunk has 8 numbers where the network has 7"):
        found.read({"trunk": list(trunk[:7].split([5, 2]))})
    (found.folder / "trunk.safetensors").write_bytes(b"nonsense")
    with pytest.raises(DamagedError, match=r"trunk\.safetensors"):
        found.read({"trunk": [trunk]})


def test_a_checkpoint_is_there_whenever_the_process_dies_that_replaces_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = make(tmp_path, 4)
    (make(tmp_path, 5)).rename(partial := tmp_path / "checkpoints" / ".round-000004.partial")

    class KilledError(Exception):
        pass

    def killed(self: Path, target: Path) -> Path:
        if self == partial:
            raise KilledError
        return really(self, target)

    really = Path.rename
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KilledError):
            put_into_place(partial, final)
    restore_replaced(tmp_path / "checkpoints")
    found, _ = find_newest(tmp_path)
    assert found is not None
    assert found.folder == final
    put_into_place(partial, final)
    assert sorted(path.name for path in final.parent.iterdir()) == ["latest", "round-000004"]
    assert json.loads((final / "manifest.json").read_text())["progress"]["round"] == 5


def test_what_others_put_in_a_checkpoints_place_is_removed_and_not_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "file").touch()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "theirs")
    checkpoint.clear(link)
    assert not os.path.lexists(link)
    assert (tmp_path / "theirs" / "file").exists()


def test_a_checkpoint_just_written_never_makes_room_for_a_damaged_one_of_a_later_round(tmp_path: Path) -> None:
    for number in (7, 8, 9, 10, 11):
        make(tmp_path, number)
    folder = tmp_path / "checkpoints"
    assert [path.name[-2:] for path in superseded(folder, 9, keep=1)] == ["08", "07"]
    assert [path.name[-2:] for path in superseded(folder, 9, keep=2)] == ["07"]
    assert [path.name[-2:] for path in superseded(folder, 11, keep=3)] == ["08", "07"]


def test_a_file_that_cannot_be_mapped_is_read_once_for_all_its_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "blocks.safetensors"
    names = [f"block.{number}" for number in range(5)]
    write_tensors(path, {name: [torch.full((3,), float(n))] for n, name in enumerate(names)})
    reads: list[Path] = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(tensor_files, "safe_open", unmapped)
    monkeypatch.setattr(Path, "read_bytes", lambda path: (reads.append(path), read_bytes(path))[1])
    found = dict(tensor_files.each_tensor(path, names))
    assert [found[name][0].item() for name in names] == [0, 1, 2, 3, 4]
    assert reads == [path]
