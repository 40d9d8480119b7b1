"""Failures of DALI's pipelines: of memory, of a GPU, of images, and of neither; injected into pipelines on a CPU."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from resist_hvd.data import DataSource, Shard, load
from resist_hvd.errors import UserError
from resist_hvd.settings.data import DataSettings

from .. import photographs

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")

from resist_hvd.data.files import dali_graph
from resist_hvd.data.files.dali_graph import Means, decoding_pipeline, training_pipeline
from resist_hvd.data.files.stand_ins import undecodable
from resist_hvd.settings.data import DaliSettings

MEANS = Means(batch_size=8, threads=2, prefetch=2, device_id=None, tuning=DaliSettings())


class Failing:
    """A pipeline that fails when it is asked for outputs once too often."""

    def __init__(self, pipeline: Any, *, after: int, error: Exception) -> None:
        self._pipeline, self._left, self._error = pipeline, after, error

    def outputs(self, cuda_stream: Any = None) -> Any:
        if self._left == 0:
            raise self._error
        self._left -= 1
        return self._pipeline.outputs(cuda_stream=cuda_stream)

    def run(self) -> Any:
        if self._left == 0:
            raise self._error
        self._left -= 1
        return self._pipeline.run()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return photographs.make_root(tmp_path / "data", classes=2, train=8, val=2)


@contextmanager
def source_of(root: Path, **changes: Any) -> Iterator[DataSource]:
    values = {"batch_size": 4, "image_size": photographs.SIZE, "decode_threads": 1, "broken_files": "skip"}
    settings = DataSettings(name="imagenet", root=root, loader="dali", **{**values, **changes})
    with load(settings, shard=Shard(rank=0, size=1), seed=5, device=torch.device("cpu")) as source:
        yield source


@pytest.fixture
def training_fails(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], None]:
    """Has training's pipeline fail once, after two batches."""

    def arrange(error: Exception) -> None:
        failures = iter([error])

        def build(*arguments: Any) -> Any:
            pipeline = training_pipeline(*arguments)
            failure = next(failures, None)
            return pipeline if failure is None else Failing(pipeline, after=2, error=failure)

        monkeypatch.setattr(dali_graph, "training_pipeline", build)

    return arrange


