"""Compilers and MPI of a machine, as a build needs them."""

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from provision.steps import Log, StepFailedError, clean_environment

COMPILER_MEND = (
    "Install a C++ compiler that knows C++20, such as GCC 11 or newer: `apt-get install g++` on Debian and Ubuntu, "
    "`dnf install gcc-c++` on Fedora and RHEL, often `module load gcc` on a cluster; or name one by the variable CXX."
)
HEADERS_MEND = (
    "Install them (`apt-get install python3-dev` on Debian and Ubuntu, `dnf install python3-devel` on Fedora and "
    "RHEL), or choose a Python that has them by --python PATH."
)
SITE_MPI_MEND = (
    "Bring the site's MPI onto the PATH (on a cluster often `module load openmpi`, on a Cray `module load PrgEnv-gnu "
    "cray-mpich`) and run launch/setup --mpi system again; or leave --mpi out for an MPI from the registry."
)


@dataclass(frozen=True)
class SiteMpi:
    """An MPI that the site provides.

    Attributes:
        name: what it calls itself, such as "openmpi-4.1.8".
        library: the shared library that programs built with its wrapper load, by the path they find it at.
        soname: the name under which they ask for it, such as "libmpi.so.40".
        compilers: what builds C and C++ programs for it.
        is_cray: whether it is a Cray's, which mpi4py must be built for: it has another name than any other MPI.
    """

    name: str
    library: Path
    soname: str
    compilers: tuple[str, str] = ("mpicc", "mpicxx")
    is_cray: bool = False


def find_compiler(log: Log, python_include: Path) -> str:
    """Return the C++ compiler's name and version, having built a C++20 program against Python's headers with it.

    Raises:
        StepFailedError: there is none, or it cannot do that.
    """
    wanted = os.environ.get("CXX")
    candidates = [wanted] if wanted else ["c++", "g++", "clang++"]
    found = next((path for path in map(shutil.which, candidates) if path), None)
    if found is None:
        raise StepFailedError(f"no C++ compiler ({', '.join(candidates)}) is on the PATH", mend=COMPILER_MEND)
    if not (python_include / "Python.h").is_file():
        raise StepFailedError(f"Python's headers are not in {python_include}", mend=HEADERS_MEND)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cc")
        source.write_text(
            "#include <Python.h>\n#include <concepts>\nstd::integral auto n = 0;\nint main() { return n; }\n"
        )
        log.run([found, "-std=c++20", f"-I{python_include}", source, "-o", source.with_suffix("")], mend=COMPILER_MEND)
    version = re.search(r"\d+(\.\d+)+", log.read([found, "--version"], mend=COMPILER_MEND))
    return f"{Path(found).name} {version[0] if version else 'of unknown version'}"


def find_site_mpi(log: Log) -> SiteMpi:
    """Return the MPI whose compiler wrappers and launcher are on the PATH.

    On a Cray the wrappers are `cc` and `CC`, and ranks are started by srun.

    Raises:
        StepFailedError: one of them is missing, or programs built with the wrapper load no MPI library.
    """
    missing = [program for program in ("mpicc", "mpicxx", "mpirun") if shutil.which(program) is None]
    is_cray = bool(missing and os.environ.get("CRAYPE_VERSION") and shutil.which("cc") and shutil.which("CC"))
    if missing and not is_cray:
        raise StepFailedError(f"{' and '.join(missing)} not found on the PATH", mend=SITE_MPI_MEND)
    compilers = ("cc", "CC") if is_cray else ("mpicc", "mpicxx")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text("#include <mpi.h>\nint main(void) { int flag; return MPI_Initialized(&flag); }\n")
        program = source.with_suffix("")
        log.run([compilers[0], source, "-o", program], mend=SITE_MPI_MEND)
        loaded = log.read(["ldd", program], mend=SITE_MPI_MEND)
    # A Cray's libmpi_gtl moves data of GPUs and is no MPI.
    library = re.search(r"(libmpi(?!_gtl)\S*\.so\S*) => (/\S+)", loaded)
    if library is None:
        raise StepFailedError(
            f"a program built with {compilers[0]} loads no libmpi that can be found", mend=SITE_MPI_MEND
        )
    name = f"cray-mpich-{os.environ.get('CRAY_MPICH_VERSION', 'unknown')}" if is_cray else _mpi_name(log)
    return SiteMpi(name, Path(library[2]), library[1], compilers, is_cray)


def _mpi_name(log: Log) -> str:
    """Return vendor and version of the mpirun on the PATH, in the form of a file name."""
    text = log.read(["mpirun", "--version"], mend=SITE_MPI_MEND, env=clean_environment())
    version = re.search(r"\d+(\.\d+)+", text)
    vendor = "openmpi" if "Open MPI" in text or "OpenRTE" in text else "intelmpi" if "Intel" in text else "mpich"
    return f"{vendor}-{version[0] if version else 'unknown'}"
