"""One rank's view of its host, its libraries, and the run's folder."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import resource
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

import resist_hvd
from resist_hvd.comm.devices import driver_version, gains_by_bf16, gpu_identity, gpu_is_present
from resist_hvd.comm.launch import in_effect
from resist_hvd.comm.probe import Libraries, libraries
from resist_hvd.comm.resources import Resources, own_resources
from resist_hvd.comm.world import World


@dataclass(frozen=True, kw_only=True)
class View:
    """One rank's view. Sizes are in bytes; what does not exist is empty, -1 where it is a size without a limit.

    Attributes:
        resources: cores and memory that this rank may use, and what limits them.
        threads: how many PyTorch computes with.
        code, config: SHA-256 of the package's files, and of the file of settings.
        gpus: names of those PyTorch can use.
        gpu: UUID of the one that this rank would take.
        driver: version of NVIDIA's.
        gpus_seen: whether the host has a GPU, whatever PyTorch thinks of it.
        bf16: whether the device that this rank would take is faster by bfloat16.
        dali: its version.
        told: variables that say how MPI and Horovod are to work, NAME=VALUE.
        shared_memory: free in /dev/shm.
        locked_memory: how much a process may lock, for InfiniBand.
        infiniband: whether the host has it.
        output_error: why the run's folder cannot be written, or is not that of rank 0.
        output_free: free on its disk.
    """

    rank: int
    host: str
    resources: Resources
    threads: int
    python: str
    torch: str
    cuda: str
    gpus: tuple[str, ...]
    gpu: str
    driver: str
    gpus_seen: bool
    bf16: bool
    dali: str
    libraries: Libraries
    told: tuple[str, ...]
    code: str
    config: str
    shared_memory: int
    locked_memory: int
    infiniband: bool
    output_error: str
    output_free: int


def look(world: World, output: Path, config: Path | None) -> View:
    """Return this rank's view; all ranks call it together."""
    gpus = torch.cuda.device_count()
    device = torch.device("cuda", world.local_rank % gpus) if gpus else torch.device("cpu")
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    error, free = look_at_output(world, output)
    return View(
        rank=world.rank,
        host=world.host,
        resources=own_resources(),
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        torch=torch.__version__,
        cuda=torch.version.cuda or "",
        gpus=tuple(torch.cuda.get_device_name(number) for number in range(gpus)),
        gpu=gpu_identity(device),
        driver=driver_version(),
        gpus_seen=gpu_is_present(os.environ),
        bf16=gains_by_bf16(device),
        dali=version_of_dali(),
        libraries=libraries(),
        told=in_effect(),
        code=digest_of_code(),
        config=digest_of_file(config),
        shared_memory=free_space(Path("/dev/shm")),
        locked_memory=-1 if locked == resource.RLIM_INFINITY else locked,
        infiniband=any(Path("/sys/class/infiniband").glob("*")),
        output_error=error,
        output_free=free,
    )


def look_at_output(world: World, output: Path) -> tuple[str, int]:
    """Return what is wrong with the run's folder, and what is free on its disk; all ranks call it together.

    Rank 0 makes the folder and writes a file; the others must see it. Nothing that was not there stays.
    """
    error = ""
    made = [folder for folder in (output, *output.parents) if not os.path.lexists(folder)]
    sign = output / f".doctor-{world.broadcast_object(os.getpid())}"
    if world.is_first:
        try:
            output.mkdir(parents=True, exist_ok=True)
            sign.write_text("")
        except OSError as caught:
            error = caught.strerror or str(caught)
    error = world.broadcast_object(error)
    if not error and not sign.exists():
        error = "another folder than rank 0's"
    nearest = next((folder for folder in (output, *output.parents) if folder.is_dir()), Path("/"))
    free = free_space(nearest)
    world.barrier()
    if world.is_first:
        with contextlib.suppress(OSError):
            sign.unlink()
        for folder in made:
            with contextlib.suppress(OSError):  # it may not have been made, or hold something by now
                folder.rmdir()
    return error, free


def free_space(folder: Path) -> int:
    """Return what is free in a folder, in bytes; 0 where there is none."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def version_of_dali() -> str:
    """Return DALI's version, for whichever CUDA; empty where it is not installed."""
    names = [entry.metadata["Name"] for entry in metadata.distributions()]
    found = sorted(name for name in names if name and name.lower().startswith("nvidia-dali-cuda"))
    return metadata.version(found[0]) if found else ""


def digest_of_code() -> str:
    """Return the SHA-256 of all files of this package that matter to a run."""
    root = Path(resist_hvd.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(path for kind in ("*.py", "*.yaml") for path in root.rglob(kind)):
        digest.update(f"{path.relative_to(root)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def digest_of_file(path: Path | None) -> str:
    """Return a file's SHA-256; empty without a path, "missing" where it cannot be read."""
    if path is None:
        return ""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return "missing"
