"""DALI and torchvision make the same batches, to within what decoding and scaling round differently."""

import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from resist_hvd.data import DataSource, Shard, load
from resist_hvd.data.files.loader import STD
from resist_hvd.data.files.torchvision_loader import PlainBatches
from resist_hvd.settings.data import DaliSettings, DataSettings

from .. import photographs

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")

from nvidia.dali import types

from resist_hvd.data.files.dali_graph import Means, evaluation_pipeline, reading_pipeline, training_pipeline

CPU = torch.device("cpu")
ARCHIVE = "imagenet-sample.tar"


@contextmanager
def source_of(root: Path, loader: str, *, device: torch.device = CPU, **changes: Any) -> Iterator[DataSource]:
    values = {"batch_size": 8, "test_batch_size": 16, "image_size": photographs.SIZE, "decode_threads": 1}
    settings = DataSettings(name="imagenet", root=root, loader=loader, **{**values, **changes})  # type: ignore[arg-type]
    with load(settings, shard=Shard(rank=0, size=1), seed=5, device=device) as source:
        yield source


def batches_of(
    root: Path, loader: str, *, half: str, batches: int = 3, **changes: Any
) -> tuple[torch.Tensor, list[int]]:
    """Some batches in grey levels from 0 to 255, and their labels."""
    with source_of(root, loader, **changes) as source:
        stream = source.train()
        found = list(source.test()) if half == "val" else [next(stream) for _ in range(batches)]
    levels = torch.cat([images.cpu() for images, _ in found]) * torch.tensor(STD).view(3, 1, 1)
    return levels, torch.cat([labels for _, labels in found]).tolist()


