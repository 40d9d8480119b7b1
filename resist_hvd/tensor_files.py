"""Reading safetensors files, on file systems that can map files into memory and on those that cannot."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor


def read_tensors(path: Path, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Return tensors of a file by name: all of them, or those that are asked for.

    Some network and user-space file systems refuse to map a file; there it is read whole.

    Raises:
        OSError: the file cannot be read.
        SafetensorError: it is no safetensors file, or has no tensor of such a name.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in (file.keys() if names is None else names)}
    except (OSError, SafetensorError):
        found = load(path.read_bytes())
    try:
        return found if names is None else {name: found[name] for name in names}
    except KeyError as error:
        raise SafetensorError(f"it has no tensor {error}") from None