@pytest.fixture
def decoding(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the pipelines that sort files out."""
    built: list[int] = []

    def build(*arguments: Any) -> Any:
        built.append(1)
        return decoding_pipeline(*arguments)

    monkeypatch.setattr(dali_graph, "decoding_pipeline", build)
    return built


@pytest.mark.parametrize(
    ("error", "facts"),
    [
        (RuntimeError("encountered:\n\nCan't allocate 4096 bytes on device 0.\nCurrent pipeline object"),
         ["Memory ran out", "4096 bytes on device 0", "--data.batch_size", "--data.prefetch"]),
        (MemoryError("std::bad_alloc"), ["Memory ran out", "std::bad_alloc"]),
        (RuntimeError("CUDA runtime API error cudaErrorIllegalAddress (700)"),
         ["The GPU failed", "cudaErrorIllegalAddress", "--resume"]),
    ],
)  # fmt: skip
def test_memory_and_a_gpu_are_called_that_and_no_image_is_looked_at(
    error: Exception,
    facts: list[str],
    root: Path,
    training_fails: Callable[[Exception], None],
    decoding: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("resist_hvd.data.broken.read_trusted", lambda path: pytest.fail(f"{path!r} was read"))
    training_fails(error)
    with source_of(root) as source:
        stream = source.train()
        next(stream), next(stream)
        with pytest.raises(UserError) as caught:
            next(stream)
        assert source.broken_files() == {}
    assert all(fact in str(caught.value) for fact in facts), str(caught.value)
    assert caught.value.__cause__ is error
    assert decoding == []


def test_a_failure_that_no_file_explains_is_raised_as_it_is(
    root: Path, training_fails: Callable[[Exception], None], decoding: list[int]
) -> None:
    training_fails(RuntimeError("something else"))
    with source_of(root) as source:
        stream = source.train()
        next(stream), next(stream)
        with pytest.raises(RuntimeError, match="something else"):
            next(stream)
        assert source.broken_files() == {}
        assert source._loader.foreign._noted == set()  # type: ignore[attr-defined]
    assert decoding == [1]  # all files by one pipeline


@pytest.mark.parametrize(
    ("failure", "raised", "words"),
    [
        (RuntimeError("Failed to decode sample #0"), RuntimeError, "something else"),
        (RuntimeError("Can't allocate 1 bytes on device 0."), UserError, "Memory ran out"),
    ],
)
def test_no_file_is_blamed_where_dali_does_not_decode_what_it_surely_can(
    failure: Exception,
    raised: type[Exception],
    words: str,
    root: Path,
    training_fails: Callable[[Exception], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    training_fails(RuntimeError("something else"))
    monkeypatch.setattr(
        dali_graph, "decoding_pipeline", lambda *given: Failing(decoding_pipeline(*given), after=0, error=failure)
    )
    with source_of(root) as source:
        stream = source.train()
        next(stream), next(stream)
        with pytest.raises(raised, match=words):
            next(stream)
        assert source.broken_files() == {}
        assert source._loader.foreign._noted == set()  # type: ignore[attr-defined]


def test_broken_files_among_many_are_named_one_by_one_and_no_other(root: Path, decoding: list[int]) -> None:
    broken = [root / "train" / f"n0000000{number}" / f"train_{number}_3.JPEG" for number in (0, 1)]
    for file in broken:
        file.write_bytes(photographs.broken_files()["jpeg-cut-in-its-header"])
    with source_of(root) as source:
        stream = source.train()
        for _ in range(4):
            next(stream)
        assert source.broken_files().keys() == {str(file) for file in broken}
    assert decoding == []  # Pillow knows them as broken


# -- which of some files DALI does not decode --------------------------------------------------------------------------


def paths_of(folder: Path, contents: list[bytes]) -> list[NDArray[np.uint8]]:
    paths = []
    for number, content in enumerate(contents):
        (folder / f"{number}.JPEG").write_bytes(content)
        paths.append(np.frombuffer(os.fsencode(folder / f"{number}.JPEG"), dtype=np.uint8))
    return paths


@pytest.mark.parametrize("places", [[], [0], [5], [0, 1], [2, 4], [0, 1, 2, 3, 4, 5]])
def test_the_files_that_dali_does_not_decode_are_found(places: list[int], tmp_path: Path, decoding: list[int]) -> None:
    good, gif = photographs.encode(photographs.picture(1)), photographs.encode(photographs.picture(2), "GIF")
    paths = paths_of(tmp_path, [gif if number in places else good for number in range(6)])
    assert list(undecodable(MEANS, paths)) == places
    # At most two for each of them, and one for those that follow.
    assert len(decoding) <= 2 * len(places) + 1


def test_a_file_that_fails_once_and_not_again_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = paths_of(tmp_path, [photographs.encode(photographs.picture(number)) for number in range(4)])
    failures = iter([Failing, None])

    def build(*arguments: Any) -> Any:
        pipeline = decoding_pipeline(*arguments)
        failing = next(failures)
        return failing(pipeline, after=3, error=RuntimeError("Failed to decode sample #0")) if failing else pipeline

    monkeypatch.setattr(dali_graph, "decoding_pipeline", build)
    assert list(undecodable(MEANS, paths)) == []
    assert next(failures, "both were built") == "both were built"


def test_memory_that_runs_out_at_a_file_is_not_its_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = paths_of(tmp_path, [photographs.encode(photographs.picture(number)) for number in range(4)])
    error = RuntimeError("Can't allocate 1 bytes on device 0.")
    monkeypatch.setattr(
        dali_graph, "decoding_pipeline", lambda *given: Failing(decoding_pipeline(*given), after=2, error=error)
    )
    with pytest.raises(RuntimeError, match="Can't allocate"):
        list(undecodable(MEANS, paths))
