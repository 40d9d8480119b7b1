"""Batches for a GPU: pixels, odd and broken files, how long they stay what they are, streams, and short memory.

A pipeline of DALI that decodes on a GPU takes seconds to make. So tests of batches in a row go on with one source, and
files of all kinds lie in one folder, each kind a class of its own: labels tell which one an image is of.
"""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from resist_hvd.data import DataSource, Shard, load
from resist_hvd.data.files.loader import STD
from resist_hvd.data.side_stream import IN_USE
from resist_hvd.data.source import Batch
from resist_hvd.settings.data import DataSettings

from .. import photographs

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs.make_root(tmp_path_factory.mktemp("gpu") / "data", classes=4, train=16, val=6)


@pytest.fixture(scope="module", params=["dali", "torchvision"])
def loader(request: pytest.FixtureRequest) -> str:
    """Every loader that is installed, one after the other, each with all of its tests."""
    if request.param == "dali":
        pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")
    return str(request.param)


@contextmanager
def source_of(root: Path, loader: str, device: torch.device, **changes: Any) -> Iterator[DataSource]:
    values = {"batch_size": 8, "test_batch_size": 5, "image_size": 64, "decode_threads": 2, **changes}
    settings = DataSettings(name="imagenet", root=root, loader=loader, **values)  # type: ignore[arg-type]
    with load(settings, shard=Shard(rank=0, size=1), seed=5, device=device) as source:
        yield source


class Begun(NamedTuple):
    """A source, its training batches, some of which were drawn, and copies of those."""

    source: DataSource
    stream: Iterator[Batch]
    drawn: list[Batch]


@pytest.fixture(scope="module")
def begun(root: Path, loader: str, gpu: torch.device) -> Iterator[Begun]:
    """The GPU was idle whenever one of the batches was drawn."""
    with source_of(root, loader, gpu) as source:
        stream, drawn = source.train(), []
        for _ in range(200):
            images, labels = next(stream)
            torch.cuda.synchronize(gpu)
            drawn.append((images.clone(), labels.clone()))
        yield Begun(source, stream, drawn)


def assert_form(batch: Batch, dtype: torch.dtype, device: torch.device) -> None:
    images, labels = batch
    assert (images.dtype, labels.dtype) == (dtype, torch.int64)
    assert images.device == labels.device == device
    assert images.is_contiguous(memory_format=torch.channels_last)


def levels_of(batches: list[Batch]) -> tuple[torch.Tensor, list[int]]:
    """Images in grey levels, without the mean, and their labels."""
    levels = torch.cat([images for images, _ in batches]).float().cpu() * torch.tensor(STD).view(3, 1, 1)
    return levels, torch.cat([labels for _, labels in batches]).tolist()


def some_of(source: DataSource, half: str, *, batches: int) -> list[Batch]:
    """The first training batches, or all of the test set."""
    stream = source.train()
    return list(source.test()) if half == "val" else [next(stream) for _ in range(batches)]


@pytest.mark.parametrize("half", ["train", "val"])
def test_pixels_agree_with_those_made_on_a_cpu(
    root: Path, loader: str, half: str, begun: Begun, gpu: torch.device
) -> None:
    """A GPU's decoder rounds otherwise, and interpolates colours otherwise: by little, and at few pixels by more."""
    batches = begun.drawn[:6] if half == "train" else list(begun.source.test())
    for batch in batches:
        assert_form(batch, torch.float32, gpu)
    with source_of(root, loader, CPU) as source:
        on_cpu, labels = levels_of(some_of(source, half, batches=6))
    on_gpu, same = levels_of(batches)
    assert labels == same
    if loader == "torchvision":
        assert torch.equal(on_gpu, on_cpu)
    difference = (on_gpu - on_cpu).abs().flatten(1)
    assert difference.mean(dim=1).max() < 1.5
    assert difference.quantile(0.99) < 5


def test_batches_are_of_the_type_asked_for_and_a_closed_source_leaves_no_thread(
    root: Path, loader: str, gpu: torch.device
) -> None:
    before = set(threading.enumerate())
    with source_of(root, loader, gpu, image_type="bf16") as source:
        assert_form(next(source.train()), torch.bfloat16, gpu)
        assert "making batches" in names_of_threads(before)
    assert "making batches" not in names_of_threads(before)


def names_of_threads(before: set[threading.Thread]) -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread not in before}


