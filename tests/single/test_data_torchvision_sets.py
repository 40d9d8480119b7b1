"""CIFAR and SVHN from tiny files in their own formats, whose checksums torchvision is told to expect."""

import errno
import fcntl
import hashlib
import http.server
import logging
import os
import pickle
import socket
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
from numpy.typing import NDArray
from torchvision import datasets

from resist_hvd.data import Shard, load
from resist_hvd.data.memory import torchvision_sets
from resist_hvd.data.memory.torchvision_sets import read
from resist_hvd.errors import UserError
from resist_hvd.settings.data import DataSettings

CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


CPU = torch.device("cpu")


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def pixels(seed: int, count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)


def write_pickle(path: Path, content: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return path


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CIFAR-10 of two files of three training images and one of two test images."""
    root = tmp_path / "store"
    folder = root / "cifar-10-batches-py"
    labels = {"data_batch_1": [3, 0, 9], "data_batch_2": [1, 1, 2], "test_batch": [7, 8]}
    checksums = {
        name: md5(write_pickle(folder / name, {"data": pixels(seed, len(own)).reshape(-1, 3072), "labels": own}))
        for seed, (name, own) in enumerate(labels.items())
    }
    meta = write_pickle(folder / "batches.meta", {"label_names": CIFAR10_CLASSES})
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [[name, checksums[name]] for name in list(labels)[:2]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", checksums["test_batch"]]])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": md5(meta)})
    return root


@pytest.fixture
def cifar100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "store"
    folder = root / "cifar-100-python"
    train = write_pickle(folder / "train", {"data": pixels(5, 2).reshape(-1, 3072), "fine_labels": [99, 0]})
    test = write_pickle(folder / "test", {"data": pixels(6, 1).reshape(-1, 3072), "fine_labels": [50]})
    meta = write_pickle(folder / "meta", {"fine_label_names": [f"class {number}" for number in range(100)]})
    monkeypatch.setattr(datasets.CIFAR100, "train_list", [["train", md5(train)]])
    monkeypatch.setattr(datasets.CIFAR100, "test_list", [["test", md5(test)]])
    monkeypatch.setattr(datasets.CIFAR100, "meta", {"filename": "meta", "key": "fine_label_names", "md5": md5(meta)})
    return root


@pytest.fixture
def svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "store"
    root.mkdir()
    split_list = {}
    for seed, (split, labels) in enumerate({"train": [10, 1, 5], "test": [9, 10]}.items()):
        path = root / f"{split}_32x32.mat"
        images = pixels(10 + seed, len(labels)).transpose(2, 3, 1, 0)
        scipy.io.savemat(path, {"X": images, "y": np.array(labels, dtype=np.uint8)[:, None]})
        split_list[split] = ["unused", path.name, md5(path)]
    monkeypatch.setattr(datasets.SVHN, "split_list", split_list)
    return root


def settings(root: Path, name: Any = "cifar10", **changes: Any) -> DataSettings:
    return DataSettings(name=name, root=root, batch_size=1, **changes)


def channels_first(images: torch.Tensor) -> NDArray[np.uint8]:
    return images.permute(0, 3, 1, 2).numpy()


def test_cifar10(cifar10: Path) -> None:
    images = read(settings(cifar10))
    assert images.classes == tuple(CIFAR10_CLASSES)
    assert images.train.labels.tolist() == [3, 0, 9, 1, 1, 2]
    assert images.test.labels.tolist() == [7, 8]
    assert np.array_equal(channels_first(images.train.images), np.concatenate([pixels(0, 3), pixels(1, 3)]))
    assert np.array_equal(channels_first(images.test.images), pixels(2, 2))
    assert images.train.padding == 4
    assert images.mirrored


@pytest.mark.parametrize(("size", "padding"), [(24, 3), (64, 8)])
def test_images_are_scaled_once_as_a_single_one_is(size: int, padding: int, cifar10: Path) -> None:
    images = read(settings(cifar10, image_size=size, decode_threads=2))
    assert (images.train.image_size, images.train.padding) == (size, padding)
    with load(settings(cifar10, image_size=size), shard=Shard(rank=0, size=1), seed=1, device=CPU) as source:
        ((expected, labels),) = source.test()
        prepare = source.spec.preprocess
    assert labels.tolist() == [7, 8]
    assert torch.equal(torch.stack([prepare(torch.from_numpy(image)) for image in pixels(2, 2)]), expected)


def test_images_that_would_fill_memory_are_refused_before_they_are_scaled(cifar10: Path) -> None:
    with pytest.raises(UserError, match=r"0.0307 GiB .* 0.02 GiB of --data.resident_limit_gib.*--data.image_size"):
        read(settings(cifar10, image_size=1000, crop_padding=112, resident_limit_gib=0.02))


def test_cifar100(cifar100: Path) -> None:
    images = read(settings(cifar100, "cifar100", crop_padding=0))
    assert images.classes == tuple(f"class {number}" for number in range(100))
    assert images.train.labels.tolist() == [99, 0]
    assert images.test.labels.tolist() == [50]
    assert np.array_equal(channels_first(images.train.images), pixels(5, 2))
    assert images.train.padding == 0


def test_svhn(svhn: Path) -> None:
    images = read(settings(svhn, "svhn"))
    assert images.classes == tuple("0123456789")
    assert images.train.labels.tolist() == [0, 1, 5]
    assert images.test.labels.tolist() == [9, 0]
    assert np.array_equal(channels_first(images.train.images), pixels(10, 3))
    assert np.array_equal(channels_first(images.test.images), pixels(11, 2))
    assert not images.mirrored


def test_they_load_as_sources(cifar10: Path) -> None:
    source = load(settings(cifar10), shard=Shard(rank=1, size=2), seed=0, device=torch.device("cpu"))
    assert source.spec.name == "cifar10"
    assert (source.spec.channels, source.spec.image_size) == (3, 32)
    assert (source.spec.train_size, source.spec.test_size) == (6, 2)
    assert [labels.tolist() for _, labels in source.test()] == [[8]]


def test_the_default_root_is_the_folder_data(cifar10: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar10.rename(cifar10.parent / "data")
    monkeypatch.chdir(cifar10.parent)
    assert len(read(DataSettings(name="cifar10")).train) == 6


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_missing_files_name_the_folder_and_the_flag(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError) as info:
        read(settings(tmp_path / "nothing", name))
    assert info.value.seen == f"The files of {name} are missing or damaged"
    assert info.value.where == str(tmp_path / "nothing")
    assert "--data.download true" in info.value.mend
    assert not (tmp_path / "nothing").exists()


class Trap:
    """Unpickling this is what must not happen."""

    sprung = False

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return setattr, (Trap, "sprung", True)


@pytest.mark.parametrize("file", ["data_batch_2", "test_batch"])
def test_a_changed_file_is_refused_before_it_is_unpickled(cifar10: Path, file: str) -> None:
    path = cifar10 / "cifar-10-batches-py" / file
    path.write_bytes(pickle.dumps(Trap()))
    pickle.loads(path.read_bytes())
    assert Trap.sprung  # so it is a trap
    Trap.sprung = False
    with pytest.raises(UserError, match="missing or damaged"):
        read(settings(cifar10))
    assert not Trap.sprung


# Fetching


@pytest.fixture
def served(cifar10: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """CIFAR-10's archive on a local server; the list grows by a line for each request."""
    published = cifar10.rename(cifar10.parent / "published")
    archive = published / "cifar.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(published / "cifar-10-batches-py", "cifar-10-batches-py")
    requests: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            time.sleep(0.3)  # long enough for others to come and find it going on
            super().do_GET()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=published)) as server:
        monkeypatch.setattr(datasets.CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/{archive.name}")
        monkeypatch.setattr(datasets.CIFAR10, "filename", archive.name)
        monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(archive))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield requests
        server.shutdown()


