"""Two runs of the same settings, compared by what they left in their folders."""

from __future__ import annotations

import json
import math
import struct
from array import array
from dataclasses import dataclass
from pathlib import Path

from gpu_check.check import lines
from gpu_check.verdicts import FailedError


@dataclass(frozen=True)
class Difference:
    """The largest differences between two runs.

    Attributes:
        loss: of any round's training loss.
        relative_loss: of the mean training loss, relative to the first run's.
        evaluated: of any evaluation's loss.
        parameters: of any parameter of the exported models.
    """

    loss: float
    relative_loss: float
    evaluated: float
    parameters: float


def compare(one: Path, other: Path) -> Difference:
    """Compare two runs' folders.

    Raises:
        FailedError: they lack files, have another number of rounds or evaluations, or a loss is not finite.
    """
    losses, other_losses = (column(folder / "rounds.jsonl", "loss") for folder in (one, other))
    evaluated, other_evaluated = (column(folder / "eval.jsonl", "loss") for folder in (one, other))
    mean, other_mean = (sum(values) / len(values) for values in (losses, other_losses))
    return Difference(
        loss=largest(losses, other_losses),
        relative_loss=abs(other_mean - mean) / abs(mean),
        evaluated=largest(evaluated, other_evaluated),
        parameters=largest_of_models(one, other),
    )


def column(path: Path, name: str) -> list[float]:
    """Return a figure of each line of a run's file.

    Raises:
        FailedError: there is none, or one is not finite.
    """
    found = [float(line[name]) for line in lines(path)]
    if not found or not all(map(math.isfinite, found)):
        raise FailedError(f"{name} of {path.name} is {found}")
    return found


def largest(one: list[float], other: list[float]) -> float:
    """Return the largest difference of two columns.

    Raises:
        FailedError: they are of different lengths.
    """
    if len(one) != len(other):
        raise FailedError(f"one run has {len(one)} lines, the other {len(other)}")
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def largest_of_models(one: Path, other: Path) -> float:
    """Return the largest difference of any parameter of two runs' exported models.

    Raises:
        FailedError: they are not of the same names and shapes.
    """
    models = sorted(path.relative_to(one) for path in one.rglob("model.safetensors"))
    found = 0.0
    for name in models:
        mine, theirs = read_model(one / name), read_model(other / name)
        if {key: len(values) for key, values in mine.items()} != {key: len(v) for key, v in theirs.items()}:
            raise FailedError(f"{name} of one run has other parameters than that of the other")
        for key, values in mine.items():
            found = max(found, max(abs(a - b) for a, b in zip(values, theirs[key], strict=True)))
    if not models:
        raise FailedError(f"there is no exported model in {one.name}")
    return found


def read_model(path: Path) -> dict[str, array[float]]:
    """Return the float32 tensors of a safetensors file: a length, a header of JSON, and the numbers.

    Raises:
        FailedError: it cannot be read.
    """
    try:
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        found = {}
        for name, entry in header.items():
            if name != "__metadata__" and entry["dtype"] == "F32":
                begin, end = entry["data_offsets"]
                found[name] = array("f", content[8 + length + begin : 8 + length + end])
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise FailedError(f"{path.name} cannot be read: {error}") from None
    return found
