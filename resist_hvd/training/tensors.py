"""Writing safetensors files tensor by tensor: those of checkpoints, and the exported model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resist_hvd.training.disk import create, synchronise

TYPES = {torch.float32: "F32", torch.float64: "F64"}
"""The format's names of the types that are written."""

DTYPES = {name: dtype for dtype, name in TYPES.items()}


class SafetensorsStream:
    """A safetensors file that is written tensor by tensor, in any order, without ever holding more than one.

    The format: eight bytes of the header's length, a JSON header of names, types, shapes and offsets, then the data
    (https://huggingface.co/docs/safetensors, "Format").

    Args:
        path: the file to write; it is made anew.
        shapes: of every tensor that will be written, by name.
        dtypes: of tensors that are not of float32, by name.
    """

    def __init__(
        self, path: Path, shapes: Mapping[str, Sequence[int]], dtypes: Mapping[str, torch.dtype] | None = None
    ) -> None:
        header: dict[str, dict[str, Any]] = {}
        end = 0
        for name, shape in sorted(shapes.items()):
            dtype = (dtypes or {}).get(name, torch.float32)
            begin, end = end, end + dtype.itemsize * math.prod(shape)
            header[name] = {"dtype": TYPES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._header = header
        self._missing = set(shapes)
        self._data_start = 8 + len(text)
        self._file = create(path)
        self._file.write(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, *pieces: Tensor) -> None:
        """Write one of the announced tensors: whole, or if it is flat in pieces, one after another.

        Raises:
            ValueError: it has another shape than was announced.
            OSError: it cannot be written.
        """
        entry = self._header[name]
        shape = list(pieces[0].shape) if len(pieces) == 1 else [sum(piece.numel() for piece in pieces)]
        if shape != entry["shape"]:
            raise ValueError(f"{name} was announced with shape {entry['shape']}, not {shape}")
        dtype = DTYPES[entry["dtype"]]
        self._file.seek(self._data_start + entry["data_offsets"][0])
        for piece in pieces:
            numbers = piece.detach().to("cpu", dtype).contiguous().numpy()
            self._file.write(numbers.reshape(-1).view(np.uint8).data)
        self._missing.remove(name)

    def close(self) -> None:
        """Flush to the disk and close.

        Raises:
            ValueError: a tensor that was announced has not been written.
        """
        if self._missing:
            raise ValueError(f"never written: {sorted(self._missing)}")
        synchronise(self._file)
        self._file.close()


def write_tensors(path: Path, tensors: Mapping[str, Sequence[Tensor]]) -> None:
    """Write a file of named flat tensors, each as the pieces of one type that its numbers lie in, in order."""
    dtypes = {name: pieces[0].dtype for name, pieces in tensors.items()}
    stream = SafetensorsStream(path, {name: [sum(map(len, pieces))] for name, pieces in tensors.items()}, dtypes)
    for name, pieces in tensors.items():
        stream.write(name, *pieces)
    stream.close()
