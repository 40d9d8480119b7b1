"""Inspect a machine without a network, and check that a pack fits it."""

import json
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provision.parts import Manifest
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


def ask(
    python: list[str | Path], log: Log, question: str, *words: str, mend: str, env: Mapping[str, str]
) -> dict[str, Any]:
    """Ask a Python, named with its flags, one of the questions in `probe.py`."""
    script = Path(__file__).with_name("probe.py")
    answer: dict[str, Any] = json.loads(
        log.read([*python, script, question, *words], mend=mend, env=env).splitlines()[-1]
    )
    return answer


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


def release(version: str) -> tuple[int, ...]:
    """Return major and minor version as numbers."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