def test_missing_files_are_fetched_once_where_they_may_be(served: list[str], tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        wanted = settings(tmp_path / "store" / "deep", download=True)
        results = list(pool.map(lambda _: read(wanted), range(4)))
    # torchvision asks twice for what it fetches, the first time only to follow redirections.
    assert 1 <= len(served) <= 2
    assert all(torch.equal(images.train.padded, results[0].train.padded) for images in results)
    assert np.array_equal(channels_first(results[0].test.images), pixels(2, 2))
    count = len(served)
    read(wanted)
    read(settings(tmp_path / "store" / "deep"))
    assert len(served) == count


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_systems_without_locks_will_do(
    code: int, served: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(torchvision_sets.fcntl, "flock", refuse)
    images = read(settings(tmp_path / "store", download=True))
    assert np.array_equal(channels_first(images.test.images), pixels(2, 2))
    # Another worker that fetched at the same time finds everything in place.
    assert len(torchvision_sets._fetched_apart("cifar10", tmp_path / "store", train=True)) == 6
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == [
        ".cifar10.lock", "cifar-10-batches-py", "cifar.tar.gz",
    ]  # fmt: skip


def test_a_download_of_something_else_is_refused(
    served: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", "0" * 32)
    with pytest.raises(UserError, match=r"cifar10 cannot be fetched: File not found or corrupted.*Check the network"):
        read(settings(tmp_path / "store", download=True))


def test_a_network_that_does_not_answer_is_told(cifar10: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(datasets.CIFAR10, "url", f"http://127.0.0.1:{silent.getsockname()[1]}/x")
        monkeypatch.setattr(torchvision_sets, "_SILENCE_LIMIT", 0.2)
        with pytest.raises(UserError, match=r"cifar10 cannot be fetched: .*timed out"):
            read(settings(tmp_path / "other", download=True))
    assert socket.getdefaulttimeout() is None


def test_a_folder_that_cannot_be_written_is_told(cifar10: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cifar10 cannot be fetched: .*Not a directory"):
        read(settings(tmp_path / "file" / "store", download=True))


def test_who_waits_for_another_download_says_so(
    served: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "store"
    root.mkdir()
    with (root / ".cifar10.lock").open("w") as other, ThreadPoolExecutor(1) as pool:
        fcntl.flock(other, fcntl.LOCK_EX)
        with caplog.at_level(logging.WARNING):
            waiting = pool.submit(read, settings(root, download=True))
            deadline = time.monotonic() + 60
            while not caplog.records and time.monotonic() < deadline:
                time.sleep(0.01)
        assert [record.getMessage() for record in caplog.records] == [
            f"Waiting for another worker that fetches data [{root}]"
        ]
        assert not waiting.done()
        fcntl.flock(other, fcntl.LOCK_UN)
        assert len(waiting.result(timeout=60).train) == 6
