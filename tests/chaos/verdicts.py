"""What must hold once a rank was sent a signal, and once the run was resumed to its end."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import yaml

from resist_hvd.errors import UserError
from resist_hvd.training.checkpoint import verify
from resist_hvd.training.folder import complete

from ..launch import runs
from .dealing import Kill

LOST, STOPPED = 69, 75

STATUSES = {
    signal.SIGKILL: {LOST, 128 + signal.SIGKILL},
    signal.SIGSEGV: {LOST, 128 + signal.SIGSEGV},
    signal.SIGSTOP: {LOST},
    signal.SIGTERM: {STOPPED, 128 + signal.SIGTERM},
    signal.SIGINT: {STOPPED, 128 + signal.SIGINT},
    signal.SIGUSR2: {STOPPED, 128 + signal.SIGUSR2},
    signal.SIGHUP: set(),
}
"""What a launcher may end with; 0 besides, where the signal came after a run's last work, or, as HUP, ends nothing."""

DEADLY = (signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP)
"""Signals that a rank does not survive, or cannot answer: others must say which rank it was."""


def faults_of_end(kill: Kill, ended: runs.Ended, folder: Path, reference: Path) -> list[str]:
    """Return what is wrong with how a run ended that was sent a signal."""
    found = []
    if ended.status == 0:
        if not (folder / "summary.json").exists():
            found.append("status 0, but there is no summary.json")
    elif ended.status not in STATUSES[kill.signal]:
        found.append(f"status {ended.status} after {kill.signal.name}")
    if "Traceback (most recent call last)" in ended.stderr + ended.stdout:
        found.append("a traceback")
    if ended.status != 0 and kill.signal in DEADLY and not names(ended.stderr, kill.rank):
        found.append(f"rank {kill.rank} is not named")
    return [*found, *half_written(folder, reference)]


def names(text: str, rank: int) -> bool:
    """Return whether a run's words name a rank: ours, or its launcher's."""
    return bool(re.search(rf"\b[Rr]anks? (\d+, )*{rank}\b", text))


def half_written(folder: Path, reference: Path) -> list[str]:
    """Return which files of a run's folder are not whole, whenever the run may have ended."""
    found = []
    for name in ("config.yaml", "summary.json", "model.json"):
        try:
            yaml.safe_load((folder / name).read_text())
        except FileNotFoundError:
            continue
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            found.append(f"{name} is half-written: {error}")
    for model in sorted(reference.rglob("model.safetensors")):
        ours = folder / model.relative_to(reference)
        if ours.exists() and ours.read_bytes() != model.read_bytes():
            found.append(f"{ours.name} is there, and not what it should be")
    checkpoints = complete(folder / "checkpoints")
    for checkpoint in checkpoints:
        try:
            verify(checkpoint)
        except UserError as error:
            # One that is being removed as the oldest may be there in part.
            if checkpoint == checkpoints[0]:
                found.append(f"{error}")
    for name in ("rounds.jsonl", "eval.jsonl"):
        if (folder / name).exists():
            for line in (folder / name).read_text().splitlines()[:-1]:
                json.loads(line)
    return found


def differences(folder: Path, reference: Path) -> list[str]:
    """Return how a run that was resumed to its end differs from one that was left alone, but in times."""
    found = []
    for path in sorted(path for path in reference.rglob("*") if path.is_file()):
        name = path.relative_to(reference)
        if name.parts[0] in ("tensorboard", "checkpoints"):
            continue
        if not (folder / name).exists():
            found.append(f"{name} is missing")
        elif name.name in ("rounds.jsonl", "eval.jsonl", "extra_tests.jsonl"):
            found += _difference_of_lines(folder / name, path)
        elif name.name == "summary.json":
            ours, theirs = (timeless(json.loads(file.read_text())) for file in (folder / name, path))
            found += [f"summary.json: {key} {ours[key]}, not {theirs[key]}" for key in ours if ours[key] != theirs[key]]
        elif name.name in ("model.safetensors", "model.json") and (folder / name).read_bytes() != path.read_bytes():
            found.append(f"{name} differs")
    found += _differences_of_last_checkpoint(folder / "checkpoints", reference / "checkpoints")
    found += [
        f"{path.relative_to(folder)} is left over"
        for pattern in ("*.partial", "claim.json", ".clock-*")
        for path in sorted(folder.rglob(pattern))
    ]
    return found


def timeless(entry: dict[str, Any]) -> dict[str, Any]:
    """Return what two runs have in common, of what a file says of one."""
    timed = ("seconds", "peak", "ranks", "time", "date", "host", "commit", "command", "started", "ended")
    return {name: value for name, value in entry.items() if not name.startswith(timed)}


def _difference_of_lines(path: Path, reference: Path) -> list[str]:
    ours, theirs = (
        [timeless(json.loads(line)) for line in file.read_text().splitlines()] for file in (path, reference)
    )
    if ours == theirs:
        return []
    if len(ours) != len(theirs):
        return [f"{path.name} has {len(ours)} lines, not {len(theirs)}"]
    line = next(number for number in range(len(ours)) if ours[number] != theirs[number])
    return [f"{path.name}, line {line + 1}: {ours[line]}, not {theirs[line]}"]


def _differences_of_last_checkpoint(folder: Path, reference: Path) -> list[str]:
    ours, theirs = complete(folder)[0], complete(reference)[0]
    if (folder / "latest").read_text() != f"{theirs.name}\n" or ours.name != theirs.name:
        return [f"the last checkpoint is {ours.name}, not {theirs.name}"]
    tensors = sorted(path.name for path in theirs.glob("*.safetensors"))
    return [
        f"{ours.name}/{name} differs" for name in tensors if (ours / name).read_bytes() != (theirs / name).read_bytes()
    ]
