"""The starts of a run: which settings each changed, and on what it ran.

`config.yaml` holds the settings in force, and above them, in comments, what was in force before. `starts.jsonl` has a
line for each start.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

import resist_hvd
from resist_hvd.comm.probe import libraries
from resist_hvd.comm.world import World
from resist_hvd.records import StartRecord
from resist_hvd.settings.reading import plain, to_yaml
from resist_hvd.settings.run import Settings
from resist_hvd.training.disk import append, write_whole

Changes = dict[str, tuple[Any, Any]]
"""Settings that differ between two starts: the old value and the new, by name."""

UNTIL = "# until round "

OF_A_START = ("output", "resume")
"""Settings that say where and how a start begins, not what is trained."""


def changes(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Changes:
    """Return which settings differ; one that the old ones lack is of another version, and is left out."""
    found: Changes = {}
    for name, value in new.items():
        before = old.get(name, value)
        if isinstance(value, dict) and isinstance(before, dict):
            found |= changes(before, value, f"{prefix}{name}.")
        elif before != value and f"{prefix}{name}" not in OF_A_START:
            found[f"{prefix}{name}"] = (before, value)
    return found


def write_settings(folder: Path, settings: Settings, round_number: int) -> Changes:
    """Write `config.yaml`; return which settings differ from those that it held.

    Args:
        folder: the run's.
        settings: those of this start.
        round_number: how many rounds were trained with the ones before.
    """
    path = folder / "config.yaml"
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    changed = changes(settings_in(text), plain(asdict(settings)))
    history = [line for line in text.splitlines() if line.startswith(UNTIL)]
    if changed:
        were = ", ".join(f"{name} {json.dumps(old)}" for name, (old, _) in changed.items())
        history.append(f"{UNTIL}{round_number} ({time.strftime('%Y-%m-%d %H:%M:%S')}): {were}")
    # A new run that is given this file is not to go on with this one.
    write_whole(path, "\n".join([*history, to_yaml(replace(settings, resume=False))]))
    return changed


def settings_in(text: str) -> dict[str, Any]:
    """Return the settings that a file holds, none where it cannot be understood."""
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def tell(changed: Changes) -> str:
    """Return a sentence that lists changed settings."""
    each = ", ".join(f"{name} {json.dumps(old)} is now {json.dumps(new)}" for name, (old, new) in changed.items())
    return f"Changed from here on: {each} (config.yaml keeps what was before)"


def write_start(folder: Path, world: World, hosts: list[str], *, round_number: int, changed: Changes) -> None:
    """Add a line to `starts.jsonl`: the command, on what it runs, and with which software.

    Args:
        folder: the run's.
        world: all ranks.
        hosts: each rank's.
        round_number: how many rounds the run had when it was started.
        changed: the settings that this start changed.
    """
    start = StartRecord(
        time=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        round=round_number,
        command=tuple(sys.orig_argv),
        folder=os.getcwd(),
        workers=world.size,
        hosts=tuple(hosts),
        device=world.device.type,
        threads=torch.get_num_threads(),
        versions=versions(),
        commit=commit(),
        slurm_job=os.environ.get("SLURM_JOB_ID"),
        slurm_restarts=os.environ.get("SLURM_RESTART_COUNT"),
        changed=changed,
    )
    append(folder / "starts.jsonl", start.as_line())


def versions() -> dict[str, str]:
    """Return the versions of this package and of what it stands on."""
    loaded = libraries()
    found = {
        "resist_hvd": resist_hvd.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "horovod": loaded.horovod,
        "mpi": loaded.mpi,
    }
    for package in ("mpi4py", "torchvision", "nvidia-dali-cuda130", "nvidia-dali-cuda120"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@functools.cache
def commit() -> str | None:
    """Return the commit of this package's source, with `-dirty` where files differ from it; None outside a clone."""
    source = Path(resist_hvd.__file__).parents[1]
    if not (source / ".git").exists():
        return None
    command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        asked = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return asked.stdout.strip() or None
