"""The virtual environment: made, filled with the locked packages, bound to one MPI, and checked."""

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from provision.steps import Log, StepFailedError, clean_environment
from provision.toolchain import SiteMpi

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
VENV = ROOT / ".venv"
LOG_FOLDER = VENV / "setup-logs"
RECORD_FILE = VENV / "resist-setup.json"

VENV_MEND = (
    "On Debian and Ubuntu the module is a package of its own: `apt-get install python3-venv`. Without root, put uv on "
    "the PATH (`pip install --user uv`), or choose another Python by --python PATH."
)
REGISTRY_MEND = (
    "Check the network and the space on the disk (the packages take about 7 GB). A proxy is named by HTTPS_PROXY; a "
    "mirror by PIP_INDEX_URL for pip and UV_DEFAULT_INDEX for uv. Then run launch/setup again."
)
MPI4PY_MEND = (
    "The log says why mpi4py cannot be built. A Cray's cc must be able to build shared libraries for Python: load "
    "PrgEnv-gnu, and cudatoolkit or rocm where the site's MPI moves data of GPUs. Then run launch/setup again."
)
CHECK_MEND = "Run launch/setup --fresh, which makes .venv anew; a wheel of Horovod in the cache is used again."


def interpreter() -> Path:
    """Return the virtual environment's Python."""
    return VENV / "bin/python"


def base_interpreter() -> Path:
    """Return the Python that runs this, or where it is a virtual environment's, the one it was made from."""
    return Path(getattr(sys, "_base_executable", sys.executable)).absolute()


def own_interpreter() -> Path:
    """Return the Python that runs this, with the packages it sees, unless it is the virtual environment made here."""
    return base_interpreter() if Path(sys.prefix).resolve() == VENV.resolve() else Path(sys.executable).absolute()


def clear_venv() -> None:
    """Empty the folder of the virtual environment, which may be a link to a larger disk.

    Raises:
        StepFailedError: the folder holds something else than a virtual environment.
    """
    if not VENV.exists():
        return
    entries = [entry for entry in VENV.iterdir() if entry not in (LOG_FOLDER, RECORD_FILE)]
    if entries and not (VENV / "pyvenv.cfg").is_file():
        raise StepFailedError(f"{VENV} is not a virtual environment", mend="Move it away and run launch/setup again.")
    for entry in entries:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def make_venv(log: Log) -> None:
    """Make an empty virtual environment with uv in it, where there is none yet.

    Raises:
        StepFailedError: this Python cannot make one, or uv cannot be installed.
    """
    uv = shutil.which("uv")
    command: list[str | Path]
    if not interpreter().is_file():
        if importlib.util.find_spec("ensurepip") is not None:
            log.run([base_interpreter(), "-m", "venv", VENV], mend=VENV_MEND, env=clean_environment())
        elif uv is not None:
            command = [uv, "venv", "--allow-existing", "--python", base_interpreter(), VENV]
            log.run(command, mend=VENV_MEND, env=clean_environment())
        else:
            raise StepFailedError("this Python lacks the module ensurepip, and uv is not on the PATH", mend=VENV_MEND)
    if uv is None and not (VENV / "bin/uv").is_file():
        command = [interpreter(), "-m", "pip", "install", "--disable-pip-version-check", "--require-hashes"]
        log.run([*command, "-r", LAUNCH / "requirements-uv.txt"], mend=REGISTRY_MEND, env=clean_environment())


def uv_install(
    log: Log, *arguments: str | Path, wheels: Path | None = None, mend: str = REGISTRY_MEND, **variables: str
) -> None:
    """Install into the virtual environment by uv.

    Args:
        log: the step's log.
        arguments: more flags of `uv pip install`, and what to install.
        wheels: a folder with all that is needed; None for the registry.
        mend: what to do where it fails.
        variables: more of its environment.
    """
    own = VENV / "bin/uv"
    uv = own if own.is_file() else shutil.which("uv")
    source: list[str | Path] = ["--offline", "--no-index", "--find-links", wheels] if wheels else []
    command: list[str | Path] = [uv or own, "pip", "install", "--python", interpreter(), *source, *arguments]
    log.run(command, mend=mend, env=clean_environment() | variables)