# Files of odd and of broken kinds


def deep_png() -> bytes:
    """A PNG of 16 bits a pixel."""
    file = io.BytesIO()
    grey = photographs.picture(1000, 90, 70)[..., 0].astype(np.uint16)
    Image.fromarray(grey * 257).save(file, "PNG")
    return file.getvalue()


FOREIGN = ("gif", "tiff", "ppm-of-another-maximum")
"""Of formats that Pillow decodes in DALI's place."""

ODD = {
    **photographs.odd_files(),
    "png-16-bit": deep_png(),
    **{kind: photographs.foreign_files()[kind][1] for kind in FOREIGN},
}


def lay_out(root: Path, classes: Mapping[str, Mapping[str, bytes]]) -> Path:
    """Make a data folder of the same files for training and validation: by their classes, and names without .JPEG."""
    for half in ("train", "val"):
        for name, files in classes.items():
            folder = root / half / name
            folder.mkdir(parents=True)
            for stem, content in files.items():
                (folder / f"{stem}.JPEG").write_bytes(content)
    return root


@pytest.mark.parametrize("half", ["train", "val"])
def test_files_of_odd_kinds_are_what_they_are_on_a_cpu(half: str, tmp_path: Path, gpu: torch.device) -> None:
    """CMYK, grey, progressive, 16-bit, turned by EXIF: those that a GPU's own decoder leaves to others; and GIF, TIFF
    and PPM."""
    pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")
    folder = lay_out(tmp_path / "data", {kind: {"0": content} for kind, content in ODD.items()})
    each = {"batch_size": len(ODD), "test_batch_size": len(ODD)}
    found = []
    for device in (gpu, CPU):
        with source_of(folder, "dali", device, **each) as source:
            found.append(levels_of(some_of(source, half, batches=4)))
            assert source.broken_files() == {}
    (on_gpu, labels), (on_cpu, same) = found
    assert labels == same
    kinds = [sorted(ODD)[label] for label in labels]
    assert set(kinds) == set(ODD)
    difference = (on_gpu - on_cpu).abs().flatten(1)
    by_kind = list(zip(kinds, difference.mean(dim=1).tolist(), difference.quantile(0.99, dim=1).tolist(), strict=True))
    assert [entry for entry in by_kind if entry[1] >= 1.5] == []
    assert [entry for entry in by_kind if entry[0] in FOREIGN and entry[2] >= 5] == []


UNREADABLE = ("empty", "one-byte", "text", "jpeg-cut-in-its-header", "of-an-unknown-format")
"""Kinds of broken files that no decoder is given: they have no height and width."""

SOUND = {f"sound-{number}": photographs.encode(photographs.picture(2000 + number)) for number in range(11)}


def test_broken_files_are_named_and_no_other(loader: str, tmp_path: Path, gpu: torch.device) -> None:
    """In the test set's order a decoder meets each kind by itself, two batches apart; unreadable ones come last."""
    broken = {kind: {f"broken-{kind}": content} for kind, content in photographs.broken_files().items()}
    classes = {kind: {**file, **SOUND} for kind, file in broken.items() if kind not in UNREADABLE}
    classes["unreadable"] = {"sound": SOUND["sound-0"]}
    for kind in UNREADABLE:
        classes["unreadable"] |= broken[kind]
    names = sorted(classes)
    assert names[-1] == "unreadable"
    folder = lay_out(tmp_path / "data", classes)
    small = {"batch_size": 18, "test_batch_size": 6, "prefetch": 1}
    with source_of(folder, loader, gpu, broken_files="skip", **small) as source:
        stream = source.train()
        trained = [names[label] for _, labels in (next(stream) for _ in range(6)) for label in labels.tolist()]
        tested = [names[label] for _, labels in source.test() for label in labels.tolist()]
        named = [Path(file).relative_to(folder) for file in source.broken_files()]
    for half in ("train", "val"):
        assert {file.stem.removeprefix("broken-") for file in named if file.parts[0] == half} == broken.keys(), half
    # Two epochs; a sound image of its class is in each broken one's place.
    assert Counter(trained) == {name: 12 if name == "unreadable" else 24 for name in names}
    assert Counter(tested) == {name: 1 if name == "unreadable" else 11 for name in names}


# Batches in a row


