"""The device of each rank: a GPU, shared or its own, or the CPU; decided by all ranks alike."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from resist_hvd.errors import UserError

DeviceName = Literal["auto", "cpu", "cuda"]

CPUS_ARE_MEANT = "give --device cpu if CPUs are meant"

SHARING = "NCCL_MULTI_RANK_GPU_ENABLE"
"""The variable that lets several ranks of NCCL use one GPU, where it is 1."""

SHARING_NCCL = (2, 30)
"""The first NCCL that knows it."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Device of a rank, as all ranks are told.

    Attributes:
        gpu: the GPU's own number in all the world (UUID), empty for a CPU: a number among those a rank sees says
            nothing, since each rank may see others.
        nccl: whether this rank's Horovod averages GPU memory.
        may_share: whether its NCCL was told to share a GPU with other ranks.
    """

    host: str
    gpu: str
    nccl: bool
    may_share: bool = False


def choose_device(wanted: str, local_rank: int) -> torch.device:
    """Return this worker's device: a GPU by its local rank, shared in turn where there are more ranks than GPUs.

    Raises:
        UserError: cuda is asked for, and there is none; or auto is, and PyTorch cannot use the GPU that is there.
    """
    if wanted == "cpu":
        return torch.device("cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a driver that is too old; our own sentence tells it
        usable = torch.cuda.is_available()
    if not usable:
        if gpu_is_present(os.environ):
            raise UserError(
                f"This host has a GPU that PyTorch cannot use (driver {driver_version()}, PyTorch for CUDA "
                f"{torch.version.cuda or 'none'})",
                mend="Check nvidia-smi, whether the driver is as new as CUDA wants it (580 for CUDA 13), and whether "
                f"the job was given a GPU (--gpus-per-node); or {CPUS_ARE_MEANT}.",
            )
        if wanted == "cuda":
            raise UserError("--device is cuda, but PyTorch sees no GPU", mend=f"Check nvidia-smi; {CPUS_ARE_MEANT}.")
        return torch.device("cpu")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def gpu_is_present(environment: Mapping[str, str], devices: Path = Path("/dev")) -> bool:
    """Return whether the host has a GPU of NVIDIA's that nobody hides from this process."""
    hidden = environment.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1", "NoDevFiles")
    return not hidden and any(devices.glob("nvidia[0-9]*"))


def driver_version(file: Path = Path("/proc/driver/nvidia/version")) -> str:
    """Return the version of NVIDIA's driver, "unknown" where it does not tell."""
    try:
        found = re.search(r"\b\d{3,}\.\d+(?:\.\d+)?\b", file.read_text(errors="replace"))
    except OSError:
        found = None
    return found[0] if found else "unknown"


def gpu_identity(device: torch.device) -> str:
    """Return the UUID of a device that is a GPU, empty for a CPU."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""


def gains_by_bf16(device: torch.device) -> bool:
    """Return whether a device computes bfloat16 faster than float32.

    Of GPUs, those from Ampere on do. A CPU without instructions for it imitates it, many times slower; PyTorch itself
    takes any with AVX-512 for one that supports it. Intel's CPUs gain by AMX alone: one whose virtual machine hides
    AMX took 1.3 to 1.8 times float32's seconds for convolutions of 16 to 512 channels by AVX512-BF16.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if torch.cpu._is_amx_tile_supported():
        return True
    return torch.cpu._is_avx512_bf16_supported() and not is_intels()


def is_intels(path: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether the kernel says that this CPU is Intel's."""
    try:
        return "GenuineIntel" in path.read_text()
    except OSError:
        return False


def record_event() -> torch.cuda.Event:
    """Return an event, for timing, at the end of what this process has given its GPU to do so far."""
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def finish(device: torch.device) -> None:
    """Wait until a device has done what this process's current stream was given.

    Not for the device as a whole: a loader's streams, which make batches for later, would be waited for, too.
    """
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def check_alike(choices: Sequence[Choice]) -> None:
    """Check that all ranks compute on GPUs, or none does.

    Raises:
        UserError: with the ranks that see none.
    """
    without = [rank for rank, choice in enumerate(choices) if not choice.gpu]
    if 0 < len(without) < len(choices):
        ranks = ", ".join(f"rank {rank} on {choices[rank].host}" for rank in without[:4])
        more = f" and {len(without) - 4} more" if len(without) > 4 else ""
        raise UserError(
            f"{ranks}{more} of {len(choices)} ranks see no GPU, the others do",
            mend=f"Give every rank one (nvidia-smi, --gpus-per-node, CUDA_VISIBLE_DEVICES); or {CPUS_ARE_MEANT}.",
        )


def shares_gpus(choices: Sequence[Choice]) -> bool:
    """Return whether any GPU is used by several ranks, which NCCL refuses unless it is told to."""
    used = [(choice.host, choice.gpu) for choice in choices if choice.gpu]
    return len(set(used)) < len(used)


def averages_on_gpus(choices: Sequence[Choice]) -> bool:
    """Return whether Horovod averages GPU memory by NCCL: one answer for all ranks, who must call it alike."""
    accepted = not shares_gpus(choices) or all(choice.may_share for choice in choices)
    return accepted and all(choice.gpu and choice.nccl for choice in choices)


def nccl_may_share(environment: Mapping[str, str]) -> bool:
    """Return whether NCCL was told to let several ranks use one GPU, and knows how."""
    if environment.get(SHARING) != "1" or torch.version.cuda is None:
        return False
    from torch.cuda import nccl

    version: tuple[int, ...] = nccl.version()[:2]  # type: ignore[no-untyped-call]
    return version >= SHARING_NCCL
