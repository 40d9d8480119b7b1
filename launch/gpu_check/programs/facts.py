"""Print this machine's equipment and installation: the facts of `Machine`."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import sysconfig
import warnings
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from gpu_check.programs import answering
from resist_hvd.checkup.view import free_space, version_of_dali
from resist_hvd.comm.devices import choose_device, driver_version
from resist_hvd.errors import UserError

NVJPEG_BACKEND_HARDWARE = 3
LIBCUDA = ("libcuda.so", "libcuda.so.1")


def facts() -> dict[str, Any]:
    """Return the facts, by the names of `Machine`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a driver that is too old: `unusable` tells it
        gpus = [describe(number) for number in range(torch.cuda.device_count())]
    engines, cores = jpeg_engines(bool(gpus))
    return {
        "gpus": gpus,
        "unusable": unusable(),
        "driver": driver_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "architectures": torch.cuda.get_arch_list(),
        "nccl": nccl_version(),
        "horovod_nccl": nccl_built(),
        "dali": version_of_dali(),
        "libcuda": [name for name in LIBCUDA if can_be_loaded(name)],
        "jpeg_engines": engines,
        "jpeg_cores": cores,
        "compiler": next(filter(None, map(shutil.which, (os.environ.get("CC", ""), "cc", "gcc", "clang"))), ""),
        "headers": Path(sysconfig.get_path("include"), "Python.h").is_file(),
        "cores": len(os.sched_getaffinity(0)),
        "shared_memory": free_space(Path("/dev/shm")),
        "pytest": version_of("pytest"),
    }


def describe(number: int) -> dict[str, Any]:
    """Return what PyTorch knows of a GPU."""
    known = torch.cuda.get_device_properties(number)
    return {
        "name": known.name,
        "uuid": str(known.uuid),
        "memory": known.total_memory,
        "capability": f"{known.major}.{known.minor}",
    }


def unusable() -> str:
    """Return why PyTorch cannot use a GPU that is there; empty where it can, or where there is none."""
    try:
        choose_device("auto", 0)
    except UserError as error:
        return error.seen
    return ""


def nccl_version() -> list[int]:
    """Return the version of the NCCL that PyTorch has loaded, which is Horovod's, too; empty where there is none."""
    if torch.version.cuda is None:
        return []
    from torch.cuda import nccl

    return [int(part) for part in nccl.version()[:3]]  # type: ignore[no-untyped-call]


def nccl_built() -> bool:
    """Return whether Horovod averages GPU memory by NCCL."""
    import mpi4py

    mpi4py.rc.initialize = False  # a login node may not allow a program to start MPI
    import horovod.torch as hvd

    return bool(hvd.nccl_built())


def can_be_loaded(name: str) -> bool:
    """Return whether the loader finds a shared library."""
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def jpeg_engines(on_gpu: bool) -> tuple[int, int]:
    """Return how many JPEG decoders a GPU has in hardware, and how many cores each; (-1, -1) where nvJPEG is missing.

    A container that lacks the driver's capability `video` has none, whatever the GPU has.
    """
    library = load_nvjpeg() if on_gpu else None
    if library is None:
        return -1, -1
    torch.zeros(1, device="cuda")  # nvJPEG uses the context that is there
    handle, engines, cores = ctypes.c_void_p(), ctypes.c_uint(), ctypes.c_uint()
    if library.nvjpegCreateEx(NVJPEG_BACKEND_HARDWARE, None, None, 0, ctypes.byref(handle)) != 0:
        return 0, 0
    status = library.nvjpegGetHardwareDecoderInfo(handle, ctypes.byref(engines), ctypes.byref(cores))
    library.nvjpegDestroy(handle)
    return (engines.value, cores.value) if status == 0 else (0, 0)


def load_nvjpeg() -> ctypes.CDLL | None:
    """Return nvJPEG, from the wheels beside PyTorch's or from the system."""
    wheels = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/*/lib/libnvjpeg.so.*"))
    for name in (*map(str, wheels), "libnvjpeg.so.13", "libnvjpeg.so"):
        with suppress(OSError):
            library = ctypes.CDLL(name)
            if hasattr(library, "nvjpegGetHardwareDecoderInfo"):
                return library
    return None


def version_of(name: str) -> str:
    """Return an installed package's version, empty where it is missing."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


if __name__ == "__main__":
    given = answering.flags(__doc__).parse_args()
    answering.write(given.answer, facts())
