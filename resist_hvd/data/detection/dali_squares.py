"""Whole images scaled to squares by NVIDIA DALI, on a GPU or on CPUs."""

import itertools
import os
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, types
from torch import Tensor

from resist_hvd.data.broken import USUAL_ENDS
from resist_hvd.data.detection.squares import Choices, SquareDecoder, SquareFormat, read_whole
from resist_hvd.data.files.dali_graph import Means, Source
from resist_hvd.data.files.dali_memory import as_tensor
from resist_hvd.data.files.gpu_faults import is_of_gpu, sentence
from resist_hvd.settings.data import DaliSettings


class DaliSquares(SquareDecoder):
    """Decodes with DALI, which reads, decodes and scales in threads of its own, ahead of what is asked for."""

    def __init__(self, format: SquareFormat, device: torch.device) -> None:
        self._format = format
        self._device = device
        self._means = Means(
            batch_size=format.batch_size,
            threads=format.threads,
            prefetch=format.prefetch,
            device_id=(device.index or 0) if device.type == "cuda" else None,
            tuning=DaliSettings(),
        )

    def batches(self, paths: Sequence[Path], choices: Choices) -> Iterator[Tensor]:
        """Yield batches, some of which are decoded in advance."""
        asked: deque[NDArray[np.int64]] = deque()

        def next_paths() -> tuple[Any, ...]:
            chosen = next(choices)
            asked.append(chosen)
            return ([np.frombuffer(os.fsencode(paths[image]), dtype=np.uint8) for image in chosen],)

        pipeline = squares_pipeline(self._means, self._format, next_paths)
        pipeline.build()
        for _ in itertools.count():
            try:
                images, ends = pipeline.run(self._stream())
            except StopIteration:
                return
            except (RuntimeError, MemoryError) as error:
                if is_of_gpu(error):
                    raise sentence(error, self._device) from error
                # DALI does not say which file it was: one of those that it has been given.
                for chosen in asked:
                    for image in chosen:
                        read_whole(paths[image])
                raise
            for image, end in zip(asked.popleft(), _host(ends), strict=True):
                if end.tobytes() not in USUAL_ENDS:
                    read_whole(paths[image])
            yield as_tensor(images, torch.float32, self._device).permute(0, 3, 1, 2)

    def _stream(self) -> Any:
        return torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None


def _host(ends: Any) -> NDArray[np.uint8]:
    array: NDArray[np.uint8] = np.asarray(ends.as_cpu().as_array())
    return array


def squares_pipeline(means: Means, format: SquareFormat, source: Source) -> Pipeline:
    """Return a pipeline from paths to normalised squares [B, size, size, 3] and each file's last two bytes."""
    pipeline = means.pipeline()
    with pipeline:
        (path,) = fn.external_source(source=source, num_outputs=1, batch=True)
        encoded = fn.io.file.read(path, dont_use_mmap=True)
        images = fn.decoders.image(encoded, **means.decoding())
        images = fn.resize(images, size=[format.size, format.size], interp_type=types.INTERP_LINEAR, antialias=True)
        images = fn.crop_mirror_normalize(
            images, dtype=types.FLOAT, output_layout="HWC", mean=list(format.mean), std=list(format.std)
        )
        pipeline.set_outputs(images, encoded[-2:])
    return pipeline