def differences(root: Path, **changes: Any) -> torch.Tensor:
    """Each image's differences between the loaders, in grey levels: [N, pixels]."""
    (dali, labels), (torchvision, same) = (batches_of(root, loader, **changes) for loader in ("dali", "torchvision"))
    assert labels == same
    assert len(dali) > 0
    return (dali - torchvision).abs().flatten(1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs.make_root(tmp_path_factory.mktemp("agree") / "data", train=8, val=6)


def test_evaluation_batches_agree_pixel_for_pixel(root: Path) -> None:
    assert differences(root, half="val").max() < 1.01


@pytest.mark.parametrize("changes", [{"test_resize": 32}, {"test_resize": 41}, {"image_size": 33, "test_resize": 40}])
def test_so_they_do_at_any_size(root: Path, changes: dict[str, int]) -> None:
    assert differences(root, half="val", **changes).max() < 1.01


@pytest.mark.parametrize("changes", [{}, {"flip": False}, {"crop_area": 0.5}, {"color_jitter": 0.4}])
def test_training_batches_agree(root: Path, changes: dict[str, Any]) -> None:
    found = differences(root, half="train", **changes)
    # DALI decodes a window alone: at its border, colours are interpolated from fewer neighbours.
    assert found.mean(dim=1).max() < 1.0
    assert found.quantile(0.99) < 2.01


def test_the_augmentation_is_not_what_makes_them_agree(root: Path) -> None:
    """Were crops, mirroring or colours ignored by both, the tests above would not notice."""
    plain, labels = batches_of(root, "dali", half="train")
    for changes in ({"flip": False}, {"crop_area": 0.5}, {"color_jitter": 0.4}):
        changed, same = batches_of(root, "dali", half="train", **changes)
        assert labels == same
        assert (plain - changed).abs().mean() > 3


@pytest.mark.parametrize("kind", photographs.odd_files())
def test_files_of_odd_kinds_agree(kind: str, tmp_path: Path) -> None:
    folder = photographs.make_root(tmp_path / "data", classes=1, train=1, val=1)
    for half in ("train", "val"):
        (folder / half / "n00000000" / f"{half}_0_0.JPEG").write_bytes(photographs.odd_files()[kind])
    assert differences(folder, half="val", batch_size=1).max() < 1.01
    found = differences(folder, half="train", batch_size=1, batches=6)
    assert found.mean(dim=1).max() < 1.0


def test_an_odd_file_is_decoded_to_what_it_shows(tmp_path: Path) -> None:
    """Both loaders might be wrong alike: CMYK inverted, say. Every odd file but these shows the same picture."""
    odd = photographs.odd_files()
    folder = photographs.make_root(tmp_path / "data", classes=1, train=1, val=1)
    plain = folder / "val" / "n00000000" / "val_0_0.JPEG"
    plain.write_bytes(photographs.encode(photographs.picture(1000, 90, 70), "PNG"))
    expected, _ = batches_of(folder, "dali", half="val", batch_size=1)
    for kind in sorted(odd.keys() - {"grey", "png-grey", "png-palette", "one-pixel", "narrow"}):
        plain.write_bytes(odd[kind])
        found, _ = batches_of(folder, "dali", half="val", batch_size=1)
        assert (found - expected).abs().mean() < 4, kind


@pytest.mark.parametrize("kind", ["gif", "tiff", "tiff-turned", "tiff-palette", "ppm-of-another-maximum", "pbm"])
@pytest.mark.parametrize("named", ["as what it is", "as JPEG"])
def test_formats_that_dali_does_not_decode_alike_are_decoded_by_pillow(kind: str, named: str, tmp_path: Path) -> None:
    folder = photographs.make_root(tmp_path / "data", classes=1, train=4, val=4)
    ending = "JPEG" if named == "as JPEG" else photographs.foreign_files()[kind][0]
    for half in ("train", "val"):
        (folder / half / "n00000000" / f"{half}_0_2.JPEG").unlink()
        content = photographs.foreign_files()[kind][1]
        (folder / half / "n00000000" / f"{half}_0_2.{ending}").write_bytes(content)
    assert differences(folder, half="val", batch_size=4, test_batch_size=4).max() < 1.01
    assert differences(folder, half="train", batch_size=4, batches=6).mean(dim=1).max() < 1.0


def test_a_set_of_nothing_but_such_files(tmp_path: Path) -> None:
    folder = photographs.make_root(tmp_path / "data", classes=2, train=3, val=3)
    for number, file in enumerate(sorted(folder.glob("*/*/*.JPEG"))):
        with Image.open(file) as image:
            image.save(file.with_suffix(".GIF" if number % 2 else ".tif"))
        file.unlink()
    assert differences(folder, half="val", batch_size=4, test_batch_size=4).max() < 1.01
    assert differences(folder, half="train", batch_size=4).mean(dim=1).max() < 1.0


def test_what_a_decoder_of_dali_does_not_know_is_left_to_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's decoder may know less than a CPU's. Here nobody foresees that DALI knows no GIF."""
    monkeypatch.setattr("resist_hvd.data.files.stand_ins._FOREIGN_STARTS", (b"none",))
    folder = photographs.make_root(tmp_path / "data", classes=1, train=4, val=1)
    (folder / "train/n00000000/train_0_2.JPEG").write_bytes(photographs.foreign_files()["gif"][1])
    with source_of(folder, "dali", batch_size=4) as source:
        assert len(next(source.train())[1]) == 4
        assert source.broken_files() == {}
    assert differences(folder, half="train", batch_size=4).mean(dim=1).max() < 1.0


@pytest.mark.parametrize("ending", ["JPEG", "gif"])
def test_images_that_are_too_large_are_named_and_not_called_damaged(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photographs.make_root(tmp_path / "data", classes=1, train=4, val=4)
    large = [folder / half / "n00000000" / f"{half}_0_9.{ending}" for half in ("train", "val")]
    for file in large:
        file.write_bytes(photographs.encode(photographs.picture(3, 200, 100), "GIF" if ending == "gif" else "JPEG"))
    monkeypatch.setattr("resist_hvd.data.decoding.LARGEST_IMAGE", 19_999)
    monkeypatch.setattr("resist_hvd.data.files.dali.LARGEST_IMAGE", 19_999)
    fault = "has 100 x 200 pixels, more than the 19,999 that are read: scale it down"
    with source_of(folder, "dali", batch_size=5, broken_files="skip") as source:
        assert len(next(source.train())[1]) == 5
        assert sum(len(labels) for _, labels in source.test()) == 4
        assert source.broken_files() == {str(file): fault for file in large}
    # The processes of the other loader know nothing of the lower limit: what they run is run here.
    with source_of(folder, "torchvision", batch_size=5, broken_files="skip") as source:
        batches = PlainBatches(source._loader.settings, source._test, np.arange(5))  # type: ignore[attr-defined]
        _, labels, faults = batches[0]
        assert (len(labels), list(faults.values())) == (4, [fault])


def test_files_are_read_whole_with_the_sides_of_their_images(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    sides = random.integers(1, 300, size=(32, 2))
    paths = []
    for number, (height, width) in enumerate(sides.tolist()):
        paths.append(tmp_path / f"{number}.JPEG")
        kind = ("JPEG", "PNG")[number % 2]
        Image.new(("L", "RGB", "CMYK" if kind == "JPEG" else "P")[number % 3], (width, height)).save(paths[-1], kind)
    means = Means(batch_size=32, threads=2, prefetch=1, device_id=None, tuning=DaliSettings())
    named = [np.frombuffer(os.fsencode(path), dtype=np.uint8) for path in paths]
    pipeline = reading_pipeline(means, lambda: (named,))
    pipeline.build()
    files, found, ends = pipeline.run()
    assert np.array_equal(found.as_array(), sides)
    for path, file, end in zip(paths, files, np.asarray(ends.as_array()), strict=True):
        assert np.asarray(file).tobytes() == path.read_bytes()
        assert end.tobytes() == path.read_bytes()[-2:]


@pytest.mark.parametrize(("device", "readers"), [("cpu", 3), ("cuda", 16)])
def test_files_are_read_by_threads_of_their_own(device: str, readers: int) -> None:
    """Many of them for a GPU, whatever its cores: they wait for a file server."""
    settings = DataSettings(name="imagenet", root=Path("nowhere"), decode_threads=3)
    means = Means.of(settings, 4, torch.device(device))
    assert (means.threads, means.for_reading().device_id) == (3, None)
    assert reading_pipeline(means, lambda: None).num_threads == readers


def test_batches_stay_what_they_were_while_others_are_made(root: Path) -> None:
    with source_of(root, "dali") as source:
        stream = source.train()
        batches = [next(stream)[0] for _ in range(12)]
        copies = [batch.clone() for batch in batches]
        later = [next(stream)[0] for _ in range(6)]
    assert all(torch.equal(batch, copy) for batch, copy in zip(batches, copies, strict=True))
    with source_of(root, "dali", prefetch=1) as source:
        stream = source.train()
        assert all(torch.equal(next(stream)[0], batch) for batch in (*copies, *later))


def test_threads_and_prefetching_change_nothing(root: Path) -> None:
    expected, _ = batches_of(root, "dali", half="train")
    for changes in ({"decode_threads": 3}, {"prefetch": 1}, {"prefetch": 5}):
        found, _ = batches_of(root, "dali", half="train", **changes)
        assert torch.equal(found, expected)


# -- on a GPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, on which the pipelines are run instead")
@pytest.mark.parametrize("make", [training_pipeline, evaluation_pipeline])
def test_a_gpus_pipelines_lack_nothing_but_the_gpu(make: Callable[..., Any]) -> None:
    """DALI checks operators, devices and arguments as the graph is put together, and looks for a GPU only then."""
    settings = DataSettings(name="imagenet", root=Path("nowhere"), color_jitter=0.4)
    means = Means(batch_size=4, threads=2, prefetch=2, device_id=0, tuning=DaliSettings())
    assert means.decoding().items() >= {"device": "mixed", "hw_decoder_load": 0.65}.items()
    pipeline = make(means, settings, {"mean": [0.0] * 3, "std": [1.0] * 3, "dtype": types.FLOAT16}, lambda: None)
    with pytest.raises(RuntimeError, match="CUDA is not available"):
        pipeline.build()


WARNINGS = """
import importlib, os
from resist_hvd.data.files import dali_graph
found = os.environ.pop("DALI_NVIMGCODEC_LOG_LEVEL")
importlib.reload(dali_graph)
print(found, os.environ["DALI_NVIMGCODEC_LOG_LEVEL"])
"""


def test_decoders_tell_errors_alone_unless_the_user_asks_for_more() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WARNINGS],
        capture_output=True, text=True, check=True, timeout=300, env={**os.environ, "DALI_NVIMGCODEC_LOG_LEVEL": "3"},
    )  # fmt: skip
    assert done.stdout.split() == ["3", "1"]


MEMORY = """
import gc, sys
from pathlib import Path
import torch
from resist_hvd.data import Shard, load
from resist_hvd.settings.data import DataSettings

def resident():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

root, loader = Path(sys.argv[1]), sys.argv[2]
settings = DataSettings(name="imagenet", root=root, loader=loader, batch_size=8, image_size=96, decode_threads=1)
with load(settings, shard=Shard(rank=0, size=1), seed=0, device=torch.device("cpu")) as source:
    stream, batch = source.train(), 8 * 3 * 96 * 96 * 4
    epoch = source.spec.train_size // 8
    sizes = []
    for _ in range(20):
        for _ in range(epoch):
            next(stream)
        for _ in source.test():
            pass
        sizes.append(resident())
print(*[round((size - sizes[3]) / batch, 2) for size in sizes])
"""


@pytest.mark.parametrize("loader", ["dali", "torchvision"])
def test_memory_is_flat_over_twenty_epochs(root: Path, loader: str) -> None:
    """In batches' sizes, each epoch of three training batches and an evaluation: a leak of one of them is seen."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(root), loader],
        capture_output=True, text=True, check=True, timeout=300, env={**os.environ, "MALLOC_ARENA_MAX": "2"},
    )  # fmt: skip
    grown = [float(value) for value in done.stdout.split()]
    # After some epochs that fill the buffers. Memory comes and goes by some 5 batches; a leak of one an epoch is 12.
    assert min(grown[-5:]) < 8, grown


# -- real photographs -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 photographs of ImageNet, for training and for validation."""
    folder = os.environ.get("RESIST_HVD_TEST_DATA")
    if folder is None:
        pytest.skip(f"RESIST_HVD_TEST_DATA does not name a folder with {ARCHIVE}")
    unpacked = tmp_path_factory.mktemp("photos")
    with tarfile.open(Path(folder) / ARCHIVE) as archive:
        archive.extractall(unpacked, filter="data")
    (train,) = unpacked.rglob("train")
    (train.parent / "val").symlink_to(train)
    return train.parent


def test_real_photographs_agree(photos: Path) -> None:
    real = {"image_size": 224, "test_batch_size": 64, "batch_size": 64, "decode_threads": None}
    found = differences(photos, half="val", **real)
    assert len(found) == 200
    assert found.max() < 1.01
    found = differences(photos, half="train", **real)
    assert found.mean(dim=1).max() < 1.0
    assert np.quantile(found.numpy(), 0.99) < 2.01
