"""Batches for a GPU: pixels, odd and broken files, how long they stay what they are, streams, and short memory."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from resist_hvd.data import DataSource, Shard, load
from resist_hvd.data.files.loader import STD
from resist_hvd.data.side_stream import IN_USE
from resist_hvd.settings.data import DataSettings

from .. import photographs

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs.make_root(tmp_path_factory.mktemp("gpu") / "data", classes=4, train=16, val=6)


@contextmanager
def source_of(root: Path, loader: str, device: torch.device, **changes: Any) -> Iterator[DataSource]:
    values = {"batch_size": 8, "test_batch_size": 5, "image_size": 64, "decode_threads": 2, **changes}
    settings = DataSettings(name="imagenet", root=root, loader=loader, **values)  # type: ignore[arg-type]
    with load(settings, shard=Shard(rank=0, size=1), seed=5, device=device) as source:
        yield source


def levels_of(root: Path, loader: str, device: torch.device, half: str, **changes: Any) -> tuple[torch.Tensor, Any]:
    """Some batches' images in grey levels, without the mean, and their labels."""
    with source_of(root, loader, device, **changes) as source:
        stream = source.train()
        found = list(source.test()) if half == "val" else [next(stream) for _ in range(6)]
        levels = torch.cat([images for images, _ in found]).float().cpu() * torch.tensor(STD).view(3, 1, 1)
        return levels, torch.cat([labels for _, labels in found]).tolist()


def assert_alike(on_gpu: torch.Tensor, on_cpu: torch.Tensor) -> None:
    """A GPU's decoder rounds otherwise, and interpolates colours otherwise: by little, and at few pixels by more."""
    difference = (on_gpu - on_cpu).abs().flatten(1)
    assert difference.mean(dim=1).max() < 1.5
    assert difference.quantile(0.99) < 5


@pytest.mark.parametrize("half", ["train", "val"])
def test_pixels_agree_with_those_made_on_a_cpu(root: Path, loader: str, half: str, gpu: torch.device) -> None:
    (on_gpu, labels), (on_cpu, same) = (levels_of(root, loader, device, half) for device in (gpu, CPU))
    assert labels == same
    if loader == "torchvision":
        assert torch.equal(on_gpu, on_cpu)
    assert_alike(on_gpu, on_cpu)


