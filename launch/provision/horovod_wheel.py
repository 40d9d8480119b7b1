"""Horovod from its last release's source: fetched, verified, patched, built, and kept as a wheel for the next time."""

import hashlib
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from provision.cuda import Cuda, PyTorch
from provision.environment import LAUNCH, install_nvcc, interpreter
from provision.steps import Log, StepFailedError, clean_environment
from provision.toolchain import SiteMpi

VERSION = "0.28.1"
PATCH = LAUNCH / f"horovod-{VERSION}.patch"
SDIST = f"horovod-{VERSION}.tar.gz"
SDIST_SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"
FEATURES = {
    "HOROVOD_WITH_PYTORCH": "1",
    "HOROVOD_WITH_MPI": "1",
    "HOROVOD_WITHOUT_TENSORFLOW": "1",
    "HOROVOD_WITHOUT_MXNET": "1",
}
FETCH_MEND = (
    "Check the network, and the registry that pip uses (`pip config list`); a proxy is named by HTTPS_PROXY, a mirror "
    "by PIP_INDEX_URL. Then run launch/setup again."
)
BUILD_MEND = (
    "The first line with `error` in the log says what went wrong. A compiler killed without a message ran out of "
    "memory: set CMAKE_BUILD_PARALLEL_LEVEL=1. Then run launch/setup again."
)
MEMORY_OF_A_COMPILER = 2 << 30


def cuda_tag(cuda: Cuda | None) -> str:
    """Return what tells for which GPUs a wheel is: "cpu", or the toolkit and the capabilities, as "cuda13.0-80-90"."""
    return "cpu" if cuda is None else f"cuda{cuda.version}-{'-'.join(cuda.architectures)}"


def key(facts: Mapping[str, str | None], site_mpi: SiteMpi | None, cuda: Cuda | None) -> str:
    """Return the name of a wheel's folder in the cache: all wheels of one name are interchangeable.

    It tells to a reader what the wheel is for, and in a digest the rest: where a site's MPI is, the C library, the
    source, the patch and the features that are built in.

    Args:
        facts: the answers of `probe.py facts`.
        site_mpi: the MPI that the wheel is for, None for the registry's.
        cuda: what its NCCL operations are built with, None for a build without.
    """
    features = "".join(f"{name}={value}\n" for name, value in sorted(FEATURES.items()))
    recipe = hashlib.sha256(b"\n".join([SDIST_SHA256.encode(), PATCH.read_bytes(), features.encode()])).hexdigest()
    mpi = site_mpi.name if site_mpi else f"openmpi-{facts['openmpi']}"
    place = f"{mpi} {site_mpi.library}" if site_mpi else mpi
    torch, abi = str(facts["torch"]), str(facts["abi"])
    digest = hashlib.sha256("\n".join([torch, place, cuda_tag(cuda), abi, str(facts["libc"]), recipe]).encode())
    return f"horovod-{VERSION}_torch-{torch}_{mpi}_{cuda_tag(cuda)}_{abi}_{digest.hexdigest()[:12]}"


def cache_folder() -> Path:
    """Return where built wheels are kept: RESIST_HVD_CACHE, or `resist_hvd` in the user's cache folder."""
    own = os.environ.get("RESIST_HVD_CACHE")
    if own:
        return Path(own).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resist_hvd"


def cached_wheel(key: str) -> Path | None:
    """Return the wheel of this key if an earlier run has built it."""
    return next(iter(sorted((cache_folder() / key).glob("*.whl"))), None)


def any_cached_wheel() -> bool:
    """Return whether an earlier run has built a wheel of this version, of whatever key."""
    return any(cache_folder().glob(f"horovod-{VERSION}_*/*.whl"))


def verify_sha256(file: Path, expected: str) -> None:
    """Raise StepFailedError unless the file's SHA-256 is the expected one."""
    seen = hashlib.sha256(file.read_bytes()).hexdigest()
    if seen != expected:
        raise StepFailedError(
            f"{file.name} has SHA-256 {seen} and not the pinned {expected}",
            mend="The registry or a mirror serves another file than the one this project was tested with. Do not use "
            "it; find out where it comes from (`pip config list`).",
        )


