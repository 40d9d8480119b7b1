"""Two runs of the same settings, compared by what they left in their folders."""

from __future__ import annotations

import json
import math
import struct
from array import array
from collections.abc import Mapping
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
        models: of the exported models, as the norm of what they differ by, relative to the norm of the first: a few
            numbers may differ by much, where rounding decides on which side of zero a unit falls.
    """

    loss: float
    relative_loss: float
    evaluated: float
    models: float


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
        models=largest_of_models(one, other),
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
    """Return the largest difference of two runs' exported models, of which an ensemble has several.

    Raises:
        FailedError: they are not of the same names and shapes.
    """
    models = sorted(path.relative_to(one) for path in one.rglob("model.safetensors"))
    if not models:
        raise FailedError(f"there is no exported model in {one.name}")
    return max(difference(read_model(one / name), read_model(other / name)) for name in models)


def difference(mine: Mapping[str, array[float]], theirs: Mapping[str, array[float]]) -> float:
    """Return the norm of what two models differ by, relative to the norm of the first; inf where there is none.

    Raises:
        FailedError: they are not of the same names and shapes, or the first is all zeros, or empty.
    """
    if {name: len(values) for name, values in mine.items()} != {name: len(values) for name, values in theirs.items()}:
        raise FailedError("the exported models are of different parameters")
    apart = sum((a - b) ** 2 for name, values in mine.items() for a, b in zip(values, theirs[name], strict=True))
    norm = sum(a * a for values in mine.values() for a in values)
    if norm == 0.0:
        raise FailedError(f"the exported model has no number in float32 other than 0, in {len(mine)} parameters")
    relative = math.sqrt(apart / norm)
    return relative if math.isfinite(relative) else math.inf  # of NaN and a number, `max` returns either


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
