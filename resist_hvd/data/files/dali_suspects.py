"""Sorting out which files DALI fails at, once one of its pipelines has failed without saying why."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from resist_hvd.data.files import dali_graph
from resist_hvd.data.files.dali_graph import Means
from resist_hvd.data.files.gpu_faults import is_of_gpu
from resist_hvd.data.files.stand_ins import PLACEHOLDER


def undecodable(means: Means, paths: Sequence[NDArray[np.uint8]]) -> Iterator[int]:
    """Yield the places of those files that DALI does not decode, though it decodes others.

    One pipeline takes all files, one by one, after an image that is surely decoded. Where it fails, a new one begins
    with that image and the file again. So a file is yielded only if DALI has failed at it twice, and the second time
    right after it has decoded the image.

    Args:
        means: what the pipeline works with that has failed.
        paths: of the files, as bytes.

    Raises:
        RuntimeError: DALI fails at the image that it surely decodes, or of something that is no file's fault.
        MemoryError: it lacks memory.
    """
    one_by_one = replace(means, batch_size=1, prefetch=1, threads=1)
    start, suspected = 0, -1
    while start < len(paths):
        decoded, error = _decoded(one_by_one, [PLACEHOLDER.path, *paths[start:]])
        if error is None:
            return
        failed_at = start + decoded - 1
        if failed_at < start or is_of_gpu(error):
            raise error
        if failed_at == suspected:
            yield failed_at
            failed_at += 1
        else:
            suspected = failed_at
        start = failed_at


def _decoded(means: Means, paths: Sequence[NDArray[np.uint8]]) -> tuple[int, Exception | None]:
    """Return how many files were decoded until a pipeline failed, and the failure."""
    waiting = iter(paths)
    decoded = 0
    try:
        pipeline = dali_graph.decoding_pipeline(means, lambda: ([next(waiting)],))
        while True:
            pipeline.run()
            decoded += 1
    except StopIteration:
        return decoded, None
    except (RuntimeError, MemoryError) as error:
        return decoded, error