def install_packages(log: Log, names: list[str], wheels: Path | None = None) -> None:
    """Install the locked packages of the given requirements files."""
    files = [part for name in names for part in ("-r", LAUNCH / name)]
    # What a pack lacks, PyTorch among it, the machine has: nothing is to be resolved.
    flags = ["--no-deps"] if wheels else []
    uv_install(log, "--require-hashes", *flags, *files, wheels=wheels)


def install_nvcc(log: Log, folder: Path, wheels: Path | None) -> Path:
    """Install the locked compiler for CUDA into a folder of its own, and return the toolkit's folder in it."""
    flags = ("--require-hashes", "--no-deps", "--target", folder)
    uv_install(log, *flags, "-r", LAUNCH / "requirements-nvcc.txt", wheels=wheels)
    compilers = sorted(folder.glob("nvidia/cu*/bin/nvcc"))
    if not compilers:
        raise StepFailedError(
            f"the packages of requirements-nvcc.txt brought no nvcc into {folder}", mend=REGISTRY_MEND
        )
    home = compilers[0].parents[1]
    # The packages are laid out for programs that run; who builds looks for these names.
    if not (home / "lib64").exists():
        (home / "lib64").symlink_to("lib")
    for library in (home / "lib").glob("libcudart.so.*"):
        (home / "lib/libcudart.so").symlink_to(library.name)
    return home


def build_mpi4py(log: Log, mpi: SiteMpi) -> None:
    """Build mpi4py of the locked version for a Cray's MPI, in place of the wheel, which does not know its name."""
    # uv keeps what it has built by the source alone, whatever MPI that was for.
    choice = ("--no-cache", "--no-deps", "--no-binary", "mpi4py", "--reinstall-package", "mpi4py")
    locked = ("--require-hashes", "-r", LAUNCH / "requirements.txt")
    uv_install(log, *choice, *locked, mend=MPI4PY_MEND, MPICC=f"{mpi.compilers[0]} -shared")


def bind_site_mpi(mpi: SiteMpi) -> None:
    """Let everything in the virtual environment load the site's MPI library.

    mpi4py's wheel looks for `libmpi.so` in the environment's `lib` first, and this project's wheel of Horovod there
    for the library it was linked to: both find these links.
    """
    for name in ("libmpi.so", mpi.soname):
        link = VENV / "lib" / name
        link.unlink(missing_ok=True)
        link.symlink_to(mpi.library)


def ask(
    python: list[str | Path], log: Log, question: str, *words: str, mend: str, env: Mapping[str, str]
) -> dict[str, Any]:
    """Ask a Python, named with its flags, one of the questions in `probe.py`."""
    command = [*python, Path(__file__).with_name("probe.py"), question, *words]
    answer: dict[str, Any] = json.loads(log.read(command, mend=mend, env=env).splitlines()[-1])
    return answer


def probe(log: Log, question: str, *words: str, mend: str = CHECK_MEND) -> dict[str, Any]:
    """Ask the virtual environment's Python one of the questions in `probe.py`."""
    return ask([interpreter(), "-I"], log, question, *words, mend=mend, env=os.environ)


def check(log: Log, *, nccl: bool) -> str:
    """Import everything in the virtual environment, and return the versions that were found.

    Args:
        log: the step's log.
        nccl: whether Horovod must have NCCL operations.

    Raises:
        StepFailedError: an import fails, or what was built is not what was asked for.
    """
    found = probe(log, "check")
    libraries = found["libmpi"]
    if not isinstance(libraries, list) or len(libraries) != 1:
        raise StepFailedError(
            f"mpi4py and Horovod load different MPI libraries: {libraries}",
            mend="Remove the folder of the other MPI from LD_LIBRARY_PATH (`module unload` on a cluster), or use that "
            "MPI for both by launch/setup --mpi system.",
        )
    if not found["horovod_mpi"]:
        raise StepFailedError("Horovod was built without MPI", mend=CHECK_MEND)
    if nccl and not found["horovod_nccl"]:
        raise StepFailedError("Horovod was built without NCCL operations", mend=CHECK_MEND)
    if Path(str(found["resist_hvd"])) != ROOT / "resist_hvd":
        raise StepFailedError(f"resist_hvd is imported from {found['resist_hvd']}", mend=CHECK_MEND)
    gpu = "with NCCL operations" if found["horovod_nccl"] else "without NCCL operations"
    return f"torch {found['torch']}, {found['mpi']}, mpi4py {found['mpi4py']}, Horovod {found['horovod']} {gpu}"