def build_wheel(key: str, site_mpi: SiteMpi | None, cuda: Cuda | None, wheels: Path | None, log: Log) -> Path:
    """Build the wheel of this key, put it into the cache, and return its path there.

    Args:
        key: names it in the cache.
        site_mpi: the MPI whose compiler wrapper is on the PATH, None for the registry's, which is in `.venv`.
        cuda: what to build NCCL operations with, None for a build without.
        wheels: a folder with the source and the locked compiler for CUDA; None for the registry.
        log: the step's log.

    Raises:
        StepFailedError: the source cannot be fetched, is not the pinned one, or cannot be patched or built.
    """
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="build-", dir=cache) as folder:
        work = Path(folder)
        sdist = fetch_sdist(work, log) if wheels is None else wheels / SDIST
        verify_sha256(sdist, SDIST_SHA256)
        with tarfile.open(sdist) as archive:
            archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python before 3.11.4 has none.
            archive.extractall(work)
        source = work / f"horovod-{VERSION}"
        apply_patch(PATCH, source)
        environment = _build_environment(site_mpi)
        if cuda is not None:
            environment |= _cuda_environment(cuda, wheels, work, log)
            # CMake asks the nvcc that it finds first, whatever CUDA_HOME says.
            environment["PATH"] = f"{environment['CUDA_HOME']}/bin{os.pathsep}{environment['PATH']}"
        command: list[str | Path] = [interpreter(), "-m", "pip", "wheel", source, "--wheel-dir", work / "out"]
        command += ["--verbose", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
        # Quiet, since setup.py would otherwise hand `VERBOSE=1` to Ninja, which takes it for a target.
        command += ["--config-settings=--global-option=--quiet"]
        log.run(command, env=environment, mend=BUILD_MEND)
        kept = cache / key
        shutil.rmtree(kept, ignore_errors=True)
        (work / "out").rename(kept)
    wheel = cached_wheel(key)
    if wheel is None:
        raise StepFailedError("the build left no wheel", mend=BUILD_MEND)
    return wheel


def fetch_sdist(work: Path, log: Log) -> Path:
    """Download Horovod's source. Pip asks it for its metadata, but verifies the hash before it runs anything of it."""
    with tempfile.NamedTemporaryFile("w", prefix="horovod-", suffix=".txt") as pinned:
        pinned.write(f"horovod=={VERSION} --hash=sha256:{SDIST_SHA256}\n")
        pinned.flush()
        command: list[str | Path] = [interpreter(), "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
        command += ["--require-hashes", "--no-binary", ":all:", "--no-build-isolation"]
        command += ["--dest", work, "--requirement", pinned.name]
        log.run(command, env=clean_environment(), mend=FETCH_MEND)
    return work / SDIST


def apply_patch(patch: Path, source: Path) -> None:
    """Apply a unified diff: what each hunk replaces must be in its file exactly once.

    A fresh machine may lack both `patch` and `git`. The source is pinned: the numbers of lines have nothing to add.

    Raises:
        StepFailedError: the patch does not fit the source.
    """
    for change in re.split(r"^--- a/", patch.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        name = change.partition("\n")[0]
        file = source / name
        content = file.read_text(encoding="utf-8") if file.is_file() else ""
        for hunk in re.split(r"^@@.*\n", change, flags=re.MULTILINE)[1:]:
            lines = re.findall(r"^([ +-])(.*\n)", hunk, flags=re.MULTILINE)
            old, new = ("".join(line for sign, line in lines if sign in signs) for signs in (" -", " +"))
            if content.count(old) != 1:
                mend = f"Take {patch.name} from a fresh copy of the project."
                raise StepFailedError(f"the patch does not fit {name}: another version, or already patched", mend=mend)
            content = content.replace(old, new)
        file.write_text(content, encoding="utf-8")


def _nccl_home(work: Path, pytorch: PyTorch) -> Path:
    """Return a folder laid out as a linker expects; NCCL's wheel has `libnccl.so.2`, but no name without a number."""
    home = work / "nccl"
    for folder in ("lib", "include"):
        (home / folder).mkdir(parents=True)
    for header in Path(pytorch.nccl_headers or "").glob("nccl*"):
        (home / "include" / header.name).symlink_to(header)
    (home / "lib/libnccl.so").symlink_to(pytorch.nccl or "")
    return home


def _cuda_environment(cuda: Cuda, wheels: Path | None, work: Path, log: Log) -> dict[str, str]:
    """Return the variables of a build with NCCL operations, having fetched the locked compiler if it is chosen."""
    home = cuda.home or install_nvcc(log, work / "cuda", wheels)
    variables = {
        "CUDA_HOME": str(home),
        "HOROVOD_CUDA_HOME": str(home),
        "HOROVOD_GPU_OPERATIONS": "NCCL",
        "HOROVOD_NCCL_LINK": "SHARED",
        "HOROVOD_NCCL_HOME": str(_nccl_home(work, cuda.pytorch)),
        "HOROVOD_BUILD_CUDA_CC_LIST": ",".join(cuda.architectures),
    }
    if cuda.pytorch.cuda_headers:
        # Searched last: what the toolkit itself lacks of the headers that PyTorch's own ask for.
        own = os.environ.get("CPLUS_INCLUDE_PATH")
        variables["CPLUS_INCLUDE_PATH"] = os.pathsep.join(filter(None, (own, cuda.pytorch.cuda_headers)))
    return variables


def _build_environment(site_mpi: SiteMpi | None) -> dict[str, str]:
    environment = clean_environment() | FEATURES
    jobs = environment.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(_parallel_jobs())
    environment |= {
        "PATH": f"{interpreter().parent}{os.pathsep}{environment.get('PATH', os.defpath)}",
        "CMAKE_GENERATOR": "Ninja",
        "CMAKE_BUILD_PARALLEL_LEVEL": jobs,
        "MAKEFLAGS": f"-j{jobs}",  # Keeps setup.py from asking for eight.
        "PYTHONNOUSERSITE": "1",
        "LDFLAGS": f"{environment.get('LDFLAGS', '')} -Wl,--strip-debug",  # 64 MB of it, which nobody reads.
    }
    if site_mpi is not None:
        # The library itself is linked into .venv/lib; this is for others of the same MPI, such as its C++ bindings.
        environment["LDFLAGS"] += f" -Wl,-rpath,{site_mpi.library.parent}"
        if site_mpi.is_cray:
            # There is no mpicxx to be asked for flags: the compilers themselves know MPI.
            environment["CC"], environment["CXX"] = site_mpi.compilers
    return environment


def _parallel_jobs() -> int:
    """Return how many compilers may run at once: one a core, and no more than memory holds."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(len(os.sched_getaffinity(0)), memory // MEMORY_OF_A_COMPILER))
