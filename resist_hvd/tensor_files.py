"""Reading safetensors files, on file systems that can map files into memory and on those that cannot."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor


def each_tensor(path: Path, names: Iterable[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors of a file with their names: all of them, or those that are asked for; one at a time in memory.

    Some network and user-space file systems refuse to map a file; there it is read whole, once.

    Raises:
        OSError: the file cannot be read.
        SafetensorError: it is no safetensors file, or has no tensor of such a name.
    """
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys() if names is None else names:
                yield name, file.get_tensor(name)
            return
    except (OSError, SafetensorError):
        found = load(path.read_bytes())
    for name in found if names is None else names:
        if name not in found:
            raise SafetensorError(f"it has no tensor {name!r}")
        yield name, found[name]


def read_tensors(path: Path, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Return tensors of a file by name: all of them, or those that are asked for.

    Raises:
        OSError, SafetensorError: as `each_tensor` does.
    """
    return dict(each_tensor(path, names))
