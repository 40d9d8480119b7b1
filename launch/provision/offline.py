"""launch/setup --offline: whether a pack fits a machine, and the environment beside that machine's PyTorch."""

import platform
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from provision import environment
from provision.environment import CHECK_MEND, VENV_MEND, ask, interpreter
from provision.pack import (
    COPY_MEND,
    GROUPS,
    Group,
    Manifest,
    join_group,
    lock_digest,
    missing_parts,
    read_manifest,
    release,
)
from provision.record import Choice
from provision.steps import Log, StepFailedError, clean_environment

PYTHON_MEND = "Name another Python by --python PATH, or make the pack anew with --pack DIR --for-python {}."
TORCH_MEND = (
    "Name the Python that has PyTorch {} or newer and torchvision by --python PATH: a pack holds neither, since they "
    "are the machine's own."
)


@dataclass(frozen=True)
class Machine:
    """A Python with PyTorch and torchvision, as found on a machine.

    Attributes:
        python: the interpreter.
        is_virtual: whether it is that of a virtual environment.
        torch: PyTorch's version.
        cuda: the CUDA version PyTorch was built for, None for one without CUDA.
        folders: where PyTorch and torchvision are imported from.
    """

    python: Path
    is_virtual: bool
    torch: str
    cuda: str | None
    folders: tuple[str, ...]


@dataclass(frozen=True)
class OpenedPack:
    """A pack whose parts are there.

    Attributes:
        folder: where it lies.
        groups: what is installed from it, by name.
        machine: the Python and the PyTorch that it is installed beside.
    """

    folder: Path
    groups: Mapping[str, Group]
    machine: Machine

    def unpack(self, target: Path) -> int:
        """Take all files out of the parts, each compared with its digest, and return how many there are."""
        for group in self.groups.values():
            join_group(self.folder, group, target)
        return sum(len(group.files) for group in self.groups.values())


def open_pack(log: Log, folder: Path, python: Path, choice: Choice) -> OpenedPack:
    """Return a pack that has what is chosen.

    Args:
        log: the step's log.
        folder: where it lies.
        python: the machine's interpreter with PyTorch.
        choice: what to install.

    Raises:
        StepFailedError: a part is missing, the pack was made without something or by another version of the project, or
            it is not for this Python, this processor or this PyTorch.
    """
    manifest = read_manifest(folder)
    needed = {"base": True, "nvcc": _brings_nvcc(folder, manifest)} | vars(choice)
    used = [name for name in GROUPS if needed[name]]
    for name in used:
        if name not in manifest.groups:
            raise StepFailedError(
                f"the pack in {folder} was made without {name}",
                mend=f"Make it anew by launch/setup --pack DIR --{name}, or leave --{name} out here.",
            )
        if missing := missing_parts(folder, manifest.groups[name]):
            raise StepFailedError(f"{', '.join(missing)} of the pack in {folder} is missing", mend=COPY_MEND)
        for lock in GROUPS[name]:
            if manifest.locks.get(lock) != lock_digest(lock):
                raise StepFailedError(
                    f"the pack in {folder} was made by another version of the project: {lock} differs",
                    mend="Make it anew by launch/setup --pack DIR of this version.",
                )
    machine = look_at_machine(log, python, manifest)
    return OpenedPack(folder, {name: manifest.groups[name] for name in used}, machine)


def _brings_nvcc(folder: Path, manifest: Manifest) -> bool:
    """Return whether a pack was made with the compiler for CUDA, and at least some of its parts came along."""
    group = manifest.groups.get("nvcc")
    return group is not None and len(missing_parts(folder, group)) < len(group.parts)


def look_at_machine(log: Log, python: Path, manifest: Manifest) -> Machine:
    """Return what a Python of this machine has, which must be what a pack was made for.

    Raises:
        StepFailedError: Python is of another version, PyTorch or torchvision are missing, or PyTorch is too old.
    """
    if platform.machine() != manifest.machine:
        raise StepFailedError(
            f"this machine is {platform.machine()}, and the pack is for {manifest.machine}",
            mend=f"Make the pack on a machine that is {platform.machine()}.",
        )
    mend = TORCH_MEND.format(manifest.torch)
    found = ask([python], log, "machine", mend=mend, env=clean_environment())
    if found["python"] != manifest.python:
        raise StepFailedError(
            f"{python} is Python {found['python']}, and the pack is for Python {manifest.python}",
            mend=PYTHON_MEND.format(found["python"]),
        )
    missing = [name for name in ("torch", "torchvision") if not found[name]]
    if missing:
        raise StepFailedError(f"{python} has no {' and no '.join(missing)}", mend=mend)
    if release(found["torch"]) < release(manifest.torch):
        raise StepFailedError(f"{python} has PyTorch {found['torch']}, older than {manifest.torch}", mend=mend)
    return Machine(python, found["is_virtual"], found["torch"], found["torch_cuda"], tuple(found["folders"]))


def make_machine_venv(log: Log, machine: Machine, wheels: Path) -> None:
    """Make an empty virtual environment that sees a machine's own PyTorch, with uv from its wheel.

    Args:
        log: the step's log.
        machine: whose PyTorch is to be seen.
        wheels: where uv's wheel is.

    Raises:
        StepFailedError: this Python cannot make one.
    """
    if not interpreter().is_file():
        # What a virtual environment was made from may have another PyTorch than it.
        system = [] if machine.is_virtual else ["--system-site-packages"]
        log.run(
            [machine.python, "-m", "venv", "--without-pip", *system, environment.VENV],
            mend=VENV_MEND,
            env=clean_environment(),
        )
    names = next((environment.VENV / "lib").glob("python*/site-packages")) / "machine.pth"
    names.unlink(missing_ok=True)
    seen = log.read([interpreter(), "-I", "-c", "import sys; print(sys.path)"], mend=VENV_MEND)
    hidden = [folder for folder in machine.folders if repr(folder) not in seen]
    # Packages of a virtual environment, or of a user, are not the system's: they are named.
    names.write_text("".join(f"{folder}\n" for folder in hidden))
    uv = environment.VENV / "bin/uv"
    wheel = next(iter(wheels.glob("uv-*.whl")), None)
    if wheel is None:
        raise StepFailedError(f"no wheel of uv is in {wheels}", mend=CHECK_MEND)
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".data/scripts/uv"))
        uv.write_bytes(archive.read(name))
    uv.chmod(0o755)
