"""Needs of torch.compile on a host, looked for before a run begins rather than found missing in its first step."""

from __future__ import annotations

import os
import shlex
import shutil
import sysconfig
from pathlib import Path

import torch

from resist_hvd.errors import UserError


def check_compiler(device: torch.device, include: Path | None = None) -> None:
    """Check that this host has the compiler and the headers that torch.compile builds with.

    Kernels for CPUs are C++; those for GPUs are started by a module in C that Triton builds. Both include Python.h.

    Args:
        device: what is compiled for.
        include: the folder of Python's headers, by default where this Python says.

    Raises:
        UserError: one of them is missing.
    """
    gpu = device.type == "cuda"
    variable = "CC" if gpu else "CXX"
    candidates = [os.environ[variable]] if os.environ.get(variable) else ["gcc", "clang"] if gpu else ["g++"]
    include = include or Path(sysconfig.get_path("include", _scheme()))
    missing = []
    if not any(shutil.which(command[0]) for command in map(shlex.split, candidates) if command):
        missing.append(f"no {'C' if gpu else 'C++'} compiler ({' or '.join(candidates)}) on the PATH")
    if not (include / "Python.h").is_file():
        missing.append(f"no Python.h in {include}")
    if missing:
        packages = f"{'gcc' if gpu else 'g++'} python3-dev"
        raise UserError(
            f"--compile needs a compiler and Python's headers, and there is {' and '.join(missing)}",
            mend=f"Install them (apt-get install {packages}), name a compiler by {variable}, or give --compile false.",
        )


def _scheme() -> str:
    """Return the scheme of paths that tells where headers are; Debian's default one names where they are not."""
    scheme = sysconfig.get_default_scheme()
    return "posix_prefix" if scheme == "posix_local" else scheme