def test_batches_are_what_they_are_however_late_they_are_used(
    root: Path, loader: str, begun: Begun, gpu: torch.device
) -> None:
    """The GPU is kept busy, so that a batch is read long after it was let go: were its memory given to another batch by
    then, or were it read before it is written, it would show other images."""
    with source_of(root, loader, gpu) as source:
        stream = source.train()
        late, kept = [], []
        for step in range(len(begun.drawn)):
            images, labels = next(stream)
            torch.cuda._sleep(20_000_000)  # some 10 ms
            late.append((images.clone(), labels.clone()))
            if step % 10 == 0:
                kept.append((step, images, labels))
            del images, labels
        torch.cuda.synchronize(gpu)
    for (expected, same), (found, labels) in zip(begun.drawn, late, strict=True):
        assert torch.equal(labels, same)
        assert (found - expected).abs().mean() < 0.02  # of 4.9 that the grey levels span
    for step, images, labels in kept:
        assert torch.equal(images, late[step][0])
        assert torch.equal(labels, late[step][1])


def test_a_process_ahead_of_its_gpu_does_not_fill_it_with_batches(begun: Begun, gpu: torch.device) -> None:
    images, _ = next(begun.stream)
    size = images.numel() * images.element_size()
    torch.cuda.synchronize(gpu)
    torch.cuda.reset_peak_memory_stats(gpu)
    # Not what is "allocated": memory that is let go counts as active until the streams that use it are done.
    before = torch.cuda.memory_stats(gpu)["active_bytes.all.current"]
    for _ in range(60):
        images, _ = next(begun.stream)
        torch.cuda._sleep(50_000_000)  # some 25 ms, in which many batches could be made
        images.mean()
    torch.cuda.synchronize(gpu)
    assert torch.cuda.memory_stats(gpu)["active_bytes.all.peak"] - before < (IN_USE + 8) * size


def test_memory_is_flat(begun: Begun, gpu: torch.device) -> None:
    used, allocated = [], []
    for _ in range(3):
        for _ in range(100):
            images, _ = next(begun.stream)
            images.mean()
        list(begun.source.test())
        torch.cuda.synchronize(gpu)
        free, total = torch.cuda.mem_get_info(gpu)
        used.append(total - free)
        allocated.append(torch.cuda.memory_allocated(gpu))
    batch = images.numel() * images.element_size()
    assert allocated[2] <= allocated[1] + 2 * batch
    assert used[2] <= used[1] + 2**26


def test_graphs_are_recorded_and_replayed_while_batches_are_made(begun: Begun) -> None:
    """Nothing that makes batches may spoil the recording of a CUDA graph in the thread that trains."""
    images, _ = next(begun.stream)
    inputs = torch.empty_like(images)
    for _ in range(10):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            doubled = inputs * 2
        for _ in range(5):
            images, _ = next(begun.stream)
            inputs.copy_(images)
            graph.replay()
            assert torch.equal(doubled, images * 2)


def test_nothing_waits_for_the_gpu(begun: Begun, gpu: torch.device) -> None:
    assert_no_wait(begun.source, begun.stream, gpu)


def test_images_in_memory_make_nothing_wait_for_the_gpu(gpu: torch.device) -> None:
    with load(DataSettings(batch_size=8), shard=Shard(rank=0, size=1), seed=5, device=gpu) as source:
        assert_no_wait(source, source.train(), gpu)


def assert_no_wait(source: DataSource, stream: Iterator[Batch], gpu: torch.device) -> None:
    """PyTorch raises an error where one of its operations would wait for the GPU, in any thread."""
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


# Memory


def test_evaluations_share_their_memory(root: Path, gpu: torch.device) -> None:
    """PyTorch keeps what was let go for the stream that it was allocated in: in another one it would serve nothing. The
    stream is the source's, whatever its loader."""
    with source_of(root, "auto", gpu, image_size=512, test_batch_size=8) as source:
        reserved = []
        for evaluated in (source.test, source.calibration, source.test, source.calibration):
            for images, _ in evaluated():
                assert images.shape[1:] == (3, 512, 512)
            del images
            torch.cuda.synchronize(gpu)
            reserved.append(torch.cuda.memory_reserved(gpu))
    # 25 MB a batch. How many are in use at a time varies; new streams would take two and more in each evaluation.
    assert max(reserved[1:]) - reserved[1] <= 80 * 2**20, reserved


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
