"""GPUs of a machine, their driver, and the CUDA toolkit that Horovod's NCCL operations are built with."""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from provision.steps import Log, StepFailedError

USUAL_HOME = Path("/usr/local/cuda")
LEAST_DRIVER = {12: 525, 13: 580}
"""Oldest major version of NVIDIA's driver that runs programs of a major version of CUDA."""


@dataclass(frozen=True)
class Gpus:
    """NVIDIA GPUs of this machine.

    Attributes:
        present: whether there is any.
        architectures: their compute capabilities, as plain integers such as "90"; empty where nvidia-smi tells none.
        driver: version of the driver, empty where it is not known.
    """

    present: bool
    architectures: tuple[str, ...] = ()
    driver: str = ""


@dataclass(frozen=True)
class PyTorch:
    """The PyTorch that Horovod is built for, by the answers of `probe.py facts`.

    Attributes:
        cuda: the CUDA version it was built for, such as "13.2"; None for one without CUDA.
        nccl: the NCCL library that it loads, None where none was found.
        nccl_headers: the folder with that library's headers, None where it has none.
        cuda_headers: the folder with headers of CUDA's libraries that PyTorch's packages bring, for what a toolkit may
            lack; None where they bring none.
    """

    cuda: str | None
    nccl: str | None
    nccl_headers: str | None
    cuda_headers: str | None = None


@dataclass(frozen=True)
class Cuda:
    """Toolkit, architectures and PyTorch that NCCL operations are built with.

    Attributes:
        home: the CUDA toolkit's folder; None for the compiler locked in requirements-nvcc.txt, fetched for the build.
        version: the toolkit's version, such as "13.0".
        architectures: the compute capabilities to build for, as plain integers such as "90".
        pytorch: what to build against; it has NCCL with headers.
    """

    home: Path | None
    version: str
    architectures: tuple[str, ...]
    pytorch: PyTorch


def find_gpus(log: Log, devices: Path = Path("/dev"), driver: Path = Path("/proc/driver/nvidia/version")) -> Gpus:
    """Return this machine's NVIDIA GPUs, by their devices and by nvidia-smi."""
    architectures: set[str] = set()
    if shutil.which("nvidia-smi") is not None:
        try:
            text = log.read(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"], mend="")
            architectures = {f"{major}{minor}" for major, minor in re.findall(r"(\d+)\.(\d+)", text)}
        except StepFailedError:
            pass
    try:
        version = re.search(r"\b\d{3,}\.\d+(?:\.\d+)?\b", driver.read_text(errors="replace"))
    except OSError:
        version = None
    present = bool(architectures) or any(devices.glob("nvidia[0-9]*"))
    return Gpus(present, tuple(sorted(architectures, key=int)), version[0] if version else "")


def driver_remark(gpus: Gpus, torch_cuda: str) -> str:
    """Return that the driver is too old for a CUDA version, empty where it is not or where nothing is known."""
    major = int(torch_cuda.partition(".")[0])
    least = LEAST_DRIVER.get(major)
    if not gpus.driver or least is None or int(gpus.driver.partition(".")[0]) >= least:
        return ""
    return f"the GPU's driver is {gpus.driver}, and PyTorch's CUDA {major} needs driver {least} or newer"


def locked_version(requirements: Path) -> str:
    """Return the CUDA version of the nvcc locked in a requirements file, such as "13.0"."""
    pin = re.search(r"^nvidia-cuda-nvcc==(\d+\.\d+)", requirements.read_text(), re.MULTILINE)
    if pin is None:
        raise StepFailedError(
            f"{requirements} pins no nvidia-cuda-nvcc", mend="Take it from a fresh copy of the project."
        )
    return pin[1]


def fits(toolkit: str, torch_cuda: str) -> bool:
    """Return whether programs built with a toolkit run with the CUDA libraries of a PyTorch.

    Libraries of one major version know all that older ones of it did, and not what newer ones do.
    """
    major, _, minor = toolkit.partition(".")
    torch_major, _, torch_minor = torch_cuda.partition(".")
    return major == torch_major and minor.isdecimal() and int(minor) <= int(torch_minor)


def decide(
    log: Log, wanted: str, architectures: tuple[str, ...], gpus: Gpus, pytorch: PyTorch, locked: str | None
) -> tuple[Cuda | None, str]:
    """Return what to build NCCL operations with, or None and why to build without.

    A toolkit that CUDA_HOME names comes first, if it fits. Then the locked compiler: it is the one this project was
    tested with, and the same on every machine. Only where it cannot be had is one looked for on the machine.

    Args:
        log: the step's log.
        wanted: "yes", "no", or "auto" for yes where there is a GPU.
        architectures: what to build for; empty for the GPUs of this machine.
        gpus: the GPUs of this machine.
        pytorch: what to build against.
        locked: CUDA version of the locked compiler, None where it cannot be had.

    Raises:
        StepFailedError: `wanted` is "yes", and something is missing.
    """
    if wanted == "no":
        return None, "--cuda no was given"
    architectures = architectures or gpus.architectures
    if pytorch.cuda is None:
        lack = "this PyTorch is built without CUDA"
    elif not (pytorch.nccl and pytorch.nccl_headers):
        lack = "no NCCL with its headers was found beside PyTorch or in the system"
    elif not architectures:
        lack = "nvidia-smi tells no compute capability of this machine's GPU" if gpus.present else "no GPU was found"
    else:
        home, version, lack = _find_toolkit(log, pytorch.cuda, locked)
        if not lack:
            return Cuda(home, version, architectures, pytorch), ""
    log.note(f"no NCCL operations: {lack}")
    if wanted == "auto":
        return None, lack
    major = (pytorch.cuda or "").partition(".")[0]
    raise StepFailedError(
        lack,
        mend=f"Name a toolkit of CUDA {major} by CUDA_HOME=FOLDER, and where this machine has no GPU the compute "
        "capabilities to build for, as in --cuda-arch 80,90; or build without NCCL operations by --cuda no.",
    )


def _find_toolkit(log: Log, torch_cuda: str, locked: str | None) -> tuple[Path | None, str, str]:
    """Return a toolkit's folder (None for the locked compiler), its version, and what is lacking, empty for nothing."""
    named = [Path(name) for name in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")) if name]
    compiler = shutil.which("nvcc")
    around = [Path(compiler).resolve().parent.parent] if compiler else []
    around.append(USUAL_HOME)
    lacks = []
    for home in (*named, None, *around):
        if home is None:
            if locked is not None and fits(locked, torch_cuda):
                return None, locked, ""
            continue
        # An nvcc alone may be a script that calls a toolkit elsewhere; the headers tell the toolkit.
        if not ((home / "bin/nvcc").is_file() and (home / "include/cuda_runtime.h").is_file()):
            continue
        version = _toolkit_version(log, home)
        if fits(version, torch_cuda):
            return home.resolve(), version, ""
        lacks.append(f"the CUDA toolkit at {home} is version {version}")
        log.note(f"{lacks[-1]}, and this PyTorch is built for {torch_cuda}")
    seen = (
        lacks[-1] if lacks else "no CUDA toolkit was found by CUDA_HOME, by nvcc on the PATH, or at " + str(USUAL_HOME)
    )
    return None, "", f"{seen}, and this PyTorch is built for CUDA {torch_cuda}"


def _toolkit_version(log: Log, home: Path) -> str:
    try:
        text = log.read([home / "bin/nvcc", "--version"], mend="")
    except StepFailedError:
        return "unknown"
    release = re.search(r"release (\d+\.\d+)", text)
    return release[1] if release else "unknown"
