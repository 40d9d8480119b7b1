"""A program that makes many whole runs in one world: each trained in part, resumed to its end, and compared.

Its arguments: how many runs, a folder for them, the images, and a file where rank 0 writes a line of JSON for each. A
run that takes longer than `STALLED` has all stacks of its ranks written to standard error, and goes on.
"""

import contextlib
import faulthandler
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from resist_hvd.comm.activity import Activity
from resist_hvd.guard import failure, starting
from resist_hvd.guard.watchdog import watched
from resist_hvd.settings import reading
from resist_hvd.training import joining
from resist_hvd.training import program as train

STALLED = 120.0
"""Seconds after which a run counts as standing still."""

ROUNDS = 4
"""Rounds of a run, each of two local iterations, evaluated every other time and saved every time."""

METHODS: dict[str, dict[str, object]] = {
    "resist": {},
    "resist kept, warmed up": {"momentum": "keep", "warmup_epochs": 0.125},
    "local-sgd": {"method": "local-sgd"},
    "data-parallel": {"method": "data-parallel"},
    "ensemble": {"method": "ensemble", "min_blocks": 2},
    "federated-dropout": {"method": "federated-dropout"},
}


class Waits:
    """How long this rank has waited for others at a time, at most."""

    def __init__(self) -> None:
        self.longest = 0.0
        sound = Activity.waiting

        @contextlib.contextmanager
        def timed(activity: Activity, *arguments: Any, **named: Any) -> Iterator[None]:
            began = time.monotonic()
            with sound(activity, *arguments, **named):
                yield
            self.longest = max(self.longest, time.monotonic() - began)

        Activity.waiting = timed  # type: ignore[method-assign]


def flags(changes: dict[str, object], images: Path, folder: Path, ranks: int) -> list[str]:
    """Return the flags of a run."""
    values: dict[str, object] = {
        "data.name": "folder",
        "data.root": images,
        "data.batch_size": 4,
        "data.calibration_images": 64,
        "model.sections": "1,1,6,1",
        "model.width_factor": 0.125,
        "min_blocks": 3,
        "local_iterations": 2,
        "epochs": 2 * ROUNDS * 4 * ranks / 128,
        "evaluate_every": 2,
        "checkpoint_every": 1,
        "output": folder,
    }
    return [f"--{name}={value}" for name, value in {**values, **changes}.items()]


def models(folder: Path) -> dict[str, str]:
    """Return the digest of each exported model of a run."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("model.safetensors"))
    }


def make_runs() -> None:
    """Make all runs; every rank does."""
    count, root, images, results = int(sys.argv[1]), *map(Path, sys.argv[2:5])
    sys.modules["tensorboard"] = None  # type: ignore[assignment]  # its import takes longer than all that is tested here
    waits = Waits()
    world, _ = joining.joined("cpu", watchdog=0)
    train.joined = lambda _, watchdog: (world, watched(world, watchdog))  # type: ignore[attr-defined]
    expected: dict[str, dict[str, str]] = {}
    for number in range(count):
        name = list(METHODS)[(number // 2 + world.size) % len(METHODS)]
        folder = root / str(number)
        arguments = flags(METHODS[name], images, folder, world.size)
        faulthandler.dump_traceback_later(STALLED, repeat=True)
        began, waits.longest = time.monotonic(), 0.0
        if name in expected:
            train.run_training(reading.parse([*arguments, f"--max_rounds={1 + number % (ROUNDS - 1)}"]))
            arguments.append("--resume")
        train.run_training(reading.parse(arguments))
        seconds = time.monotonic() - began
        faulthandler.cancel_dump_traceback_later()
        longest = float(world.gather([waits.longest]).max())
        if world.is_first:
            found = models(folder)
            assert expected.setdefault(name, found) == found, f"run {number} ({name}) ends with another model"
            line = {"run": number, "method": name, "rounds": ROUNDS, "seconds": seconds, "longest_wait": longest}
            with results.open("a") as file:
                file.write(json.dumps(line) + "\n")
            shutil.rmtree(folder)
        else:
            expected[name] = {}
        world.barrier()


if __name__ == "__main__":
    starting.begin()
    failure.run(make_runs)