@pytest.mark.parametrize(("image_type", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_batch_is_channels_last_in_the_type_asked_for(
    root: Path, loader: str, image_type: str, dtype: torch.dtype, gpu: torch.device
) -> None:
    with source_of(root, loader, gpu, image_type=image_type) as source:
        for images, labels in (next(source.train()), next(source.test())):
            assert (images.dtype, labels.dtype) == (dtype, torch.int64)
            assert images.device == labels.device == gpu
            assert images.is_contiguous(memory_format=torch.channels_last)


def deep_png() -> bytes:
    """A PNG of 16 bits a pixel."""
    file = io.BytesIO()
    grey = photographs.picture(1000, 90, 70)[..., 0].astype(np.uint16)
    Image.fromarray(grey * 257).save(file, "PNG")
    return file.getvalue()


ODD = {**photographs.odd_files(), "png-16-bit": deep_png()}


@pytest.mark.parametrize("kind", ODD)
def test_files_of_odd_kinds_are_what_they_are_on_a_cpu(kind: str, tmp_path: Path, gpu: torch.device) -> None:
    """CMYK, grey, progressive, 16-bit, turned by EXIF: those that a GPU's own decoder leaves to others."""
    pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")
    folder = photographs.make_root(tmp_path / "data", classes=1, train=4, val=4)
    for half in ("train", "val"):
        (folder / half / "n00000000" / f"{half}_0_1.JPEG").write_bytes(ODD[kind])
    for half in ("train", "val"):
        (on_gpu, labels), (on_cpu, same) = (
            levels_of(folder, "dali", device, half, batch_size=4) for device in (gpu, CPU)
        )
        assert labels == same
        assert (on_gpu - on_cpu).abs().flatten(1).mean(dim=1).max() < 1.5


@pytest.mark.parametrize("kind", ["gif", "tiff", "ppm-of-another-maximum"])
def test_formats_that_pillow_decodes_reach_the_gpu(kind: str, tmp_path: Path, gpu: torch.device) -> None:
    pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")
    folder = photographs.make_root(tmp_path / "data", classes=1, train=4, val=4)
    for half in ("train", "val"):
        (folder / half / "n00000000" / f"{half}_0_1.JPEG").write_bytes(photographs.foreign_files()[kind][1])
    (on_gpu, _), (on_cpu, _) = (levels_of(folder, "dali", device, "val", batch_size=4) for device in (gpu, CPU))
    assert_alike(on_gpu, on_cpu)


@pytest.mark.parametrize("kind", photographs.broken_files())
def test_broken_files_are_named_and_no_other(kind: str, tmp_path: Path, loader: str, gpu: torch.device) -> None:
    folder = photographs.make_root(tmp_path / "data", classes=3, train=4, val=2)
    broken = [folder / half / "n00000001" / f"{half}_1_1.JPEG" for half in ("train", "val")]
    for file in broken:
        file.write_bytes(photographs.broken_files()[kind])
    with source_of(folder, loader, gpu, batch_size=6, broken_files="skip") as source:
        stream = source.train()
        labels = torch.cat([next(stream)[1] for _ in range(4)]).tolist()
        assert Counter(labels) == {0: 8, 1: 8, 2: 8}
        assert sorted(torch.cat([labels for _, labels in source.test()]).tolist()) == [0, 0, 1, 2, 2]
        assert source.broken_files().keys() == {str(file) for file in broken}


def test_batches_are_what_they_are_however_late_they_are_used(root: Path, loader: str, gpu: torch.device) -> None:
    """The GPU is kept busy, so that a batch is read long after it was let go: were its memory given to another batch by
    then, or were it read before it is written, it would show other images."""
    with source_of(root, loader, gpu) as source:
        stream = source.train()
        calm = []
        for _ in range(200):
            images, labels = next(stream)
            torch.cuda.synchronize(gpu)
            calm.append((images.clone(), labels.clone()))
    with source_of(root, loader, gpu) as source:
        stream = source.train()
        late, kept = [], []
        for step in range(200):
            images, labels = next(stream)
            torch.cuda._sleep(20_000_000)  # some 10 ms
            late.append((images.clone(), labels.clone()))
            if step % 10 == 0:
                kept.append((step, images, labels))
            del images, labels
        torch.cuda.synchronize(gpu)
    for (expected, same), (found, labels) in zip(calm, late, strict=True):
        assert torch.equal(labels, same)
        assert (found - expected).abs().mean() < 0.02  # of 4.9 that the grey levels span
    for step, images, labels in kept:
        assert torch.equal(images, late[step][0])
        assert torch.equal(labels, late[step][1])


def test_a_process_ahead_of_its_gpu_does_not_fill_it_with_batches(root: Path, loader: str, gpu: torch.device) -> None:
    with source_of(root, loader, gpu) as source:
        stream = source.train()
        images, _ = next(stream)
        size = images.numel() * images.element_size()
        torch.cuda.synchronize(gpu)
        torch.cuda.reset_peak_memory_stats(gpu)
        # Not what is "allocated": memory that is let go counts as active until the streams that use it are done.
        before = torch.cuda.memory_stats(gpu)["active_bytes.all.current"]
        for _ in range(60):
            images, _ = next(stream)
            torch.cuda._sleep(50_000_000)  # some 25 ms, in which many batches could be made
            images.mean()
        torch.cuda.synchronize(gpu)
    assert torch.cuda.memory_stats(gpu)["active_bytes.all.peak"] - before < (IN_USE + 8) * size


def test_memory_is_flat(root: Path, loader: str, gpu: torch.device) -> None:
    with source_of(root, loader, gpu) as source:
        stream = source.train()
        used, allocated = [], []
        for _ in range(3):
            for _ in range(100):
                images, _ = next(stream)
                images.mean()
            list(source.test())
            torch.cuda.synchronize(gpu)
            free, total = torch.cuda.mem_get_info(gpu)
            used.append(total - free)
            allocated.append(torch.cuda.memory_allocated(gpu))
        batch = images.numel() * images.element_size()
    assert allocated[2] <= allocated[1] + 2 * batch
    assert used[2] <= used[1] + 2**26


def test_evaluations_share_their_memory(root: Path, loader: str, gpu: torch.device) -> None:
    """PyTorch keeps what was let go for the stream that it was allocated in: in another one it would serve nothing."""
    with source_of(root, loader, gpu, image_size=512, test_batch_size=8) as source:
        reserved = []
        for _ in range(6):
            for images, _ in source.test():
                assert images.shape[1:] == (3, 512, 512)
            for _ in source.calibration():
                pass
            del images
            torch.cuda.synchronize(gpu)
            reserved.append(torch.cuda.memory_reserved(gpu))
    # 25 MB a batch. How many are in use at a time varies; new streams would take two and more in each evaluation.
    assert max(reserved[1:]) - reserved[1] <= 80 * 2**20, reserved


@pytest.mark.parametrize("name", ["dali", "torchvision", "digits"])
def test_nothing_waits_for_the_gpu(root: Path, name: str, gpu: torch.device) -> None:
    """PyTorch raises an error where one of its operations would wait for the GPU, in any thread."""
    if name == "dali":
        pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")
    settings = DataSettings(batch_size=8) if name == "digits" else None
    opened = (
        load(settings, shard=Shard(rank=0, size=1), seed=5, device=gpu)
        if settings is not None
        else source_of(root, name, gpu)
    )
    with opened as source:
        stream = source.train()
        for _ in range(3):
            next(stream)
        torch.cuda.synchronize(gpu)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(20):
                next(stream)
            for _ in source.test():
                pass
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_graphs_are_recorded_and_replayed_while_batches_are_made(root: Path, loader: str, gpu: torch.device) -> None:
    """Nothing that makes batches may spoil the recording of a CUDA graph in the thread that trains."""
    with source_of(root, loader, gpu) as source:
        stream = source.train()
        images, _ = next(stream)
        inputs = torch.empty_like(images)
        for _ in range(10):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                doubled = inputs * 2
            for _ in range(5):
                images, _ = next(stream)
                inputs.copy_(images)
                graph.replay()
                assert torch.equal(doubled, images * 2)


def test_a_source_that_is_closed_leaves_no_thread(root: Path, loader: str, gpu: torch.device) -> None:
    before = {thread.name for thread in threading.enumerate()}
    with source_of(root, loader, gpu) as source:
        next(source.train())
    assert "making batches" not in {thread.name for thread in threading.enumerate()} - before


SHORT_OF_MEMORY = """
import sys
from pathlib import Path
import torch
from resist_hvd.data import Shard, load
from resist_hvd.settings.data import DataSettings
from resist_hvd.errors import UserError

gpu = torch.device("cuda", 0)
torch.cuda.set_device(gpu)
torch.cuda.Stream(gpu)  # streams and events take memory, too: here it is DALI that is to lack it
torch.cuda.Event().record()
held = [torch.empty(2**20, device=gpu)]
size = torch.cuda.mem_get_info(gpu)[0]
while size >= 2**21:  # ever smaller pieces, until none of them fits beside what is left for the driver
    try:
        held.append(torch.empty(size, dtype=torch.uint8, device=gpu))
    except torch.OutOfMemoryError:
        size //= 2
settings = DataSettings(
    name="imagenet", root=Path(sys.argv[1]), loader="dali", batch_size=64, image_size=224, decode_threads=4,
    broken_files="skip",
)
named = []
try:
    with load(settings, shard=Shard(rank=0, size=1), seed=5, device=gpu) as source:
        try:
            stream = source.train()
            for _ in range(20):
                next(stream)
        finally:
            named = sorted(source.broken_files())
except UserError as error:
    print(error)
print("named:", named)
"""


def test_a_gpu_without_memory_is_called_that_and_no_image_is_blamed(root: Path, gpu: torch.device) -> None:
    """In a process of its own, where DALI holds no memory of other tests."""
    pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")
    done = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY, str(root)], capture_output=True, text=True, timeout=240
    )
    assert done.stdout.splitlines()[-1:] == ["named: []"], done
    for fact in ("GPU memory ran out", "PyTorch holds", "DALI", "--data.batch_size", "--data.prefetch"):
        assert fact in done.stdout, done
