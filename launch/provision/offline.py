"""launch/setup --offline: a pack as it lies on a machine, and whether it fits that machine and this project."""

from dataclasses import dataclass
from pathlib import Path

from provision import parts
from provision.machine import Machine, look_at_machine
from provision.pack import GROUPS, lock_digest
from provision.parts import Manifest
from provision.stamp import Choice
from provision.steps import Log, StepFailedError


@dataclass(frozen=True)
class OpenedPack:
    """A pack whose parts are there.

    Attributes:
        folder: where it lies.
        manifest: what it holds.
        groups: names of the groups that are installed from.
        machine: the Python and the PyTorch that it is installed beside.
    """

    folder: Path
    manifest: Manifest
    groups: tuple[str, ...]
    machine: Machine

    def unpack(self, target: Path) -> int:
        """Take all files out of the parts, each compared with its digest, and return how many there are."""
        for name in self.groups:
            parts.join_group(self.folder, self.manifest.groups[name], target)
        return sum(len(self.manifest.groups[name].files) for name in self.groups)


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
    manifest = parts.read_manifest(folder)
    needed = {"base": True, "dali": choice.dali, "timm": choice.timm, "dev": choice.dev}
    used = [name for name in GROUPS if needed.get(name) or (name == "nvcc" and _brings_nvcc(folder, manifest))]
    for name in used:
        if name not in manifest.groups:
            raise StepFailedError(
                f"the pack in {folder} was made without {name}",
                mend=f"Make it anew by launch/setup --pack DIR --{name}, or leave --{name} out here.",
            )
        if missing := parts.missing_parts(folder, manifest.groups[name]):
            raise StepFailedError(f"{', '.join(missing)} of the pack in {folder} is missing", mend=parts.COPY_MEND)
        for lock in GROUPS[name]:
            if manifest.locks.get(lock) != lock_digest(lock):
                raise StepFailedError(
                    f"the pack in {folder} was made by another version of the project: {lock} differs",
                    mend="Make it anew by launch/setup --pack DIR of this version.",
                )
    return OpenedPack(folder, manifest, tuple(used), look_at_machine(log, python, manifest))


def _brings_nvcc(folder: Path, manifest: Manifest) -> bool:
    """Return whether a pack was made with the compiler for CUDA, and at least some of its parts came along."""
    group = manifest.groups.get("nvcc")
    return group is not None and len(parts.missing_parts(folder, group)) < len(group.parts)
