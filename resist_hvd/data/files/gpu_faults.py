"""Failures of a GPU or of memory, told from those of an image by what libraries say, and put into a sentence."""

from __future__ import annotations

import re
from contextlib import suppress

import torch

from resist_hvd.errors import UserError

_OF_MEMORY = re.compile(
    r"out of memory|can(?:no|')t allocate|failed to allocate|allocation failed|bad_alloc|MemoryAllocation",
    re.IGNORECASE,
)
"""Said by DALI, CUDA, PyTorch or the C++ library where memory is short."""

_OF_THE_DEVICE = re.compile(
    r"\bCUDA (?:runtime|driver) API error|\bCUDA error|\bcudaError[A-Z]|\bCUDA_ERROR_|\bnvml:? ", re.IGNORECASE
)
"""Said where a GPU, its driver or what was run on it has failed."""

_SMALLER = (
    "Give a smaller --data.batch_size or --data.test_batch_size, or --data.prefetch 1, or --data.dali.device_buffer 0"
)


def gist(error: BaseException) -> str:
    """Return what an error of DALI says has happened: without where its operator was defined, and without its stack."""
    said = str(error) or type(error).__name__
    said = said.rpartition("encountered:")[2].partition("Stacktrace (")[0].partition("Current pipeline object")[0]
    said = re.sub(r"^\s*(?:Error in thread \d+:\s*)?(?:\[[^\]\s]*:\d+\]\s*)?", "", said)
    words = " ".join(said.split())
    return words if len(words) <= 200 else words[:197] + "..."


def is_of_gpu(error: BaseException) -> bool:
    """Return whether an error is, by its own words, of memory or of a GPU; then no image is to blame."""
    said = gist(error)
    return isinstance(error, MemoryError) or bool(_OF_MEMORY.search(said) or _OF_THE_DEVICE.search(said))


def sentence(error: BaseException, device: torch.device) -> UserError:
    """Return what a user is told where a library has failed of memory or of a GPU while it decoded images.

    Args:
        error: for which `is_of_gpu` holds.
        device: what batches are made for.
    """
    said = gist(error)
    if not isinstance(error, MemoryError) and not _OF_MEMORY.search(said):
        return UserError(
            f"The GPU failed while images were decoded, and no image is to blame ({said})",
            mend="Look at nvidia-smi and for Xid errors in dmesg, and go on with --resume.",
        )
    if device.type == "cuda" and "on host" not in said:
        return UserError(
            f"GPU memory ran out while images were decoded{holders(device)} ({said})",
            mend=f"{_SMALLER}; nvidia-smi tells who else uses this GPU.",
        )
    return UserError(
        f"Memory ran out while images were decoded ({said})", mend=f"{_SMALLER}, or fewer --data.decode_threads."
    )


def unexplained(error: BaseException, device: torch.device) -> BaseException:
    """Return what is raised where DALI has failed at a batch and decodes each of its images by itself.

    On a GPU that is most likely its memory: the library that decodes there reports an image as failed where it could
    not allocate what it needs for it.
    """
    if device.type != "cuda":
        return error
    return UserError(
        f"DALI failed at a batch, though it decodes each of its images by itself; most likely GPU memory is "
        f"short{holders(device)} ({gist(error)})",
        mend=f"{_SMALLER}; nvidia-smi tells who else uses this GPU.",
    )


def holders(device: torch.device) -> str:
    """Return who holds a GPU's memory, words that go on after a sentence; nothing where the GPU does not answer."""
    with suppress(RuntimeError):
        free, total = torch.cuda.mem_get_info(device)
        ours = torch.cuda.memory_reserved(device)
        of_all, of_pytorch, of_others, left = (
            f"{size / 2**30:.1f}" for size in (total, ours, total - free - ours, free)
        )
        return (
            f": of {of_all} GiB PyTorch holds {of_pytorch} here, DALI and other programs {of_others}, "
            f"and {left} are free"
        )
    return ""
