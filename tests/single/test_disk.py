"""Files of a run's folder: never written through a link, with the umask's permissions, flushed where that can be."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from resist_hvd.errors import UserError
from resist_hvd.training.disk import append, create, disk_errors, flush, write_whole
from resist_hvd.training.tensors import SafetensorsStream, write_tensors


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_permissions_are_what_the_umask_leaves(mask: int, mode: int, tmp_path: Path) -> None:
    with umask(mask):
        write_tensors(tmp_path / "tensors", {"a": [torch.ones(3)]})
        write_whole(tmp_path / "whole", "text")
        append(tmp_path / "lines", "line\n")
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == mode, path.name


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("theirs")
    for name in ("whole.partial", "tensors", "lines", "dangling"):
        (tmp_path / name).symlink_to(target if name != "dangling" else tmp_path / "nothing")
    write_whole(tmp_path / "whole", "ours")
    write_tensors(tmp_path / "tensors", {"a": [torch.ones(3)]})
    with create(tmp_path / "dangling") as file:
        file.write(b"ours")
    with pytest.raises(UserError, match="lines"), disk_errors(tmp_path / "lines"):
        append(tmp_path / "lines", "ours")
    assert target.read_text() == "theirs"
    assert not (tmp_path / "nothing").exists()
    assert (tmp_path / "whole").read_text() == "ours"
    assert not (tmp_path / "whole").is_symlink()


def test_what_others_are_given_by_a_hard_link_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("theirs")
    os.link(tmp_path / "theirs", tmp_path / "ours.partial")
    write_whole(tmp_path / "ours", "ours")
    assert (tmp_path / "theirs").read_text() == "theirs"


def refusing(monkeypatch: pytest.MonkeyPatch, number: int, *, folders: bool) -> None:
    """Have fsync fail with an error for folders, or for files."""
    really = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) == folders:
            raise OSError(number, os.strerror(number))
        really(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_that_cannot_flush_is_no_failure(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing(monkeypatch, number, folders=True)
    flush(tmp_path)
    refusing(monkeypatch, number, folders=False)
    write_whole(tmp_path / "file", "text")
    assert (tmp_path / "file").read_text() == "text"


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_flush_that_fails_is_told(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing(monkeypatch, number, folders=True)
    with pytest.raises(OSError, match=os.strerror(number)):
        flush(tmp_path)
    refusing(monkeypatch, number, folders=False)
    (tmp_path / "file").write_text("before")
    with pytest.raises(OSError, match=os.strerror(number)):
        write_whole(tmp_path / "file", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "before"


def test_a_file_of_tensors_is_what_the_library_reads(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(6.0).view(2, 3), "a": torch.ones(()), "none": torch.empty(0)}
    for dtype in (torch.float32, torch.float64):
        shapes, dtypes = {name: tensor.shape for name, tensor in tensors.items()}, dict.fromkeys(tensors, dtype)
        stream = SafetensorsStream(tmp_path / "file", shapes, dtypes)
        for name, tensor in tensors.items():
            stream.write(name, tensor.to(dtype))
        stream.close()
        found = load_file(tmp_path / "file")
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensor.to(dtype)) for name, tensor in tensors.items())
    write_tensors(tmp_path / "empty", {})
    assert load_file(tmp_path / "empty") == {}


@pytest.mark.parametrize("sizes", [(7,), (4, 3), (0, 6, 1)])
def test_a_flat_tensor_is_the_same_in_however_many_pieces_it_lies(sizes: tuple[int, ...], tmp_path: Path) -> None:
    whole = torch.arange(7.0, dtype=torch.float64)
    write_tensors(tmp_path / "file", {"whole": whole.split(sizes)})
    assert torch.equal(load_file(tmp_path / "file")["whole"], whole)


def test_a_stream_that_lacks_a_tensor_is_not_closed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="never written: \\['a'\\]"):
        SafetensorsStream(tmp_path / "file", {"a": (1,)}).close()
